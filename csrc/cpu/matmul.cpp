// Matmul: the three layouts of training, each element ONE chain of fused multiply-adds.
//   forward:         out[n,o]     = sum_c x[n,c] w[o,c] (+ bias[o]) (+ residual[n,o])
//   backward input:  dx[n,c]      = sum_o dout[n,o] w[o,c]
//   backward weight: dw[o,c]     += sum_n dout[n,o] x[n,c];  dbias[o] += sum_n dout[n,o]
//
// In bfloat16 (compute = FD_BF16) both operands are rounded to it, when they are packed or per number, and the chain is of pairs
// of products in float32. x may be bfloat16 in memory: then packing it is a copy of half the bytes.
//
// Memory plan (blocked, after Goto & van de Geijn 2008): of two operands the smaller one is packed once, by all threads; then the
// output is cut into units handed to threads one by one, and a unit packs its own part of the other, in slices of BLOCK_K words
// along k. A lies in strips of MR rows, B in panels of two vectors. Where B is the smaller one (most products of training: the
// batch has more rows than the model is wide), a unit is up to BLOCK_M rows, which stay in L2. Else it is a block of columns, of
// B, and meets A BLOCK_M rows at a time (in L2); so it is with a weight that came packed. What is packed of a batch is read from
// memory, and asked for ahead; the sums of its rows (dbias) are taken on the way.
// The register tile is MR x 2 vectors: with AVX-512 24 accumulators, and 24 steps for every 14 loads; it fetches the outputs of
// the next tile ahead. Between slices of k the partial sums rest in the output as float32, which is what they were in registers:
// blocking changes no bit. Where the residual lies in the output itself, they rest in a buffer of the thread instead.
//
// Variants (how fast: benchmarks/matmul.py, and the table in csrc/README.md):
//   naive    three loops, one chain at a time, bound by the latency of the fused multiply-add
//   simd     blocked as above; few rows (decode) stream the packed weight once, up to four panels at a time
// Without `packed` a forward of one row spends its time packing: give it the packed weight.
#include "matmul.h"

#include "pack.h"
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

// Words of a slice of k. With AVX-512 a panel of 768 is 96 KB, three times the L1 cache: what is saved are the partial sums,
// which went to memory and back for each slice, and the kernel runs as fast on operands that stream from L2, as long as a strip
// is fetched ahead. One thread, GPT-2 124M's products without the head, share of peak in bfloat16 and float32: 192 words and 240
// rows 0.84, 0.87; both lines of the next output fetched 0.85, 0.88; 384 words 0.87, 0.89; 768 0.885, 0.905; and 120 rows 0.89,
// 0.91.
#ifdef FREEDIVE_AVX512
constexpr int64_t BLOCK_K = 768, BLOCK_M = 120;
#else
constexpr int64_t BLOCK_K = 256, BLOCK_M = 240;  // panels of 16 KB
#endif
constexpr int64_t BLOCK_N = 512;
constexpr int64_t UNIT_M = 1536;    // rows for which a block of B is packed once
constexpr int64_t SMALL = 1 << 18;  // multiply-adds: about 10 us, below which waking the other threads costs more than it brings

FD_INLINE float* row(const fd_tensor& t, int64_t n) { return f32(t) + n * t.stride[0]; }

// ---- naive -----------------------------------------------------------------------------------------------------

}  // namespace

void matmul_forward_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_matmul_forward_args*>(p);
  const int64_t N = a.x.shape[0], C = a.x.shape[1], O = a.weight.shape[0];
  parallel_units(ctx, N, [&](int64_t n, int) {
    for (int64_t o = 0; o < O; ++o) {
      float sum = a.accumulate ? row(a.out, n)[o] : 0.0f;
      for (int64_t c = 0; c < C; ++c) {
        const float x = number_at(a.x, n * a.x.stride[0] + c);
        sum = fma1(taken(x, a.compute), taken(row(a.weight, o)[c], a.compute), sum);
      }
      if (f32(a.bias) != nullptr) sum = sum + f32(a.bias)[o];
      if (f32(a.residual) != nullptr) sum = sum + row(a.residual, n)[o];
      row(a.out, n)[o] = sum;
    }
  });
}

namespace {

void backward_input_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_matmul_backward_input_args*>(p);
  const int64_t N = a.dx.shape[0], C = a.dx.shape[1], O = a.weight.shape[0];
  parallel_units(ctx, N, [&](int64_t n, int) {
    for (int64_t c = 0; c < C; ++c) {
      float sum = a.accumulate ? row(a.dx, n)[c] : 0.0f;
      for (int64_t o = 0; o < O; ++o) sum = fma1(taken(row(a.dout, n)[o], a.compute), taken(row(a.weight, o)[c], a.compute), sum);
      row(a.dx, n)[c] = sum;
    }
  });
}

void backward_weight_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_matmul_backward_weight_args*>(p);
  const int64_t N = a.x.shape[0], C = a.x.shape[1], O = a.dweight.shape[0];
  parallel_units(ctx, O, [&](int64_t o, int) {
    for (int64_t c = 0; c < C; ++c) {
      float sum = row(a.dweight, o)[c];
      for (int64_t n = 0; n < N; ++n) {
        const float x = number_at(a.x, n * a.x.stride[0] + c);
        sum = fma1(taken(row(a.dout, n)[o], a.compute), taken(x, a.compute), sum);
      }
      row(a.dweight, o)[c] = sum;
    }
    for (int64_t n = 0; f32(a.dbias) != nullptr && n < N; ++n) f32(a.dbias)[o] += row(a.dout, n)[o];
  });
}

// ---- blocked ---------------------------------------------------------------------------------------------------

// The workspace: the operand that is packed once for all threads, and for each thread a block of the other and one of C.
struct Buffers {
  float *b, *c;
};

constexpr int64_t SHARED = 4 << 20;  // words: 16 MB; longer products go in parts
constexpr int64_t BUFFER_B = BLOCK_N * BLOCK_K, BUFFER_C = BLOCK_M * BLOCK_N, BUFFER = BUFFER_B + BUFFER_C;

float* shared_operand(uint8_t* workspace) { return reinterpret_cast<float*>(workspace); }
Buffers buffers_of(uint8_t* workspace, int thread) {
  float* base = shared_operand(workspace) + SHARED + 16 + thread * BUFFER;
  return {base, base + BUFFER_B};
}

template <class Body>
FD_INLINE void with_a(const Gemm& g, const Body& body) {
  g.a16 != nullptr ? body(g.a16) : body(g.a);
}
template <class Body>
FD_INLINE void with_b(const Gemm& g, const Body& body) {
  g.b16 != nullptr ? body(g.b16) : body(g.b);
}

// True when partial sums cannot rest in the output between slices of k, because the residual lies there.
bool rests_in_buffer(const Gemm& g, int64_t slices) { return slices > 1 && g.residual == g.c && g.residual != nullptr; }

// A tile at the edge, which is not whole: through a buffer of its own. `c` holds the partial sums, `out` takes the
// result (they may be the same).
template <bool HALF>
void tile_through_buffer(int64_t rows, int64_t columns, int64_t K, const float* a, const float* panel, const float* c,
                         int64_t c_row, float* out, int64_t out_row, const Ahead& ahead, bool load, Finish finish) {
  alignas(64) float full[MR * PANEL];
  if (load) {
    for (int64_t i = 0; i < MR; ++i) {
      if (i < rows) memcpy(full + i * PANEL, c + i * c_row, columns * sizeof(float));
      if (i >= rows) memset(full + i * PANEL, 0, PANEL * sizeof(float));
      if (i < rows) memset(full + i * PANEL + columns, 0, (PANEL - columns) * sizeof(float));
    }
  }
  tile_packed<HALF>(K, a, panel, full, PANEL, full, PANEL, ahead, load, {nullptr, nullptr, 0});
  for (int64_t i = 0; i < rows; ++i) {
    for_lanes(columns, [&](int64_t j, auto read, auto write) {
      vf y = read(full + i * PANEL + j);
      if (finish.bias != nullptr) y = y + read(finish.bias + j);
      if (finish.residual != nullptr) y = y + read(finish.residual + i * finish.residual_row + j);
      write(out + i * out_row + j, y);
    });
  }
}

// k in slices of at most BLOCK_K words, all but the last equally long.
template <bool HALF>
struct Slices {
  int64_t k, words, count, each;  // each: words
  explicit Slices(int64_t k_) : k(k_), words(words_of<HALF>(k_)) {
    count = max64(1, ceil_div(words, BLOCK_K));
    each = ceil_div(words, count);
  }
  int64_t first(int64_t s) const { return HALF ? 2 * s * each : s * each; }  // number along k
  int64_t length(int64_t s) const { return min64(HALF ? 2 * each : each, k - first(s)); }
};

// One slice of k: strips of A against panels of B, both packed.
struct Slice {
  const float *a, *b;
  int64_t words, panel;  // panel: from one panel of B to the next
  bool load, last, in_buffer;
};

template <bool HALF>
void multiply(const Gemm& g, const Slice& x, const Buffers& buffers, int64_t i0, int64_t rows, int64_t j0, int64_t columns) {
  for (int64_t j = 0; j < columns; j += PANEL) {
    const float* b = x.b + j / PANEL * x.panel;
    const int64_t width = min64(PANEL, columns - j);
    for (int64_t i = 0; i < rows; i += MR) {
      const int64_t r = min64(MR, rows - i);
      const float* a = x.a + i * x.words;
      float* out = g.c + (i0 + i) * g.c_row + j0 + j;
      float* c = x.in_buffer ? buffers.c + i * BLOCK_N + j : out;
      const int64_t c_row = x.in_buffer ? BLOCK_N : g.c_row;
      Finish finish = {nullptr, nullptr, 0};
      if (x.last) {
        finish.bias = g.bias == nullptr ? nullptr : g.bias + j0 + j;
        finish.residual = g.residual == nullptr ? nullptr : g.residual + (i0 + i) * g.residual_row + j0 + j;
        finish.residual_row = g.residual_row;
      }
      float* to = x.last ? out : c;
      const int64_t to_row = x.last ? g.c_row : c_row;
      // The next tile: below, or at the top of the next panel.
      const bool below = i + MR < rows, beside = !below && j + PANEL < columns;
      const int64_t down = below ? MR : beside ? -i : 0, right = beside ? PANEL : 0;
      Ahead ahead = {to + down * to_row + right, nullptr, to_row, to_row};
      ahead.residual = ahead.out;
      if (finish.residual != nullptr)
        ahead.residual = finish.residual + down * g.residual_row + right, ahead.residual_row = g.residual_row;
      if (width == PANEL && r == MR) {
        tile_packed<HALF>(x.words, a, b, c, c_row, to, to_row, ahead, x.load, finish);
      } else {
        tile_through_buffer<HALF>(r, width, x.words, a, b, c, c_row, to, to_row, ahead, x.load, finish);
      }
    }
  }
}

// The part of A that is packed at a time: rows [begin, begin + rows) of A, as [slice][strip][words][MR].
struct Part {
  float* packed;
  int64_t begin, rows, padded;  // padded: rows, up to whole strips
};

template <bool HALF>
void pack_part(fd_context* ctx, const Gemm& g, const Part& part) {
  const Slices<HALF> slices(g.k);
  if (g.sums != nullptr) {  // sums go on from slice to slice, so a thread takes some rows of A through all of them
    const int64_t block = ctx->threads <= 1 ? BLOCK_M : max64(MR, min64(BLOCK_M, part.rows / (4 * ctx->threads) / MR * MR));
    parallel_units(ctx, ceil_div(part.rows, block), [&](int64_t unit, int) {
      const int64_t i = unit * block, rows = min64(block, part.rows - i);
      float* sums = g.sums + part.begin + i;
      alignas(64) float sum[BLOCK_M / MR * WIDE] = {0};
      for (int64_t r = 0; r < rows; ++r) sum[r / MR * WIDE + r % MR] = sums[r];
      for (int64_t s = 0; s < slices.count; ++s) {
        const int64_t K = slices.length(s);
        pack_strips_of_columns<HALF, true>(part.packed + s * slices.each * part.padded + i * words_of<HALF>(K),
                                           g.a + part.begin + i + slices.first(s) * g.a_k, g.a_k, rows, g.m - part.begin - i,
                                           K, sum);
      }
      for (int64_t r = 0; r < rows; ++r) sums[r] = sum[r / MR * WIDE + r % MR];
    });
    return;
  }
  const int64_t blocks = ceil_div(part.rows, BLOCK_M);
  parallel_units(ctx, blocks * slices.count, [&](int64_t unit, int) {
    const int64_t s = unit / blocks, i = unit % blocks * BLOCK_M, rows = min64(BLOCK_M, part.rows - i), K = slices.length(s);
    float* to = part.packed + s * slices.each * part.padded + i * words_of<HALF>(K);
    const float* a = g.a + (part.begin + i) * g.a_row + slices.first(s) * g.a_k;
    if (g.a_k != 1) {
      pack_strips_of_columns<HALF, false>(to, a, g.a_k, rows, g.m - part.begin - i, K, nullptr);
    } else {
      with_a(g, [&](const auto* rows_of_a) {
        pack_strips_of_rows<HALF>(to, rows_of_a + (part.begin + i) * g.a_row + slices.first(s), g.a_row, rows, K);
      });
    }
  });
}

// One unit of the output: rows i0.. of the part, columns j0...
template <bool HALF>
void gemm_block(const Gemm& g, const Part& part, const Buffers& buffers, int64_t i0, int64_t rows, int64_t j0, int64_t columns) {
  const Slices<HALF> slices(g.k);
  for (int64_t s = 0; s < slices.count; ++s) {
    const int64_t k0 = slices.first(s), K = slices.length(s);
    Slice x;
    x.words = words_of<HALF>(K);
    x.load = s > 0 || g.accumulate;
    x.last = s == slices.count - 1;
    x.in_buffer = rests_in_buffer(g, slices.count);
    x.panel = (g.packed != nullptr ? slices.words : x.words) * PANEL;
    if (g.packed != nullptr) {
      x.b = g.packed + j0 / PANEL * x.panel + s * slices.each * PANEL;
    } else if (g.b_k == 1 && g.b16 == nullptr) {
      for (int64_t j = 0; j < columns; j += PANEL)
        pack_panel<HALF>(buffers.b + j * x.words, g.b + (j0 + j) * g.b_j + k0, g.b_j, min64(PANEL, columns - j), K);
      x.b = buffers.b;
    } else {
      with_b(g, [&](const auto* b) { pack_block<HALF>(buffers.b, x.words * PANEL, b + k0 * g.b_k + j0, g.b_k, K, columns); });
      x.b = buffers.b;
    }
    for (int64_t i = i0; i < i0 + rows; i += BLOCK_M) {
      const int64_t r = min64(BLOCK_M, i0 + rows - i);
      x.a = part.packed + s * slices.each * part.padded + i * x.words;
      if (x.in_buffer && s == 0 && g.accumulate) {
        for (int64_t y = 0; y < r; ++y)
          memcpy(buffers.c + y * BLOCK_N, g.c + (part.begin + i + y) * g.c_row + j0, columns * sizeof(float));
      }
      multiply<HALF>(g, x, buffers, part.begin + i, r, j0, columns);
    }
  }
}

// ---- B packed as a whole ----------------------------------------------------------------------------------------
// A unit packs the rows of A it takes, which are then read from L2; packed as a whole they would go to memory and come back.

template <bool HALF>
void pack_weight_in(fd_context* ctx, float* packed, const float* weight, int64_t weight_row, int64_t O, int64_t C) {
  const int64_t together = max64(1, 16384 / (PANEL * max64(1, C)));  // panels a unit, so that little work stays on one thread
  parallel_units(ctx, ceil_div(ceil_div(O, PANEL), together), [&](int64_t unit, int) {
    for (int64_t panel = unit * together; panel < min64(ceil_div(O, PANEL), (unit + 1) * together); ++panel)
      pack_panel<HALF>(packed + panel * words_of<HALF>(C) * PANEL, weight + panel * PANEL * weight_row, weight_row,
                       min64(PANEL, O - panel * PANEL), C);
  });
}

// All of B as pack_weight would have it.
template <bool HALF>
void pack_whole(fd_context* ctx, float* panels, const Gemm& g) {
  if (g.b_k == 1 && g.b16 == nullptr) return pack_weight_in<HALF>(ctx, panels, g.b, g.b_j, g.n, g.k);
  constexpr int64_t COLUMNS = 4 * PANEL, PIECE = HALF ? 512 : 256;  // of k, of a unit
  const int64_t panel = words_of<HALF>(g.k) * PANEL, across = ceil_div(g.n, COLUMNS);
  parallel_units(ctx, across * ceil_div(g.k, PIECE), [&](int64_t unit, int) {
    const int64_t j = unit % across * COLUMNS, k = unit / across * PIECE;
    with_b(g, [&](const auto* b) {
      pack_block<HALF>(panels + j / PANEL * panel + words_of<HALF>(k) * PANEL, panel, b + k * g.b_k + j * g.b_j, g.b_k,
                       min64(PIECE, g.k - k), min64(COLUMNS, g.n - j));
    });
  });
}

// At most BLOCK_M rows of the output.
template <bool HALF>
void gemm_rows(const Gemm& g, const float* panels, const Buffers& buffers, int64_t i0, int64_t rows) {
  const Slices<HALF> slices(g.k);
  alignas(64) float sums[BLOCK_M / MR * WIDE] = {0};
  for (int64_t r = 0; g.sums != nullptr && r < rows; ++r) sums[r / MR * WIDE + r % MR] = g.sums[i0 + r];
  for (int64_t s = 0; s < slices.count; ++s) {
    const int64_t K = slices.length(s);
    const float* a = g.a + i0 * g.a_row + slices.first(s) * g.a_k;
    if (g.sums != nullptr) {
      pack_strips_of_columns<HALF, true>(buffers.b, a, g.a_k, rows, g.m - i0, K, sums);
    } else if (g.a_k != 1) {
      pack_strips_of_columns<HALF, false>(buffers.b, a, g.a_k, rows, g.m - i0, K, nullptr);
    } else {
      with_a(g, [&](const auto* rows_of_a) {
        pack_strips_of_rows<HALF>(buffers.b, rows_of_a + i0 * g.a_row + slices.first(s), g.a_row, rows, K);
      });
    }
    const Slice x = {buffers.b,  panels + s * slices.each * PANEL, words_of<HALF>(K), slices.words * PANEL, s > 0 || g.accumulate,
                     s == slices.count - 1, false};
    multiply<HALF>(g, x, buffers, i0, rows, 0, g.n);
  }
  for (int64_t r = 0; g.sums != nullptr && r < rows; ++r) g.sums[i0 + r] = sums[r / MR * WIDE + r % MR];
}

// Strips of A are dealt out evenly.
template <bool HALF>
void gemm_tall(fd_context* ctx, uint8_t* workspace, const Gemm& g) {
  float* panels = shared_operand(workspace);
  pack_whole<HALF>(ctx, panels, g);
  const int64_t strips = ceil_div(g.m, MR), turns = ceil_div(ceil_div(g.m, BLOCK_M), max64(1, ctx->threads));
  const int64_t units = min64(strips, turns * max64(1, ctx->threads));
  parallel_units(ctx, units, [&](int64_t unit, int thread) {
    const int64_t i0 = unit * strips / units * MR, end = min64(g.m, (unit + 1) * strips / units * MR);
    gemm_rows<HALF>(g, panels, buffers_of(workspace, thread), i0, end - i0);
  });
}

// ---- few rows --------------------------------------------------------------------------------------------------
// No blocking over k: every weight is read once, in panels, which stay in cache for the next SR rows. A word of A is broadcast
// from where the rows lie as words. Of the packed weight 768 x 3072 in bfloat16, which comes from memory, one thread: 16 rows 1.6
// times as fast as the blocked product, whose strips of MR rows would be a third empty, 24 rows 1.1, 48 rows 1.07 times; from 96
// rows on there is no difference.

constexpr int64_t FEW = 64;
constexpr int64_t FEW_UNPACKED = 2 * SR;  // rows for which a weight is packed as a whole first: blocks would be packed as often

template <bool HALF>
void gemm_few_rows(const Gemm& g, const float* a, const float* panels, int64_t j0, int64_t columns) {
  const int64_t words = words_of<HALF>(g.k), panel = words * PANEL, end = j0 + columns;
  for (int64_t j = j0; j < end;) {
    const float* b = panels + (j - j0) / PANEL * panel;
    const int64_t left = end - j;
    int64_t step = PANEL;
    for (int64_t i = 0; i < g.m; i += SR) {  // panels stay in cache for the second strip
      const int64_t r = min64(SR, g.m - i);
      const float* ai = a + i * words;
      // The second and the third strip fetch the next panel, each one of the two lines of a row: the first one, which reads what
      // nobody read before, then does not wait for memory.
      const float* ahead = i == 0 || i > 2 * SR || left < 2 * PANEL ? b : b + panel + (i / SR - 1) * VL;
      float* c = g.c + i * g.c_row + j;
      const Finish finish = {g.bias == nullptr ? nullptr : g.bias + j,
                             g.residual == nullptr ? nullptr : g.residual + i * g.residual_row + j, g.residual_row};
      if (left >= 4 * PANEL && g.m == 1) {
        tile<HALF, 1, 8>(words, ai, words, 1, b, PANEL, panel, ahead, c, g.c_row, g.accumulate, finish);
        step = 4 * PANEL;
      } else if (left >= 2 * PANEL && g.m <= 3) {
        tile_rows<HALF, 4>(r, words, ai, words, 1, b, PANEL, panel, ahead, c, g.c_row, g.accumulate, finish);
        step = 2 * PANEL;
      } else if (left >= PANEL) {
        tile_rows<HALF, 2>(r, words, ai, words, 1, b, PANEL, panel, ahead, c, g.c_row, g.accumulate, finish);
      } else {
        alignas(64) float full[SR * PANEL] = {0};
        if (g.accumulate) {
          for (int64_t y = 0; y < r; ++y) memcpy(full + y * PANEL, c + y * g.c_row, left * sizeof(float));
        }
        tile_rows<HALF, 2>(r, words, ai, words, 1, b, PANEL, panel, b, full, PANEL, g.accumulate, {nullptr, nullptr, 0});
        for (int64_t y = 0; y < r; ++y) {
          for (int64_t q = 0; q < left; ++q) {
            float sum = full[y * PANEL + q];
            if (finish.bias != nullptr) sum = sum + finish.bias[q];
            if (finish.residual != nullptr) sum = sum + finish.residual[y * g.residual_row + q];
            c[y * g.c_row + q] = sum;
          }
        }
      }
    }
    j += step;
  }
}

template <bool HALF>
void gemm_in(fd_context* context, uint8_t* workspace, const Gemm& g) {
  fd_context alone = *context;
  alone.threads = 1;
  fd_context* ctx = g.m * g.n * g.k < SMALL ? &alone : context;
  if (g.m <= FEW && g.packed != nullptr && words_of<HALF>(g.k) * g.m <= SHARED) {
    const int64_t words = words_of<HALF>(g.k);
    float* a = reinterpret_cast<float*>(workspace);
    if (!HALF && g.a16 == nullptr && g.a_k == 1 && (g.a_row == words || g.m == 1)) {
      a = const_cast<float*>(g.a);
    } else {
      with_a(g, [&](const auto* from) { rows_of_words<HALF>(a, from, g.a_row, g.a_k, g.m, g.k); });
    }
    const int64_t columns = g.m * g.n * g.k >= SMALL ? 4 * PANEL : ceil_div(g.n, PANEL) * PANEL;
    parallel_units(ctx, ceil_div(g.n, columns), [&](int64_t unit, int) {
      const int64_t j0 = unit * columns;
      gemm_few_rows<HALF>(g, a, g.packed + j0 * words, j0, min64(columns, g.n - j0));
    });
    return;
  }
  const int64_t in_all = words_of<HALF>(g.k), padded = ceil_div(g.m, MR) * MR;
  if (g.packed == nullptr && g.n <= g.m && ceil_div(g.n, PANEL) * PANEL * in_all <= SHARED &&
      !rests_in_buffer(g, Slices<HALF>(g.k).count))
    return gemm_tall<HALF>(ctx, workspace, g);
  const int64_t fits = max64(BLOCK_K, SHARED / padded / BLOCK_K * BLOCK_K);
  if (in_all > fits && g.packed == nullptr && g.residual != g.c) {  // a long k in parts: the chains go on from the output
    for (int64_t w = 0; w < in_all; w += fits) {
      Gemm part = g;
      const int64_t k0 = HALF ? 2 * w : w;
      part.k = min64(HALF ? 2 * fits : fits, g.k - k0);
      part.a = g.a + k0 * g.a_k, part.b = g.b + k0 * g.b_k;
      if (g.a16 != nullptr) part.a16 = g.a16 + k0;
      if (g.b16 != nullptr) part.b16 = g.b16 + k0 * g.b_k;
      part.accumulate = g.accumulate || w > 0;
      if (w + fits < in_all) part.bias = part.residual = nullptr;
      gemm_in<HALF>(context, workspace, part);
    }
    return;
  }
  // Units are blocks of columns as long as they are wide enough: then B, too, is packed only once. Several for each thread, so
  // that one who lost its core for a while is not waited for. How the output is cut shows in the time, not in the bits.
  const Slices<HALF> slices(g.k);
  const int64_t most = rests_in_buffer(g, slices.count) ? BLOCK_M : g.m;  // rows of a unit
  for (int64_t begin = 0, rows; begin < g.m; begin += rows) {
    rows = min64(g.m - begin, max64(MR, SHARED / max64(1, slices.words) / MR * MR));
    const Part part = {shared_operand(workspace), begin, rows, ceil_div(rows, MR) * MR};
    pack_part<HALF>(ctx, g, part);
    int64_t units_m = ceil_div(rows, most), units_n = ceil_div(g.n, BLOCK_N);
    const int64_t wanted = ctx->threads > 1 && g.m * g.n * g.k >= 4 * SMALL ? 4 * ctx->threads : 1;
    while (units_m * units_n < wanted) {
      if (g.n / units_n >= 4 * PANEL && g.packed == nullptr) {
        ++units_n;
      } else if (rows / units_m >= 4 * MR) {
        ++units_m;
      } else if (g.n / units_n >= 2 * PANEL) {
        ++units_n;
      } else {
        break;
      }
    }
    const int64_t unit_m = ceil_div(ceil_div(rows, units_m), MR) * MR, unit_n = ceil_div(ceil_div(g.n, units_n), PANEL) * PANEL;
    units_m = ceil_div(rows, unit_m), units_n = ceil_div(g.n, unit_n);
    parallel_units(ctx, units_m * units_n, [&](int64_t unit, int thread) {
      const int64_t i0 = unit % units_m * unit_m, j0 = unit / units_m * unit_n;
      gemm_block<HALF>(g, part, buffers_of(workspace, thread), i0, min64(unit_m, rows - i0), j0, min64(unit_n, g.n - j0));
    });
  }
}

}  // namespace

size_t gemm_workspace(int32_t threads) { return bytes64(SHARED + 16 + BUFFER * max64(1, threads), sizeof(float)); }

void gemm(fd_context* ctx, uint8_t* workspace, const Gemm& g) {
  if (g.m <= 0 || g.n <= 0) return;
  g.compute == FD_BF16 ? gemm_in<true>(ctx, workspace, g) : gemm_in<false>(ctx, workspace, g);
}

int64_t matmul_packed_size(int64_t O, int64_t C, int64_t compute) {
  return ceil_div(O, PANEL) * PANEL * (compute == FD_BF16 ? words_of<true>(C) : C);
}

void pack_weight(fd_context* ctx, float* packed, const float* weight, int64_t weight_row, int64_t O, int64_t C, int64_t compute) {
  compute == FD_BF16 ? pack_weight_in<true>(ctx, packed, weight, weight_row, O, C)
                     : pack_weight_in<false>(ctx, packed, weight, weight_row, O, C);
}

// ---- the ops ---------------------------------------------------------------------------------------------------

size_t matmul_forward_workspace(const fd_tensor& weight, int32_t threads) {
  return gemm_workspace(threads) + bytes64(matmul_packed_size(weight.shape[0], weight.shape[1], FD_F32), sizeof(float));
}

void matmul_forward_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_matmul_forward_args*>(p);
  const int64_t N = a.x.shape[0], C = a.x.shape[1], O = a.weight.shape[0];
  const float* packed = f32(a.packed);
  if (packed == nullptr && N <= FEW_UNPACKED) {
    float* mine = reinterpret_cast<float*>(ctx->workspace + gemm_workspace(ctx->threads));
    pack_weight(ctx, mine, f32(a.weight), a.weight.stride[0], O, C, a.compute);
    packed = mine;
  }
  gemm(ctx, ctx->workspace,
       {N, O, C, f32(a.x), a.x.stride[0], 1, f32(a.weight), 1, a.weight.stride[0], packed, f32(a.out), a.out.stride[0],
        a.accumulate != 0, f32(a.bias), f32(a.residual), a.residual.stride[0], a.compute, is_half(a.x) ? b16(a.x) : nullptr});
}

namespace {

size_t blocked_workspace(const void*, int32_t threads) { return gemm_workspace(threads); }
size_t forward_workspace(const void* p, int32_t threads) {
  const auto& a = *static_cast<const fd_matmul_forward_args*>(p);
  return matmul_forward_workspace(a.weight, threads);
}

void backward_input_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_matmul_backward_input_args*>(p);
  gemm(ctx, ctx->workspace,
       {a.dx.shape[0], a.dx.shape[1], a.weight.shape[0], f32(a.dout), a.dout.stride[0], 1, f32(a.weight), a.weight.stride[0], 1,
        nullptr, f32(a.dx), a.dx.stride[0], a.accumulate != 0, nullptr, nullptr, 0, a.compute});
}

void backward_weight_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_matmul_backward_weight_args*>(p);
  gemm(ctx, ctx->workspace,
       {a.dweight.shape[0], a.dweight.shape[1], a.x.shape[0], f32(a.dout), 1, a.dout.stride[0], f32(a.x), a.x.stride[0], 1,
        nullptr, f32(a.dweight), a.dweight.stride[0], true, nullptr, nullptr, 0, a.compute, nullptr,
        is_half(a.x) ? b16(a.x) : nullptr, f32(a.dbias)});
}

void pack(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_matmul_pack_args*>(p);
  pack_weight(ctx, f32(a.packed), f32(a.weight), a.weight.stride[0], a.weight.shape[0], a.weight.shape[1], a.compute);
}

}  // namespace

FD_VARIANT_LIST(matmul, {"matmul_forward", "naive", 0, matmul_forward_naive, nullptr},
                {"matmul_forward", "simd", 10, matmul_forward_simd, forward_workspace},
                {"matmul_backward_input", "naive", 0, backward_input_naive, nullptr},
                {"matmul_backward_input", "simd", 10, backward_input_simd, blocked_workspace},
                {"matmul_backward_weight", "naive", 0, backward_weight_naive, nullptr},
                {"matmul_backward_weight", "simd", 10, backward_weight_simd, blocked_workspace},
                {"matmul_pack", "naive", 0, pack, nullptr})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
