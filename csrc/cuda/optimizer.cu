// optimizer.cu: the global gradient norm, AdamW, and the elementwise parts of Muon, each over one flat range of numbers.
//
// Bytes a number: the norm reads 4; AdamW reads 16 and writes 12; Muon's momentum reads 8 and writes 8, its update reads 8 and
// writes 4; normalize and linear_combination read 4 (8) and write 4. The norm is summed in double over chunks of fixed size. No
// atomics: the bits depend on the size only.
//
// naive: a thread per number. The norm: a block per chunk, whose threads take every 256th number in order, then the chunks in
// order by one thread.
// vector: a thread to four numbers, by loads and stores of 128 bits; a range that begins off the grid of 16 bytes begins with up
// to three single numbers. The same bytes and, but for the norm, bits. The norm: threads take every 256th four; the chunks' sums
// are added by a block, thread t those of t, t + 256, .., where naive has one thread wait for 7,600 numbers (124 M parameters)
// one after another.
#include "launch.cuh"
#include "vector.cuh"

namespace freedive::cuda {
namespace {

constexpr int64_t NORM_CHUNK = 16384;

__global__ void norm_chunk_kernel(double* partial, fd_tensor x) {
  FD_SHARED(double, shared, [WARPS]);
  const int64_t P = x.shape[0], begin = static_cast<int64_t>(blockIdx.x) * NORM_CHUNK,
                end = begin + NORM_CHUNK < P ? begin + NORM_CHUNK : P;
  double sum = 0.0;
  for (int64_t i = begin + threadIdx.x; i < end; i += THREADS)
    sum = fma(static_cast<double>(flat(x)[i]), static_cast<double>(flat(x)[i]), sum);
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void norm_total_kernel(fd_tensor out, const double* partial, int64_t chunks) {
  double total = 0.0;
  for (int64_t i = 0; i < chunks; ++i) total += partial[i];
  flat(out)[0] = static_cast<float>(sqrt(total));
}

size_t global_norm_workspace(const void* arguments, int32_t) {
  const auto& a = *static_cast<const fd_global_norm_args*>(arguments);
  return static_cast<size_t>(blocks_for(a.x.shape[0], NORM_CHUNK)) * sizeof(double);
}

void global_norm(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_global_norm_args*>(arguments);
  const int64_t chunks = blocks_for(a.x.shape[0], NORM_CHUNK);
  launch(ctx, "global_norm", chunks, THREADS, norm_chunk_kernel, scratch<double>(ctx), a.x);
  launch(ctx, "global_norm", 1, 1, norm_total_kernel, a.out, scratch<double>(ctx), chunks);
}

__device__ bool is_finite(float x) { return x - x == 0.0f; }  // inf - inf is not 0, nor is NaN
__device__ float clip_factor(float norm, float most) { return most > 0.0f && norm > most ? most / norm : 1.0f; }

// One number each, by naive and vector alike.
struct Adamw {
  float lr, beta1, beta2, eps, decay, clip, bias1, bias2;
  __device__ Adamw(const float* h, float norm)
      : lr(h[0]), beta1(h[1]), beta2(h[2]), eps(h[3]), decay(h[4]), clip(clip_factor(norm, h[5])), bias1(h[6]), bias2(h[7]) {}
  __device__ float first(float m, float grad) const { return beta1 * m + (1.0f - beta1) * (grad * clip); }
  __device__ float second(float v, float grad) const {
    const float g = grad * clip;
    return beta2 * v + (1.0f - beta2) * g * g;
  }
  __device__ float step(float old, float m, float v) const {
    return old - lr * (m / bias1 / (sqrtf(v / bias2) + eps) + decay * old);
  }
};
struct Momentum {
  float b, clip;
  bool nesterov;
  __device__ Momentum(const float* h, float norm) : b(h[1]), clip(clip_factor(norm, h[4])), nesterov(h[2] != 0.0f) {}
  __device__ float moved(float m, float grad) const { return b * m + (1.0f - b) * (grad * clip); }
  __device__ float direction(float m_new, float grad) const { return nesterov ? b * m_new + (1.0f - b) * (grad * clip) : m_new; }
};
__device__ float muon_step(const float* h, float old, float x, float scale) { return old - h[0] * (scale * x + h[3] * old); }
__device__ float inverse_norm(float size, float least) { return 1.0f / (size > least ? size : least); }

__global__ void adamw_kernel(fd_tensor param, fd_tensor grad, fd_tensor m, fd_tensor v, fd_tensor norm, fd_tensor hyper) {
  const int64_t i = global_thread();
  const float size = flat(norm)[0];
  if (i >= param.shape[0] || !is_finite(size)) return;
  const Adamw of(flat(hyper), size);
  const float g = flat(grad)[i], m_new = of.first(flat(m)[i], g), v_new = of.second(flat(v)[i], g);
  flat(m)[i] = m_new, flat(v)[i] = v_new;
  flat(param)[i] = of.step(flat(param)[i], m_new, v_new);
}

__global__ void muon_momentum_kernel(fd_tensor out, fd_tensor m, fd_tensor grad, fd_tensor norm, fd_tensor hyper) {
  const int64_t i = global_thread();
  if (i >= m.shape[0]) return;
  const float size = flat(norm)[0];
  if (!is_finite(size)) {
    flat(out)[i] = 0.0f;
    return;
  }
  const Momentum of(flat(hyper), size);
  const float g = flat(grad)[i], m_new = of.moved(flat(m)[i], g);
  flat(m)[i] = m_new;
  flat(out)[i] = of.direction(m_new, g);
}

__global__ void muon_update_kernel(fd_tensor param, fd_tensor x, fd_tensor norm, fd_tensor hyper, float scale) {
  const int64_t i = global_thread();
  if (i >= param.shape[0] || !is_finite(flat(norm)[0])) return;
  flat(param)[i] = muon_step(flat(hyper), flat(param)[i], flat(x)[i], scale);
}

__global__ void normalize_kernel(fd_tensor out, fd_tensor x, fd_tensor norm, float least) {
  const int64_t i = global_thread();
  if (i >= x.shape[0]) return;
  flat(out)[i] = flat(x)[i] * inverse_norm(flat(norm)[0], least);
}

__global__ void linear_combination_kernel(fd_tensor out, fd_tensor x, fd_tensor y, float alpha, float beta) {
  const int64_t i = global_thread();
  if (i >= x.shape[0]) return;
  const float first = alpha * flat(x)[i];
  flat(out)[i] = y.data != nullptr ? fmaf(beta, flat(y)[i], first) : first;
}

void adamw(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_adamw_args*>(arguments);
  launch_threads(ctx, "adamw", a.param.shape[0], adamw_kernel, a.param, a.grad, a.m, a.v, a.norm, a.hyper);
}
void muon_momentum(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_muon_momentum_args*>(arguments);
  launch_threads(ctx, "muon_momentum", a.m.shape[0], muon_momentum_kernel, a.out, a.m, a.grad, a.norm, a.hyper);
}
void muon_update(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_muon_update_args*>(arguments);
  launch_threads(ctx, "muon_update", a.param.shape[0], muon_update_kernel, a.param, a.x, a.norm, a.hyper,
                 static_cast<float>(a.scale));
}
void normalize(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_normalize_args*>(arguments);
  launch_threads(ctx, "normalize", a.x.shape[0], normalize_kernel, a.out, a.x, a.norm, static_cast<float>(a.eps));
}
void linear_combination(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_linear_combination_args*>(arguments);
  launch_threads(ctx, "linear_combination", a.x.shape[0], linear_combination_kernel, a.out, a.x, a.y, static_cast<float>(a.alpha),
                 static_cast<float>(a.beta));
}

// ---- vector ----------------------------------------------------------------------------------------------------------------
__global__ void norm_chunk_vector_kernel(double* partial, fd_tensor x) {
  FD_SHARED(double, shared, [WARPS]);
  const int64_t P = x.shape[0], begin = static_cast<int64_t>(blockIdx.x) * NORM_CHUNK,
                end = begin + NORM_CHUNK < P ? begin + NORM_CHUNK : P;
  double sum = 0.0;
#pragma unroll 4
  for (int64_t i = begin + threadIdx.x * VECTOR; i < end; i += THREADS * VECTOR) {
    const Four v = load4(flat(x) + i, end - i);
#pragma unroll
    for (int c = 0; c < VECTOR; ++c) sum = fma(static_cast<double>(v.at[c]), static_cast<double>(v.at[c]), sum);
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void norm_total_vector_kernel(fd_tensor out, const double* partial, int64_t chunks) {
  FD_SHARED(double, shared, [WARPS]);
  double total = 0.0;
  for (int64_t i = threadIdx.x; i < chunks; i += THREADS) total += partial[i];
  total = block_sum(total, shared);
  if (threadIdx.x == 0) flat(out)[0] = static_cast<float>(sqrt(total));
}

__global__ void adamw_vector_kernel(fd_tensor param, fd_tensor grad, fd_tensor m, fd_tensor v, fd_tensor norm, fd_tensor hyper,
                                    int skip) {
  const auto [i, left] = piece_of(param.shape[0], skip);
  const float size = flat(norm)[0];
  if (left <= 0 || !is_finite(size)) return;
  const Adamw of(flat(hyper), size);
  const Four g = load4(flat(grad) + i, left);
  const Four m_new = map4([&](float old, float d) { return of.first(old, d); }, load4(flat(m) + i, left), g);
  const Four v_new = map4([&](float old, float d) { return of.second(old, d); }, load4(flat(v) + i, left), g);
  const Four moved =
      map4([&](float old, float a, float b) { return of.step(old, a, b); }, load4(flat(param) + i, left), m_new, v_new);
  store4(flat(m) + i, m_new, left);
  store4(flat(v) + i, v_new, left);
  store4(flat(param) + i, moved, left);
}

__global__ void muon_momentum_vector_kernel(fd_tensor out, fd_tensor m, fd_tensor grad, fd_tensor norm, fd_tensor hyper,
                                            int skip) {
  const auto [i, left] = piece_of(m.shape[0], skip);
  const float size = flat(norm)[0];
  if (left <= 0) return;
  if (!is_finite(size)) return store4(flat(out) + i, Four{}, left);
  const Momentum of(flat(hyper), size);
  const Four g = load4(flat(grad) + i, left),
             m_new = map4([&](float old, float d) { return of.moved(old, d); }, load4(flat(m) + i, left), g);
  store4(flat(m) + i, m_new, left);
  store4(flat(out) + i, map4([&](float a, float d) { return of.direction(a, d); }, m_new, g), left);
}

__global__ void muon_update_vector_kernel(fd_tensor param, fd_tensor x, fd_tensor norm, fd_tensor hyper, float scale, int skip) {
  const auto [i, left] = piece_of(param.shape[0], skip);
  if (left <= 0 || !is_finite(flat(norm)[0])) return;
  const float* h = flat(hyper);
  store4(flat(param) + i,
         map4([&](float old, float v) { return muon_step(h, old, v, scale); }, load4(flat(param) + i, left),
              load4(flat(x) + i, left)),
         left);
}

__global__ void normalize_vector_kernel(fd_tensor out, fd_tensor x, fd_tensor norm, float least, int skip) {
  const auto [i, left] = piece_of(x.shape[0], skip);
  if (left <= 0) return;
  const float by = inverse_norm(flat(norm)[0], least);
  store4(flat(out) + i, map4([&](float v) { return v * by; }, load4(flat(x) + i, left)), left);
}

__global__ void linear_combination_vector_kernel(fd_tensor out, fd_tensor x, fd_tensor y, float alpha, float beta, int skip) {
  const auto [i, left] = piece_of(x.shape[0], skip);
  if (left <= 0) return;
  Four sum = map4([&](float v) { return alpha * v; }, load4(flat(x) + i, left));
  if (y.data != nullptr) sum = map4([&](float v, float first) { return fmaf(beta, v, first); }, load4(flat(y) + i, left), sum);
  store4(flat(out) + i, sum, left);
}

void global_norm_vector(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_global_norm_args*>(arguments);
  const int64_t chunks = blocks_for(a.x.shape[0], NORM_CHUNK);
  launch(ctx, "global_norm", chunks, THREADS, norm_chunk_vector_kernel, scratch<double>(ctx), a.x);
  launch(ctx, "global_norm", 1, THREADS, norm_total_vector_kernel, a.out, scratch<double>(ctx), chunks);
}
void adamw_vector(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_adamw_args*>(arguments);
  const int skip = skip_of(a.param);
  launch_threads(ctx, "adamw", pieces_of(a.param.shape[0], skip), adamw_vector_kernel, a.param, a.grad, a.m, a.v, a.norm, a.hyper,
                 skip);
}
void muon_momentum_vector(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_muon_momentum_args*>(arguments);
  const int skip = skip_of(a.m);
  launch_threads(ctx, "muon_momentum", pieces_of(a.m.shape[0], skip), muon_momentum_vector_kernel, a.out, a.m, a.grad, a.norm,
                 a.hyper, skip);
}
void muon_update_vector(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_muon_update_args*>(arguments);
  const int skip = skip_of(a.param);
  launch_threads(ctx, "muon_update", pieces_of(a.param.shape[0], skip), muon_update_vector_kernel, a.param, a.x, a.norm, a.hyper,
                 static_cast<float>(a.scale), skip);
}
void normalize_vector(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_normalize_args*>(arguments);
  const int skip = skip_of(a.out);
  launch_threads(ctx, "normalize", pieces_of(a.x.shape[0], skip), normalize_vector_kernel, a.out, a.x, a.norm,
                 static_cast<float>(a.eps), skip);
}
void linear_combination_vector(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_linear_combination_args*>(arguments);
  const int skip = skip_of(a.out);
  launch_threads(ctx, "linear_combination", pieces_of(a.x.shape[0], skip), linear_combination_vector_kernel, a.out, a.x, a.y,
                 static_cast<float>(a.alpha), static_cast<float>(a.beta), skip);
}

}  // namespace

FD_VARIANT_LIST(optimizer, {"global_norm", "naive", 0, global_norm, global_norm_workspace},
                {"global_norm", "vector", 1, global_norm_vector, global_norm_workspace}, {"adamw", "naive", 0, adamw, nullptr},
                {"adamw", "vector", 1, adamw_vector, nullptr}, {"muon_momentum", "naive", 0, muon_momentum, nullptr},
                {"muon_momentum", "vector", 1, muon_momentum_vector, nullptr}, {"muon_update", "naive", 0, muon_update, nullptr},
                {"muon_update", "vector", 1, muon_update_vector, nullptr}, {"normalize", "naive", 0, normalize, nullptr},
                {"normalize", "vector", 1, normalize_vector, nullptr},
                {"linear_combination", "naive", 0, linear_combination, nullptr},
                {"linear_combination", "vector", 1, linear_combination_vector, nullptr})

}  // namespace freedive::cuda
