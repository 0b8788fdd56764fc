// sampling.cuh: what samplers share: who may be drawn, and what the cuts keep.
#pragma once
#include "../core/rng.h"
#include "head.cuh"

namespace freedive::cuda {

// Bits that order as the numbers do.
__device__ inline unsigned order_of(float z) {
  const unsigned u = __float_as_uint(z);
  return u >> 31 != 0 ? ~u : u | 0x80000000u;
}

// One row: what is a candidate, and how much it weighs beside the best.
struct Candidates {
  const float* z;
  fd_tensor mask;
  float temperature, top, min_p;
  int64_t V;
  __device__ float weight(int64_t v) const {
    if (!allowed(mask, v)) return 0.0f;
    const float e = expf(z[v] / temperature - top);
    return e > 0.0f && e >= min_p ? e : 0.0f;  // false for what is no number
  }
  __device__ unsigned order(int64_t v) const { return order_of(z[v]); }
};

// Kept: what orders above `threshold`, and the first `ties` ids on it.
struct Kept {
  unsigned threshold = 0;
  int64_t ties = INT64_MAX;
};

// sampling_select.cu: a token for each of the rows begin, begin + 1, .. of the batch.
void select_rows(fd_context* ctx, const char* op, const SampleArguments& a, const float* logits, int64_t begin, int64_t rows);

}  // namespace freedive::cuda
