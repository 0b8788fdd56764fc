// sequences.cuh: which sequence of a flat batch a row belongs to.
#pragma once
#include "launch.cuh"

namespace freedive::cuda {

// s with cu_seqlens[s] <= n < cu_seqlens[s + 1], or -1 of a row behind the last (an unused tail). Empty sequences hold no row.
__device__ inline int64_t sequence_of(const fd_tensor& cu_seqlens, int64_t n) {
  const auto* cu = flat<int32_t>(cu_seqlens);
  const int64_t S = cu_seqlens.shape[0] - 1;
  if (S < 1 || n >= cu[S]) return -1;
  int64_t low = 0, high = S;  // cu[low] <= n < cu[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (cu[middle] <= n)
      low = middle;
    else
      high = middle;
  }
  return low;
}

}  // namespace freedive::cuda
