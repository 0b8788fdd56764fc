// simd.h: float32 lanes with one spelling on every tier, and the few helpers all kernels share.
//
// GCC vector extensions: the same source has 16 lanes in the avx512 tiers, 8 in avx2 (AVX2+FMA), 4 in neon (arm64) and 8 as pairs
// of registers in the baseline. Macros add up: FREEDIVE_AVX2, then FREEDIVE_AVX512; or FREEDIVE_NEON; then FREEDIVE_BF16, the
// instruction that multiplies pairs of bfloat16.
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
#ifdef FREEDIVE_NEON
#include <arm_neon.h>
#endif

#include "../core/context.h"
#include "../core/thread_pool.h"
#include "../ops.h"

#ifndef FREEDIVE_TIER_NAMESPACE
#define FREEDIVE_TIER_NAMESPACE tier_baseline
#endif
#pragma GCC diagnostic ignored "-Wpsabi"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // these two: GCC 12 of its own AVX-512 header
#pragma GCC diagnostic ignored "-Wuninitialized"

#define FD_INLINE static inline __attribute__((always_inline))

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

// Lanes. AVX-512: 16, NEON: 4, the others 8 (pairs of registers in the baseline).
#if defined(FREEDIVE_AVX512)
constexpr int VL = 16;
#elif defined(FREEDIVE_NEON)
constexpr int VL = 4;
#else
constexpr int VL = 8;
#endif
typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef float vf_unaligned __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(4 * VL), aligned(4), may_alias));

// Tiers with a fused multiply-add.
#if defined(FREEDIVE_AVX2) || defined(FREEDIVE_NEON)
#define FREEDIVE_FMA
#endif

constexpr float NEG_INF = -__builtin_inff();

FD_INLINE vf vload(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
FD_INLINE void vstore(float* p, vf x) { *reinterpret_cast<vf_unaligned*>(p) = x; }
FD_INLINE vi vloadi(const int32_t* p) { return *reinterpret_cast<const vi_unaligned*>(p); }
FD_INLINE void vstorei(int32_t* p, vi x) { *reinterpret_cast<vi_unaligned*>(p) = x; }
#ifdef FREEDIVE_AVX512
FD_INLINE vf vset(float x) { return reinterpret_cast<vf>(_mm512_set1_ps(x)); }
FD_INLINE vi vseti(int32_t x) { return reinterpret_cast<vi>(_mm512_set1_epi32(x)); }
FD_INLINE vi viota() { return vi{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }
FD_INLINE vf vmax(vf a, vf b) { return reinterpret_cast<vf>(_mm512_max_ps(a, b)); }
#elif defined(FREEDIVE_NEON)
FD_INLINE vf vset(float x) { return vf{x, x, x, x}; }
FD_INLINE vi vseti(int32_t x) { return vi{x, x, x, x}; }
FD_INLINE vi viota() { return vi{0, 1, 2, 3}; }
FD_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }  // not FMAX: that one returns NaN if either is
#else
FD_INLINE vf vset(float x) { return vf{x, x, x, x, x, x, x, x}; }
FD_INLINE vi vseti(int32_t x) { return vi{x, x, x, x, x, x, x, x}; }
FD_INLINE vi viota() { return vi{0, 1, 2, 3, 4, 5, 6, 7}; }
FD_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
#endif
FD_INLINE vf vselect(vi mask, vf yes, vf no) { return mask ? yes : no; }

// bfloat16 in memory: the upper half of a float. Loads and stores are overloaded, so a loop over lanes is the same for both.
typedef uint16_t bf16;
typedef uint16_t vh __attribute__((vector_size(2 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));
typedef uint16_t vh_unaligned __attribute__((vector_size(2 * VL), aligned(2), may_alias));
typedef float vf_of_halves __attribute__((vector_size(4 * VL), aligned(2), may_alias));  // VL pairs that lie like one bfloat16
FD_INLINE vf widened(vh x) { return reinterpret_cast<vf>(__builtin_convertvector(x, vu) << 16); }
// As bf16_round below: to nearest, ties to even; denormals become 0, NaN stays NaN.
FD_INLINE vh narrowed(vf x) {
#if defined(FREEDIVE_BF16) && defined(FREEDIVE_AVX512)
  return reinterpret_cast<vh>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x)));
#else
  const vi u = reinterpret_cast<vi>(x), size = u & vseti(0x7fffffff);
  const vi rounded = size < vseti(0x00800000) ? u & vseti(INT32_MIN) : u + vseti(0x7fff) + ((u >> 16) & vseti(1));
  return __builtin_convertvector(reinterpret_cast<vu>(size > vseti(0x7f800000) ? u | vseti(0x00400000) : rounded) >> 16, vh);
#endif
}
FD_INLINE vf vload(const bf16* p) { return widened(*reinterpret_cast<const vh_unaligned*>(p)); }
FD_INLINE void vstore(bf16* p, vf x) { *reinterpret_cast<vh_unaligned*>(p) = narrowed(x); }
FD_INLINE float value_of(float x) { return x; }
FD_INLINE float value_of(bf16 x) {
  const uint32_t u = static_cast<uint32_t>(x) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

// The first n lanes of memory, zeros beyond; 1 <= n <= VL.
FD_INLINE vf vload_n(const float* p, int64_t n) {
#if defined(FREEDIVE_AVX512)
  return reinterpret_cast<vf>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
#elif defined(FREEDIVE_AVX2)
  vi mask = viota() < vseti(static_cast<int32_t>(n));
  return reinterpret_cast<vf>(_mm256_maskload_ps(p, reinterpret_cast<__m256i>(mask)));
#else
  float t[VL] = {0};
  for (int64_t i = 0; i < n; ++i) t[i] = p[i];
  return vload(t);
#endif
}
FD_INLINE void vstore_n(float* p, vf x, int64_t n) {
#if defined(FREEDIVE_AVX512)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), x);
#elif defined(FREEDIVE_AVX2)
  vi mask = viota() < vseti(static_cast<int32_t>(n));
  _mm256_maskstore_ps(p, reinterpret_cast<__m256i>(mask), reinterpret_cast<__m256>(x));
#else
  float t[VL];
  vstore(t, x);
  for (int64_t i = 0; i < n; ++i) p[i] = t[i];
#endif
}

FD_INLINE vf vload_n(const bf16* p, int64_t n) {
  bf16 t[VL] = {0};
  for (int64_t i = 0; i < n; ++i) t[i] = p[i];
  return vload(t);
}
FD_INLINE void vstore_n(bf16* p, vf x, int64_t n) {
  bf16 t[VL];
  vstore(t, x);
  for (int64_t i = 0; i < n; ++i) p[i] = t[i];
}

// a*b + c: fused, but multiply then add in the baseline. fma1 is the same operation on one number.
FD_INLINE vf vfma(vf a, vf b, vf c) {
#if defined(FREEDIVE_AVX512)
  return reinterpret_cast<vf>(_mm512_fmadd_ps(a, b, c));
#elif defined(FREEDIVE_AVX2)
  return reinterpret_cast<vf>(_mm256_fmadd_ps(a, b, c));
#elif defined(FREEDIVE_NEON)
  return reinterpret_cast<vf>(
      vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
#else
  return a * b + c;
#endif
}
FD_INLINE float fma1(float a, float b, float c) {
#ifdef FREEDIVE_FMA
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// Halves are folded onto each other, of eight lanes: ((0+4)+(2+6)) + ((1+5)+(3+7)).
#ifdef FREEDIVE_AVX512
FD_INLINE vf fold(vf x, int by) {
  return by == 8   ? reinterpret_cast<vf>(_mm512_shuffle_f32x4(x, x, 0x4E))
         : by == 4 ? reinterpret_cast<vf>(_mm512_shuffle_f32x4(x, x, 0xB1))
                   : reinterpret_cast<vf>(_mm512_permute_ps(x, 0x4E));
}
FD_INLINE float hsum(vf x) {
  x = x + fold(x, 8);
  x = x + fold(x, 4);
  x = x + fold(x, 2);
  return x[0] + x[1];
}
FD_INLINE float hmax(vf x) {
  x = vmax(x, fold(x, 8));
  x = vmax(x, fold(x, 4));
  x = vmax(x, fold(x, 2));
  return x[0] > x[1] ? x[0] : x[1];
}
#elif defined(FREEDIVE_NEON)
FD_INLINE float hsum(vf x) {
  x = x + __builtin_shuffle(x, vi{2, 3, 0, 1});
  return x[0] + x[1];
}
FD_INLINE float hmax(vf x) {
  x = vmax(x, __builtin_shuffle(x, vi{2, 3, 0, 1}));
  return x[0] > x[1] ? x[0] : x[1];
}
#else
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
#endif

// VL rows of VL lanes, turned in place: r[c] lane i becomes r[i] lane c.
FD_INLINE void turn(vf (&r)[VL]) {
#ifdef FREEDIVE_AVX512
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {  // pairs of floats
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  __m512 u[16];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // u[4i + c]: columns c, c+4, c+8, c+12 of rows 4i..4i+3
    u[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xEE);
    u[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xEE);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {  // quarters: columns c and c+8, c+4 and c+12 of eight rows, then of all
    const __m512 a = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88), b = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xDD), e = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xDD);
    r[c] = reinterpret_cast<vf>(_mm512_shuffle_f32x4(a, b, 0x88));
    r[c + 8] = reinterpret_cast<vf>(_mm512_shuffle_f32x4(a, b, 0xDD));
    r[c + 4] = reinterpret_cast<vf>(_mm512_shuffle_f32x4(d, e, 0x88));
    r[c + 12] = reinterpret_cast<vf>(_mm512_shuffle_f32x4(d, e, 0xDD));
  }
#elif defined(FREEDIVE_NEON)
  const vi even = {0, 4, 2, 6}, odd = {1, 5, 3, 7}, low = {0, 1, 4, 5}, high = {2, 3, 6, 7};
  const vf a = __builtin_shuffle(r[0], r[1], even), b = __builtin_shuffle(r[0], r[1], odd);  // columns 0 and 2, 1 and 3
  const vf c = __builtin_shuffle(r[2], r[3], even), d = __builtin_shuffle(r[2], r[3], odd);
  r[0] = __builtin_shuffle(a, c, low), r[1] = __builtin_shuffle(b, d, low);
  r[2] = __builtin_shuffle(a, c, high), r[3] = __builtin_shuffle(b, d, high);
#else
  const vi low = {0, 8, 1, 9, 4, 12, 5, 13}, high = {2, 10, 3, 11, 6, 14, 7, 15};      // pairs of floats
  const vi first = {0, 1, 8, 9, 4, 5, 12, 13}, second = {2, 3, 10, 11, 6, 7, 14, 15};  // pairs of pairs
  vf q[2][4];  // q[h][c]: columns c and c + 4 of rows 4h..4h+3
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const vf x0 = r[4 * h], x1 = r[4 * h + 1], x2 = r[4 * h + 2], x3 = r[4 * h + 3];
    const vf a01 = __builtin_shuffle(x0, x1, low), b01 = __builtin_shuffle(x0, x1, high);
    const vf a23 = __builtin_shuffle(x2, x3, low), b23 = __builtin_shuffle(x2, x3, high);
    q[h][0] = __builtin_shuffle(a01, a23, first), q[h][1] = __builtin_shuffle(a01, a23, second);
    q[h][2] = __builtin_shuffle(b01, b23, first), q[h][3] = __builtin_shuffle(b01, b23, second);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    r[c] = __builtin_shuffle(q[0][c], q[1][c], vi{0, 1, 2, 3, 8, 9, 10, 11});
    r[4 + c] = __builtin_shuffle(q[0][c], q[1][c], vi{4, 5, 6, 7, 12, 13, 14, 15});
  }
#endif
}

// VL rows by VL columns, turned: to[c * to_row + r] = from[r * from_row + c]
FD_INLINE void turn_square(float* to, int64_t to_row, const float* from, int64_t from_row) {
  vf r[VL];
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) r[i] = vload(from + i * from_row);
  turn(r);
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) vstore(to + i * to_row, r[i]);
}

// ---- bfloat16: a word of 32 bits holds two of them, the even index low -----------------------------------------

FD_INLINE float bf16_round(float x) {  // to nearest, ties to even; NaN stays NaN, denormals become 0 as the processor has it
  uint32_t u;
  memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return x;
  u = (u & 0x7f800000u) == 0 ? u & 0x80000000u : (u + 0x7fffu + (u >> 16 & 1)) & 0xffff0000u;
  memcpy(&x, &u, 4);
  return x;
}
FD_INLINE bf16 bf16_bits(float x) {
  const float rounded = bf16_round(x);
  uint32_t u;
  memcpy(&u, &rounded, 4);
  return static_cast<bf16>(u >> 16 | (x != x ? 0x40 : 0));  // a NaN keeps a bit that says so
}
FD_INLINE void store_one(float* p, float x) { *p = x; }
FD_INLINE void store_one(bf16* p, float x) { *p = bf16_bits(x); }
// An operand's number as a product in `compute` takes it.
FD_INLINE float taken(float x, int64_t compute) { return compute == FD_BF16 ? bf16_round(x) : x; }
FD_INLINE uint32_t bf16_pair(float even, float odd) {
  uint32_t u, v;
  even = bf16_round(even), odd = bf16_round(odd);
  memcpy(&u, &even, 4);
  memcpy(&v, &odd, 4);
  return u >> 16 | (v & 0xffff0000u);
}
#ifdef FREEDIVE_NEON
// Four numbers rounded as bf16_round does it, as uint16.
FD_INLINE uint16x4_t bf16_halves(vf x) {
#ifdef FREEDIVE_BF16
  const vi u = reinterpret_cast<vi>(x), none = (u & vseti(0x7f800000)) == vseti(0);  // the instruction would keep denormals
  return vreinterpret_u16_bf16(vcvt_bf16_f32(reinterpret_cast<float32x4_t>(none ? u & vseti(INT32_MIN) : u)));
#else
  const vi u = reinterpret_cast<vi>(x), size = u & vseti(0x7fffffff);
  const vi rounded = size < vseti(0x00800000) ? u & vseti(INT32_MIN) : u + vseti(0x7fff) + ((u >> 16) & vseti(1));
  return vshrn_n_u32(reinterpret_cast<uint32x4_t>(size > vseti(0x7f800000) ? u : rounded), 16);
#endif
}
#endif
// Words of VL pairs (even[i], odd[i]).
FD_INLINE vf bf16_pairs(vf even, vf odd) {
#if defined(FREEDIVE_NEON)
  const uint16x4_t e = bf16_halves(even), o = bf16_halves(odd);
  return reinterpret_cast<vf>(vcombine_u16(vzip1_u16(e, o), vzip2_u16(e, o)));
#elif defined(FREEDIVE_BF16)
  const __m512i index = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
                                         19, 3, 18, 2, 17, 1, 16, 0);
  return reinterpret_cast<vf>(_mm512_permutexvar_epi16(index, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even))));
#else
  vf r;
  for (int i = 0; i < VL; ++i) {
    const uint32_t word = bf16_pair(even[i], odd[i]);
    float f;
    memcpy(&f, &word, 4);
    r[i] = f;
  }
  return r;
#endif
}
// Words of 2 VL consecutive numbers: (x[0], x[1]), (x[2], x[3]), ...
FD_INLINE vf bf16_words(const float* x) {
#if defined(FREEDIVE_NEON)
  return reinterpret_cast<vf>(vcombine_u16(bf16_halves(vload(x)), bf16_halves(vload(x + VL))));
#elif defined(FREEDIVE_BF16)
  return reinterpret_cast<vf>(_mm512_cvtne2ps_pbh(vload(x + VL), vload(x)));
#else
  vf r;
  for (int i = 0; i < VL; ++i) {
    const uint32_t word = bf16_pair(x[2 * i], x[2 * i + 1]);
    float f;
    memcpy(&f, &word, 4);
    r[i] = f;
  }
  return r;
#endif
}
// c + a.even b.even + a.odd b.odd on words. One instruction where the processor has it; two fused multiply-adds elsewhere.
// (arm64 also has BFMMLA, twice the products at once: it wants four neighbours along k, not two, and adds them in another order.)
FD_INLINE vf bf16_dot(vf a, vf b, vf c) {
#if defined(FREEDIVE_BF16) && defined(FREEDIVE_NEON)
  return reinterpret_cast<vf>(
      vbfdotq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<bfloat16x8_t>(a), reinterpret_cast<bfloat16x8_t>(b)));
#elif defined(FREEDIVE_BF16)
  return reinterpret_cast<vf>(_mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
#else
  const vi high = vseti(static_cast<int32_t>(0xffff0000u)), ai = reinterpret_cast<vi>(a), bi = reinterpret_cast<vi>(b);
  c = vfma(reinterpret_cast<vf>(ai << 16), reinterpret_cast<vf>(bi << 16), c);
  return vfma(reinterpret_cast<vf>(ai & high), reinterpret_cast<vf>(bi & high), c);
#endif
}

FD_INLINE vf vsqrt(vf x) {
#if defined(FREEDIVE_AVX512)
  return reinterpret_cast<vf>(_mm512_sqrt_ps(x));
#elif defined(FREEDIVE_AVX2)
  return reinterpret_cast<vf>(_mm256_sqrt_ps(x));
#elif defined(FREEDIVE_NEON)
  return reinterpret_cast<vf>(vsqrtq_f32(reinterpret_cast<float32x4_t>(x)));
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
    body(i, [](const auto* p) { return vload(p); }, [](auto* p, vf x) { vstore(p, x); });
  }
  if (i < D) {
    const int64_t lanes = D - i;
    body(i, [lanes](const auto* p) { return vload_n(p, lanes); }, [lanes](auto* p, vf x) { vstore_n(p, x, lanes); });
  }
}

// ---- tensors and threads ---------------------------------------------------------------------------------------

FD_INLINE float* f32(const fd_tensor& t) { return static_cast<float*>(t.data); }
FD_INLINE bf16* b16(const fd_tensor& t) { return static_cast<bf16*>(t.data); }
FD_INLINE bool is_half(const fd_tensor& t) { return t.dtype == FD_BF16; }
FD_INLINE float number_at(const fd_tensor& t, int64_t offset) { return is_half(t) ? value_of(b16(t)[offset]) : f32(t)[offset]; }
// body(data) with a tensor's numbers as what they are, float* or bf16*.
template <class Body>
FD_INLINE void with_numbers(const fd_tensor& t, const Body& body) {
  is_half(t) ? body(b16(t)) : body(f32(t));
}
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
