// pack.h: operands of the blocked product in the order the register kernel reads them: A in strips of MR rows, B in panels of
// PANEL columns, both word by word along k. A word is a float, or in bfloat16 the pair (k, k+1); an odd end is paired with 0.
// Rounding to bfloat16 happens here, so an operand is rounded once however often it is used; one that is bfloat16 in memory (T) is
// copied.
#pragma once
#include "kernel.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

template <bool HALF>
FD_INLINE int64_t words_of(int64_t k) {
  return HALF ? (k + 1) / 2 : k;
}

// VL words along a row that begins with k = 0 here; and the w-th of them alone, of a row of K numbers.
template <bool HALF>
FD_INLINE vf row_words(const float* x) {
  return HALF ? bf16_words(x) : vload(x);
}
template <bool HALF>
FD_INLINE vf row_words(const bf16* x) {
  return HALF ? *reinterpret_cast<const vf_of_halves*>(x) : vload(x);
}
FD_INLINE float pair_word(float even, float odd) {
  const uint32_t pair = bf16_pair(even, odd);
  float f;
  memcpy(&f, &pair, sizeof(f));
  return f;
}
FD_INLINE float pair_word(bf16 even, bf16 odd) {
  const uint32_t pair = even | static_cast<uint32_t>(odd) << 16;
  float f;
  memcpy(&f, &pair, sizeof(f));
  return f;
}
template <bool HALF, class T>
FD_INLINE float row_word(const T* x, int64_t w, int64_t K) {
  return HALF ? pair_word(x[2 * w], 2 * w + 1 < K ? x[2 * w + 1] : T{0}) : value_of(x[w]);
}

// Rows of K numbers, turned: to[w * to_row + r] = word w of row r for r < LANES, 0 for rows from `rows` on. Stores are VL lanes
// wide, in rising order of w, of which LANES count; those at the end are cut, for what follows may be another thread's. With
// FETCH the rows below, which come next, are asked for meanwhile.
template <bool HALF, int LANES, bool FETCH = false, class T>
FD_INLINE void turn_rows(float* to, int64_t to_row, const T* from, int64_t from_row, int64_t rows, int64_t K) {
  constexpr int64_t STEP = HALF ? 2 * VL : VL;
  int64_t k = 0;
  for (; k + STEP <= K; k += STEP) {
    if (FETCH) {
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) {
        for (int64_t f = 0; f < STEP; f += int64_t{64 / sizeof(T)}) __builtin_prefetch(from + (LANES + i) * from_row + k + f, 0, 2);
      }
    }
    vf r[VL];
#pragma GCC unroll 16
    for (int i = 0; i < VL; ++i) r[i] = i < LANES && i < rows ? row_words<HALF>(from + i * from_row + k) : vset(0.0f);
    turn(r);
    const int64_t w = HALF ? k / 2 : k;
    float* at = to + w * to_row;
    if (LANES == VL || (w + VL - 1) * to_row + VL <= words_of<HALF>(K) * to_row) {
#pragma GCC unroll 16
      for (int i = 0; i < VL; ++i) vstore(at + i * to_row, r[i]);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < VL; ++i) vstore_n(at + i * to_row, r[i], LANES);
    }
  }
  for (int64_t w = HALF ? k / 2 : k; w < words_of<HALF>(K); ++w) {
    for (int64_t i = 0; i < LANES; ++i) to[w * to_row + i] = i < rows ? row_word<HALF>(from + i * from_row, w, K) : 0.0f;
  }
}

// One panel of a weight [O, C]: PANEL of its rows side by side, [words][PANEL].
template <bool HALF>
FD_INLINE void pack_panel(float* panel, const float* weight, int64_t weight_row, int64_t rows, int64_t C) {
  turn_rows<HALF, VL, true>(panel, PANEL, weight, weight_row, rows, C);
  turn_rows<HALF, VL, true>(panel + VL, PANEL, weight + (rows > VL ? VL * weight_row : 0), weight_row, max64(0, rows - VL), C);
}

// Words of `lanes` columns of the rows k and k + 1 (or k alone) of a plain matrix, 0 in the lanes beyond.
template <bool HALF, class T>
FD_INLINE vf column_words(const T* x, int64_t k_stride, int64_t w, int64_t K, int64_t lanes = VL) {
  const auto load = [lanes](const T* p) { return lanes >= VL ? vload(p) : vload_n(p, lanes); };
  if (!HALF) return load(x + w * k_stride);
  const T* even = x + 2 * w * k_stride;
  const vf first = load(even), second = 2 * w + 1 < K ? load(even + k_stride) : vset(0.0f);
  if (sizeof(T) == sizeof(float)) return bf16_pairs(first, second);
  return reinterpret_cast<vf>(reinterpret_cast<vu>(first) >> 16 | reinterpret_cast<vu>(second));  // nothing to round
}
template <bool HALF, class T>
FD_INLINE float column_word(const T* x, int64_t k_stride, int64_t w, int64_t K) {
  if (!HALF) return value_of(x[w * k_stride]);
  const T* even = x + 2 * w * k_stride;
  return pair_word(*even, 2 * w + 1 < K ? even[k_stride] : T{0});
}

// How many words ahead rows are asked for that are read across: a part of each, a row apart in memory, where the processor does
// not look ahead by itself.
constexpr int64_t WORDS_AHEAD = 8;
template <bool HALF, class T>
FD_INLINE void fetch_words(const T* x, int64_t k_stride, int64_t w) {
  const T* at = x + (HALF ? 2 : 1) * (w + WORDS_AHEAD) * k_stride;
  __builtin_prefetch(at, 0, 2);
  if (HALF) __builtin_prefetch(at + k_stride, 0, 2);
}

// A block of a plain B[K, columns] in panels [ceil(columns/PANEL)][words][PANEL], `panel` from one to the next, four panels at a
// time: reads run along rows.
template <bool HALF, class T>
FD_INLINE void pack_block(float* panels, int64_t panel, const T* b, int64_t b_k, int64_t K, int64_t columns) {
  const int64_t words = words_of<HALF>(K), whole = columns / PANEL;
  for (int64_t p0 = 0; p0 < whole; p0 += 4) {
    const int64_t p1 = min64(whole, p0 + 4);
    for (int64_t w = 0; w < words; ++w) {
      for (int64_t p = p0; p < p1; ++p) {
        float* to = panels + p * panel + w * PANEL;
        fetch_words<HALF>(b + p * PANEL, b_k, w);
        fetch_words<HALF>(b + p * PANEL + VL, b_k, w);
        vstore(to, column_words<HALF>(b + p * PANEL, b_k, w, K));
        vstore(to + VL, column_words<HALF>(b + p * PANEL + VL, b_k, w, K));
      }
    }
  }
  if (whole * PANEL == columns) return;
  for (int64_t w = 0; w < words; ++w) {
    for (int64_t i = 0; i < PANEL; ++i)
      panels[whole * panel + w * PANEL + i] =
          whole * PANEL + i < columns ? column_word<HALF>(b + whole * PANEL + i, b_k, w, K) : 0.0f;
  }
}

// A strip is part of one vector, or some whole ones.
constexpr int WIDE = MR < VL ? VL : MR;
static_assert(WIDE % VL == 0, "strips are written in whole vectors");

// A block of A stored by columns (A(i,k) = a[k*a_k + i]) in strips [ceil(rows/MR)][words][MR], 0 for rows that are missing;
// `readable` of A's rows, the block's and those behind it, may be read. Reads run along rows of memory. Where a vector is wider
// than a strip a store reaches into places of the next words, which are written afterwards; the last ones of a strip are cut.
// With SUM the numbers A(i, k), as they are, are added to sums[i / MR * WIDE + i % MR] in the order of k.
template <bool HALF, bool SUM>
FD_INLINE void pack_strips_of_columns(float* strips, const float* a, int64_t a_k, int64_t rows, int64_t readable, int64_t K,
                                      float* sums) {
  const int64_t words = words_of<HALF>(K);
  const int64_t fit = min64(readable >= WIDE ? (readable - WIDE) / MR + 1 : 0, rows / MR);  // strips that are whole vectors
  for (int64_t w = 0; w < words; ++w) {
    const float* row = a + (HALF ? 2 : 1) * w * a_k;
    const bool pair = HALF && 2 * w + 1 < K, room = w * MR + WIDE <= words * MR;
    const auto strip = [&](int64_t s, bool paired, const auto& load, const auto& store) {
#pragma GCC unroll 4
      for (int v = 0; v < WIDE; v += VL) {
        const float* from = row + s * MR + v;
        __builtin_prefetch(from + (HALF ? 2 : 1) * WORDS_AHEAD * a_k, 0, 2);
        if (HALF) __builtin_prefetch(from + (2 * WORDS_AHEAD + 1) * a_k, 0, 2);
        const vf x = load(from, v), y = paired ? load(from + a_k, v) : vset(0.0f);
        store(strips + (s * words + w) * MR + v, HALF ? bf16_pairs(x, y) : x, v);
        if (!SUM) continue;
        const vf sum = vload(sums + s * WIDE + v) + x;
        vstore(sums + s * WIDE + v, paired ? sum + y : sum);
      }
    };
    int64_t s = 0;
    if (room && pair == HALF) {
      for (; s < fit; ++s) {
        strip(s, HALF, [](const float* p, int) { return vload(p); }, [](float* p, vf x, int) { vstore(p, x); });
      }
    }
    for (; s * MR < rows; ++s) {
      const int64_t left = s < fit ? WIDE : min64(MR, rows - s * MR);  // numbers of the strip that can be read
      strip(
          s, pair,
          [left](const float* p, int v) { return left <= v ? vset(0.0f) : left >= v + VL ? vload(p) : vload_n(p, left - v); },
          [room](float* p, vf x, int v) { room ? vstore(p, x) : vstore_n(p, x, min64(VL, MR - v)); });
    }
  }
}

// The same of a block stored by rows (A(i,k) = a[i*a_row + k]).
template <bool HALF, class T>
FD_INLINE void pack_strips_of_rows(float* strips, const T* a, int64_t a_row, int64_t rows, int64_t K) {
  constexpr int LANES = MR < VL ? MR : VL;
  for (int64_t i = 0; i < rows; i += MR, strips += words_of<HALF>(K) * MR) {
    for (int v = 0; v < MR; v += VL)
      turn_rows<HALF, LANES, true>(strips + v, MR, a + min64(i + v, rows - 1) * a_row, a_row, max64(0, rows - i - v), K);
  }
}

// Plain rows of words, for products of few rows: to[r * words + w].
template <bool HALF, class T>
FD_INLINE void rows_of_words(float* to, const T* a, int64_t a_row, int64_t a_k, int64_t rows, int64_t K) {
  const int64_t words = words_of<HALF>(K);
  constexpr int64_t STEP = HALF ? 2 * VL : VL;
  for (int64_t r = 0; r < rows; ++r) {
    int64_t k = 0;
    for (; a_k == 1 && k + STEP <= K; k += STEP) vstore(to + r * words + (HALF ? k / 2 : k), row_words<HALF>(a + r * a_row + k));
    for (int64_t w = HALF ? k / 2 : k; w < words; ++w) to[r * words + w] = column_word<HALF>(a + r * a_row, a_k, w, K);
  }
}

}  // namespace
}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
