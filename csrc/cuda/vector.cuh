// vector.cuh: four floats at a time, by one instruction of 128 bits where the address allows it, one by one where it does not.
//
// A number's place decides who computes it, never its address: the same bits wherever a tensor lies. Kernels of four floats a
// thread keep four times as many bytes under way as those of one, with a quarter of the instructions; both are what a kernel
// bound by memory lives on.
#pragma once
#include <cstdint>

#include "launch.cuh"
#include "ptx.cuh"

namespace freedive::cuda {

constexpr int VECTOR = 4;

struct Four {
  float at[VECTOR];
};

__device__ inline bool aligned(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

// p[0], .. p[3]; of the first `left` when fewer are left, and 0.
__device__ inline Four load4(const float* p, int64_t left) {
  if (left >= VECTOR && aligned(p)) {
    const float4 v = *reinterpret_cast<const float4*>(p);
    return {{v.x, v.y, v.z, v.w}};
  }
  Four v;
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) v.at[i] = i < left ? p[i] : 0.0f;
  return v;
}

// The same of bfloat16, by 64 bits.
__device__ inline Four load4(const uint16_t* p, int64_t left) {
  if (left >= VECTOR && (reinterpret_cast<uintptr_t>(p) & 7) == 0) {
    const uint2 v = *reinterpret_cast<const uint2*>(p);
    return {{__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xFFFF0000u), __uint_as_float(v.y << 16),
             __uint_as_float(v.y & 0xFFFF0000u)}};
  }
  Four v;
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) v.at[i] = i < left ? widened(p[i]) : 0.0f;
  return v;
}

__device__ inline void store4(uint16_t* p, const Four& v, int64_t left) {
  const uint2 pairs = make_uint2(ptx::bf16_pair(v.at[0], v.at[1]), ptx::bf16_pair(v.at[2], v.at[3]));
  if (left >= VECTOR && (reinterpret_cast<uintptr_t>(p) & 7) == 0) {
    *reinterpret_cast<uint2*>(p) = pairs;
    return;
  }
#pragma unroll
  for (int i = 0; i < VECTOR; ++i)
    if (i < left) p[i] = static_cast<uint16_t>((i < 2 ? pairs.x : pairs.y) >> i % 2 * 16);
}

__device__ inline void store4(float* p, const Four& v, int64_t left) {
  if (left >= VECTOR && aligned(p)) {
    *reinterpret_cast<float4*>(p) = make_float4(v.at[0], v.at[1], v.at[2], v.at[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < VECTOR; ++i)
    if (i < left) p[i] = v.at[i];
}

// From number i on of a tensor that is of floats or of bfloat16.
__device__ inline Four load4(const fd_tensor& t, int64_t i, int64_t left) {
  return t.dtype == FD_BF16 ? load4(flat<const uint16_t>(t) + i, left) : load4(flat<const float>(t) + i, left);
}
__device__ inline void store4(const fd_tensor& t, int64_t i, const Four& v, int64_t left) {
  if (t.dtype == FD_BF16)
    store4(flat<uint16_t>(t) + i, v, left);
  else
    store4(flat(t) + i, v, left);
}

// Eight numbers rounded to bfloat16: four and four, or in pairs of one of either.
__device__ __forceinline__ uint4 rounded8(const Four& first, const Four& second) {
  return make_uint4(ptx::bf16_pair(first.at[0], first.at[1]), ptx::bf16_pair(first.at[2], first.at[3]),
                    ptx::bf16_pair(second.at[0], second.at[1]), ptx::bf16_pair(second.at[2], second.at[3]));
}
__device__ __forceinline__ uint4 rounded_pairs(const Four& first, const Four& second) {
  return make_uint4(ptx::bf16_pair(first.at[0], second.at[0]), ptx::bf16_pair(first.at[1], second.at[1]),
                    ptx::bf16_pair(first.at[2], second.at[2]), ptx::bf16_pair(first.at[3], second.at[3]));
}

// f of each of four numbers (of two fours, of three).
template <class F, class... Fours>
__device__ Four map4(const F& f, const Fours&... x) {
  return {{f(x.at[0]...), f(x.at[1]...), f(x.at[2]...), f(x.at[3]...)}};
}

// ---- flat ranges: a thread to four numbers ---------------------------------------------------------------------------------
// A thread's first number, and how many there are from it on; the first thread takes those before the first address of 16 bytes.
struct Piece {
  int64_t at, left;
};
__device__ inline Piece piece_of(int64_t size, int skip) {
  const int64_t first = global_thread() * VECTOR - skip;
  if (first >= 0) return {first, size - first};
  return {0, VECTOR - skip < size ? VECTOR - skip : size};
}
// Numbers from the address of 16 bytes before p up to p.
inline int skip_of(const fd_tensor& t) { return static_cast<int>(reinterpret_cast<uintptr_t>(t.data) % 16 / sizeof(float)); }
inline int64_t pieces_of(int64_t size, int skip) { return size > 0 ? blocks_for(size + skip, VECTOR) : 0; }

// ---- rows: blocks that lie in one row ----------------------------------------------------------------------------------------
// How many threads a block has, and how many blocks a row of `width` numbers. A kernel divides 32 bits once instead of 64 for
// every number.
struct RowLaunch {
  int threads;
  unsigned blocks;
  explicit RowLaunch(int64_t width) {
    const int64_t fours = blocks_for(width, VECTOR);
    threads = fours < THREADS ? static_cast<int>(blocks_for(fours, WARP)) * WARP : THREADS;
    if (threads == 0) threads = WARP;
    blocks = static_cast<unsigned>(blocks_for(fours, threads));
  }
};
struct RowPiece {
  int64_t n, at, left;
};
__device__ inline RowPiece row_piece(int64_t width, unsigned blocks_of_row) {
  const unsigned n = blockIdx.x / blocks_of_row;
  const int64_t at = (static_cast<int64_t>(blockIdx.x - n * blocks_of_row) * blockDim.x + threadIdx.x) * VECTOR;
  return {n, at, width - at};
}

// A view whose rows follow each other, as one row: no blocks that end with a row.
inline bool is_flat(const fd_tensor& t) { return t.stride[0] == t.shape[1]; }

}  // namespace freedive::cuda
