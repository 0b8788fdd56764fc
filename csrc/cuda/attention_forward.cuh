// attention_forward.cuh: what attention_sm80.cu and attention_sm90.cu share: which queries and heads a block takes, and how a
// softmax over many keys is put together.
#pragma once
#include "attention_sm80.cuh"

namespace freedive::cuda {

// Keys of a softmax that is begun anew: chunks of so many are merged in order, whoever computed them.
constexpr int CHUNK = 512;

// A tile: `queries` rows of `heads` heads, of the group's slices. Pair p of it is query p / heads, head p % heads.
struct PairTiles {
  fd_tensor out, lse, q, cu_seqlens;  // lse of rows, not of a cache
  float scale;                        // of scores in powers of two
  int groups, heads, slices, queries;
};
#ifdef FREEDIVE_CUDA_EMULATION
inline void visit_pointers(const PairTiles& a, int argument) {
  emu::visit_parts(argument, a.out, a.lse, a.q, a.cu_seqlens);
}
#endif
inline PairTiles pair_tiles(const fd_tensor& out, const fd_tensor& lse, const fd_tensor& q, const fd_tensor& cu_seqlens, double scale,
                            int64_t groups, int pairs) {
  const int64_t group = q.shape[1] / groups;
  const int heads = static_cast<int>(group < pairs ? group : pairs);
  return {out, lse, q, cu_seqlens, static_cast<float>(scale * LOG2_E_DOUBLE), static_cast<int>(groups), heads,
          static_cast<int>(blocks_for(group, heads)), pairs / heads};
}
// Blocks of a launch that does not split tiles.
inline int64_t blocks_of(const PairTiles& a) {
  return tile_places(a.q.shape[0], a.cu_seqlens.shape[0] - 1, a.queries) * a.groups * a.slices;
}

// The unused tail's rows.
template <int BLOCK_THREADS>
__device__ inline void clear_rows(const PairTiles& a, int64_t n, int64_t h, int heads) {
  const int D = static_cast<int>(a.q.shape[2]), me = static_cast<int>(threadIdx.x);
  const int64_t left = a.q.shape[0] - n;
  const int pairs = static_cast<int>(left < a.queries ? left : a.queries) * heads;
  for (int i = me; i < pairs * D; i += BLOCK_THREADS) row(a.out, n + i / D / heads, h + i / D % heads)[i % D] = 0.0f;
  if (a.lse.data == nullptr) return;
  for (int i = me; i < pairs; i += BLOCK_THREADS) row(a.lse, n + i / heads)[h + i % heads] = 0.0f;
}

// Block `block` of a launch's tiles, the longest first; what is left of a sequence's tile.
struct PairTile {
  int64_t s, n0, h0;  // sequence, first row of the batch, first head
  int g, first, heads, queries;  // group; position of the first row
};
// False: there is nothing (more) to do in it; the unused tail is cleared by the first of those blocks that share a tile.
template <int BLOCK_THREADS>
__device__ __forceinline__ bool take_tile(PairTile& t, const PairTiles& a, unsigned block, unsigned blocks, bool clears) {
  const auto G = static_cast<unsigned>(a.groups), slices = static_cast<unsigned>(a.slices);
  const unsigned place = blocks / slices / G - 1 - block / slices / G;
  const int group = static_cast<int>(a.q.shape[1]) / a.groups, before = static_cast<int>(block % slices) * a.heads;
  t.g = static_cast<int>(block / slices % G), t.heads = group - before < a.heads ? group - before : a.heads;
  t.h0 = static_cast<int64_t>(t.g) * group + before;
  const TilePlace at = tile_place(a.cu_seqlens, place, a.queries);
  const auto* cu = flat<int32_t>(a.cu_seqlens);
  t.s = at.s, t.first = static_cast<int>(at.first), t.n0 = cu[at.s] + at.first;
  if (at.s == a.cu_seqlens.shape[0] - 1) {
    if (clears && t.n0 < a.q.shape[0]) clear_rows<BLOCK_THREADS>(a, t.n0, t.h0, t.heads);
    return false;
  }
  const int64_t left = cu[at.s + 1] - t.n0;
  t.queries = left < a.queries ? static_cast<int>(left) : a.queries;
  return left > 0;
}

// Two maxima become one; by what either side's sums are multiplied. Where the second has seen no key, that is 1 and 0.
struct Merged {
  float top, mine, other;
};
__device__ __forceinline__ Merged merged(float top, float other) {
  const float larger = fmaxf(top, other);
  return {larger, ptx::exp2_approx(top - larger), ptx::exp2_approx(other - larger)};
}
__device__ __forceinline__ float merged(const Merged& m, float mine, float other) { return fmaf(other, m.other, mine * m.mine); }

// Sums over the four lanes that share a row: the same bits in all of them.
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(ALL_LANES, x, 1);
  return x + __shfl_xor_sync(ALL_LANES, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
  return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

}  // namespace freedive::cuda
