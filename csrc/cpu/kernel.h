// kernel.h: the register kernel under matmul and the head: a tile of A·B where every element is one chain of fused multiply-adds
// over k, so that how a product is cut into tiles never shows in its bits. (Attention has its own for its short chains:
// attention.h.)
//
// A and B hold words of 32 bits. In float32 a word is a number; in bfloat16 it is a pair of neighbours along k (simd.h), and the
// chain takes two products at a step. Everything else is the same, so one kernel serves both.
#pragma once
#include "simd.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

// Rows of the register tile of the blocked product, two vectors wide: 24 accumulators of the 32 AVX-512 registers, 12 of the
// 16 of AVX2, 24 of the 32 of NEON; SSE has half the width. SR: of the tiles that take unpacked rows, of which every number up to
// SR is compiled.
#if defined(FREEDIVE_AVX512) || defined(FREEDIVE_NEON)
constexpr int MR = 12, SR = 6;
#elif defined(FREEDIVE_AVX2)
constexpr int MR = 6, SR = 6;
#else
constexpr int MR = 3, SR = 3;
#endif
constexpr int64_t PANEL = 2 * VL;  // columns of the register tile, and of a panel of packed B

// One step of a chain.
template <bool HALF>
FD_INLINE vf step(vf a, vf b, vf c) {
  return HALF ? bf16_dot(a, b, c) : vfma(a, b, c);
}

// A word of A for the steps that follow. NEON multiplies by a lane of a register: there it stays alone in lane 0, for a broadcast
// would take a turn of the units that multiply. In assembly, because GCC 12 makes the broadcast as soon as two steps share it.
#ifdef FREEDIVE_NEON
template <bool HALF, int LANE>
FD_INLINE vf step_lane(vf a, vf b, vf c) {
#ifdef FREEDIVE_BF16
  if (HALF) {
    asm("bfdot %0.4s, %1.8h, %2.2h[%3]" : "+w"(c) : "w"(b), "w"(a), "i"(LANE));
    return c;
  }
#endif
  if (HALF) {
    const vi high = vseti(static_cast<int32_t>(0xffff0000u)), ai = reinterpret_cast<vi>(a), bi = reinterpret_cast<vi>(b);
    c = step_lane<false, LANE>(reinterpret_cast<vf>(ai << 16), reinterpret_cast<vf>(bi << 16), c);
    return step_lane<false, LANE>(reinterpret_cast<vf>(ai & high), reinterpret_cast<vf>(bi & high), c);
  }
  asm("fmla %0.4s, %1.4s, %2.s[%3]" : "+w"(c) : "w"(b), "w"(a), "i"(LANE));
  return c;
}
FD_INLINE vf word(float a) {
  vf r;
  asm("" : "=w"(r) : "0"(a));  // lane 0 of the register the number is in; nobody reads the others
  return r;
}
template <bool HALF>
FD_INLINE vf step_word(vf a, vf b, vf c) {
  return step_lane<HALF, 0>(a, b, c);
}
#else
FD_INLINE vf word(float a) { return vset(a); }
template <bool HALF>
FD_INLINE vf step_word(vf a, vf b, vf c) {
  return step<HALF>(a, b, c);
}
#endif

// What happens to a finished chain before it is stored; pointers are NULL when absent.
struct Finish {
  const float* bias;      // [columns]
  const float* residual;  // [rows, columns]
  int64_t residual_row;
};

// C[R, V*VL] = (load ? C : 0) + A[R, K] B[K, V*VL].  A(i, k) = a[i*a_row + k*a_k].
// B's row k is at b + k*b_k; its columns lie in panels of two vectors at distance b_panel (PANEL when B is a plain matrix). A
// line at ahead + k*b_k is fetched meanwhile (b: nothing more than what is read).
template <bool HALF, int R, int V>
__attribute__((noinline)) void tile(int64_t K, const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_k,
                                    int64_t b_panel, const float* ahead, float* c, int64_t c_row, bool load, Finish finish) {
  vf acc[R][V];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) acc[i][j] = load ? vload(c + i * c_row + j * VL) : vset(0.0f);
  }
  for (int64_t k = 0; k < K; ++k) {
    __builtin_prefetch(ahead + k * b_k, 0, 2);
    vf bv[V];
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) bv[j] = vload(b + (j / 2) * b_panel + (j % 2) * VL);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const vf av = word(a[i * a_row]);
#pragma GCC unroll 8
      for (int j = 0; j < V; ++j) acc[i][j] = step_word<HALF>(av, bv[j], acc[i][j]);
    }
    a += a_k;
    b += b_k;
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) {
      vf y = acc[i][j];
      if (finish.bias != nullptr) y = y + vload(finish.bias + j * VL);
      if (finish.residual != nullptr) y = y + vload(finish.residual + i * finish.residual_row + j * VL);
      vstore(c + i * c_row + j * VL, y);
    }
  }
}

// One step of a whole tile: word k of a strip of A, word k of a panel of B.
template <bool HALF>
FD_INLINE void step_packed(vf (&acc)[MR][2], const float* a, const float* b) {
  const vf low = vload(b), high = vload(b + VL);
#ifdef FREEDIVE_NEON
#pragma GCC unroll 3
  for (int i = 0; i < MR; i += 4) {  // five loads for 24 steps
    const vf av = vload(a + i);
    acc[i][0] = step_lane<HALF, 0>(av, low, acc[i][0]), acc[i][1] = step_lane<HALF, 0>(av, high, acc[i][1]);
    acc[i + 1][0] = step_lane<HALF, 1>(av, low, acc[i + 1][0]), acc[i + 1][1] = step_lane<HALF, 1>(av, high, acc[i + 1][1]);
    acc[i + 2][0] = step_lane<HALF, 2>(av, low, acc[i + 2][0]), acc[i + 2][1] = step_lane<HALF, 2>(av, high, acc[i + 2][1]);
    acc[i + 3][0] = step_lane<HALF, 3>(av, low, acc[i + 3][0]), acc[i + 3][1] = step_lane<HALF, 3>(av, high, acc[i + 3][1]);
  }
#else
#pragma GCC unroll 12
  for (int i = 0; i < MR; ++i) {
    const vf av = vset(a[i]);
    acc[i][0] = step<HALF>(av, low, acc[i][0]);
    acc[i][1] = step<HALF>(av, high, acc[i][1]);
  }
#endif
}

// What the tile after this one will load and store, MR rows of both lines of a panel.
struct Ahead {
  const float *out, *residual;  // residual: out's where there is none
  int64_t out_row, residual_row;
};
FD_INLINE void fetch_row(const Ahead& ahead, int64_t i) {
  __builtin_prefetch(ahead.out + i * ahead.out_row, 1);
  __builtin_prefetch(ahead.out + i * ahead.out_row + VL, 1);
  __builtin_prefetch(ahead.residual + i * ahead.residual_row);
  __builtin_prefetch(ahead.residual + i * ahead.residual_row + VL);
}

// The hot one: out[MR, PANEL] = finish((c or 0) + A B) of packed strips and panels. While it runs, what the next tile will load
// is fetched, and the next strip of A: no two rows of an output of 3,072 columns share a page, so nothing else would. A row at a
// time, some steps apart: all at once they would hold the places in which misses wait (a core has about 24), and the operands,
// which stream from L2, would stand behind them for as long as memory takes.
template <bool HALF>
__attribute__((noinline)) void tile_packed(int64_t K, const float* a, const float* b, const float* c, int64_t c_row, float* out,
                                           int64_t out_row, const Ahead& ahead, bool load, Finish finish) {
#ifdef FREEDIVE_NEON
  constexpr int64_t STEPS = 2;  // of four at once GCC 12 keeps some on the stack
#else
  constexpr int64_t STEPS = 8;
#endif
  vf acc[MR][2];
#pragma GCC unroll 12
  for (int i = 0; i < MR; ++i) {
    acc[i][0] = load ? vload(c + i * c_row) : vset(0.0f);
    acc[i][1] = load ? vload(c + i * c_row + VL) : vset(0.0f);
  }
  int64_t k = 0, fetched = 0;
  for (; k + STEPS <= K; k += STEPS) {
    fetch_row(ahead, fetched);
    fetched += fetched < MR - 1;
#pragma GCC unroll 8
    for (int64_t u = 0; u < STEPS; ++u) {
      __builtin_prefetch(a + (K + k + u) * MR);
      step_packed<HALF>(acc, a + (k + u) * MR, b + (k + u) * PANEL);
    }
  }
  for (; k < K; ++k) step_packed<HALF>(acc, a + k * MR, b + k * PANEL);
  for (; fetched < MR - 1; ++fetched) fetch_row(ahead, fetched);
  if (finish.bias != nullptr) {
    const vf low = vload(finish.bias), high = vload(finish.bias + VL);
#pragma GCC unroll 12
    for (int i = 0; i < MR; ++i) acc[i][0] = acc[i][0] + low, acc[i][1] = acc[i][1] + high;
  }
  if (finish.residual != nullptr) {
#pragma GCC unroll 12
    for (int i = 0; i < MR; ++i) {
      acc[i][0] = acc[i][0] + vload(finish.residual + i * finish.residual_row);
      acc[i][1] = acc[i][1] + vload(finish.residual + i * finish.residual_row + VL);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < MR; ++i) {
    vstore(out + i * out_row, acc[i][0]);
    vstore(out + i * out_row + VL, acc[i][1]);
  }
}

// tile with rows known at run time only, 1..SR.
template <bool HALF, int V>
FD_INLINE void tile_rows(int64_t rows, int64_t K, const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_k,
                         int64_t b_panel, const float* ahead, float* c, int64_t c_row, bool load, Finish finish) {
  switch (rows) {
    case 1:
      return tile<HALF, 1, V>(K, a, a_row, a_k, b, b_k, b_panel, ahead, c, c_row, load, finish);
    case 2:
      return tile<HALF, 2, V>(K, a, a_row, a_k, b, b_k, b_panel, ahead, c, c_row, load, finish);
    case 3:
      return tile<HALF, 3, V>(K, a, a_row, a_k, b, b_k, b_panel, ahead, c, c_row, load, finish);
#ifdef FREEDIVE_FMA
    case 4:
      return tile<HALF, 4, V>(K, a, a_row, a_k, b, b_k, b_panel, ahead, c, c_row, load, finish);
    case 5:
      return tile<HALF, 5, V>(K, a, a_row, a_k, b, b_k, b_panel, ahead, c, c_row, load, finish);
    case 6:
      return tile<HALF, 6, V>(K, a, a_row, a_k, b, b_k, b_panel, ahead, c, c_row, load, finish);
#endif
  }
}

}  // namespace
}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
