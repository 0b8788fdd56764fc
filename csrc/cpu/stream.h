// stream.h: stores past the cache. A tensor larger than the caches is gone from them before anybody reads it, and an ordinary
// store first fetches the line it is about to overwrite: a third of the traffic of an op that reads one tensor and writes one.
// Measured on two cores of a Zen 4 server, 64 MB tensors: see csrc/README.md and dev/LOG.md. Bits are those of ordinary stores.
#pragma once
#include "simd.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

constexpr int64_t STREAM_FLOATS = 4 << 20;  // 16 MB: half of a usual last-level cache

FD_INLINE void vstream(float* p, vf x) {  // p aligned to 64 bytes
#if defined(FREEDIVE_AVX512)
  _mm512_stream_ps(p, reinterpret_cast<__m512>(x));
#elif defined(FREEDIVE_AVX2)
  _mm256_stream_ps(p, reinterpret_cast<__m256>(x));
#else
  vstore(p, x);
#endif
}

FD_INLINE void vstream(bf16* p, vf x) {  // p aligned to a vector of them
#if defined(FREEDIVE_AVX512)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(narrowed(x)));
#elif defined(FREEDIVE_AVX2)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(narrowed(x)));
#else
  vstore(p, x);
#endif
}

// Whether a tensor's rows (of contiguous inner dimensions) should be, and can be, written past the cache.
FD_INLINE bool should_stream(const fd_tensor& t) {
  int64_t floats = 1;
  for (int i = 0; i < t.ndim; ++i) floats *= t.shape[i];
  bool aligned = reinterpret_cast<uintptr_t>(t.data) % 64 == 0;
  for (int i = 0; i + 1 < t.ndim; ++i) aligned = aligned && t.stride[i] % 16 == 0;
  return aligned && (is_half(t) ? floats / 2 : floats) >= STREAM_FLOATS;
}

// for_lanes, whose whole vectors are stored past the cache if `stream`. Finish a unit of work with stream_end().
template <class Body>
FD_INLINE void for_lanes_to(bool stream, int64_t D, const Body& body) {
  if (!stream) return for_lanes(D, body);
  int64_t i = 0;
  for (; i + VL <= D; i += VL) {
    body(i, [](const auto* p) { return vload(p); }, [](auto* p, vf x) { vstream(p, x); });
  }
  if (i < D) {
    const int64_t lanes = D - i;
    body(i, [lanes](const auto* p) { return vload_n(p, lanes); }, [lanes](auto* p, vf x) { vstore_n(p, x, lanes); });
  }
}

// Streamed stores are not ordered by the thread pool's release: this does.
FD_INLINE void stream_end(bool stream) {
#ifdef FREEDIVE_AVX2
  if (stream) _mm_sfence();
#else
  (void)stream;
#endif
}

// sum of term(i, load) over the lanes of D, in four chains: one would wait for itself. The order depends on D only.
template <class Term>
FD_INLINE float sum_lanes(int64_t D, const Term& term) {
  const auto load = [](const auto* p) { return vload(p); };
  vf s[4] = {vset(0), vset(0), vset(0), vset(0)};
  int64_t i = 0;
  for (; i + 4 * VL <= D; i += 4 * VL) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) s[c] = term(i + c * VL, load, s[c]);
  }
  for (; i + VL <= D; i += VL) s[0] = term(i, load, s[0]);
  if (i < D) {
    const int64_t lanes = D - i;
    s[1] = term(i, [lanes](const auto* p) { return vload_n(p, lanes); }, s[1]);
  }
  return hsum((s[0] + s[1]) + (s[2] + s[3]));
}

}  // namespace
}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
