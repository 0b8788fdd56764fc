// head.h: what training and sampling share of the language-model head: a chunk of logits, and the statistics of a row.
// Because both go through these functions, the sampler's log-probability is the trainer's, bit for bit.
#pragma once
#include "matmul.h"
#include "simd.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

// Rows of logits alive at once: 8 MB of them, which stay in cache, but at least 512 rows, so that a weight is used often. Their
// derivatives are made for BLOCK_IDS ids at a time.
constexpr int64_t CHUNK_FLOATS = 1 << 21, CHUNK_ROWS = 512, BLOCK_IDS = 2048;
FD_INLINE int64_t logits_row(int64_t V) { return ceil_div(V, 16) * 16; }
FD_INLINE int64_t chunk_rows(int64_t V) { return max64(CHUNK_ROWS, CHUNK_FLOATS / max64(1, logits_row(V))); }
// Floats of the chunk, never falling with N or V.
FD_INLINE int64_t chunk_floats(int64_t N, int64_t V) {
  return min64(N * logits_row(V), max64(CHUNK_FLOATS, CHUNK_ROWS * logits_row(V)));
}

// The weight as panels: the caller's, or made in `mine`.
FD_INLINE const float* packed_weight(fd_context* ctx, const fd_tensor& packed, const fd_tensor& weight, float* mine,
                                     int64_t compute) {
  if (f32(packed) != nullptr) return f32(packed);
  pack_weight(ctx, mine, f32(weight), weight.stride[0], weight.shape[0], weight.shape[1], compute);
  return mine;
}

// Which of VL ids take part. mask NULL: all of them.
FD_INLINE vi allowed(const uint8_t* mask, int64_t lanes) {
  vi m = viota() < vseti(static_cast<int32_t>(lanes));
  if (mask != nullptr) {
    int32_t words[VL] = {0};
    for (int64_t i = 0; i < lanes; ++i) words[i] = mask[i];
    m &= vloadi(words) != vseti(0);
  }
  return m;
}

struct RowStats {
  float max, sum;  // sum of exp(z - max)
  double log_sum;
  float lse, entropy;
};

// Logits of a row become z = logit / T in place, -inf where the mask forbids. Dividing by 1 changes no bit, so it is left out,
// and the row stays as clean in the cache as it came.
FD_INLINE RowStats row_stats(float* z, int64_t V, const uint8_t* mask, float temperature) {
  RowStats s;
  vf top = vset(NEG_INF);
  int64_t j = 0;
  for (; mask == nullptr && temperature == 1.0f && j + VL <= V; j += VL) top = vmax(vload(z + j), top);
  for (; j < V; j += VL) {  // rows are padded to 16, so whole vectors may be read and written
    const vf x =
        vselect(allowed(mask == nullptr ? nullptr : mask + j, min64(VL, V - j)), vload(z + j) / vset(temperature), vset(NEG_INF));
    vstore(z + j, x);
    top = vmax(x, top);
  }
  s.max = hmax(top);
  vf sum = vset(0.0f), dot = vset(0.0f);
  for (j = 0; j < V; j += VL) {
    const vf d = vmax(vset(-100.0f), vload(z + j) - vset(s.max)), e = vexp(d);
    sum += e;
    dot = vfma(e, d, dot);
  }
  s.sum = hsum(sum);
  s.log_sum = log(static_cast<double>(s.sum));
  s.lse = static_cast<float>(s.max + s.log_sum);
  s.entropy = static_cast<float>(s.log_sum - static_cast<double>(hsum(dot)) / s.sum);
  return s;
}
FD_INLINE float logprob_of(const RowStats& s, float z) { return static_cast<float>(static_cast<double>(z) - s.max - s.log_sum); }

}  // namespace
}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
