// Attention backward. With P = exp(scale q·k - lse) and delta = sum_d dout out of a row:
//   dv_j = sum_i P_ij dout_i;  dS = P (dout·v - delta);  dq_i = scale sum_j dS_ij k_j;  dk_j = scale sum_i dS_ij q_i
//
// P is computed again from q, k and lse, block by block: no T x T matrix. A unit of work is 64 keys of one sequence and one
// key-value head, against all rows from the first of these keys on. Its dk and dv are its own: they sum over query tiles in order
// and, inside a tile, over the heads of the group. dq sums over units in order: before a unit adds to the dq of a tile it waits
// until the unit before has passed there. So several threads follow each other down one sequence, a tile apart, and the sums are
// those of one thread: no atomics on floats, no partial sums to keep. A thread takes a head of its own while there are any (its
// rows stay in its cache) and then helps where units are left.
//
// With compute = FD_BF16 the operands of all five products, P and dS among them, are rounded to bfloat16; dq, dk, dv sum in
// float32. Scores and dout·v sum over pairs of d, dk and dv over pairs of rows (counted from the start of the sequence), dq over
// pairs of keys: so q and dout are needed as words of two kinds, and dS too.
//
// q, k, v and out may be bfloat16 in memory, as the forward pass of a model that computes in it keeps them: the same bits but for
// delta, which then is of the rounded out.
//
// Memory plan: q and dout are copied once, head by head, as operands, and dq is gathered by head (3 H D floats for every row of a
// chunk of sequences): where they lie, rows of one head are a whole position apart, and such strides land in a few sets of L1. A
// tile is 192 rows: its P and dS (2 x 24 KB in bfloat16), the unit's operands and gradients stay in L2, the scores and dout·v of
// a strip of six rows (3 KB) in L1.
//
// Variants, 4 x 1024, 12 heads of 64, one thread, GFLOP/s of the causal half at peaks of 118 (float32) and 236 (bfloat16):
//   naive   3.6; the formulas, a (row, key) pair at a time, dot products in double
//   simd    tiles of 48 rows, units of 32 keys 84; 192 and 64, powers of two, scale applied at the end 94; bfloat16 168: products
//           take 0.79 of the time (at 0.93 of their peak), P and dS 0.08, copies and rounding of operands the rest
#include <sched.h>

#include "attention.h"
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

// ---- naive -----------------------------------------------------------------------------------------------------

void backward_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_attention_backward_args*>(p);
  const int64_t H = a.q.shape[1], D = a.q.shape[2], G = a.k.shape[1], S = a.cu_seqlens.shape[0] - 1, group = H / G;
  const int32_t* cu_seqlens = i32(a.cu_seqlens);
  parallel_units(ctx, S * G, [&](int64_t unit, int) {
    const int64_t s = unit / G, g = unit % G, start = cu_seqlens[s], end = cu_seqlens[s + 1];
    for (int64_t n = start; n < end; ++n) {
      memset(row_of(a.dk, n, g), 0, D * sizeof(float));
      memset(row_of(a.dv, n, g), 0, D * sizeof(float));
      for (int64_t h = g * group; h < (g + 1) * group; ++h) memset(row_of(a.dq, n, h), 0, D * sizeof(float));
    }
    for (int64_t i = start; i < end; ++i) {
      for (int64_t h = g * group; h < (g + 1) * group; ++h) {
        const float* dout = row_of(a.dout, i, h);
        const auto number = [](const fd_tensor& t, int64_t n, int64_t head, int64_t d) {
          return number_at(t, n * t.stride[0] + head * t.stride[1] + d);
        };
        const auto operand = [&a](double x) { return static_cast<double>(taken(static_cast<float>(x), a.compute)); };
        double delta = 0;
        for (int64_t d = 0; d < D; ++d) delta += operand(dout[d]) * number(a.out, i, h, d);
        for (int64_t j = start; j <= i; ++j) {
          const auto q = [&](int64_t d) { return operand(number(a.q, i, h, d)); };
          const auto k = [&](int64_t d) { return operand(number(a.k, j, g, d)); };
          double score = 0, dp = 0;
          for (int64_t d = 0; d < D; ++d) score += q(d) * k(d);
          for (int64_t d = 0; d < D; ++d) dp += operand(dout[d]) * operand(number(a.v, j, g, d));
          const double probability = exp(score * a.scale - *row_of(a.lse, i, h)), ds = operand(probability * (dp - delta));
          for (int64_t d = 0; d < D; ++d) {
            row_of(a.dv, j, g)[d] += static_cast<float>(operand(probability) * operand(dout[d]));
            row_of(a.dk, j, g)[d] += static_cast<float>(ds * q(d) * a.scale);
            row_of(a.dq, i, h)[d] += static_cast<float>(ds * k(d) * a.scale);
          }
        }
      }
    }
  });
  zero_tail(a.dq, cu_seqlens[S]);
  zero_tail(a.dk, cu_seqlens[S]);
  zero_tail(a.dv, cu_seqlens[S]);
}

// ---- simd ------------------------------------------------------------------------------------------------------

constexpr int64_t TILE = 192;  // query rows of a tile
constexpr int64_t STRIP = 6;   // query rows whose scores are alive at once; even, for pairs of rows
constexpr int UNIT = 2;        // blocks of keys of a unit
constexpr int64_t UNIT_KEYS = UNIT * KEYS;
static_assert(TILE % STRIP == 0 && STRIP % 2 == 0, "pairs of rows lie in one strip and one tile");

// What all threads share. Copies of tensors are by head, so that the rows of a head follow each other. Of q and dout there are
// two: rows as words along d, which scores multiply, and words along the rows, which dk and dv sum over. In float32 they are the
// same.
struct Shared {
  int64_t begin, rows, words;  // the chunk's rows in the batch; its words along the rows, of all sequences
  float *q, *dout;             // [H, rows, words of D], in float32 the next two
  float *q_rows, *dout_rows;   // [H, words, padded D]
  float* dq;                   // [H, rows, padded D]
  float *delta, *lse;          // [H, rows], lse in powers of two
  int32_t* next;               // [S, G] the next unit nobody has taken
  int32_t* first_unit;         // [S] units of the sequences before
  int32_t* first_word;         // [S] words along the rows of the sequences before
  Piece* pieces;               // [blocks of 32 rows]
  int32_t* passed;             // [units of all sequences, G] rows of its sequence a unit has added to dq of
};
template <bool HALF>
Shared take_shared(Space& space, int64_t N, int64_t H, int64_t D, int64_t S, int64_t G) {
  Shared x;
  x.begin = 0;
  x.rows = N;
  x.words = words_of<HALF>(N) + S;
  x.q_rows = space.take<float>(H * x.words * padded(D));
  x.dout_rows = space.take<float>(H * x.words * padded(D));
  x.q = HALF ? space.take<float>(N * H * words_of<HALF>(D)) : x.q_rows;
  x.dout = HALF ? space.take<float>(N * H * words_of<HALF>(D)) : x.dout_rows;
  x.dq = space.take<float>(N * H * padded(D));
  x.delta = space.take<float>(N * H);
  x.lse = space.take<float>(N * H);
  x.next = space.take<int32_t>(S * G);
  x.first_unit = space.take<int32_t>(S);
  x.first_word = space.take<int32_t>(S);
  x.pieces = space.take<Piece>(max_pieces(N, S, KEYS));
  x.passed = space.take<int32_t>(max_pieces(N, S, UNIT_KEYS) * G);
  return x;
}

// A thread's own.
struct TileSpace {
  float *keys, *values;  // [UNIT, words of D, 32], turned
  float* k;              // [words of the unit's keys, padded D]
  float *dk, *dv;        // [unit's keys, padded D]
  float *p, *ds;         // [words of TILE rows, unit's keys]
  float* ds_keys;        // [TILE rows, words of the unit's keys]; in float32 it is ds
  float *s, *dp;         // [STRIP, unit's keys] of the strip at work
};
template <bool HALF>
TileSpace take_tile(Space& space, int64_t D) {
  TileSpace x;
  x.keys = space.take<float>(UNIT_KEYS * words_of<HALF>(D));
  x.values = space.take<float>(UNIT_KEYS * words_of<HALF>(D));
  x.k = space.take<float>(words_of<HALF>(UNIT_KEYS) * padded(D));
  x.dk = space.take<float>(UNIT_KEYS * padded(D));
  x.dv = space.take<float>(UNIT_KEYS * padded(D));
  x.p = space.take<float>(words_of<HALF>(TILE) * UNIT_KEYS);
  x.ds = space.take<float>(words_of<HALF>(TILE) * UNIT_KEYS);
  x.ds_keys = HALF ? space.take<float>(TILE * words_of<HALF>(UNIT_KEYS)) : x.ds;
  x.s = space.take<float>(STRIP * UNIT_KEYS);
  x.dp = space.take<float>(STRIP * UNIT_KEYS);
  return x;
}
template <bool HALF>
size_t tile_bytes(int64_t D) {
  return bytes_of([=](Space& space) { take_tile<HALF>(space, D); });
}
template <bool HALF>
size_t backward_bytes(const fd_attention_backward_args& a, int32_t threads) {
  const int64_t N = a.q.shape[0], H = a.q.shape[1], D = a.q.shape[2], G = a.k.shape[1], S = a.cu_seqlens.shape[0] - 1;
  return bytes_of([=](Space& space) { take_shared<HALF>(space, N, H, D, S, G); }) + threads * tile_bytes<HALF>(D);
}
size_t backward_workspace(const void* p, int32_t threads) {
  const auto& a = *static_cast<const fd_attention_backward_args*>(p);
  const size_t half = backward_bytes<true>(a, threads), full = backward_bytes<false>(a, threads);  // enough for either `compute`
  return half > full ? half : full;
}

// Whoever is waited for has begun and waits for earlier units only, so this ends.
void wait_until(const int32_t* passed, int32_t rows) {
  for (int spins = 0; __atomic_load_n(passed, __ATOMIC_ACQUIRE) < rows; ++spins) {
    if (spins < 2000) {
#if defined(__SSE2__)
      _mm_pause();
#elif defined(__aarch64__)
      asm volatile("isb" : : : "memory");
#endif
    } else {
      sched_yield();
    }
  }
}

// Scores and dout·v of a pair of rows (in float32: of a row) become P and dS, `vectors` of them; row y sees seen + y keys.
template <bool HALF, bool MASKED>
FD_INLINE void probabilities(const float* s, const float* dp, int64_t vectors, int64_t seen, vf scale, const float* lse,
                             const float* delta, bool second, float* p_to, float* ds_to, float* ds_keys) {
  constexpr int ROWS = HALF ? 2 : 1;
  constexpr int BATCH = HALF ? 2 : 1;  // vectors a word of neighbours is made of
  for (int64_t j = 0; j < vectors; j += BATCH) {
    vf p[BATCH][2], ds[BATCH][2];
#pragma GCC unroll 2
    for (int u = 0; u < BATCH; ++u) {
#pragma GCC unroll 2
      for (int y = 0; y < ROWS; ++y) {
        const float *sy = s + y * UNIT_KEYS + (j + u) * VL, *dpy = dp + y * UNIT_KEYS + (j + u) * VL;
        const int64_t at = second ? y : 0;  // without a second row nothing lies behind the first one's numbers; masked to 0 below
        vf probability = exp2_bounded<HALF>(vfma(vload(sy), scale, vset(-lse[at])));
        vf change = vload(dpy) - vset(delta[at]);
        if (MASKED) {
          const int64_t keys = y == 0 ? seen : second ? seen + 1 : 0;
          const vi mask = viota() + vseti(static_cast<int32_t>((j + u) * VL)) < vseti(static_cast<int32_t>(keys));
          probability = vselect(mask, probability, vset(0.0f));
          // Of a row that is not there, old memory: 0 times what is no number is none.
          change = vselect(mask, change, vset(0.0f));
        }
        p[u][y] = probability;
        ds[u][y] = probability * change;
      }
      vstore(p_to + (j + u) * VL, HALF ? bf16_pairs(p[u][0], p[u][1]) : p[u][0]);
      vstore(ds_to + (j + u) * VL, HALF ? bf16_pairs(ds[u][0], ds[u][1]) : ds[u][0]);
    }
    if (HALF) {
#pragma GCC unroll 2
      for (int y = 0; y < 2; ++y)
        vstore(ds_keys + y * words_of<HALF>(UNIT_KEYS) + j / 2 * VL, neighbour_words(ds[0][y], ds[1][y]));
    }
  }
}

// Where the work is: one key-value head of one sequence, a unit of its keys.
struct Place {
  int64_t start, end;  // the sequence's rows in the batch
  int64_t first_word;  // its words along the rows
  int64_t j0, keys;    // the unit's keys, from the start of the sequence
};

// The rows i0.. (from the start of the sequence) of head h against a unit; `before` is the progress of the unit before, or NULL.
template <bool HALF>
void backward_tile(const fd_attention_backward_args& a, const Shared& shared, const TileSpace& x, const Place& at, int64_t i0,
                   int64_t rows, int64_t h, const int32_t* before) {
  const int64_t D = a.q.shape[2], row = padded(D);
  const int64_t d_words = words_of<HALF>(D), a_row = HALF ? d_words : row, unit_words = words_of<HALF>(UNIT_KEYS);
  const int64_t first = h * shared.rows + at.start - shared.begin + i0;        // of the rows
  const int64_t word = h * shared.words + at.first_word + words_of<HALF>(i0);  // of the words along them
  const float* q = HALF ? shared.q + first * a_row : shared.q_rows + word * row;
  const float* dout = HALF ? shared.dout + first * a_row : shared.dout_rows + word * row;
  const float *q_rows = shared.q_rows + word * row, *dout_rows = shared.dout_rows + word * row;
  const vf scale = vset(static_cast<float>(a.scale) * LOG2E);
  const float *keys[UNIT], *values[UNIT];
  for (int u = 0; u < UNIT; ++u) keys[u] = x.keys + u * KEYS * d_words, values[u] = x.values + u * KEYS * d_words;

  for (int64_t r = 0; r < rows; r += STRIP) {
    const int64_t n = min64(STRIP, rows - r), seen = i0 + r + 1 - at.j0;  // keys of the unit, or more, that row r sees
    const int64_t blocks = ceil_div(min64(seen + n - 1, at.keys), KEYS), vectors = blocks * KEY_VECTORS;
    product<HALF, false>(n, vectors, d_words, q + r * a_row, a_row, Blocks{keys}, KEYS, x.s, UNIT_KEYS, false);
    product<HALF, false>(n, vectors, d_words, dout + r * a_row, a_row, Blocks{values}, KEYS, x.dp, UNIT_KEYS, false);
    const bool whole = seen >= blocks * KEYS && blocks * KEYS <= at.keys && n % 2 == 0;
    for (int64_t y = 0; y < n; y += HALF ? 2 : 1) {
      const float *lse = shared.lse + first + r + y, *delta = shared.delta + first + r + y;
      float *p = x.p + words_of<HALF>(r + y) * UNIT_KEYS, *ds = x.ds + words_of<HALF>(r + y) * UNIT_KEYS;
      float* ds_keys = x.ds_keys + (r + y) * unit_words;
      const float *s = x.s + y * UNIT_KEYS, *dp = x.dp + y * UNIT_KEYS;
      if (whole) {
        probabilities<HALF, false>(s, dp, vectors, 0, scale, lse, delta, true, p, ds, ds_keys);
      } else {
        probabilities<HALF, true>(s, dp, vectors, min64(seen + y, at.keys), scale, lse, delta, y + 1 < n, p, ds, ds_keys);
      }
    }
  }
  for (int64_t u = 0; u * KEYS < at.keys; ++u) {  // rows before the block's own see none of it
    const int64_t begin = max64(0, at.j0 + u * KEYS - i0), skip = words_of<HALF>(begin);
    if (begin >= rows) break;
    const int64_t count = min64(KEYS, at.keys - u * KEYS), words = words_of<HALF>(rows) - skip;
    product<HALF, true>(count, row / VL, words, x.ds + skip * UNIT_KEYS + u * KEYS, UNIT_KEYS, Plain{q_rows + skip * row}, row,
                        x.dk + u * KEYS * row, row, true);
    product<HALF, true>(count, row / VL, words, x.p + skip * UNIT_KEYS + u * KEYS, UNIT_KEYS, Plain{dout_rows + skip * row}, row,
                        x.dv + u * KEYS * row, row, true);
  }
  if (before != nullptr) wait_until(before, static_cast<int32_t>(i0 + rows));
  for (int64_t r = 0; r < rows; r += STRIP) {
    const int64_t n = min64(STRIP, rows - r), visible = min64(i0 + r + n - at.j0, at.keys);
    product<HALF, false>(n, row / VL, words_of<HALF>(visible), x.ds_keys + r * unit_words, unit_words, Plain{x.k}, row,
                         shared.dq + (first + r) * row, row, before != nullptr);
  }
}

// One unit of the keys of head g in the rows of a sequence. T: what q, k, v and out are in memory.
template <bool HALF, class T>
void backward_unit(const fd_attention_backward_args& a, const Shared& shared, const TileSpace& x, Place at, int64_t g,
                   int64_t unit, int32_t* passed) {
  const int64_t D = a.q.shape[2], row = padded(D), group = a.q.shape[1] / a.k.shape[1], length = at.end - at.start;
  at.j0 = unit * UNIT_KEYS;
  at.keys = min64(UNIT_KEYS, length - at.j0);
  for (int64_t u = 0; u * KEYS < at.keys; ++u) {
    const int64_t n = at.start + at.j0 + u * KEYS, count = min64(KEYS, at.keys - u * KEYS);
    turn_keys<HALF>(x.keys + u * KEYS * words_of<HALF>(D), row_of<T>(a.k, n, g), a.k.stride[0], count, D);
    turn_keys<HALF>(x.values + u * KEYS * words_of<HALF>(D), row_of<T>(a.v, n, g), a.v.stride[0], count, D);
  }
  pair_rows<HALF>(x.k, row_of<T>(a.k, at.start + at.j0, g), a.k.stride[0], at.keys, D);
  fetch_rows(a.dk, at.start + at.j0, at.keys, g, 1, true);
  fetch_rows(a.dv, at.start + at.j0, at.keys, g, 1, true);
  const int64_t coming = min64(UNIT_KEYS, length - at.j0 - at.keys);
  fetch_rows(a.k, at.start + at.j0 + at.keys, coming, g, 1, false);
  fetch_rows(a.v, at.start + at.j0 + at.keys, coming, g, 1, false);
  memset(x.dk, 0, UNIT_KEYS * row * sizeof(float));
  memset(x.dv, 0, UNIT_KEYS * row * sizeof(float));
  const int32_t* before = unit == 0 ? nullptr : passed + unit - 1;
  for (int64_t i0 = at.j0; i0 < length; i0 += TILE) {
    const int64_t rows = min64(TILE, length - i0);
    for (int64_t h = g * group; h < (g + 1) * group; ++h) backward_tile<HALF>(a, shared, x, at, i0, rows, h, before);
    __atomic_store_n(passed + unit, static_cast<int32_t>(i0 + rows), __ATOMIC_RELEASE);
  }
  const vf scale = vset(static_cast<float>(a.scale));
  for (int64_t j = 0; j < at.keys; ++j) {
    float *dk = row_of(a.dk, at.start + at.j0 + j, g), *dv = row_of(a.dv, at.start + at.j0 + j, g);
    for_lanes(D, [&](int64_t d, auto, auto store) { store(dk + d, vload(x.dk + j * row + d) * scale); });
    for_lanes(D, [&](int64_t d, auto, auto store) { store(dv + d, vload(x.dv + j * row + d)); });
  }
}

// q, dout, delta and lse of a piece, copied head by head.
template <bool HALF, class T>
void copy_rows(const fd_attention_backward_args& a, const Shared& x, const Piece& piece) {
  const int64_t H = a.q.shape[1], D = a.q.shape[2], row = padded(D), d_words = words_of<HALF>(D);
  for (int64_t i = 0; i < piece.rows; i += 2) {
    const int64_t n = piece.first + i, rows = min64(2, piece.rows - i);
    for (int64_t h = 0; h < H; ++h) {
      const int64_t word = h * x.words + x.first_word[piece.sequence] + words_of<HALF>(piece.offset + i);
      pair_rows<HALF>(x.q_rows + word * row, row_of<T>(a.q, n, h), a.q.stride[0], rows, D);
      pair_rows<HALF>(x.dout_rows + word * row, row_of(a.dout, n, h), a.dout.stride[0], rows, D);
      for (int64_t y = n; y < n + rows; ++y) {
        const T* out = row_of<T>(a.out, y, h);
        const float* dout = row_of(a.dout, y, h);
        vf sum = vset(0.0f);
        for_lanes(D, [&](int64_t d, auto load, auto) { sum = vfma(load(out + d), as_taken<HALF>(load(dout + d)), sum); });
        const int64_t at = h * x.rows + y - x.begin;
        x.delta[at] = hsum(sum);
        x.lse[at] = *row_of(a.lse, y, h) * LOG2E;
        if (!HALF) continue;
        rows_of_words<HALF>(x.q + at * d_words, row_of<T>(a.q, y, h), 0, 1, 1, D);
        rows_of_words<HALF>(x.dout + at * d_words, dout, 0, 1, 1, D);
      }
    }
  }
}

// Sequences cu_seqlens[0..S].
template <bool HALF, class T>
void backward_chunk(fd_context* ctx, const fd_attention_backward_args& a, const int32_t* cu_seqlens, int64_t S) {
  const int64_t H = a.q.shape[1], D = a.q.shape[2], G = a.k.shape[1], row = padded(D);
  Space space{ctx->workspace};
  Shared x = take_shared<HALF>(space, cu_seqlens[S] - cu_seqlens[0], H, D, S, G);
  x.begin = cu_seqlens[0];
  int64_t units = 0, words = 0;
  for (int64_t s = 0; s < S; ++s) {
    x.first_unit[s] = static_cast<int32_t>(units);
    x.first_word[s] = static_cast<int32_t>(words);
    units += ceil_div(cu_seqlens[s + 1] - cu_seqlens[s], UNIT_KEYS);
    words += words_of<HALF>(cu_seqlens[s + 1] - cu_seqlens[s]);
  }
  memset(x.next, 0, S * G * sizeof(int32_t));
  memset(x.passed, 0, units * G * sizeof(int32_t));
  const int64_t piece_count = cut_sequences(cu_seqlens, S, KEYS, x.pieces);
  parallel_units(ctx, piece_count, [&](int64_t i, int) { copy_rows<HALF, T>(a, x, x.pieces[i]); });
  // Every thread may come by every head once: the first to do so begins it, later ones help.
  const int64_t heads = S * G;
  parallel_units(ctx, heads * max64(1, ctx->threads), [&](int64_t visit, int thread) {
    const int64_t head = visit % heads, s = head / G, g = head % G;
    const Place at{cu_seqlens[s], cu_seqlens[s + 1], x.first_word[s], 0, 0};
    const int64_t own = ceil_div(at.end - at.start, UNIT_KEYS);
    int32_t* passed = x.passed + x.first_unit[s] * G + g * own;
    Space mine{space.at + thread * tile_bytes<HALF>(D)};
    const TileSpace tile = take_tile<HALF>(mine, D);
    for (;;) {
      const int64_t unit = __atomic_fetch_add(x.next + head, 1, __ATOMIC_RELAXED);
      if (unit >= own) return;
      backward_unit<HALF, T>(a, x, tile, at, g, unit, passed);
    }
  });
  const vf scale = vset(static_cast<float>(a.scale));
  parallel_rows(ctx, x.rows, H * D, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t h = 0; h < H; ++h) {
        const float* from = x.dq + (h * x.rows + n) * row;
        float* to = row_of(a.dq, x.begin + n, h);
        for_lanes(D, [&](int64_t d, auto, auto store) { store(to + d, vload(from + d) * scale); });
      }
    }
  });
}

template <bool HALF>
void backward_in(fd_context* ctx, const fd_attention_backward_args& a) {
  const int64_t S = a.cu_seqlens.shape[0] - 1;
  const int32_t* cu_seqlens = i32(a.cu_seqlens);
  for (int64_t s = 0, end; s < S; s = end) {
    end = chunk_end(cu_seqlens, S, s, ctx->threads);
    is_half(a.q) ? backward_chunk<HALF, bf16>(ctx, a, cu_seqlens + s, end - s)
                 : backward_chunk<HALF, float>(ctx, a, cu_seqlens + s, end - s);
  }
  zero_tail(a.dq, cu_seqlens[S]);
  zero_tail(a.dk, cu_seqlens[S]);
  zero_tail(a.dv, cu_seqlens[S]);
}
void backward_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_attention_backward_args*>(p);
  return a.compute == FD_BF16 ? backward_in<true>(ctx, a) : backward_in<false>(ctx, a);
}

}  // namespace

FD_VARIANT_LIST(attention_backward, {"attention_backward", "naive", 0, backward_naive, nullptr},
                {"attention_backward", "simd", 10, backward_simd, backward_workspace})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
