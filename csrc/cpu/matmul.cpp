// Matmul: the three layouts of training, each element ONE chain of fused multiply-adds.
//   forward:         out[n,o]     = sum_c x[n,c] w[o,c] (+ bias[o]) (+ residual[n,o])
//   backward input:  dx[n,c]      = sum_o dout[n,o] w[o,c]
//   backward weight: dw[o,c]     += sum_n dout[n,o] x[n,c];  dbias[o] += sum_n dout[n,o]
//
// Memory plan (blocked, after Goto & van de Geijn 2008): the output is cut into units of at most UNIT_M x BLOCK_N, handed to
// threads one by one. For each slice of BLOCK_K along k a unit packs its block of B once (512 KB, in panels of 16 columns; one
// panel, 16 KB, lives in L1), unless the weight came packed, and meets it with its rows of A, BLOCK_M at a time (240 KB, in L2),
// packed in strips of six rows unless the columns are too few to pay for that. The register tile is 6 x 16: 12 accumulators, and
// 12 fused multiply-adds for every 8 loads; it fetches the outputs of the next tile ahead. Between slices of k the partial sums
// rest in the output as float32, which is what they were in registers: blocking changes no bit. Where a residual is to be added,
// which may be the output itself, they rest in a buffer of the thread instead.
//
// Variants (how fast: benchmarks/matmul.py, and the table in csrc/README.md):
//   naive    three loops, one chain at a time, bound by the latency of the fused multiply-add
//   simd     blocked as above; few rows (decode) stream the packed weight once, four panels at a time
// Without `packed` a forward of one row spends its time packing: give it the packed weight.
#include "matmul.h"

#include "kernel.h"
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

constexpr int64_t BLOCK_M = 240, BLOCK_N = 512, BLOCK_K = 256, PANEL = 16;
constexpr int64_t UNIT_M = 4 * BLOCK_M;  // rows for which a block of B is packed once
constexpr int64_t WORTH_PACKING = 96;    // columns: with fewer, rows of A are read where they lie
constexpr int64_t SMALL = 1 << 18;  // multiply-adds: about 10 us, below which waking the other threads costs more than it brings

FD_INLINE float* row(const fd_tensor& t, int64_t n) { return f32(t) + n * t.stride[0]; }

// ---- naive -----------------------------------------------------------------------------------------------------

void forward_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_matmul_forward_args*>(p);
  const int64_t N = a.x.shape[0], C = a.x.shape[1], O = a.weight.shape[0];
  parallel_units(ctx, N, [&](int64_t n, int) {
    for (int64_t o = 0; o < O; ++o) {
      float sum = a.accumulate ? row(a.out, n)[o] : 0.0f;
      for (int64_t c = 0; c < C; ++c) sum = fma1(row(a.x, n)[c], row(a.weight, o)[c], sum);
      if (f32(a.bias) != nullptr) sum = sum + f32(a.bias)[o];
      if (f32(a.residual) != nullptr) sum = sum + row(a.residual, n)[o];
      row(a.out, n)[o] = sum;
    }
  });
}

void backward_input_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_matmul_backward_input_args*>(p);
  const int64_t N = a.dx.shape[0], C = a.dx.shape[1], O = a.weight.shape[0];
  parallel_units(ctx, N, [&](int64_t n, int) {
    for (int64_t c = 0; c < C; ++c) {
      float sum = a.accumulate ? row(a.dx, n)[c] : 0.0f;
      for (int64_t o = 0; o < O; ++o) sum = fma1(row(a.dout, n)[o], row(a.weight, o)[c], sum);
      row(a.dx, n)[c] = sum;
    }
  });
}

// Threads own columns of dout, rows are added in order.
void sum_rows(fd_context* ctx, const fd_tensor& dbias, const fd_tensor& dout) {
  if (f32(dbias) == nullptr) return;
  const int64_t N = dout.shape[0], O = dout.shape[1], COLUMNS = N * O < SMALL ? O : 64;
  parallel_units(ctx, O == 0 ? 0 : ceil_div(O, COLUMNS), [&](int64_t unit, int) {
    const int64_t begin = unit * COLUMNS, end = min64(O, begin + COLUMNS);
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t o = begin; o < end; ++o) f32(dbias)[o] += row(dout, n)[o];
    }
  });
}

void backward_weight_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_matmul_backward_weight_args*>(p);
  const int64_t N = a.x.shape[0], C = a.x.shape[1], O = a.dweight.shape[0];
  parallel_units(ctx, O, [&](int64_t o, int) {
    for (int64_t c = 0; c < C; ++c) {
      float sum = row(a.dweight, o)[c];
      for (int64_t n = 0; n < N; ++n) sum = fma1(row(a.dout, n)[o], row(a.x, n)[c], sum);
      row(a.dweight, o)[c] = sum;
    }
  });
  sum_rows(ctx, a.dbias, a.dout);
}

// ---- packing ---------------------------------------------------------------------------------------------------

// Six rows by eight columns at `from`, turned: to[c * to_row + r] = from[r * from_row + c]. Stores write eight lanes each, of
// which six count, in rising order.
#ifdef FREEDIVE_AVX2
FD_INLINE void turn_6x8(float* to, int64_t to_row, const float* from, int64_t from_row) {
  const vf x0 = vload(from), x1 = vload(from + from_row), x2 = vload(from + 2 * from_row);
  const vf x3 = vload(from + 3 * from_row), x4 = vload(from + 4 * from_row), x5 = vload(from + 5 * from_row);
  const vi low = {0, 8, 1, 9, 4, 12, 5, 13}, high = {2, 10, 3, 11, 6, 14, 7, 15};      // pairs of floats
  const vi first = {0, 1, 8, 9, 4, 5, 12, 13}, second = {2, 3, 10, 11, 6, 7, 14, 15};  // pairs of pairs
  const vf a01 = __builtin_shuffle(x0, x1, low), b01 = __builtin_shuffle(x0, x1, high);
  const vf a23 = __builtin_shuffle(x2, x3, low), b23 = __builtin_shuffle(x2, x3, high);
  const vf a45 = __builtin_shuffle(x4, x5, low), b45 = __builtin_shuffle(x4, x5, high);
  // q[c]: columns c and c + 4 of rows 0..3; t[c]: of rows 4 and 5, twice
  const vf q[4] = {__builtin_shuffle(a01, a23, first), __builtin_shuffle(a01, a23, second), __builtin_shuffle(b01, b23, first),
                   __builtin_shuffle(b01, b23, second)};
  const vf t[4] = {__builtin_shuffle(a45, a45, first), __builtin_shuffle(a45, a45, second), __builtin_shuffle(b45, b45, first),
                   __builtin_shuffle(b45, b45, second)};
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) vstore(to + c * to_row, __builtin_shuffle(q[c], t[c], vi{0, 1, 2, 3, 8, 9, 10, 11}));
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) vstore(to + (4 + c) * to_row, __builtin_shuffle(q[c], t[c], vi{4, 5, 6, 7, 12, 13, 14, 15}));
}
#endif

// One panel of a weight [O,C]: 16 of its rows side by side, [C][16].
void pack_panel(float* panel, const float* weight, int64_t weight_row, int64_t rows, int64_t C) {
  int64_t c = 0;
  for (; rows == PANEL && c + VL <= C; c += VL) {
    turn_8x8(panel + c * PANEL, PANEL, weight + c, weight_row);
    turn_8x8(panel + c * PANEL + VL, PANEL, weight + VL * weight_row + c, weight_row);
  }
  for (; c < C; ++c) {
    for (int64_t o = 0; o < PANEL; ++o) panel[c * PANEL + o] = o < rows ? weight[o * weight_row + c] : 0.0f;
  }
}

// A block of a plain B[K, columns] in panels [ceil(columns/16)][K][16].
void pack_block(float* panels, const float* b, int64_t b_k, int64_t K, int64_t columns) {
  for (int64_t j = 0; j < columns; j += PANEL, panels += K * PANEL) {
    if (j + PANEL <= columns) {
      for (int64_t k = 0; k < K; ++k) {
        const vf low = vload(b + k * b_k + j), high = vload(b + k * b_k + j + VL);
        vstore(panels + k * PANEL, low);
        vstore(panels + k * PANEL + VL, high);
      }
    } else {
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t i = 0; i < PANEL; ++i) panels[k * PANEL + i] = j + i < columns ? b[k * b_k + j + i] : 0.0f;
      }
    }
  }
}

// A block of A stored by columns (A(i,k) = a[k*a_k + i]) in strips [ceil(rows/MR)][K][MR]. 16 rows of memory at a time:
// they stay in L1 while all strips take their part of them.
void pack_strips_of_columns(float* strips, const float* a, int64_t a_k, int64_t rows, int64_t K) {
  const int64_t whole = rows / MR, rest = rows - whole * MR;
  for (int64_t k0 = 0; k0 < K; k0 += 16) {
    const int64_t end = min64(K, k0 + 16);
    for (int64_t s = 0; s < whole; ++s) {
      float* strip = strips + s * K * MR;
      for (int64_t k = k0; k < end; ++k) memcpy(strip + k * MR, a + k * a_k + s * MR, MR * sizeof(float));
    }
    float* strip = strips + whole * K * MR;
    for (int64_t k = k0; k < end; ++k) {
      for (int64_t r = 0; r < rest; ++r) strip[k * MR + r] = a[k * a_k + whole * MR + r];
    }
  }
}

// The same of a block stored by rows (A(i,k) = a[i*a_row + k]). turn_6x8's last store
// of a strip reaches into the next, which is written afterwards; the buffer has room behind its end.
void pack_strips_of_rows(float* strips, const float* a, int64_t a_row, int64_t rows, int64_t K) {
  for (int64_t i = 0; i < rows; i += MR, strips += K * MR) {
    const float* from = a + i * a_row;
    const int64_t r = min64(MR, rows - i);
    int64_t k = 0;
#ifdef FREEDIVE_AVX2
    for (; r == MR && k + VL <= K; k += VL) turn_6x8(strips + k * MR, MR, from + k, a_row);
#endif
    for (; k < K; ++k) {
      for (int64_t y = 0; y < r; ++y) strips[k * MR + y] = from[y * a_row + k];
    }
  }
}

// ---- blocked ---------------------------------------------------------------------------------------------------

struct Buffers {
  float *a, *b, *c;
};

constexpr int64_t BUFFER_A = BLOCK_M * BLOCK_K + 16, BUFFER_B = BLOCK_N * BLOCK_K, BUFFER_C = BLOCK_M * BLOCK_N;
constexpr int64_t BUFFER = BUFFER_A + BUFFER_B + BUFFER_C;

Buffers buffers_of(uint8_t* workspace, int thread) {
  float* base = reinterpret_cast<float*>(workspace) + thread * BUFFER;
  return {base, base + BUFFER_A, base + BUFFER_A + BUFFER_B};
}

// Fewer than 16 columns of a packed panel, through a full-width buffer.
void tile_narrow(int64_t rows, int64_t columns, int64_t K, const float* a, int64_t a_row, int64_t a_k, const float* panel,
                 float* c, int64_t c_row, bool load, Finish finish) {
  float full[MR * PANEL] = {0};
  if (load) {
    for (int64_t i = 0; i < rows; ++i) memcpy(full + i * PANEL, c + i * c_row, columns * sizeof(float));
  }
  tile_rows<2>(rows, K, a, a_row, a_k, panel, PANEL, 0, full, PANEL, load, {nullptr, nullptr, 0});
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      float y = full[i * PANEL + j];
      if (finish.bias != nullptr) y = y + finish.bias[j];
      if (finish.residual != nullptr) y = y + finish.residual[i * finish.residual_row + j];
      c[i * c_row + j] = y;
    }
  }
}

// True when partial sums cannot rest in the output between slices of k, because the residual lies there.
bool rests_in_buffer(const Gemm& g) { return g.residual != nullptr && g.k > BLOCK_K; }

// One slice of k for at most BLOCK_M rows of A, packed or not, against the panels of B.
struct Slice {
  const float* a;
  int64_t a_row, a_k, strip;  // strip: from one strip of MR rows to the next
  const float* b;
  int64_t K, panel;
  bool load, last;
};

void multiply(const Gemm& g, const Slice& x, const Buffers& buffers, int64_t i0, int64_t rows, int64_t j0, int64_t columns) {
  const bool in_buffer = rests_in_buffer(g);
  for (int64_t j = 0; j < columns; j += PANEL) {
    const float* b = x.b + j / PANEL * x.panel;
    const int64_t width = min64(PANEL, columns - j);
    for (int64_t i = 0; i < rows; i += MR) {
      const int64_t r = min64(MR, rows - i);
      const float* a = x.a + i / MR * x.strip;
      float* out = g.c + (i0 + i) * g.c_row + j0 + j;
      float* c = in_buffer ? buffers.c + i * BLOCK_N + j : out;
      const int64_t c_row = in_buffer ? BLOCK_N : g.c_row;
      Finish finish = {nullptr, nullptr, 0};
      if (x.last) {
        finish.bias = g.bias == nullptr ? nullptr : g.bias + j0 + j;
        finish.residual = g.residual == nullptr ? nullptr : g.residual + (i0 + i) * g.residual_row + j0 + j;
        finish.residual_row = g.residual_row;
      }
      if (width == PANEL) {
        if (r == MR && x.a_k == MR && finish.bias == nullptr && finish.residual == nullptr) {
          tile_packed(x.K, a, b, c, c_row, x.load);
        } else {
          tile_rows<2>(r, x.K, a, x.a_row, x.a_k, b, PANEL, 0, c, c_row, x.load, finish);
        }
      } else {
        tile_narrow(r, width, x.K, a, x.a_row, x.a_k, b, c, c_row, x.load, finish);
      }
      if (in_buffer && x.last) {
        for (int64_t y = 0; y < r; ++y) memcpy(out + y * g.c_row, c + y * BLOCK_N, width * sizeof(float));
      }
    }
  }
}

// One unit of the output: rows i0.., columns j0...
void gemm_block(const Gemm& g, const Buffers& buffers, int64_t i0, int64_t rows, int64_t j0, int64_t columns) {
  const int64_t slices = max64(1, ceil_div(g.k, BLOCK_K)), slice = ceil_div(g.k, slices);
  for (int64_t s = 0; s < slices; ++s) {
    const int64_t k0 = s * slice;
    Slice x;
    x.K = min64(slice, g.k - k0);
    x.load = s > 0 || g.accumulate;
    x.last = s == slices - 1;
    x.panel = x.K * PANEL;
    if (g.packed != nullptr) {
      x.b = g.packed + j0 / PANEL * g.k * PANEL + k0 * PANEL;
      x.panel = g.k * PANEL;
    } else {
      pack_block(buffers.b, g.b + k0 * g.b_k + j0, g.b_k, x.K, columns);
      x.b = buffers.b;
    }
    for (int64_t i = 0; i < rows; i += BLOCK_M) {
      const int64_t r = min64(BLOCK_M, rows - i);
      x.a = g.a + (i0 + i) * g.a_row + k0 * g.a_k;
      x.a_row = g.a_row, x.a_k = g.a_k, x.strip = MR * g.a_row;
      if (g.a_k != 1 || columns >= WORTH_PACKING) {
        if (g.a_k != 1) {
          pack_strips_of_columns(buffers.a, x.a, g.a_k, r, x.K);
        } else {
          pack_strips_of_rows(buffers.a, x.a, g.a_row, r, x.K);
        }
        x.a = buffers.a, x.a_row = 1, x.a_k = MR, x.strip = x.K * MR;
      }
      if (rests_in_buffer(g) && s == 0 && g.accumulate) {
        for (int64_t y = 0; y < r; ++y)
          memcpy(buffers.c + y * BLOCK_N, g.c + (i0 + i + y) * g.c_row + j0, columns * sizeof(float));
      }
      multiply(g, x, buffers, i0 + i, r, j0, columns);
    }
  }
}

// At most MR rows: no blocking over k, every weight is read once. Up to 64 columns at a time.
void gemm_few_rows(const Gemm& g, int64_t j0, int64_t columns) {
  const bool packed = g.packed != nullptr;
  const int64_t b_k = packed ? PANEL : g.b_k, panel = packed ? g.k * PANEL : PANEL;
  int64_t j = j0;
  const int64_t end = j0 + columns;
  while (j < end) {
    const float* b = packed ? g.packed + j / PANEL * panel : g.b + j;
    float* c = g.c + j;
    const Finish finish = {g.bias == nullptr ? nullptr : g.bias + j, g.residual == nullptr ? nullptr : g.residual + j,
                           g.residual_row};
    const int64_t left = end - j;
    if (left >= 64 && g.m == 1) {
      tile<1, 8>(g.k, g.a, g.a_row, g.a_k, b, b_k, panel, c, g.c_row, g.accumulate, finish);
      j += 64;
    } else if (left >= 32 && g.m <= 3) {
      tile_rows<4>(g.m, g.k, g.a, g.a_row, g.a_k, b, b_k, panel, c, g.c_row, g.accumulate, finish);
      j += 32;
    } else if (left >= PANEL) {
      tile_rows<2>(g.m, g.k, g.a, g.a_row, g.a_k, b, b_k, panel, c, g.c_row, g.accumulate, finish);
      j += PANEL;
    } else {
      if (packed) {
        tile_narrow(g.m, left, g.k, g.a, g.a_row, g.a_k, b, c, g.c_row, g.accumulate, finish);
      } else {
        tile_edge(g.m, left, g.k, g.a, g.a_row, g.a_k, b, b_k, c, g.c_row, g.accumulate, finish);
      }
      return;
    }
  }
}

}  // namespace

size_t gemm_workspace(int32_t threads) { return bytes64(BUFFER * max64(1, threads), sizeof(float)); }

void gemm(fd_context* context, uint8_t* workspace, const Gemm& g) {
  if (g.m <= 0 || g.n <= 0) return;
  fd_context alone = *context;
  alone.threads = 1;
  fd_context* ctx = g.m * g.n * g.k < SMALL ? &alone : context;
  if (g.m <= MR) {
    const int64_t columns = g.m * g.n * g.k >= SMALL ? 64 : g.n;
    parallel_units(ctx, ceil_div(g.n, columns),
                   [&](int64_t unit, int) { gemm_few_rows(g, unit * columns, min64(columns, g.n - unit * columns)); });
    return;
  }
  // Units as large as the buffers allow: a unit packs its rows of A once for all its columns, and its columns of B once for all
  // its rows. With several threads they are halved until everybody finds several; the cut shows in the time, not in the bits.
  int64_t unit_m = rests_in_buffer(g) ? min64(BLOCK_M, g.m) : min64(UNIT_M, g.m), unit_n = min64(BLOCK_N, g.n);
  const int64_t wanted = ctx->threads > 1 && g.m * g.n * g.k >= 4 * SMALL ? 4 * ctx->threads : 1;
  while (ceil_div(g.m, unit_m) * ceil_div(g.n, unit_n) < wanted) {
    if (unit_m > BLOCK_M || (unit_m > 24 && unit_n <= 64)) {
      unit_m = ceil_div(ceil_div(unit_m, 2), MR) * MR;
    } else if (unit_n > 64) {
      unit_n = ceil_div(ceil_div(unit_n, 2), PANEL) * PANEL;
    } else {
      break;
    }
  }
  const int64_t units_m = ceil_div(g.m, unit_m), units_n = ceil_div(g.n, unit_n);
  parallel_units(ctx, units_m * units_n, [&](int64_t unit, int thread) {
    const int64_t i0 = unit % units_m * unit_m, j0 = unit / units_m * unit_n;
    gemm_block(g, buffers_of(workspace, thread), i0, min64(unit_m, g.m - i0), j0, min64(unit_n, g.n - j0));
  });
}

int64_t matmul_packed_size(int64_t O, int64_t C) { return ceil_div(O, PANEL) * PANEL * C; }

void pack_weight(fd_context* ctx, float* packed, const float* weight, int64_t weight_row, int64_t O, int64_t C) {
  const int64_t together = max64(1, 16384 / (PANEL * max64(1, C)));  // panels a unit, so that little work stays on one thread
  parallel_units(ctx, ceil_div(ceil_div(O, PANEL), together), [&](int64_t unit, int) {
    for (int64_t panel = unit * together; panel < min64(ceil_div(O, PANEL), (unit + 1) * together); ++panel)
      pack_panel(packed + panel * C * PANEL, weight + panel * PANEL * weight_row, weight_row, min64(PANEL, O - panel * PANEL), C);
  });
}

// ---- the ops ---------------------------------------------------------------------------------------------------

namespace {

size_t forward_workspace(const void* p, int32_t threads) {
  const auto& a = *static_cast<const fd_matmul_forward_args*>(p);
  return gemm_workspace(threads) + bytes64(matmul_packed_size(a.weight.shape[0], a.weight.shape[1]), sizeof(float));
}
size_t blocked_workspace(const void*, int32_t threads) { return gemm_workspace(threads); }

void forward_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_matmul_forward_args*>(p);
  const int64_t N = a.x.shape[0], C = a.x.shape[1], O = a.weight.shape[0];
  const float* packed = f32(a.packed);
  if (packed == nullptr) {
    float* mine = reinterpret_cast<float*>(ctx->workspace + gemm_workspace(ctx->threads));
    pack_weight(ctx, mine, f32(a.weight), a.weight.stride[0], O, C);
    packed = mine;
  }
  gemm(ctx, ctx->workspace,
       {N, O, C, f32(a.x), a.x.stride[0], 1, nullptr, 0, packed, f32(a.out), a.out.stride[0], a.accumulate != 0, f32(a.bias),
        f32(a.residual), a.residual.stride[0]});
}

void backward_input_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_matmul_backward_input_args*>(p);
  gemm(ctx, ctx->workspace,
       {a.dx.shape[0], a.dx.shape[1], a.weight.shape[0], f32(a.dout), a.dout.stride[0], 1, f32(a.weight), a.weight.stride[0],
        nullptr, f32(a.dx), a.dx.stride[0], a.accumulate != 0, nullptr, nullptr, 0});
}

void backward_weight_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_matmul_backward_weight_args*>(p);
  gemm(ctx, ctx->workspace,
       {a.dweight.shape[0], a.dweight.shape[1], a.x.shape[0], f32(a.dout), 1, a.dout.stride[0], f32(a.x), a.x.stride[0], nullptr,
        f32(a.dweight), a.dweight.stride[0], true, nullptr, nullptr, 0});
  sum_rows(ctx, a.dbias, a.dout);
}

void pack(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_matmul_pack_args*>(p);
  pack_weight(ctx, f32(a.packed), f32(a.weight), a.weight.stride[0], a.weight.shape[0], a.weight.shape[1]);
}

}  // namespace

FD_VARIANT_LIST(matmul, {"matmul_forward", "naive", 0, forward_naive, nullptr},
                {"matmul_forward", "simd", 10, forward_simd, forward_workspace},
                {"matmul_backward_input", "naive", 0, backward_input_naive, nullptr},
                {"matmul_backward_input", "simd", 10, backward_input_simd, blocked_workspace},
                {"matmul_backward_weight", "naive", 0, backward_weight_naive, nullptr},
                {"matmul_backward_weight", "simd", 10, backward_weight_simd, blocked_workspace},
                {"matmul_pack", "naive", 0, pack, nullptr})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
