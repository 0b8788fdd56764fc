// simd.h: eight float32 lanes with one spelling on every tier, and the few helpers all kernels share.
//
// GCC vector extensions: the same source is AVX2+FMA in the avx2 tier and pairs of SSE registers in the baseline.
// Two promises the kernels build on:
//  * lanes are independent: a value's bits never depend on the lane or position it is computed in. Tails are
//    therefore loaded into a zero-padded vector (vload_n), never done by a different scalar formula;
//  * reductions (hsum, hmax) have one fixed order.
// Everything here is in an anonymous namespace: a tier's object files must not emit weak symbols, or the linker
// could keep the AVX copy of a function and give it to baseline code (dev/check_weak_symbols.py).
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "../core/context.h"
#include "../core/thread_pool.h"
#include "../ops.h"

#ifndef FREEDIVE_TIER_NAMESPACE
#define FREEDIVE_TIER_NAMESPACE tier_baseline
#endif
#pragma GCC diagnostic ignored "-Wpsabi"
#pragma GCC diagnostic ignored "-Wunused-function"

#define FD_INLINE static inline __attribute__((always_inline))

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

constexpr int VL = 8;  // lanes
typedef float vf __attribute__((vector_size(32)));
typedef int32_t vi __attribute__((vector_size(32)));
typedef float vf_unaligned __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(32), aligned(4), may_alias));

constexpr float NEG_INF = -__builtin_inff();

FD_INLINE vf vload(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
FD_INLINE void vstore(float* p, vf x) { *reinterpret_cast<vf_unaligned*>(p) = x; }
FD_INLINE vf vset(float x) { return vf{x, x, x, x, x, x, x, x}; }
FD_INLINE vi viota() { return vi{0, 1, 2, 3, 4, 5, 6, 7}; }
FD_INLINE vi vseti(int32_t x) { return vi{x, x, x, x, x, x, x, x}; }
FD_INLINE vf vselect(vi mask, vf yes, vf no) { return mask ? yes : no; }
FD_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }

// The first n lanes of memory, zeros beyond; n in 1..7 (8 also works).
FD_INLINE vf vload_n(const float* p, int64_t n) {
#ifdef FREEDIVE_AVX2
  vi mask = viota() < vseti(static_cast<int32_t>(n));
  return reinterpret_cast<vf>(_mm256_maskload_ps(p, reinterpret_cast<__m256i>(mask)));
#else
  float t[VL] = {0};
  for (int64_t i = 0; i < n; ++i) t[i] = p[i];
  return vload(t);
#endif
}
FD_INLINE void vstore_n(float* p, vf x, int64_t n) {
#ifdef FREEDIVE_AVX2
  vi mask = viota() < vseti(static_cast<int32_t>(n));
  _mm256_maskstore_ps(p, reinterpret_cast<__m256i>(mask), reinterpret_cast<__m256>(x));
#else
  float t[VL];
  vstore(t, x);
  for (int64_t i = 0; i < n; ++i) p[i] = t[i];
#endif
}

// a*b + c: fused in the avx2 tier, multiply then add in the baseline. fma1 is the same operation on one number.
FD_INLINE vf vfma(vf a, vf b, vf c) {
#ifdef FREEDIVE_AVX2
  return reinterpret_cast<vf>(_mm256_fmadd_ps(a, b, c));
#else
  return a * b + c;
#endif
}
FD_INLINE float fma1(float a, float b, float c) {
#ifdef FREEDIVE_AVX2
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// Halves are folded onto each other: ((0+4)+(2+6)) + ((1+5)+(3+7)).
FD_INLINE float hsum(vf x) {
  x = x + __builtin_shuffle(x, vi{4, 5, 6, 7, 0, 1, 2, 3});
  x = x + __builtin_shuffle(x, vi{2, 3, 0, 1, 6, 7, 4, 5});
  return x[0] + x[1];
}
FD_INLINE float hmax(vf x) {
  x = vmax(x, __builtin_shuffle(x, vi{4, 5, 6, 7, 0, 1, 2, 3}));
  x = vmax(x, __builtin_shuffle(x, vi{2, 3, 0, 1, 6, 7, 4, 5}));
  return x[0] > x[1] ? x[0] : x[1];
}

// Eight rows by eight columns, turned: to[c * to_row + r] = from[r * from_row + c]
FD_INLINE void turn_8x8(float* to, int64_t to_row, const float* from, int64_t from_row) {
  const vi low = {0, 8, 1, 9, 4, 12, 5, 13}, high = {2, 10, 3, 11, 6, 14, 7, 15};      // pairs of floats
  const vi first = {0, 1, 8, 9, 4, 5, 12, 13}, second = {2, 3, 10, 11, 6, 7, 14, 15};  // pairs of pairs
  vf q[2][4];  // q[h][c]: columns c and c + 4 of rows 4h..4h+3
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const float* at = from + 4 * h * from_row;
    const vf x0 = vload(at), x1 = vload(at + from_row), x2 = vload(at + 2 * from_row), x3 = vload(at + 3 * from_row);
    const vf a01 = __builtin_shuffle(x0, x1, low), b01 = __builtin_shuffle(x0, x1, high);
    const vf a23 = __builtin_shuffle(x2, x3, low), b23 = __builtin_shuffle(x2, x3, high);
    q[h][0] = __builtin_shuffle(a01, a23, first), q[h][1] = __builtin_shuffle(a01, a23, second);
    q[h][2] = __builtin_shuffle(b01, b23, first), q[h][3] = __builtin_shuffle(b01, b23, second);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    vstore(to + c * to_row, __builtin_shuffle(q[0][c], q[1][c], vi{0, 1, 2, 3, 8, 9, 10, 11}));
    vstore(to + (4 + c) * to_row, __builtin_shuffle(q[0][c], q[1][c], vi{4, 5, 6, 7, 12, 13, 14, 15}));
  }
}

FD_INLINE vf vsqrt(vf x) {
#ifdef FREEDIVE_AVX2
  return reinterpret_cast<vf>(_mm256_sqrt_ps(x));
#else
  vf r;
  for (int i = 0; i < VL; ++i) r[i] = __builtin_sqrtf(x[i]);
  return r;
#endif
}

// exp(x) for x up to 88.37, relative error about 1e-7: x = n ln 2 + r, |r| <= ln 2 / 2, a degree-6 polynomial in r (Cephes),
// times 2^n. Below -87.33 the result is 0 (no denormals); exp(0) is exactly 1; NaN stays NaN. What a softmax needs.
FD_INLINE vf vexp_bounded(vf x) {
  const vf magic = vset(12582912.0f);          // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const vf clamped = vmax(vset(-87.336f), x);  // NaN passes
  vf shifted = vfma(clamped, vset(1.44269504088896341f), magic);
  vf n = shifted - magic;
  vf r = vfma(n, vset(-0.693359375f), clamped);
  r = vfma(n, vset(2.12194440e-4f), r);
  vf y = vset(1.9875691500e-4f);
  y = vfma(y, r, vset(1.3981999507e-3f));
  y = vfma(y, r, vset(8.3334519073e-3f));
  y = vfma(y, r, vset(4.1665795894e-2f));
  y = vfma(y, r, vset(1.6666665459e-1f));
  y = vfma(y, r, vset(5.0000001201e-1f));
  y = vfma(y, r * r, r) + vset(1.0f);
  vi power = (reinterpret_cast<vi>(shifted) - reinterpret_cast<vi>(magic) + vseti(127)) << 23;
  return vselect(x < vset(-87.336f), vset(0.0f), y * reinterpret_cast<vf>(power));
}
// For any x: infinity above 88.37.
FD_INLINE vf vexp(vf x) {
  const vf high = vset(88.37f);
  return vselect(x > high, vset(__builtin_inff()), vselect(x != x, x, vexp_bounded(x > high ? high : x)));
}
FD_INLINE float exp1(float x) { return vexp(vset(x))[0]; }

// Calls body(i, load, store) over the lanes of a row of D; the last call may be partial (loads give zeros beyond the end).
template <class Body>
FD_INLINE void for_lanes(int64_t D, const Body& body) {
  int64_t i = 0;
  for (; i + VL <= D; i += VL) {
    body(i, [](const float* p) { return vload(p); }, [](float* p, vf x) { vstore(p, x); });
  }
  if (i < D) {
    const int64_t lanes = D - i;
    body(i, [lanes](const float* p) { return vload_n(p, lanes); }, [lanes](float* p, vf x) { vstore_n(p, x, lanes); });
  }
}

// ---- tensors and threads ---------------------------------------------------------------------------------------

FD_INLINE float* f32(const fd_tensor& t) { return static_cast<float*>(t.data); }
FD_INLINE const int32_t* i32(const fd_tensor& t) { return static_cast<const int32_t*>(t.data); }
FD_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
FD_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
FD_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FD_INLINE size_t bytes64(int64_t count, size_t size) { return (static_cast<size_t>(count) * size + 63) / 64 * 64; }

// Hands out pieces of the workspace, aligned to 64 bytes.
struct Space {
  uint8_t* at;
  template <class T>
  __attribute__((always_inline)) T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(at);
    at += bytes64(count, sizeof(T));
    return p;
  }
};

// body(unit, thread) for unit = 0..n-1, handed out one by one.
template <class Body>
void parallel_units(fd_context* ctx, int64_t n, const Body& body) {
  if (ctx->pool == nullptr || ctx->threads <= 1 || n <= 1) {
    for (int64_t i = 0; i < n; ++i) body(i, 0);
    return;
  }
  struct Shared {
    const Body* body;
    int64_t next, n;
  } shared{&body, 0, n};
  ctx->pool->run(
      [](void* user, int thread) {
        Shared* s = static_cast<Shared*>(user);
        for (;;) {
          int64_t i = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED);
          if (i >= s->n) return;
          (*s->body)(i, thread);
        }
      },
      &shared);
}

// body(begin, end) over rows, in pieces of about 16 K floats of `width` columns each: small work stays on one thread.
template <class Body>
void parallel_rows(fd_context* ctx, int64_t rows, int64_t width, const Body& body) {
  int64_t grain = max64(1, 16384 / max64(width, 1));
  parallel_units(ctx, ceil_div(rows, grain), [&](int64_t i, int) { body(i * grain, min64(rows, (i + 1) * grain)); });
}

}  // namespace
}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
