// Matmul: the three layouts of training, each element ONE chain of fused multiply-adds.
//   forward:         out[n,o]     = sum_c x[n,c] w[o,c] (+ bias[o]) (+ residual[n,o])
//   backward input:  dx[n,c]      = sum_o dout[n,o] w[o,c]
//   backward weight: dw[o,c]     += sum_n dout[n,o] x[n,c];  dbias[o] += sum_n dout[n,o]
//
// Memory plan (blocked, after Goto & van de Geijn 2008): the output is cut into blocks of at most BLOCK_M x BLOCK_N,
// handed to threads one by one. For each slice of BLOCK_K along k a block of B (256 KB at most, in panels of 16
// columns; one panel, 16 KB, lives in L1) meets a block of A (240 KB at most, in L2). The register tile is 6 x 16: 12
// accumulators, and 12 fused multiply-adds for every 8 loads. Between slices of k the partial sums rest in the output
// as float32, which is what they were in registers: blocking changes no bit. Where the residual is the output itself
// they rest in a buffer of the thread instead.
//
// Variants:
// GFLOP/s on one Zen 3 core (peak 104), N=1024 C=O=768, forward / backward input / backward weight:
//   naive    three loops, one chain at a time, bound by the latency of the fused multiply-add     1.6 / 1.3 / 0.9
//   simd     blocked as above                                                                      87 / 86 / 84
//            few rows (decode) stream the packed weight once, four panels at a time: 39 for one row, 93 for four
// Without `packed` a forward of one row spends its time packing (5 GFLOP/s): give it the packed weight.
#include "matmul.h"

#include "kernel.h"
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

constexpr int64_t BLOCK_M = 240, BLOCK_N = 256, BLOCK_K = 256, PANEL = 16;
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

// One panel of a weight [O,C]: 16 of its rows side by side, [C][16].
void pack_panel(float* panel, const float* weight, int64_t weight_row, int64_t rows, int64_t C) {
  if (rows == PANEL) {
    for (int64_t c = 0; c < C; ++c) {
      for (int64_t o = 0; o < PANEL; ++o) panel[c * PANEL + o] = weight[o * weight_row + c];
    }
    return;
  }
  for (int64_t c = 0; c < C; ++c) {
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

// A block of A stored by columns (A(i,k) = a[k*a_k + i]) in strips [ceil(rows/MR)][K][MR].
void pack_strips(float* strips, const float* a, int64_t a_k, int64_t rows, int64_t K) {
  int64_t i = 0;
  for (; i + MR <= rows; i += MR, strips += K * MR) {
    for (int64_t k = 0; k < K; ++k) memcpy(strips + k * MR, a + k * a_k + i, MR * sizeof(float));
  }
  for (int64_t k = 0; i < rows && k < K; ++k) {
    for (int64_t r = 0; r < rows - i; ++r) strips[k * MR + r] = a[k * a_k + i + r];
  }
}

// ---- blocked ---------------------------------------------------------------------------------------------------

struct Buffers {
  float *a, *b, *c;
};

constexpr int64_t BUFFER_A = BLOCK_M * BLOCK_K, BUFFER_B = BLOCK_N * BLOCK_K, BUFFER_C = BLOCK_M * BLOCK_N;
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

// One block of the output: rows i0.., columns j0...
void gemm_block(const Gemm& g, const Buffers& buffers, int64_t i0, int64_t rows, int64_t j0, int64_t columns) {
  const int64_t slices = max64(1, ceil_div(g.k, BLOCK_K)), slice = ceil_div(g.k, slices);
  const bool rest_in_buffer = g.residual != nullptr && slices > 1;
  for (int64_t s = 0; s < slices; ++s) {
    const int64_t k0 = s * slice, K = min64(slice, g.k - k0);
    const bool first = s == 0, last = s == slices - 1;

    const float *a = g.a + i0 * g.a_row + k0 * g.a_k, *b = nullptr;
    int64_t a_row = g.a_row, a_k = g.a_k, strip = MR * g.a_row;
    if (g.a_k != 1) {
      pack_strips(buffers.a, a, g.a_k, rows, K);
      a = buffers.a, a_row = 1, a_k = MR, strip = K * MR;
    }
    int64_t panel = K * PANEL;
    if (g.packed != nullptr) {
      b = g.packed + j0 / PANEL * g.k * PANEL + k0 * PANEL;
      panel = g.k * PANEL;
    } else {
      pack_block(buffers.b, g.b + k0 * g.b_k + j0, g.b_k, K, columns);
      b = buffers.b;
    }

    for (int64_t j = 0; j < columns; j += PANEL, b += panel) {
      const int64_t width = min64(PANEL, columns - j);
      for (int64_t i = 0; i < rows; i += MR) {
        const int64_t r = min64(MR, rows - i);
        float* out = g.c + (i0 + i) * g.c_row + j0 + j;
        float* rest = buffers.c + i * BLOCK_N + j;
        Finish finish = {nullptr, nullptr, 0};
        if (last) {
          finish.bias = g.bias == nullptr ? nullptr : g.bias + j0 + j;
          finish.residual = g.residual == nullptr ? nullptr : g.residual + (i0 + i) * g.residual_row + j0 + j;
          finish.residual_row = g.residual_row;
        }
        float* c = out;
        int64_t c_row = g.c_row;
        bool load = !first || g.accumulate;
        if (rest_in_buffer) {
          if (first && g.accumulate) {
            for (int64_t y = 0; y < r; ++y) memcpy(rest + y * BLOCK_N, out + y * g.c_row, width * sizeof(float));
          }
          c = rest, c_row = BLOCK_N;
        }
        const float* strip_a = a + i / MR * strip;
        if (width == PANEL) {
          tile_rows<2>(r, K, strip_a, a_row, a_k, b, PANEL, 0, c, c_row, load, finish);
        } else {
          tile_narrow(r, width, K, strip_a, a_row, a_k, b, c, c_row, load, finish);
        }
        if (rest_in_buffer && last) {
          for (int64_t y = 0; y < r; ++y) memcpy(out + y * g.c_row, rest + y * BLOCK_N, width * sizeof(float));
        }
      }
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
  // Halve the blocks until every thread finds several; the cut shows in the time, not in the bits.
  int64_t block_m = min64(BLOCK_M, ceil_div(g.m, MR) * MR), block_n = min64(BLOCK_N, ceil_div(g.n, PANEL) * PANEL);
  const int64_t wanted = ctx->threads > 1 && g.m * g.n * g.k >= 4 * SMALL ? 4 * ctx->threads : 1;
  while (ceil_div(g.m, block_m) * ceil_div(g.n, block_n) < wanted) {
    if (block_n > 64) {
      block_n = ceil_div(block_n / 2, PANEL) * PANEL;
    } else if (block_m > 24) {
      block_m = ceil_div(block_m / 2, MR) * MR;
    } else {
      break;
    }
  }
  const int64_t blocks_m = ceil_div(g.m, block_m), blocks_n = ceil_div(g.n, block_n);
  parallel_units(ctx, blocks_m * blocks_n, [&](int64_t unit, int thread) {
    const int64_t i0 = unit / blocks_n * block_m, j0 = unit % blocks_n * block_n;
    gemm_block(g, buffers_of(workspace, thread), i0, min64(block_m, g.m - i0), j0, min64(block_n, g.n - j0));
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
