// attention.cu: causal attention on a flat batch, from rows and from the paged cache, and what writes the cache.
//
//   out[n,h] = sum_j softmax_j(scale q[n,h].k[j,g]) v[j,g],  g = h / (H/G),  j over the sequence's positions up to n's
//
// One warp per row and head. Keys come in blocks of FD_KV_BLOCK = 32, one to a lane: the lane's score is one chain over d. The 32
// weights go to shared memory, and the lanes turn to the dimensions of the output, which are kept in `out` between blocks.
// Training, prefill and decode are this one function with another source of keys, so their bits are equal.
// Every key and value is read once per query and head; attention_tiled.cu reads them once for a block of queries and heads, with
// the same bits; attention_sm80.cu multiplies bfloat16 on tensor cores, in an order of its own, and attention_sm90.cu by wgmma.
#include "attention.cuh"
#include "int8.cuh"
#include "sequences.cuh"

namespace freedive::cuda {
namespace {

static_assert(FD_KV_BLOCK == WARP, "a lane to a key");

// Keys and values as rows.
struct Rows {
  fd_tensor k, v;
  int64_t first, g;  // row of the sequence's first position, group
  __device__ float key(int64_t j, int64_t d) const { return row(k, first + j, g)[d]; }
  __device__ float value(int64_t j, int64_t d) const { return row(v, first + j, g)[d]; }
  __device__ float key_scale(int64_t) const { return 1.0f; }
  __device__ float value_scale(int64_t) const { return 1.0f; }
};

// Keys and values in the cache's blocks; T = float, __nv_bfloat16 or int8_t.
template <class T>
struct Cached {
  fd_tensor k, v, k_scales, v_scales;
  const int32_t* blocks;
  int64_t g;
  static constexpr int P = 4 / static_cast<int>(sizeof(T));
  __device__ float key(int64_t j, int64_t d) const {
    return widened(row<T>(k, blocks[j / FD_KV_BLOCK], g)[d / P * k.shape[3] + j % FD_KV_BLOCK * P + d % P]);
  }
  __device__ float value(int64_t j, int64_t d) const {
    const int64_t slot = j % FD_KV_BLOCK;
    return widened(row<T>(v, blocks[j / FD_KV_BLOCK], g)[slot / P * v.shape[3] + d * P + slot % P]);
  }
  __device__ float scale_of(const fd_tensor& scales, int64_t j) const {
    return P == 4 ? row(scales, blocks[j / FD_KV_BLOCK], g)[j % FD_KV_BLOCK] : 1.0f;
  }
  __device__ float key_scale(int64_t j) const { return scale_of(k_scales, j); }
  __device__ float value_scale(int64_t j) const { return scale_of(v_scales, j); }
};

// One row and head over `keys` positions. `weights`: 32 floats of the warp's own. Returns the log-sum-exp.
template <bool BF16, class Source>
__device__ float attend(float* out, const float* q, const Source& source, int64_t keys, int64_t D, float scale, float* weights) {
  const int lane = lane_id();
  float top = -INFINITY, sum = 0.0f;
  for (int64_t d = lane; d < D; d += WARP) out[d] = 0.0f;
  for (int64_t first = 0; first < keys; first += WARP) {
    const int here = keys - first < WARP ? static_cast<int>(keys - first) : WARP;
    const int64_t j = first + lane;
    float score = -INFINITY;
    if (lane < here) {
      score = 0.0f;
      for (int64_t d = 0; d < D; ++d) score = fmaf(operand<BF16>(q[d]), operand<BF16>(source.key(j, d)), score);
      score *= scale * source.key_scale(j);
    }
    weights[lane] = score;
    __syncwarp();
    float new_top = top;
    for (int i = 0; i < here; ++i) new_top = fmaxf(new_top, weights[i]);
    __syncwarp();
    weights[lane] = expf(score - new_top);
    __syncwarp();
    const float fade = expf(top - new_top);  // 0 for the first block
    float block_sum = 0.0f;
    for (int i = 0; i < here; ++i) block_sum += weights[i];
    sum = fmaf(sum, fade, block_sum);
    for (int64_t d = lane; d < D; d += WARP) {
      float x = out[d] * fade;
      for (int i = 0; i < here; ++i)
        x = fmaf(operand<BF16>(weights[i] * source.value_scale(first + i)), operand<BF16>(source.value(first + i, d)), x);
      out[d] = x;
    }
    __syncwarp();  // before the next block's scores overwrite the weights
    top = new_top;
  }
  for (int64_t d = lane; d < D; d += WARP) out[d] /= sum;
  return top + logf(sum);
}

template <bool BF16>
__global__ void forward_kernel(fd_tensor out, fd_tensor lse, fd_tensor q, fd_tensor k, fd_tensor v, fd_tensor cu_seqlens,
                               float scale) {
  FD_SHARED(float, weights, [WARPS][WARP]);
  const int64_t H = q.shape[1], D = q.shape[2], n = global_warp() / H, h = global_warp() % H;
  if (n >= q.shape[0]) return;  // whole warps leave together
  const int64_t s = sequence_of(cu_seqlens, n);
  float* to = row(out, n, h);
  if (s < 0) {
    for (int64_t d = lane_id(); d < D; d += WARP) to[d] = 0.0f;
    if (lane_id() == 0) row(lse, n)[h] = 0.0f;
    return;
  }
  const int64_t first = flat<int32_t>(cu_seqlens)[s];
  const Rows source{k, v, first, h / (H / k.shape[1])};
  const float l = attend<BF16>(to, row(q, n, h), source, n - first + 1, D, scale, weights[warp_of_block()]);
  if (lane_id() == 0) row(lse, n)[h] = l;
}

void forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_attention_forward_args*>(arguments);
  launch_warps(ctx, "attention_forward", a.q.shape[0] * a.q.shape[1],
               a.compute == FD_BF16 ? forward_kernel<true> : forward_kernel<false>, a.out, a.lse, a.q, a.k, a.v, a.cu_seqlens,
               static_cast<float>(a.scale));
}

// ---- the paged cache -------------------------------------------------------------------------------------------------

// By one thread.
__device__ inline void mix(float* x, int64_t D) {
  butterflies(static_cast<int>(D), 1, 0, 1, [&](int d, int) -> float& { return x[d]; }, [] {});
}
__device__ inline Int8Scale row_scale(const float* x, int64_t D) {
  float most = 0.0f;
  for (int64_t d = 0; d < D; ++d) most = fmaxf(most, int8_size(x[d]));
  return int8_scale(most);
}

template <class T>
__device__ T stored(float x, float inverse);
template <>
__device__ inline float stored<float>(float x, float) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 stored<__nv_bfloat16>(float x, float) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline int8_t stored<int8_t>(float x, float inverse) {
  return to_int8(x, inverse);
}

// A thread writes one position of one group. `mixed`: 2 D floats for each, of int8 only.
template <class T>
__global__ void write_kernel(fd_kv_cache_write_args a, float* mixed) {
  constexpr int P = 4 / static_cast<int>(sizeof(T));
  const int64_t G = a.k.shape[1], D = a.k.shape[2], i = global_thread(), n = i / G, g = i % G;
  if (n >= a.k.shape[0]) return;
  const int64_t s = sequence_of(a.cu_seqlens, n);
  if (s < 0) return;
  const int64_t begin = flat<int32_t>(a.cu_seqlens)[s], end = flat<int32_t>(a.cu_seqlens)[s + 1];
  const int64_t position = flat<int32_t>(a.past_lens)[s] + n - begin, slot = position % FD_KV_BLOCK;
  const int64_t block = row<int32_t>(a.block_table, s)[position / FD_KV_BLOCK];
  const float *key = row(a.k, n, g), *value = row(a.v, n, g);
  float key_inverse = 1.0f, value_inverse = 1.0f;
  if (P == 4) {
    float *mixed_key = mixed + i * 2 * D, *mixed_value = mixed_key + D;
    for (int64_t d = 0; d < D; ++d) mixed_key[d] = key[d], mixed_value[d] = value[d];
    mix(mixed_key, D);
    mix(mixed_value, D);
    const Int8Scale of_key = row_scale(mixed_key, D), of_value = row_scale(mixed_value, D);
    row(a.k_scale, block, g)[slot] = of_key.scale, row(a.v_scale, block, g)[slot] = of_value.scale;
    key_inverse = of_key.inverse, value_inverse = of_value.inverse;
    key = mixed_key, value = mixed_value;
  }
  T *keys = row<T>(a.k_cache, block, g), *values = row<T>(a.v_cache, block, g);
  const int64_t key_row = a.k_cache.shape[3], value_row = a.v_cache.shape[3];
  for (int64_t d = 0; d < (D + P - 1) / P * P; ++d)
    keys[d / P * key_row + slot * P + d % P] = stored<T>(d < D ? key[d] : 0.0f, key_inverse);
  // The other half of a word just begun is 0, unless the next position comes in this call too: it is another thread's then.
  const bool lone = P == 2 && slot % 2 == 0 && n + 1 == end;
  for (int64_t d = 0; d < D; ++d) {
    T* at = values + slot / P * value_row + d * P + slot % P;
    at[0] = stored<T>(value[d], value_inverse);
    if (lone) at[1] = stored<T>(0.0f, 1.0f);
  }
}

size_t write_workspace(const void* arguments, int32_t) {
  const auto& a = *static_cast<const fd_kv_cache_write_args*>(arguments);
  return static_cast<size_t>(2 * a.k.shape[0] * a.k.shape[1] * a.k.shape[2]) * sizeof(float);
}

void write(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_kv_cache_write_args*>(arguments);
  const int64_t work = a.k.shape[0] * a.k.shape[1];
  auto* kernel = a.k_cache.dtype == FD_F32    ? write_kernel<float>
                 : a.k_cache.dtype == FD_BF16 ? write_kernel<__nv_bfloat16>
                                              : write_kernel<int8_t>;
  launch_threads(ctx, "kv_cache_write", work, kernel, a, scratch(ctx));
}

template <class T, bool BF16>
__global__ void cached_kernel(fd_attention_cached_args a, const float* mixed_q) {
  FD_SHARED(float, weights, [WARPS][WARP]);
  const int64_t H = a.q.shape[1], D = a.q.shape[2], n = global_warp() / H, h = global_warp() % H;
  if (n >= a.q.shape[0]) return;
  const int64_t s = sequence_of(a.cu_seqlens, n);
  float* to = row(a.out, n, h);
  if (s < 0) {
    for (int64_t d = lane_id(); d < D; d += WARP) to[d] = 0.0f;
    return;
  }
  const int64_t position = flat<int32_t>(a.past_lens)[s] + n - flat<int32_t>(a.cu_seqlens)[s];
  const Cached<T> source{
      a.k_cache, a.v_cache, a.k_scale, a.v_scale, row<int32_t>(a.block_table, s), h / (H / a.k_cache.shape[1])};
  const float* q = mixed_q != nullptr ? mixed_q + (n * H + h) * D : row(a.q, n, h);
  const float scale = static_cast<float>(mixed_q != nullptr ? a.scale / static_cast<double>(D & -D) : a.scale);  // H H = B
  attend<BF16>(to, q, source, position + 1, D, scale, weights[warp_of_block()]);
}

__global__ void mix_in_kernel(float* mixed, fd_tensor q) {
  const int64_t H = q.shape[1], D = q.shape[2], i = global_thread();
  if (i >= q.shape[0] * H) return;
  for (int64_t d = 0; d < D; ++d) mixed[i * D + d] = row(q, i / H, i % H)[d];
  mix(mixed + i * D, D);
}

__global__ void mix_back_kernel(fd_tensor out) {
  const int64_t H = out.shape[1], D = out.shape[2], i = global_thread();
  if (i >= out.shape[0] * H) return;
  float* x = row(out, i / H, i % H);
  mix(x, D);
  for (int64_t d = 0; d < D; ++d) x[d] /= static_cast<float>(D & -D);
}

size_t cached_workspace(const void* arguments, int32_t) {
  const auto& a = *static_cast<const fd_attention_cached_args*>(arguments);
  return static_cast<size_t>(a.q.shape[0] * a.q.shape[1] * a.q.shape[2]) * sizeof(float);
}

template <class T>
void launch_cached(fd_context* ctx, const fd_attention_cached_args& a, const float* mixed_q) {
  launch_warps(ctx, "attention_cached", a.q.shape[0] * a.q.shape[1],
               a.compute == FD_BF16 ? cached_kernel<T, true> : cached_kernel<T, false>, a, mixed_q);
}

void cached(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_attention_cached_args*>(arguments);
  const int64_t rows = a.q.shape[0] * a.q.shape[1];
  if (a.k_cache.dtype == FD_F32) return launch_cached<float>(ctx, a, nullptr);
  if (a.k_cache.dtype == FD_BF16) return launch_cached<__nv_bfloat16>(ctx, a, nullptr);
  launch_threads(ctx, "attention_cached", rows, mix_in_kernel, scratch(ctx), a.q);
  launch_cached<int8_t>(ctx, a, scratch(ctx));
  launch_threads(ctx, "attention_cached", rows, mix_back_kernel, a.out);
}

// Heads longer than a tile are left to naive.
void forward_tiled(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_attention_forward_args*>(arguments);
  a.q.shape[2] <= TILED_HEAD ? attention_forward_tiled(ctx, a) : forward(ctx, arguments);
}
void cached_tiled(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_attention_cached_args*>(arguments);
  a.q.shape[2] <= TILED_HEAD ? attention_cached_tiled(ctx, a) : cached(ctx, arguments);
}

// Tensor cores multiply bfloat16; heads of other lengths, float32 and an int8 cache stay with the rungs below.
void forward_sm80(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_attention_forward_args*>(arguments);
  attention_sm80_takes(a.q.shape[2], a.compute) ? attention_forward_sm80(ctx, a) : forward_tiled(ctx, arguments);
}
void cached_sm80(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_attention_cached_args*>(arguments);
  const bool int8 = a.k_cache.dtype != FD_F32 && a.k_cache.dtype != FD_BF16;
  attention_sm80_takes(a.q.shape[2], a.compute) && !int8 ? attention_cached_sm80(ctx, a) : cached_tiled(ctx, arguments);
}
template <bool AHEAD>
void forward_sm90(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_attention_forward_args*>(arguments);
  attention_sm90_takes(a.q.shape[2], a.compute) ? attention_forward_sm90(ctx, a, AHEAD) : forward_sm80(ctx, arguments);
}
// For any `compute` and cache: a model asks once.
size_t forward_sm80_workspace(const void* arguments, int32_t) {
  const auto& a = *static_cast<const fd_attention_forward_args*>(arguments);
  return attention_sm80_takes(a.q.shape[2], FD_BF16) ? attention_forward_sm80_workspace(a) : 0;
}
size_t forward_sm90_workspace(const void* arguments, int32_t threads) {
  const auto& a = *static_cast<const fd_attention_forward_args*>(arguments);
  return attention_sm90_takes(a.q.shape[2], FD_BF16) ? attention_forward_sm90_workspace(a) : forward_sm80_workspace(arguments, threads);
}
size_t cached_sm80_workspace(const void* arguments, int32_t threads) {
  const auto& a = *static_cast<const fd_attention_cached_args*>(arguments);
  const size_t mixed = a.q.shape[2] <= TILED_HEAD ? 0 : cached_workspace(arguments, threads);  // naive's
  return attention_sm80_takes(a.q.shape[2], FD_BF16) ? attention_cached_sm80_workspace(a) : mixed;
}

}  // namespace

FD_VARIANT_LIST(attention, {"attention_forward", "naive", 0, forward, nullptr},
                {"attention_forward", "tiled", 1, forward_tiled, nullptr},
                {"attention_forward", "sm90_plain", 2, forward_sm90<false>, forward_sm90_workspace},
                {"attention_forward", "sm90", 3, forward_sm90<true>, forward_sm90_workspace},
                {"attention_forward", "sm80", 4, forward_sm80, forward_sm80_workspace},
                {"kv_cache_write", "naive", 0, write, write_workspace},
                {"attention_cached", "naive", 0, cached, cached_workspace},
                {"attention_cached", "tiled", 1, cached_tiled, cached_workspace},
                {"attention_cached", "sm80", 2, cached_sm80, cached_sm80_workspace})

}  // namespace freedive::cuda
