// attention.h: what the attention files share: where the sequences of a flat batch lie, the exponential of a softmax, the product
// kernel, and how keys, values and rows become its operands.
//
// Operands hold words (kernel.h): a float, or with HALF a pair of bfloat16 neighbours along the summed index. Every buffer is
// padded with zeros to whole vectors, so there are no edges in columns; rows come in strips of 1 to SR.
#pragma once
#include "pack.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

constexpr int64_t KEYS = FD_KV_BLOCK;
constexpr int KEY_VECTORS = KEYS / VL;  // of one row and one block

FD_INLINE int64_t padded(int64_t columns) { return ceil_div(columns, VL) * VL; }

// ---- sequences -------------------------------------------------------------------------------------------------

// A piece of one sequence: `rows` query rows starting at row `first` of the batch; `offset` is the position of that
// row in its sequence's new rows.
struct Piece {
  int32_t sequence, first, rows, offset;
};

// Cuts every sequence into pieces of at most `length` rows, from its start. At most N/length + S of them.
FD_INLINE int64_t cut_sequences(const int32_t* cu_seqlens, int64_t S, int64_t length, Piece* pieces) {
  int64_t count = 0;
  for (int64_t s = 0; s < S; ++s) {
    for (int64_t at = cu_seqlens[s]; at < cu_seqlens[s + 1]; at += length) {
      const int64_t rows = min64(length, cu_seqlens[s + 1] - at);
      pieces[count++] = {static_cast<int32_t>(s), static_cast<int32_t>(at), static_cast<int32_t>(rows),
                         static_cast<int32_t>(at - cu_seqlens[s])};
    }
  }
  return count;
}
// Work goes by chunks of whole sequences, about this many rows: what is copied of one is used before it leaves the cache, and
// the next chunk's copies take its place. Enough for every thread to have heads of its own.
FD_INLINE int64_t chunk_end(const int32_t* cu_seqlens, int64_t S, int64_t s, int32_t threads) {
  const int64_t first = cu_seqlens[s++];
  while (s < S && cu_seqlens[s + 1] - first <= 512 * max64(2, threads)) ++s;
  return s;
}
FD_INLINE int64_t max_pieces(int64_t N, int64_t S, int64_t length) { return N / length + S; }

template <class T = float>
FD_INLINE T* row_of(const fd_tensor& t, int64_t n, int64_t h) {
  return static_cast<T*>(t.data) + n * t.stride[0] + h * t.stride[1];
}

// Asks for rows that will be read, or written, soon: they lie far apart, where the processor does not look ahead by itself.
FD_INLINE void fetch_rows(const fd_tensor& t, int64_t first, int64_t rows, int64_t head, int64_t heads, bool to_write) {
  const int64_t size = is_half(t) ? sizeof(bf16) : sizeof(float);
  for (int64_t n = first; n < first + rows; ++n) {
    for (int64_t h = head; h < head + heads; ++h) {
      const uint8_t* row = static_cast<const uint8_t*>(t.data) + (n * t.stride[0] + h * t.stride[1]) * size;
      for (int64_t i = 0; i < t.shape[2] * size; i += 64) to_write ? __builtin_prefetch(row + i, 1) : __builtin_prefetch(row + i, 0, 2);
    }
  }
}

// Rows of a [N,H,D] or [N,H] tensor that belong to no sequence: zero.
FD_INLINE void zero_tail(const fd_tensor& t, int64_t used) {
  const int64_t width = t.ndim == 3 ? t.shape[2] : 1;
  for (int64_t n = used; n < t.shape[0]; ++n) {
    for (int64_t h = 0; h < t.shape[1]; ++h) memset(row_of(t, n, h), 0, width * sizeof(float));
  }
}

// How many bytes of workspace `take` takes: it is let do so.
template <class Take>
FD_INLINE size_t bytes_of(const Take& take) {
  uint8_t* const begin = reinterpret_cast<uint8_t*>(uintptr_t{64});
  Space space{begin};
  take(space);
  return space.at - begin;
}

// ---- softmax ---------------------------------------------------------------------------------------------------

constexpr float LOG2E = 1.44269504088896341f;

// 2^x for x < 127, 0 from -127 down; NaN stays NaN, 2^0 is exactly 1. x = n + r, |r| <= 1/2, a polynomial in r (Remez), times
// 2^n. Relative error 1e-7, with HALF 3e-6, far below the rounding of the result. Only the polynomial and one product need the
// units that multiply: those are what attention is short of.
template <bool HALF>
FD_INLINE vf exp2_bounded(vf x) {
  const vf magic = vset(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  x = vmax(vset(-127.0f), x);          // NaN passes
  const vf shifted = x + magic;
  const vf r = x - (shifted - magic);
  vf y;
  if (HALF) {
    y = vfma(vset(9.582852945e-3f), r, vset(5.5906426162e-2f));
    y = vfma(y, r, vset(2.4024099112e-1f));
    y = vfma(y, r, vset(6.9312417507e-1f));
  } else {
    y = vfma(vset(1.3264727313e-3f), r, vset(9.6715129912e-3f));
    y = vfma(y, r, vset(5.5507335812e-2f));
    y = vfma(y, r, vset(2.4022242427e-1f));
    y = vfma(y, r, vset(6.9314700365e-1f));
  }
  y = vfma(y, r, vset(1.0f));
  return y * reinterpret_cast<vf>((reinterpret_cast<vi>(shifted) + vseti(127 - 0x4B400000)) << 23);
}

// Whether a lane is above the limit (NaN is not).
FD_INLINE bool any_above(vf x, float limit) {
#if defined(FREEDIVE_AVX512)
  return _mm512_cmp_ps_mask(x, vset(limit), _CMP_GT_OQ) != 0;
#elif defined(FREEDIVE_AVX2)
  return _mm256_movemask_ps(_mm256_cmp_ps(x, vset(limit), _CMP_GT_OQ)) != 0;
#elif defined(FREEDIVE_NEON)
  return vmaxvq_u32(reinterpret_cast<uint32x4_t>(x > vset(limit))) != 0;
#else
  return hmax(x) > limit;
#endif
}

// Words of the pairs (low[0], low[1]), ..., then of high.
FD_INLINE vf neighbour_words(vf low, vf high) {
#if defined(FREEDIVE_NEON)
  return reinterpret_cast<vf>(vcombine_u16(bf16_halves(low), bf16_halves(high)));
#elif defined(FREEDIVE_BF16)
  return reinterpret_cast<vf>(_mm512_cvtne2ps_pbh(high, low));
#else
  float x[2 * VL];
  vstore(x, low);
  vstore(x + VL, high);
  return bf16_words(x);
#endif
}

// Numbers as a product takes them: with HALF to the nearest bfloat16.
template <bool HALF>
FD_INLINE vf as_taken(vf x) {
  if (!HALF) return x;
  const vi u = reinterpret_cast<vi>(x);
  return reinterpret_cast<vf>((u + vseti(0x7fff) + ((u >> 16) & vseti(1))) & vseti(static_cast<int32_t>(0xffff0000u)));
}

// ---- products --------------------------------------------------------------------------------------------------

// Where the columns of B lie: vector j of its row k is at base(j) + k * b_k. Keys are blocks [words][32] anywhere in memory.
struct Blocks {
  const float* const* block;
  FD_INLINE const float* at(const Blocks& b, int64_t j) { return b.block[j / KEY_VECTORS] + j % KEY_VECTORS * VL; }
};
struct Plain {
  const float* b;
  FD_INLINE const float* at(const Plain& b, int64_t j) { return b.b + j * VL; }
};

// R rows, V vectors at a time as far as they go: C = (load ? C : 0) + A B; returns how many vectors that were. A(i, k) is
// a[i * a_step + k], or TURNED a[i + k * a_step]. k goes in fours: chains are 16 to 128 long, so what is around them counts.
template <bool HALF, bool TURNED, int R, int V, class B>
__attribute__((noinline)) int64_t strip(int64_t K, int64_t from, int64_t vectors, const float* a, int64_t a_step, B b,
                                        int64_t b_k, float* c, int64_t c_row, bool load) {
  constexpr int BASES = V <= KEY_VECTORS ? 1 : V / KEY_VECTORS, EACH = V / BASES;  // vectors that follow each other
  int64_t j = from;
  for (; j + V <= vectors; j += V) {
    const float* base[BASES];
#pragma GCC unroll 8
    for (int u = 0; u < BASES; ++u) base[u] = B::at(b, j + u * EACH);
    float* to = c + j * VL;
    vf acc[R][V];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) acc[i][v] = load ? vload(to + i * c_row + v * VL) : vset(0.0f);
    }
    const float* ak = a;
#pragma GCC unroll 4
    for (int64_t k = 0; k < K; ++k) {
      vf bv[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) bv[v] = vload(base[v / EACH] + k * b_k + v % EACH * VL);
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        const vf av = word(TURNED ? ak[i] : ak[i * a_step]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[i][v] = step_word<HALF>(av, bv[v], acc[i][v]);
      }
      ak += TURNED ? a_step : 1;
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) vstore(to + i * c_row + v * VL, acc[i][v]);
    }
  }
  return j;
}

template <bool HALF, bool TURNED, int V, class B>
FD_INLINE int64_t strip_rows(int64_t rows, int64_t K, int64_t from, int64_t vectors, const float* a, int64_t a_step, B b,
                             int64_t b_k, float* c, int64_t c_row, bool load) {
  switch (rows) {
    case 1:
      return strip<HALF, TURNED, 1, V>(K, from, vectors, a, a_step, b, b_k, c, c_row, load);
    case 2:
      return strip<HALF, TURNED, 2, V>(K, from, vectors, a, a_step, b, b_k, c, c_row, load);
    case 3:
      return strip<HALF, TURNED, 3, V>(K, from, vectors, a, a_step, b, b_k, c, c_row, load);
#ifdef FREEDIVE_FMA
    case 4:
      return strip<HALF, TURNED, 4, V>(K, from, vectors, a, a_step, b, b_k, c, c_row, load);
    case 5:
      return strip<HALF, TURNED, 5, V>(K, from, vectors, a, a_step, b, b_k, c, c_row, load);
    case 6:
      return strip<HALF, TURNED, 6, V>(K, from, vectors, a, a_step, b, b_k, c, c_row, load);
#endif
  }
  return from;
}

// Any rows, whole vectors. One, two and three rows take more columns at once, so that enough chains hide the latency of a
// multiply-add.
template <bool HALF, bool TURNED, class B>
FD_INLINE void product(int64_t rows, int64_t vectors, int64_t K, const float* a, int64_t a_step, B b, int64_t b_k, float* c,
                       int64_t c_row, bool load) {
  for (int64_t i = 0; i < rows; i += SR) {
    const int64_t r = min64(SR, rows - i);
    const float* ai = a + (TURNED ? i : i * a_step);
    float* ci = c + i * c_row;
    int64_t j = 0;
#if defined(FREEDIVE_AVX512) || defined(FREEDIVE_NEON)
    if (r == 1 && vectors >= 8) j = strip<HALF, TURNED, 1, 8>(K, j, vectors, ai, a_step, b, b_k, ci, c_row, load);
    if (vectors - j >= 4) j = strip_rows<HALF, TURNED, 4>(r, K, j, vectors, ai, a_step, b, b_k, ci, c_row, load);
#elif defined(FREEDIVE_AVX2)
    if (r == 1 && vectors >= 8) j = strip<HALF, TURNED, 1, 8>(K, j, vectors, ai, a_step, b, b_k, ci, c_row, load);
    if (r <= 3 && vectors - j >= 4) j = strip_rows<HALF, TURNED, 4>(r, K, j, vectors, ai, a_step, b, b_k, ci, c_row, load);
#endif
    if (vectors - j >= 2) j = strip_rows<HALF, TURNED, 2>(r, K, j, vectors, ai, a_step, b, b_k, ci, c_row, load);
    if (j < vectors) strip_rows<HALF, TURNED, 1>(r, K, j, vectors, ai, a_step, b, b_k, ci, c_row, load);
  }
}

// ---- operands --------------------------------------------------------------------------------------------------

// rows x D at `from`, turned: [words of D][32], zeros beyond the rows. What scores multiply.
template <bool HALF, class T>
FD_INLINE void turn_keys(float* to, const T* from, int64_t from_row, int64_t rows, int64_t D) {
  for (int64_t j = 0; j < KEYS; j += VL)
    turn_rows<HALF, VL>(to + j, KEYS, from + min64(j, rows) * from_row, from_row, max64(0, rows - j), D);
}

// rows x D at `from`, as words along the rows: [words of rows][padded D], zeros beyond D and, where the rows are odd, beyond
// them.
template <bool HALF, class T>
FD_INLINE void pair_rows(float* to, const T* from, int64_t from_row, int64_t rows, int64_t D) {
  const int64_t to_row = padded(D);
  for (int64_t w = 0; w < words_of<HALF>(rows); ++w) {
    for (int64_t d = 0; d < D; d += VL) vstore(to + w * to_row + d, column_words<HALF>(from + d, from_row, w, rows, D - d));
  }
}

}  // namespace
}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
