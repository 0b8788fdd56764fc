// optimizer.cu: the global gradient norm, AdamW, and the elementwise parts of Muon, each over one flat range of numbers.
//
// The norm reads 4 bytes a parameter, AdamW reads 16 and writes 12. The norm is summed in double: a block per chunk of fixed size, whose
// threads take every 256th number in order, then the chunks in order by one thread. No atomics: the bits depend on the size only.
#include "launch.cuh"

namespace freedive::cuda {
namespace {

constexpr int64_t NORM_CHUNK = 16384;

__global__ void norm_chunk_kernel(double* partial, fd_tensor x) {
  FD_SHARED(double, sums, [WARPS]);
  const int64_t P = x.shape[0], begin = static_cast<int64_t>(blockIdx.x) * NORM_CHUNK, end = begin + NORM_CHUNK < P ? begin + NORM_CHUNK : P;
  double sum = 0.0;
  for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) sum = fma(static_cast<double>(flat(x)[i]), static_cast<double>(flat(x)[i]), sum);
  sum = warp_sum(sum);
  if (lane_id() == 0) sums[warp_of_block()] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total = 0.0;
  for (int w = 0; w < WARPS; ++w) total += sums[w];
  partial[blockIdx.x] = total;
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

__global__ void adamw_kernel(fd_tensor param, fd_tensor grad, fd_tensor m, fd_tensor v, fd_tensor norm, fd_tensor hyper) {
  const int64_t i = global_thread();
  const float *h = flat(hyper), size = flat(norm)[0];
  if (i >= param.shape[0] || !is_finite(size)) return;
  const float lr = h[0], beta1 = h[1], beta2 = h[2], eps = h[3], decay = h[4];
  const float g = flat(grad)[i] * clip_factor(size, h[5]), old = flat(param)[i];
  const float m_new = beta1 * flat(m)[i] + (1.0f - beta1) * g, v_new = beta2 * flat(v)[i] + (1.0f - beta2) * g * g;
  flat(m)[i] = m_new, flat(v)[i] = v_new;
  flat(param)[i] = old - lr * (m_new / h[6] / (sqrtf(v_new / h[7]) + eps) + decay * old);
}

__global__ void muon_momentum_kernel(fd_tensor out, fd_tensor m, fd_tensor grad, fd_tensor norm, fd_tensor hyper) {
  const int64_t i = global_thread();
  if (i >= m.shape[0]) return;
  const float *h = flat(hyper), size = flat(norm)[0], b = h[1];
  if (!is_finite(size)) {
    flat(out)[i] = 0.0f;
    return;
  }
  const float g = flat(grad)[i] * clip_factor(size, h[4]), m_new = b * flat(m)[i] + (1.0f - b) * g;
  flat(m)[i] = m_new;
  flat(out)[i] = h[2] != 0.0f ? b * m_new + (1.0f - b) * g : m_new;
}

__global__ void muon_update_kernel(fd_tensor param, fd_tensor x, fd_tensor norm, fd_tensor hyper, float scale) {
  const int64_t i = global_thread();
  if (i >= param.shape[0] || !is_finite(flat(norm)[0])) return;
  const float* h = flat(hyper);
  const float old = flat(param)[i];
  flat(param)[i] = old - h[0] * (scale * flat(x)[i] + h[3] * old);
}

__global__ void normalize_kernel(fd_tensor out, fd_tensor x, fd_tensor norm, float least) {
  const int64_t i = global_thread();
  if (i >= x.shape[0]) return;
  const float size = flat(norm)[0];
  flat(out)[i] = flat(x)[i] * (1.0f / (size > least ? size : least));
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
  launch_threads(ctx, "muon_update", a.param.shape[0], muon_update_kernel, a.param, a.x, a.norm, a.hyper, static_cast<float>(a.scale));
}
void normalize(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_normalize_args*>(arguments);
  launch_threads(ctx, "normalize", a.x.shape[0], normalize_kernel, a.out, a.x, a.norm, static_cast<float>(a.eps));
}
void linear_combination(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_linear_combination_args*>(arguments);
  launch_threads(ctx, "linear_combination", a.x.shape[0], linear_combination_kernel, a.out, a.x, a.y, static_cast<float>(a.alpha), static_cast<float>(a.beta));
}

}  // namespace

FD_VARIANT_LIST(optimizer, {"global_norm", "naive", 0, global_norm, global_norm_workspace}, {"adamw", "naive", 0, adamw, nullptr},
                {"muon_momentum", "naive", 0, muon_momentum, nullptr}, {"muon_update", "naive", 0, muon_update, nullptr},
                {"normalize", "naive", 0, normalize, nullptr}, {"linear_combination", "naive", 0, linear_combination, nullptr})

}  // namespace freedive::cuda
