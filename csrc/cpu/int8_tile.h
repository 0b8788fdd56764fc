// int8_tile.h: the product of packed integer weights with rows rounded to int8. Compiled twice: on plain multiply-adds of 16
// bits, and (FREEDIVE_VNNI) on vpdpbusd, which multiplies four unsigned with four signed bytes and adds the products to 32 bits
// in one instruction.
//
// Per block of 32: the integer sum, exact; then out = fma(sum, scale_w * scale_x, out) and, for a type with minima, fma(min_w,
// shift_x, out). Blocks go in order, so the bits of a row depend neither on the tile it is computed in nor on the instructions of
// the sum. Weights are unsigned (quants + offset); the offset's part, -offset * sum of x, is where the integer sum begins.
#pragma once
#include "quantized.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

#ifdef FREEDIVE_AVX512
constexpr int INT8_ROWS = 6, INT8_STRIPS = 2;  // 12 integer and 12 float sums of 32 registers
#else
constexpr int INT8_ROWS = 2, INT8_STRIPS = 1;
#endif

#ifndef FREEDIVE_VNNI
typedef int16_t vs16 __attribute__((vector_size(sizeof(vi))));

// a.even b.even + a.odd b.odd of 16-bit halves, to 32 bits.
FD_INLINE vi madd16(vi a, vi b) {
#if defined(FREEDIVE_AVX512)
  return reinterpret_cast<vi>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(FREEDIVE_AVX2)
  return reinterpret_cast<vi>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  __m128i x[2], y[2];
  memcpy(x, &a, sizeof(a));
  memcpy(y, &b, sizeof(b));
  for (int i = 0; i < 2; ++i) x[i] = _mm_madd_epi16(x[i], y[i]);
  memcpy(&a, x, sizeof(a));
  return a;
#else
  return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}
#endif

// Four neighbours along k of one row, in every lane.
struct Four {
#ifdef FREEDIVE_VNNI
  vi bytes;
#else
  vi even, odd;  // bytes 0, 2 and 1, 3 as 16 bits
#endif
};
FD_INLINE Four four_of(const int8_t* q) {
  int32_t word;
  memcpy(&word, q, 4);
  Four f;
#ifdef FREEDIVE_VNNI
  f.bytes = vseti(word);
#else
  const vs16 all = reinterpret_cast<vs16>(vseti(word));
  f.even = reinterpret_cast<vi>((all << 8) >> 8);
  f.odd = reinterpret_cast<vi>(all >> 8);
#endif
  return f;
}
// sum + the products of four unsigned bytes of w with those of the row.
FD_INLINE vi dot4(vi sum, vi w, const Four& x) {
#ifdef FREEDIVE_VNNI
  return reinterpret_cast<vi>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(w), reinterpret_cast<__m512i>(x.bytes)));
#else
  const vi bytes = vseti(0x00ff00ff);
  return sum + (madd16(w & bytes, x.even) + madd16((w >> 8) & bytes, x.odd));
#endif
}

// R rows, V strips. w: the first strip; sums [R][V * STRIP]; ahead: as of fetch_ahead, 0 for none.
template <int KIND, int R, int V>
__attribute__((noinline)) void int8_tile(const uint8_t* w, int64_t strip_bytes, int64_t blocks, const int8_t* q, int64_t C,
                                         const float* scale, const float* shift, const int32_t* start, int64_t ahead,
                                         float* sums) {
  constexpr KindInfo K = KIND_INFO[KIND];
  constexpr int VV = V * VS;
  vf acc[R][VV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < VV; ++v) acc[r][v] = vset(0.0f);
  }
  for (int64_t b = 0; b < blocks; ++b) {
    const uint8_t* record[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) record[v] = w + v * strip_bytes + b * K.record;
    vi sum[R][VV];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < VV; ++v) sum[r][v] = K.has_min ? vseti(0) : vseti(start[r * blocks + b]);
    }
    const auto quants = [&](int v, int g) {
      return vloadi(reinterpret_cast<const int32_t*>(record[v / VS] + (g * VS + v % VS) * sizeof(vi)));
    };
    if (ahead != 0) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) fetch_ahead<K.record>(record[v] + ahead);
    }
    const int8_t* x = q + b * BLOCK;
    if (K.four) {
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) {
        vi low[VV], high[VV];
#pragma GCC unroll 8
        for (int v = 0; v < VV; ++v) {
          const vi both = quants(v, g);
          low[v] = both & vseti(0x0f0f0f0f), high[v] = (both >> 4) & vseti(0x0f0f0f0f);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const Four first = four_of(x + r * C + 4 * g), second = four_of(x + r * C + 16 + 4 * g);
#pragma GCC unroll 8
          for (int v = 0; v < VV; ++v) sum[r][v] = dot4(dot4(sum[r][v], low[v], first), high[v], second);
        }
      }
    } else {
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g) {
        vi word[VV];
#pragma GCC unroll 8
        for (int v = 0; v < VV; ++v) word[v] = quants(v, g);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const Four four = four_of(x + r * C + 4 * g);
#pragma GCC unroll 8
          for (int v = 0; v < VV; ++v) sum[r][v] = dot4(sum[r][v], word[v], four);
        }
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < VV; ++v) {
      const vf d = scale_lanes<KIND>(record[v / VS], v % VS);
      const vf m = K.has_min ? minimum_lanes<KIND>(record[v / VS], v % VS, d) : d;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        acc[r][v] = vfma(__builtin_convertvector(sum[r][v], vf), d * vset(scale[r * blocks + b]), acc[r][v]);
        if (K.has_min) acc[r][v] = vfma(m, vset(shift[r * blocks + b]), acc[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < VV; ++v) vstore(sums + (r * VV + v) * VL, acc[r][v]);
  }
}

template <int KIND>
void int8_strips(const Quantized& w, const Int8Rows& x, int64_t s0, int64_t s1, const Target& t) {
  const int64_t blocks = w.blocks(), bytes = w.strip_bytes();
  alignas(64) float sums[INT8_ROWS * INT8_STRIPS * STRIP];
  const auto tile = [&](auto rows, auto strips, int64_t r, int64_t s, int64_t ahead) {
    constexpr int R = decltype(rows)::value, V = decltype(strips)::value;
    int8_tile<KIND, R, V>(w.data + s * bytes, bytes, blocks, x.q + r * w.C, w.C, x.scale + r * blocks, x.shift + r * blocks,
                          x.start + r * blocks, ahead, sums);
    finish_tile(t, sums, V * STRIP, r, R, s * STRIP, min64(V * STRIP, w.O - s * STRIP));
  };
  const auto rows_of = [&](auto strips, int64_t s) {
    const int64_t next =
        decltype(strips)::value * bytes;  // the first rows fetch the strips that come next; the others find theirs at hand
    int64_t r = 0;
    for (; r + INT8_ROWS <= x.rows; r += INT8_ROWS) tile(Number<INT8_ROWS>{}, strips, r, s, r == 0 ? next : 0);
    if (INT8_ROWS > 2) {
      for (; r + 2 <= x.rows; r += 2) tile(Number<2>{}, strips, r, s, r == 0 ? next : 0);
    }
    for (; r < x.rows; ++r) tile(Number<1>{}, strips, r, s, r == 0 ? next : 0);
  };
  int64_t s = s0;
  if (x.rows == 1) {  // one strip after the other: memory is read from front to back
    for (; s < s1; ++s) tile(Number<1>{}, Number<1>{}, 0, s, AHEAD);
    return;
  }
  for (; s + INT8_STRIPS <= s1; s += INT8_STRIPS) rows_of(Number<INT8_STRIPS>{}, s);
  for (; s < s1; ++s) rows_of(Number<1>{}, s);
}

FD_INLINE void int8_strips_of(const Quantized& w, const Int8Rows& x, int64_t s0, int64_t s1, const Target& t) {
  switch (w.kind) {
    case W_I8:
      return int8_strips<W_I8>(w, x, s0, s1, t);
    case W_I8_MIN:
      return int8_strips<W_I8_MIN>(w, x, s0, s1, t);
    case W_I4:
      return int8_strips<W_I4>(w, x, s0, s1, t);
    case W_I4_MIN:
      return int8_strips<W_I4_MIN>(w, x, s0, s1, t);
    case W_I8_MIN32:
      return int8_strips<W_I8_MIN32>(w, x, s0, s1, t);
    case W_I4_MIN32:
      return int8_strips<W_I4_MIN32>(w, x, s0, s1, t);
    default:
      return;
  }
}

}  // namespace
}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
