// norm.cu: rmsnorm and layernorm, forward and backward.
//
// naive: one warp per row: lane l sums elements l, l + 32, ... in order and in double, then a butterfly, so a sum depends on the
// row's length only. Forward reads D floats (from memory once, again from cache), writes D + 1 (D + 2). Gradients of the weights
// are a second kernel: a thread per column walks down the rows in order, which reads everything once more; it runs first, since
// dx may overwrite dout.
//
// vector: 16, 32, .. 256 lanes to a row, by its length, each with up to 16 (32) of its numbers in registers, four by four.
//   forward: reads a row once and writes it once, 8 bytes a number (6 where out is bfloat16); naive asks the caches for it once (layernorm: twice) more.
//   backward: one pass. While dx is made, each lane keeps the sums of dweight (and dbias) of its columns over the rows of a
//   chunk; a block's sums go to the workspace, a second kernel adds the chunks in order, in double. 12 bytes a number (16 when it
//   accumulates) where naive moves 20, and the walk of one thread down all rows, which takes N times the latency of memory
//   whatever its speed, is gone.
//   Chunks follow from the number of rows, lanes from D: bits depend on sizes only. Rows of more than 8192 numbers are left to
//   naive.
#include <algorithm>

#include "launch.cuh"
#include "vector.cuh"

namespace freedive::cuda {
namespace {

__global__ void rmsnorm_forward_kernel(fd_tensor out, fd_tensor rstd, fd_tensor x, fd_tensor weight, double eps) {
  const int64_t H = x.shape[1], D = x.shape[2], i = global_warp();
  if (i >= x.shape[0] * H) return;  // whole warps leave together
  const float* from = row(x, i / H, i % H);
  const int64_t to = row_at(out, i / H, i % H);
  double sum = 0.0;
  for (int64_t d = lane_id(); d < D; d += WARP) sum = fma(static_cast<double>(from[d]), static_cast<double>(from[d]), sum);
  const float r = static_cast<float>(1.0 / sqrt(warp_sum(sum) / static_cast<double>(D) + eps));
  for (int64_t d = lane_id(); d < D; d += WARP) set_number(out, to + d, from[d] * r * flat(weight)[d]);
  if (lane_id() == 0) row(rstd, i / H)[i % H] = r;
}

__global__ void rmsnorm_backward_kernel(fd_tensor dx, fd_tensor dout, fd_tensor x, fd_tensor weight, fd_tensor rstd,
                                        int64_t accumulate) {
  const int64_t H = x.shape[1], D = x.shape[2], i = global_warp();
  if (i >= x.shape[0] * H) return;
  const float *in = row(x, i / H, i % H), *d_out = row(dout, i / H, i % H), *w = flat(weight);
  float* to = row(dx, i / H, i % H);
  double sum = 0.0;
  for (int64_t d = lane_id(); d < D; d += WARP) sum = fma(static_cast<double>(d_out[d] * w[d]), static_cast<double>(in[d]), sum);
  const float r = row(rstd, i / H)[i % H];
  const float pull = static_cast<float>(warp_sum(sum) / static_cast<double>(D)) * r * r;
  for (int64_t d = lane_id(); d < D; d += WARP) {
    const float g = r * (d_out[d] * w[d] - in[d] * pull);
    to[d] = accumulate != 0 ? to[d] + g : g;
  }
}

__global__ void rmsnorm_weight_kernel(fd_tensor dweight, fd_tensor dout, fd_tensor x, fd_tensor rstd) {
  const int64_t N = x.shape[0], H = x.shape[1], d = global_thread();
  if (d >= x.shape[2]) return;
  double sum = 0.0;
  for (int64_t n = 0; n < N; ++n)
    for (int64_t h = 0; h < H; ++h) sum += static_cast<double>(row(dout, n, h)[d] * row(x, n, h)[d] * row(rstd, n)[h]);
  flat(dweight)[d] += static_cast<float>(sum);
}

__global__ void layernorm_forward_kernel(fd_tensor out, fd_tensor mean, fd_tensor rstd, fd_tensor x, fd_tensor weight,
                                         fd_tensor bias, double eps) {
  const int64_t C = x.shape[1], n = global_warp();
  if (n >= x.shape[0]) return;
  const float* from = row(x, n);
  double sum = 0.0, squares = 0.0;
  for (int64_t c = lane_id(); c < C; c += WARP) sum += static_cast<double>(from[c]);
  const double mu = warp_sum(sum) / static_cast<double>(C);
  for (int64_t c = lane_id(); c < C; c += WARP) {
    const double d = static_cast<double>(from[c]) - mu;
    squares = fma(d, d, squares);
  }
  const float m = static_cast<float>(mu), r = static_cast<float>(1.0 / sqrt(warp_sum(squares) / static_cast<double>(C) + eps));
  for (int64_t c = lane_id(); c < C; c += WARP)
    set_number(out, row_at(out, n) + c, fmaf((from[c] - m) * r, flat(weight)[c], bias.data != nullptr ? flat(bias)[c] : 0.0f));
  if (lane_id() == 0) flat(mean)[n] = m, flat(rstd)[n] = r;
}

__global__ void layernorm_backward_kernel(fd_tensor dx, fd_tensor dout, fd_tensor x, fd_tensor weight, fd_tensor mean,
                                          fd_tensor rstd, int64_t accumulate) {
  const int64_t C = x.shape[1], n = global_warp();
  if (n >= x.shape[0]) return;
  const float *in = row(x, n), *d_out = row(dout, n), *w = flat(weight), m = flat(mean)[n], r = flat(rstd)[n];
  float* to = row(dx, n);
  double sum = 0.0, along = 0.0;
  for (int64_t c = lane_id(); c < C; c += WARP) {
    const double g = static_cast<double>(d_out[c] * w[c]);
    sum += g;
    along = fma(g, static_cast<double>((in[c] - m) * r), along);
  }
  const float mean_g = static_cast<float>(warp_sum(sum) / static_cast<double>(C));
  const float mean_along = static_cast<float>(warp_sum(along) / static_cast<double>(C));
  for (int64_t c = lane_id(); c < C; c += WARP) {
    const float g = r * (d_out[c] * w[c] - mean_g - (in[c] - m) * r * mean_along);
    to[c] = accumulate != 0 ? to[c] + g : g;
  }
}

__global__ void layernorm_weight_kernel(fd_tensor dweight, fd_tensor dbias, fd_tensor dout, fd_tensor x, fd_tensor mean,
                                        fd_tensor rstd) {
  const int64_t N = x.shape[0], c = global_thread();
  if (c >= x.shape[1]) return;
  double weights = 0.0, biases = 0.0;
  for (int64_t n = 0; n < N; ++n) {
    const float d = row(dout, n)[c];
    weights += static_cast<double>(d * (row(x, n)[c] - flat(mean)[n]) * flat(rstd)[n]);
    biases += static_cast<double>(d);
  }
  flat(dweight)[c] += static_cast<float>(weights);
  if (dbias.data != nullptr) flat(dbias)[c] += static_cast<float>(biases);
}

void rmsnorm_forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_rmsnorm_forward_args*>(arguments);
  launch_warps(ctx, "rmsnorm_forward", a.x.shape[0] * a.x.shape[1], rmsnorm_forward_kernel, a.out, a.rstd, a.x, a.weight, a.eps);
}
void rmsnorm_backward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_rmsnorm_backward_args*>(arguments);
  launch(ctx, "rmsnorm_backward", blocks_for(a.x.shape[2], WARP), WARP, rmsnorm_weight_kernel, a.dweight, a.dout, a.x, a.rstd);
  launch_warps(ctx, "rmsnorm_backward", a.x.shape[0] * a.x.shape[1], rmsnorm_backward_kernel, a.dx, a.dout, a.x, a.weight, a.rstd,
               a.accumulate);
}
void layernorm_forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_layernorm_forward_args*>(arguments);
  launch_warps(ctx, "layernorm_forward", a.x.shape[0], layernorm_forward_kernel, a.out, a.mean, a.rstd, a.x, a.weight, a.bias,
               a.eps);
}
void layernorm_backward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_layernorm_backward_args*>(arguments);
  launch(ctx, "layernorm_backward", blocks_for(a.x.shape[1], WARP), WARP, layernorm_weight_kernel, a.dweight, a.dbias, a.dout,
         a.x, a.mean, a.rstd);
  launch_warps(ctx, "layernorm_backward", a.x.shape[0], layernorm_backward_kernel, a.dx, a.dout, a.x, a.weight, a.mean, a.rstd,
               a.accumulate);
}

// ---- vector ----------------------------------------------------------------------------------------------------------------
constexpr int64_t LONGEST_ROW = 8192, CHUNK_ROWS = 16, MOST_CHUNKS = 1024;

// layernorm is the case H = 1; rmsnorm has neither mean nor bias. Statistics are [N, H].
struct NormForward {
  fd_tensor out, mean, rstd, x, weight, bias;
  int64_t N, H, D;
  double eps;
};
struct NormBackward {
  fd_tensor dx, dweight, dbias, dout, x, weight, mean, rstd;
  int64_t N, H, D, accumulate;
};
#ifdef FREEDIVE_CUDA_EMULATION
void visit_pointers(const NormForward& a, int argument) {
  emu::visit_parts(argument, a.out, a.mean, a.rstd, a.x, a.weight, a.bias);
}
void visit_pointers(const NormBackward& a, int argument) {
  emu::visit_parts(argument, a.dx, a.dweight, a.dbias, a.dout, a.x, a.weight, a.mean, a.rstd);
}
#endif

// The sum over the LANES threads that share a row, the same bits in all of them. Every thread of the block must come.
template <int LANES>
__device__ double row_sum(double x, double* shared) {
  for (int step = (LANES < WARP ? LANES : WARP) / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
  if constexpr (LANES > WARP) {
    constexpr int OF_A_ROW = LANES / WARP;
    if (lane_id() == 0) shared[warp_of_block()] = x;
    __syncthreads();
    x = 0.0;
    for (int w = 0; w < OF_A_ROW; ++w) x += shared[warp_of_block() / OF_A_ROW * OF_A_ROW + w];
    __syncthreads();  // before the next sum overwrites it
  }
  return x;
}

template <int LANES, int FOURS, bool LAYER>
__global__ void vector_forward_kernel(NormForward a) {
  FD_SHARED(double, shared, [WARPS]);
  constexpr int SLOTS = THREADS / LANES;
  const int lane = static_cast<int>(threadIdx.x) % LANES, slot = static_cast<int>(threadIdx.x) / LANES;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * SLOTS + slot;
  const bool mine = i < a.N * a.H;  // the others come along: sums are everybody's
  const int64_t n = mine ? i / a.H : 0, h = mine ? i % a.H : 0, D = mine ? a.D : 0;
  const float* from = row(a.x, n, h);
  Four x[FOURS];
  double sum = 0.0, mu = 0.0;
#pragma unroll
  for (int q = 0; q < FOURS; ++q) {
    const int64_t d = (lane + q * LANES) * VECTOR;
    x[q] = load4(from + d, D - d);
#pragma unroll
    for (int c = 0; c < VECTOR; ++c)
      sum = LAYER ? sum + static_cast<double>(x[q].at[c])
                  : fma(static_cast<double>(x[q].at[c]), static_cast<double>(x[q].at[c]), sum);
  }
  sum = row_sum<LANES>(sum, shared);
  if constexpr (LAYER) {
    mu = sum / static_cast<double>(a.D);
    sum = 0.0;
#pragma unroll
    for (int q = 0; q < FOURS; ++q)
#pragma unroll
      for (int c = 0; c < VECTOR; ++c) {
        const double off = (lane + q * LANES) * VECTOR + c < D ? static_cast<double>(x[q].at[c]) - mu : 0.0;
        sum = fma(off, off, sum);
      }
    sum = row_sum<LANES>(sum, shared);
  }
  const float m = static_cast<float>(mu), r = static_cast<float>(1.0 / sqrt(sum / static_cast<double>(a.D) + a.eps));
  const int64_t to = row_at(a.out, n, h);
#pragma unroll
  for (int q = 0; q < FOURS; ++q) {
    const int64_t d = (lane + q * LANES) * VECTOR;
    const Four w = load4(flat(a.weight) + d, D - d),
               b = LAYER && a.bias.data != nullptr ? load4(flat(a.bias) + d, D - d) : Four{};
    store4(a.out, to + d,
           map4([&](float v, float weight, float bias) { return LAYER ? fmaf((v - m) * r, weight, bias) : v * r * weight; }, x[q],
                w, b),
           D - d);
  }
  if (!mine || lane != 0) return;
  row(a.rstd, n)[h] = r;
  if (LAYER) row(a.mean, n)[h] = m;
}

// How the rows of a backward pass, N tokens of H heads, are cut: `chunks` chunks of `each` rows, the last perhaps short. `each` follows
// from powers of two, which no batch is padded across (Decoder::padded_rows): rows without a derivative behind the others change no bit.
struct Chunks {
  int64_t chunks, each, stride;  // stride: floats from one chunk's sums to the next one's (of one gradient)
  __host__ __device__ Chunks(int64_t N, int64_t H, int64_t D) {
    int64_t most = 1;
    while (most < N) most *= 2;
    each = CHUNK_ROWS;
    while (most * H > each * MOST_CHUNKS) each *= 2;
    chunks = (N * H + each - 1) / each;
    stride = (D + VECTOR - 1) / VECTOR * VECTOR;
  }
};

// A block to a chunk. Partial sums: [chunk, dweight and dbias, column].
template <int LANES, int FOURS, bool LAYER>
__global__ void vector_backward_kernel(NormBackward a, float* partial) {
  constexpr int SLOTS = THREADS / LANES, COLUMNS = SLOTS > 1 ? LANES * FOURS * VECTOR : 1;
  FD_SHARED(double, shared, [WARPS]);
  FD_SHARED(float, weights, [COLUMNS]);
  FD_SHARED(float, biases, [LAYER ? COLUMNS : 1]);
  const int lane = static_cast<int>(threadIdx.x) % LANES, slot = static_cast<int>(threadIdx.x) / LANES;
  const Chunks cut(a.N, a.H, a.D);
  const int64_t begin = blockIdx.x * cut.each, end = begin + cut.each < a.N * a.H ? begin + cut.each : a.N * a.H;
  Four dw[FOURS] = {}, db[LAYER ? FOURS : 1] = {};
  for (int64_t first = begin; first < end; first += SLOTS) {
    const int64_t i = first + slot;
    const bool mine = i < end;
    const int64_t n = mine ? i / a.H : 0, h = mine ? i % a.H : 0, D = mine ? a.D : 0;
    const float *in = row(a.x, n, h), *d_out = row(a.dout, n, h), r = row(a.rstd, n)[h], m = LAYER ? row(a.mean, n)[h] : 0.0f;
    Four x[FOURS], g[FOURS];  // layernorm: x is (x - mean) rstd
    double sum = 0.0, along = 0.0;
#pragma unroll
    for (int q = 0; q < FOURS; ++q) {
      const int64_t d = (lane + q * LANES) * VECTOR;
      x[q] = load4(in + d, D - d), g[q] = load4(d_out + d, D - d);
      const Four w = load4(flat(a.weight) + d, D - d);
#pragma unroll
      for (int c = 0; c < VECTOR; ++c) {
        const float dy = g[q].at[c];
        if constexpr (LAYER) {
          x[q].at[c] = (x[q].at[c] - m) * r;
          dw[q].at[c] += dy * x[q].at[c];
          db[q].at[c] += dy;
        } else {
          dw[q].at[c] += dy * x[q].at[c] * r;
        }
        g[q].at[c] = dy * w.at[c];
        if (LAYER) sum += static_cast<double>(g[q].at[c]);
        along = fma(static_cast<double>(g[q].at[c]), static_cast<double>(x[q].at[c]), along);  // nothing beyond D: g is 0 there
      }
    }
    along = row_sum<LANES>(along, shared);
    if (LAYER) sum = row_sum<LANES>(sum, shared);
    const float pull = static_cast<float>(along / static_cast<double>(a.D)) * (LAYER ? 1.0f : r * r);
    const float mean_g = static_cast<float>(sum / static_cast<double>(a.D));
    float* to = row(a.dx, n, h);
#pragma unroll
    for (int q = 0; q < FOURS; ++q) {
      const int64_t d = (lane + q * LANES) * VECTOR;
      Four dx = map4([&](float gw, float along_x) { return r * (gw - mean_g - along_x * pull); }, g[q], x[q]);
      if (a.accumulate != 0) dx = map4([](float old, float more) { return old + more; }, load4(to + d, D - d), dx);
      store4(to + d, dx, D - d);
    }
  }
  // The block's sums: slot after slot adds its own, the last one to memory.
  float* to = partial + static_cast<int64_t>(blockIdx.x) * cut.stride * (LAYER ? 2 : 1);
  for (int s = 0; s < SLOTS; ++s) {
    if (slot == s) {
#pragma unroll
      for (int q = 0; q < FOURS; ++q) {
        const int d = (lane + q * LANES) * VECTOR;
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) {
          if (s > 0) dw[q].at[c] += weights[d + c];
          if (s + 1 < SLOTS) weights[d + c] = dw[q].at[c];
          if constexpr (LAYER) {
            if (s > 0) db[q].at[c] += biases[d + c];
            if (s + 1 < SLOTS) biases[d + c] = db[q].at[c];
          }
        }
        if (s + 1 < SLOTS) continue;
        store4(to + d, dw[q], a.D - d);
        if constexpr (LAYER) store4(to + cut.stride + d, db[q], a.D - d);
      }
    }
    __syncthreads();
  }
}

// Adds up the chunks' sums: 32 columns to a block, warp w takes chunks w, w + 8, .. in order, then the warps in order.
__global__ void chunk_sum_kernel(fd_tensor dweight, fd_tensor dbias, const float* partial, int64_t chunks, int64_t stride,
                                 int64_t gradients) {
  FD_SHARED(double, sums, [WARPS][WARP]);
  const int64_t D = dweight.shape[0], c = static_cast<int64_t>(blockIdx.x / gradients) * WARP + lane_id(),
                which = blockIdx.x % gradients;
  double sum = 0.0;
  if (c < D) {
#pragma unroll 8
    for (int64_t k = warp_of_block(); k < chunks; k += WARPS)
      sum += static_cast<double>(partial[(k * gradients + which) * stride + c]);
  }
  sums[warp_of_block()][lane_id()] = sum;
  __syncthreads();
  if (warp_of_block() != 0 || c >= D) return;
  sum = 0.0;
  for (int w = 0; w < WARPS; ++w) sum += sums[w][lane_id()];
  float* to = which == 0 ? flat(dweight) : flat(dbias);
  if (to != nullptr) to[c] += static_cast<float>(sum);
}

template <bool LAYER>
void vector_forward(fd_context* ctx, const char* op, const NormForward& a) {
  const auto go = [&](auto* kernel, int lanes) { launch(ctx, op, blocks_for(a.N * a.H, THREADS / lanes), THREADS, kernel, a); };
  if (a.D <= 64) return go(vector_forward_kernel<16, 1, LAYER>, 16);
  if (a.D <= 128) return go(vector_forward_kernel<32, 1, LAYER>, 32);
  if (a.D <= 512) return go(vector_forward_kernel<32, 4, LAYER>, 32);
  if (a.D <= 1024) return go(vector_forward_kernel<64, 4, LAYER>, 64);
  if (a.D <= 2048) return go(vector_forward_kernel<128, 4, LAYER>, 128);
  if (a.D <= 4096) return go(vector_forward_kernel<256, 4, LAYER>, 256);
  go(vector_forward_kernel<256, 8, LAYER>, 256);
}

template <bool LAYER>
void vector_backward(fd_context* ctx, const char* op, const NormBackward& a) {
  const Chunks cut(a.N, a.H, a.D);
  float* partial = scratch(ctx);
  const auto go = [&](auto* kernel) { launch(ctx, op, cut.chunks, THREADS, kernel, a, partial); };
  if (a.D <= 64)
    go(vector_backward_kernel<16, 1, LAYER>);
  else if (a.D <= 128)
    go(vector_backward_kernel<32, 1, LAYER>);
  else if (a.D <= 512)
    go(vector_backward_kernel<32, 4, LAYER>);
  else if (a.D <= 1024)
    go(vector_backward_kernel<64, 4, LAYER>);
  else if (a.D <= 2048)
    go(vector_backward_kernel<128, 4, LAYER>);
  else if (a.D <= 4096)
    go(vector_backward_kernel<256, 4, LAYER>);
  else
    go(vector_backward_kernel<256, 8, LAYER>);
  if (cut.chunks == 0) return;
  const int64_t gradients = LAYER ? 2 : 1;
  launch(ctx, op, blocks_for(a.D, WARP) * gradients, THREADS, chunk_sum_kernel, a.dweight, a.dbias, partial, cut.chunks,
         cut.stride, gradients);
}

// Of so many rows or fewer, which may be more chunks.
size_t chunk_bytes(int64_t rows, int64_t D, int64_t gradients) {
  const int64_t most = std::min(blocks_for(rows, CHUNK_ROWS), MOST_CHUNKS);
  return static_cast<size_t>(most * Chunks(rows, 1, D).stride * gradients) * sizeof(float);
}
size_t rmsnorm_workspace(const void* arguments, int32_t) {
  const auto& a = *static_cast<const fd_rmsnorm_backward_args*>(arguments);
  return chunk_bytes(a.x.shape[0] * a.x.shape[1], a.x.shape[2], 1);
}
size_t layernorm_workspace(const void* arguments, int32_t) {
  const auto& a = *static_cast<const fd_layernorm_backward_args*>(arguments);
  return chunk_bytes(a.x.shape[0], a.x.shape[1], 2);
}

void rmsnorm_forward_vector(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_rmsnorm_forward_args*>(arguments);
  if (a.x.shape[2] > LONGEST_ROW) return rmsnorm_forward(ctx, arguments);
  vector_forward<false>(ctx, "rmsnorm_forward",
                        {a.out, absent(), a.rstd, a.x, a.weight, absent(), a.x.shape[0], a.x.shape[1], a.x.shape[2], a.eps});
}
void rmsnorm_backward_vector(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_rmsnorm_backward_args*>(arguments);
  if (a.x.shape[2] > LONGEST_ROW) return rmsnorm_backward(ctx, arguments);
  vector_backward<false>(ctx, "rmsnorm_backward",
                         {a.dx, a.dweight, absent(), a.dout, a.x, a.weight, absent(), a.rstd, a.x.shape[0], a.x.shape[1],
                          a.x.shape[2], a.accumulate});
}
void layernorm_forward_vector(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_layernorm_forward_args*>(arguments);
  if (a.x.shape[1] > LONGEST_ROW) return layernorm_forward(ctx, arguments);
  vector_forward<true>(ctx, "layernorm_forward",
                       {a.out, a.mean, a.rstd, a.x, a.weight, a.bias, a.x.shape[0], 1, a.x.shape[1], a.eps});
}
void layernorm_backward_vector(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_layernorm_backward_args*>(arguments);
  if (a.x.shape[1] > LONGEST_ROW) return layernorm_backward(ctx, arguments);
  vector_backward<true>(
      ctx, "layernorm_backward",
      {a.dx, a.dweight, a.dbias, a.dout, a.x, a.weight, a.mean, a.rstd, a.x.shape[0], 1, a.x.shape[1], a.accumulate});
}

}  // namespace

FD_VARIANT_LIST(norm, {"rmsnorm_forward", "naive", 0, rmsnorm_forward, nullptr},
                {"rmsnorm_forward", "vector", 1, rmsnorm_forward_vector, nullptr},
                {"rmsnorm_backward", "naive", 0, rmsnorm_backward, nullptr},
                {"rmsnorm_backward", "vector", 1, rmsnorm_backward_vector, rmsnorm_workspace},
                {"layernorm_forward", "naive", 0, layernorm_forward, nullptr},
                {"layernorm_forward", "vector", 1, layernorm_forward_vector, nullptr},
                {"layernorm_backward", "naive", 0, layernorm_backward, nullptr},
                {"layernorm_backward", "vector", 1, layernorm_backward_vector, layernorm_workspace})

}  // namespace freedive::cuda
