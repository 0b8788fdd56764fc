// fragments.cuh: tiles of bfloat16 in shared memory, swizzled, and how ldmatrix makes operands of mma.sync.m16n8k16 of them.
#pragma once
#include "launch.cuh"
#include "ptx.cuh"

namespace freedive::cuda {

constexpr int64_t PIECE = 8;  // bfloat16 numbers in 16 bytes

// Where piece q of row r of a tile lies whose rows have WIDTH numbers. Eight rows with the same q are in eight different places
// modulo 128 bytes.
template <int WIDTH>
__device__ __forceinline__ int swizzled(int r, int q) {
  constexpr int PIECES = WIDTH / PIECE;
  const int by = PIECES >= 8 ? r % 8 : r / (8 / PIECES) % PIECES;
  return r * WIDTH + (q ^ by) * static_cast<int>(PIECE);
}

// The 16 rows from `row` on of a [rows, K] and its 16 columns from `k` on, as mma.sync wants them of its first operand (A) and
// its second (two of 8 rows). BY_K: the tile is [rows][K], else [K][rows]. APART: the second 8 rows of b are so many below the first.
template <bool BY_K, int WIDTH>
__device__ __forceinline__ void load_a(uint32_t (&fragment)[4], const uint16_t* tile, int row, int k) {
  const int lane = lane_id();
  if (BY_K)
    ptx::ldmatrix_x4(fragment, tile + swizzled<WIDTH>(row + lane % 16, k / 8 + lane / 16));
  else
    ptx::ldmatrix_x4_trans(fragment, tile + swizzled<WIDTH>(k + lane % 8 + lane / 16 * 8, row / 8 + lane / 8 % 2));
}
template <bool BY_K, int WIDTH, int APART = 8>
__device__ __forceinline__ void load_b(uint32_t (&fragment)[4], const uint16_t* tile, int row, int k) {
  static_assert(BY_K || APART == 8, "of tiles by k alone");
  const int lane = lane_id();
  if (BY_K)
    ptx::ldmatrix_x4(fragment, tile + swizzled<WIDTH>(row + lane % 8 + lane / 16 * APART, k / 8 + lane / 8 % 2));
  else
    ptx::ldmatrix_x4_trans(fragment, tile + swizzled<WIDTH>(k + lane % 16, row / 8 + lane / 16));
}

}  // namespace freedive::cuda
