// attention_sm80.cuh: what the tensor-core kernels of attention share: where a tile of a flat batch begins.
#pragma once
#include "fragments.cuh"
#include "sequences.cuh"

namespace freedive::cuda {

constexpr double LOG2_E_DOUBLE = 1.44269504088896341;
constexpr float LOG2_E = static_cast<float>(LOG2_E_DOUBLE), LN_2 = 0.693147180559945309f;

// The tiles of a flat batch, `size` rows each, every sequence beginning one: sequence s has the places from cu[s] / size + s on,
// which are as many as it needs or one more, and the unused tail (s = S) has what is left. So the map from places to tiles needs
// no table, no host and no second kernel.
struct TilePlace {
  int64_t s, first;  // the sequence, or S of the tail; rows of it before this tile, maybe all of them
};
__device__ inline TilePlace tile_place(const fd_tensor& cu_seqlens, int64_t place, int size) {
  const auto* cu = flat<int32_t>(cu_seqlens);
  int64_t low = 0, high = cu_seqlens.shape[0];  // places of low <= place < places of high
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (cu[middle] / size + middle <= place)
      low = middle;
    else
      high = middle;
  }
  return {low, (place - cu[low] / size - low) * size};
}
inline int64_t tile_places(int64_t N, int64_t S, int64_t size) { return N / size + S + 1; }

}  // namespace freedive::cuda
