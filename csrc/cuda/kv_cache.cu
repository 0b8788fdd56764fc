// kv_cache.cu: new keys and values into the paged cache; the layout is ops.h's (fd_kv_cache_write_args).
//
// naive (attention.cu): a thread to a position and group, which walks down both rows: neighbours read a row apart, and store a
// word of 32 bits (or part of one) each.
// vector, float32 and bfloat16: four numbers a thread, by loads of 128 bits.
//   keys: neighbouring threads have neighbouring positions, whose words of one d lie side by side: a warp stores 128 bytes at a
//   time where a prompt is read; where one position is new they take neighbouring d of it instead.
//   values: neighbouring threads have neighbouring d; 128 bits a store. In bfloat16 two positions share each word: the thread of
//   the even one has both, if both come in this call.
// vector, int8: a warp to a position and group; mixed in shared memory by butterflies that are the same sums; keys by words.
// Read: 4 bytes a number; written: 4, 2 or 1.
#include "int8.cuh"
#include "sequences.cuh"
#include "vector.cuh"

namespace freedive::cuda {
namespace {

// Where row n of the batch goes: block and slot; s < 0: nowhere. begin, end: the rows of its sequence.
struct Place {
  int64_t s, begin, end, block, slot;
};
__device__ inline Place place_of(const fd_kv_cache_write_args& a, int64_t n) {
  Place p{sequence_of(a.cu_seqlens, n), 0, 0, 0, 0};
  if (p.s < 0) return p;
  p.begin = flat<int32_t>(a.cu_seqlens)[p.s], p.end = flat<int32_t>(a.cu_seqlens)[p.s + 1];
  const int64_t position = flat<int32_t>(a.past_lens)[p.s] + n - p.begin;
  p.slot = position % FD_KV_BLOCK, p.block = row<int32_t>(a.block_table, p.s)[position / FD_KV_BLOCK];
  return p;
}

// Words of a block and group, its keys' and its values'.
template <class T>
__device__ unsigned* words(const fd_tensor& cache, const Place& p, int64_t g) {
  return reinterpret_cast<unsigned*>(row<T>(cache, p.block, g));
}

// The key's numbers d, .. d + 3 of `left`.
template <class T>
__device__ void write_key(const fd_kv_cache_write_args& a, const Place& p, int64_t n, int64_t g, int64_t d, int64_t left) {
  constexpr int P = 4 / static_cast<int>(sizeof(T));
  const Four k = load4(row(a.k, n, g) + d, left);
  unsigned* to = words<T>(a.k_cache, p, g) + p.slot;
  const int64_t next = a.k_cache.shape[3] / P;
#pragma unroll
  for (int i = 0; i < VECTOR; i += P)
    if (i < left) to[(d + i) / P * next] = P == 1 ? __float_as_uint(k.at[i]) : ptx::bf16_pair(k.at[i], k.at[i + P - 1]);
}

template <class T>
__device__ void write_value(const fd_kv_cache_write_args& a, const Place& p, int64_t n, int64_t g, int64_t d, int64_t left) {
  constexpr int P = 4 / static_cast<int>(sizeof(T));
  const bool odd = P == 2 && p.slot % 2 == 1;
  if (odd && n > p.begin) return;  // the thread of the position before has it
  const Four v = load4(row(a.v, n, g) + d, left);
  unsigned* to = words<T>(a.v_cache, p, g) + p.slot / P * (a.v_cache.shape[3] / P) + d;
  if (odd) {  // beside a number of an earlier call
#pragma unroll
    for (int i = 0; i < VECTOR; ++i)
      if (i < left) reinterpret_cast<__nv_bfloat16*>(to + i)[1] = __float2bfloat16_rn(v.at[i]);
    return;
  }
  if (P == 1) return store4(reinterpret_cast<float*>(to), v, left);
  Four after{{0.0f, 0.0f, 0.0f, 0.0f}};
  if (n + 1 < p.end) after = load4(row(a.v, n + 1, g) + d, left);
  const uint4 four = rounded_pairs(v, after);
  if (left >= VECTOR && aligned(to)) {
    *reinterpret_cast<uint4*>(to) = four;
    return;
  }
  const unsigned each[VECTOR] = {four.x, four.y, four.z, four.w};
#pragma unroll
  for (int i = 0; i < VECTOR; ++i)
    if (i < left) to[i] = each[i];
}

// The first half of the threads write keys, the second values. Index: unsigned where it is enough.
template <class T, class Index>
__global__ void write_kernel(fd_kv_cache_write_args a) {
  const Index N = static_cast<Index>(a.k.shape[0]), G = static_cast<Index>(a.k.shape[1]);
  const Index fours = static_cast<Index>((a.k.shape[2] + VECTOR - 1) / VECTOR), work = N * G * fours;
  Index i = static_cast<Index>(global_thread());
  const bool value = i >= work;
  if (value) i -= work;
  if (i >= work) return;
  const Index rest = value ? i / fours : i / N, n = value ? rest / G : i - rest * N;
  const Index four = value ? i - rest * fours : rest % fours, g = value ? rest - n * G : rest / fours;
  const Place p = place_of(a, n);
  if (p.s < 0) return;
  const int64_t d = static_cast<int64_t>(four) * VECTOR, left = a.k.shape[2] - d;
  value ? write_value<T>(a, p, n, g, d, left) : write_key<T>(a, p, n, g, d, left);
}

// ---- int8 ----------------------------------------------------------------------------------------------------------------

// x [D] of the warp, mixed; by what its numbers are multiplied. `scale`: where the row's scale goes.
__device__ inline float mixed_inverse(float* x, const float* from, int64_t D, float* scale) {
  for (int64_t d = lane_id(); d < D; d += WARP) x[d] = from[d];
  butterflies(static_cast<int>(D), 1, lane_id(), WARP, [&](int d, int) -> float& { return x[d]; }, [] { __syncwarp(); });
  float most = 0.0f;
  for (int64_t d = lane_id(); d < D; d += WARP) most = fmaxf(most, int8_size(x[d]));
  const Int8Scale of_row = int8_scale(warp_max(most));
  if (lane_id() == 0) *scale = of_row.scale;
  return of_row.inverse;
}

__global__ void write_int8_kernel(fd_kv_cache_write_args a) {
  FD_DYNAMIC_SHARED(float, mixed);
  const int64_t G = a.k.shape[1], D = a.k.shape[2], n = global_warp() / G, g = global_warp() % G;
  if (n >= a.k.shape[0]) return;  // whole warps
  const Place p = place_of(a, n);
  if (p.s < 0) return;
  float *key = mixed + warp_of_block() * 2 * D, *value = key + D;
  const float key_inverse = mixed_inverse(key, row(a.k, n, g), D, row(a.k_scale, p.block, g) + p.slot);
  const float value_inverse = mixed_inverse(value, row(a.v, n, g), D, row(a.v_scale, p.block, g) + p.slot);
  unsigned* keys = words<int8_t>(a.k_cache, p, g) + p.slot;
  for (int64_t w = lane_id(); w < (D + 3) / 4; w += WARP) {
    unsigned four = 0;
    for (int i = 0; i < 4; ++i)
      if (4 * w + i < D) four |= static_cast<unsigned>(static_cast<uint8_t>(to_int8(key[4 * w + i], key_inverse))) << (8 * i);
    keys[w * (a.k_cache.shape[3] / 4)] = four;
  }
  // Four positions share a value's word: bytes, since their threads may be of other blocks.
  int8_t* values = row<int8_t>(a.v_cache, p.block, g) + p.slot / 4 * a.v_cache.shape[3] + p.slot % 4;
  for (int64_t d = lane_id(); d < D; d += WARP) values[d * 4] = to_int8(value[d], value_inverse);
}

template <class T>
void launch_write(fd_context* ctx, const fd_kv_cache_write_args& a) {
  const int64_t work = 2 * a.k.shape[0] * a.k.shape[1] * blocks_for(a.k.shape[2], VECTOR);
  launch_threads(ctx, "kv_cache_write", work, work < INT32_MAX ? write_kernel<T, unsigned> : write_kernel<T, int64_t>, a);
}

void write(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_kv_cache_write_args*>(arguments);
  if (a.k_cache.dtype == FD_F32) return launch_write<float>(ctx, a);
  if (a.k_cache.dtype == FD_BF16) return launch_write<__nv_bfloat16>(ctx, a);
  const int64_t shared = WARPS * 2 * a.k.shape[2] * static_cast<int64_t>(sizeof(float));
  launch_shared(ctx, "kv_cache_write", blocks_for(a.k.shape[0] * a.k.shape[1], WARPS), THREADS, static_cast<size_t>(shared),
                write_int8_kernel, a);
}

}  // namespace

FD_VARIANT_LIST(kv_cache, {"kv_cache_write", "vector", 1, write, nullptr})

}  // namespace freedive::cuda
