// Attention backward. With P = exp(scale q·k - lse) and delta = sum_d dout out of a row:
//   dv_j = sum_i P_ij dout_i;  dS = P (dout·v - delta) scale;  dq_i = sum_j dS_ij k_j;  dk_j = sum_i dS_ij q_i
//
// P is computed again from q, k and lse, block by block: no T x T matrix. A unit of work is one sequence and one
// key-value head: nobody else adds to its dk, dv and dq, so there are no atomics and the order is fixed:
// dk and dv sum over query tiles in order and, inside a tile, over the heads of the group; dq over key blocks in order.
// Five small products per (32 keys x 32 rows) tile go through the tile kernel of matmul; each row of them is 4 D or 128 bytes,
// so all operands stay in L1 and L2.
//
// Variants:
// (GFLOP/s as in attention.cpp, 5 products counted)
//   naive   the formulas, a (row, key) pair at a time, dot products in double      3.1
//   simd    as above                                                               56
// Known gap: parallel over (sequence, key-value head) only, so one long sequence with one such head uses one thread.
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
        const float *q = row_of(a.q, i, h), *out = row_of(a.out, i, h), *dout = row_of(a.dout, i, h);
        double delta = 0;
        for (int64_t d = 0; d < D; ++d) delta += static_cast<double>(dout[d]) * out[d];
        for (int64_t j = start; j <= i; ++j) {
          const float *k = row_of(a.k, j, g), *v = row_of(a.v, j, g);
          double score = 0, dp = 0;
          for (int64_t d = 0; d < D; ++d) score += static_cast<double>(q[d]) * k[d];
          for (int64_t d = 0; d < D; ++d) dp += static_cast<double>(dout[d]) * v[d];
          const double probability = exp(score * a.scale - *row_of(a.lse, i, h)), ds = probability * (dp - delta) * a.scale;
          for (int64_t d = 0; d < D; ++d) {
            row_of(a.dv, j, g)[d] += static_cast<float>(probability * dout[d]);
            row_of(a.dk, j, g)[d] += static_cast<float>(ds * q[d]);
            row_of(a.dq, i, h)[d] += static_cast<float>(ds * k[d]);
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

constexpr int64_t TILE = 32;  // query rows

struct TileSpace {
  float *keys, *values;  // [D, 32], transposed
  float *p, *ds;         // [32 rows, 32 keys]
  float *dk, *dv;        // [32 keys, D]
};
size_t scratch_bytes(int64_t D) { return 4 * bytes64(KEYS * D, sizeof(float)) + 2 * bytes64(TILE * KEYS, sizeof(float)); }

size_t backward_workspace(const void* p, int32_t threads) {
  const auto& a = *static_cast<const fd_attention_backward_args*>(p);
  return bytes64(a.q.shape[0] * a.q.shape[1], sizeof(float)) + threads * scratch_bytes(a.q.shape[2]);
}

// One tile: rows i0.. of head h against the keys j0.. of its group.
FD_INLINE void backward_tile(const fd_attention_backward_args& a, const TileSpace& x, const float* delta, int64_t i0,
                             int64_t rows, int64_t j0, int64_t keys, int64_t h, int64_t g) {
  const int64_t H = a.q.shape[1], D = a.q.shape[2];
  const vf scale = vset(static_cast<float>(a.scale));
  const float *q = row_of(a.q, i0, h), *dout = row_of(a.dout, i0, h), *k = row_of(a.k, j0, g);
  product(rows, KEYS, D, q, a.q.stride[0], 1, x.keys, KEYS, x.p, KEYS, false);
  product(rows, KEYS, D, dout, a.dout.stride[0], 1, x.values, KEYS, x.ds, KEYS, false);
  for (int64_t r = 0; r < rows; ++r) {
    const vf lse = vset(*row_of(a.lse, i0 + r, h)), row_delta = vset(delta[(i0 + r) * H + h]);
    const vi visible = vseti(static_cast<int32_t>(min64(keys, i0 + r - j0 + 1)));
    for (int j = 0; j < KEYS; j += VL) {
      float *p = x.p + r * KEYS + j, *ds = x.ds + r * KEYS + j;
      const vi seen = viota() + vseti(j) < visible;
      const vf probability = vselect(seen, vexp(vload(p) * scale - lse), vset(0.0f));
      vstore(ds, vselect(seen, probability * (vload(ds) - row_delta) * scale, vset(0.0f)));
      vstore(p, probability);
    }
  }
  product(rows, D, keys, x.ds, KEYS, 1, k, a.k.stride[0], row_of(a.dq, i0, h), a.dq.stride[0], true);
  product(keys, D, rows, x.ds, 1, KEYS, q, a.q.stride[0], x.dk, D, true);
  product(keys, D, rows, x.p, 1, KEYS, dout, a.dout.stride[0], x.dv, D, true);
}

void backward_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_attention_backward_args*>(p);
  const int64_t N = a.q.shape[0], H = a.q.shape[1], D = a.q.shape[2], G = a.k.shape[1], S = a.cu_seqlens.shape[0] - 1;
  const int64_t group = H / G;
  const int32_t* cu_seqlens = i32(a.cu_seqlens);
  Space space{ctx->workspace};
  float* delta = space.take<float>(N * H);
  parallel_rows(ctx, cu_seqlens[S], H * D, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t h = 0; h < H; ++h) {
        const float *out = row_of(a.out, n, h), *dout = row_of(a.dout, n, h);
        vf sum = vset(0.0f);
        for_lanes(D, [&](int64_t d, auto load, auto) { sum = vfma(load(out + d), load(dout + d), sum); });
        delta[n * H + h] = hsum(sum);
        memset(row_of(a.dq, n, h), 0, D * sizeof(float));
      }
    }
  });
  parallel_units(ctx, S * G, [&](int64_t unit, int thread) {
    const int64_t s = unit / G, g = unit % G, start = cu_seqlens[s], end = cu_seqlens[s + 1];
    Space mine{space.at + thread * scratch_bytes(D)};
    TileSpace x;
    x.keys = mine.take<float>(KEYS * D);
    x.values = mine.take<float>(KEYS * D);
    x.dk = mine.take<float>(KEYS * D);
    x.dv = mine.take<float>(KEYS * D);
    x.p = mine.take<float>(TILE * KEYS);
    x.ds = mine.take<float>(TILE * KEYS);
    for (int64_t j0 = start; j0 < end; j0 += KEYS) {
      const int64_t keys = min64(KEYS, end - j0);
      transpose_keys(x.keys, row_of(a.k, j0, g), a.k.stride[0], keys, D);
      transpose_keys(x.values, row_of(a.v, j0, g), a.v.stride[0], keys, D);
      memset(x.dk, 0, KEYS * D * sizeof(float));
      memset(x.dv, 0, KEYS * D * sizeof(float));
      for (int64_t i0 = j0; i0 < end; i0 += TILE) {
        for (int64_t h = g * group; h < (g + 1) * group; ++h)
          backward_tile(a, x, delta, i0, min64(TILE, end - i0), j0, keys, h, g);
      }
      for (int64_t j = 0; j < keys; ++j) {
        memcpy(row_of(a.dk, j0 + j, g), x.dk + j * D, D * sizeof(float));
        memcpy(row_of(a.dv, j0 + j, g), x.dv + j * D, D * sizeof(float));
      }
    }
  });
  zero_tail(a.dq, cu_seqlens[S]);
  zero_tail(a.dk, cu_seqlens[S]);
  zero_tail(a.dv, cu_seqlens[S]);
}

}  // namespace

FD_VARIANT_LIST(attention_backward, {"attention_backward", "naive", 0, backward_naive, nullptr},
                {"attention_backward", "simd", 10, backward_simd, backward_workspace})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
