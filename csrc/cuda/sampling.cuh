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

// A draw among parts of a row whose ids follow each other, of each of which there is what its candidates weigh and the last of them
// (-1: it has none): the part that holds the drawn number, and what lies before it. found: false where sums rounded past it, or
// without any candidate; then it is the last part that has one.
struct Draw {
  int part;
  bool found;
  double aim, before;
};
template <int PARTS>
__device__ Draw draw(const SampleArguments& a, int64_t s, const double (&masses)[PARTS], const int64_t (&last)[PARTS]) {
  double total = 0.0;
#pragma unroll 8  // 256 at once would not fit the registers
  for (int t = 0; t < PARTS; ++t) total += masses[t];
  const float u = uniform(flat<uint64_t>(a.seeds)[s], STREAM_SAMPLE, flat<uint64_t>(a.counters)[s]);
  Draw drawn{0, false, static_cast<double>(u) * total, 0.0};
#pragma unroll 1
  for (int t = 0; t < PARTS && !drawn.found; ++t) {
    if (last[t] < 0) continue;
    drawn.part = t;
    if (drawn.before + masses[t] > drawn.aim)
      drawn.found = true;
    else
      drawn.before += masses[t];
  }
  return drawn;
}

// sampling_select.cu: a token for each of the rows begin, begin + 1, .. of the batch.
void select_rows(fd_context* ctx, const char* op, const SampleArguments& a, const float* logits, int64_t begin, int64_t rows);

}  // namespace freedive::cuda
