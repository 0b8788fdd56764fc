// Attention backward. With P = exp(scale q·k - lse) and delta = sum_d dout out of a row:
//   dv_j = sum_i P_ij dout_i;  dS = P (dout·v - delta) scale;  dq_i = sum_j dS_ij k_j;  dk_j = sum_i dS_ij q_i
//
// P is computed again from q, k and lse, block by block: no T x T matrix. A unit of work is 32 keys of one sequence and one
// key-value head, against all rows from the first of these keys on. Its dk and dv are its own: they sum over query tiles in order
// and, inside a tile, over the heads of the group. dq sums over key blocks in order: before a unit adds to the dq of a tile it
// waits until the unit of the block before has passed there. So several threads follow each other down one sequence, a tile
// apart, and the sums are those of one thread: no atomics on floats, no partial sums to keep. A thread takes a head of its own
// while there are any (its rows stay in its cache) and then helps where blocks are left.
//
// Memory plan: q and dout are copied once, head by head, and dq is gathered there (3 N H D floats of workspace): where they lie,
// rows of one head are a whole position apart, and such strides land in a few sets of L1. Five small products per (32 keys x 48
// rows) tile.
//
// Variants:
//   naive   the formulas, a (row, key) pair at a time, dot products in double
//   simd    as above
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

constexpr int64_t TILE = 48;  // query rows: eight strips of six

// What all threads share. Copies of tensors are [H, N, D], so that the rows of a head follow each other.
struct Shared {
  float *q, *dout, *dq, *delta;  // delta is [H, N]
  int32_t* next;                 // [S, G] the next block of keys nobody has taken
  int32_t* first_block;          // [S] blocks of the sequences before
  int32_t* passed;               // [blocks of all sequences, G] rows of its sequence a unit has added to dq of
};
Shared take_shared(Space& space, int64_t N, int64_t H, int64_t D, int64_t S, int64_t G) {
  Shared x;
  x.q = space.take<float>(N * H * D);
  x.dout = space.take<float>(N * H * D);
  x.dq = space.take<float>(N * H * D);
  x.delta = space.take<float>(N * H);
  x.next = space.take<int32_t>(S * G);
  x.first_block = space.take<int32_t>(S);
  x.passed = space.take<int32_t>(max_pieces(N, S, KEYS) * G);
  return x;
}

struct TileSpace {
  float *keys, *values;  // [D, 32], transposed
  float *k, *dk, *dv;    // [32 keys, D]
  float *p, *ds;         // [48 rows, 32 keys]
};
TileSpace take_tile(Space space, int64_t D) {
  TileSpace x;
  x.keys = space.take<float>(KEYS * D);
  x.values = space.take<float>(KEYS * D);
  x.k = space.take<float>(KEYS * D);
  x.dk = space.take<float>(KEYS * D);
  x.dv = space.take<float>(KEYS * D);
  x.p = space.take<float>(TILE * KEYS);
  x.ds = space.take<float>(TILE * KEYS);
  return x;
}
size_t tile_bytes(int64_t D) { return 5 * bytes64(KEYS * D, sizeof(float)) + 2 * bytes64(TILE * KEYS, sizeof(float)); }

size_t backward_workspace(const void* p, int32_t threads) {
  const auto& a = *static_cast<const fd_attention_backward_args*>(p);
  const int64_t N = a.q.shape[0], H = a.q.shape[1], D = a.q.shape[2], G = a.k.shape[1], S = a.cu_seqlens.shape[0] - 1;
  return 3 * bytes64(N * H * D, sizeof(float)) + bytes64(N * H, sizeof(float)) + bytes64(S * G, sizeof(int32_t)) +
         bytes64(S, sizeof(int32_t)) + bytes64(max_pieces(N, S, KEYS) * G, sizeof(int32_t)) + threads * tile_bytes(D);
}

// Whoever is waited for has begun and waits for earlier blocks only, so this ends.
void wait_until(const int32_t* passed, int32_t rows) {
  for (int spins = 0; __atomic_load_n(passed, __ATOMIC_ACQUIRE) < rows; ++spins) {
    if (spins < 2000) {
#ifdef __SSE2__
      _mm_pause();
#endif
    } else {
      sched_yield();
    }
  }
}

// The rows i0.. of head h against the keys j0.. of its group; `before` is the progress of the block of keys before, or NULL.
FD_INLINE void backward_tile(const fd_attention_backward_args& a, const Shared& shared, const TileSpace& x, int64_t start,
                             int64_t i0, int64_t rows, int64_t j0, int64_t keys, int64_t h, const int32_t* before) {
  const int64_t N = a.q.shape[0], D = a.q.shape[2];
  const vf scale = vset(static_cast<float>(a.scale));
  const float *q = shared.q + (h * N + i0) * D, *dout = shared.dout + (h * N + i0) * D, *delta = shared.delta + h * N + i0;
  product(rows, KEYS, D, q, D, 1, x.keys, KEYS, x.p, KEYS, false);
  product(rows, KEYS, D, dout, D, 1, x.values, KEYS, x.ds, KEYS, false);
  for (int64_t r = 0; r < rows; ++r) {
    const vf lse = vset(*row_of(a.lse, i0 + r, h)), row_delta = vset(delta[r]);
    const vi visible = vseti(static_cast<int32_t>(min64(keys, i0 + r - j0 + 1)));
#pragma GCC unroll 4
    for (int j = 0; j < KEYS; j += VL) {
      float *p = x.p + r * KEYS + j, *ds = x.ds + r * KEYS + j;
      const vi seen = viota() + vseti(j) < visible;
      const vf probability = vselect(seen, vexp_bounded(vload(p) * scale - lse), vset(0.0f));
      vstore(ds, vselect(seen, probability * (vload(ds) - row_delta) * scale, vset(0.0f)));
      vstore(p, probability);
    }
  }
  product(keys, D, rows, x.ds, 1, KEYS, q, D, x.dk, D, true);
  product(keys, D, rows, x.p, 1, KEYS, dout, D, x.dv, D, true);
  if (before != nullptr) wait_until(before, static_cast<int32_t>(i0 + rows - start));
  product(rows, D, keys, x.ds, KEYS, 1, x.k, D, shared.dq + (h * N + i0) * D, D, true);
}

// One unit: block `block` of the keys of head g in the rows start..end-1.
void backward_block(const fd_attention_backward_args& a, const Shared& shared, const TileSpace& x, int64_t start, int64_t end,
                    int64_t g, int64_t block, int32_t* passed) {
  const int64_t D = a.q.shape[2], group = a.q.shape[1] / a.k.shape[1], j0 = start + block * KEYS, keys = min64(KEYS, end - j0);
  transpose_keys(x.keys, row_of(a.k, j0, g), a.k.stride[0], keys, D);
  transpose_keys(x.values, row_of(a.v, j0, g), a.v.stride[0], keys, D);
  for (int64_t j = 0; j < keys; ++j) memcpy(x.k + j * D, row_of(a.k, j0 + j, g), D * sizeof(float));
  memset(x.dk, 0, KEYS * D * sizeof(float));
  memset(x.dv, 0, KEYS * D * sizeof(float));
  const int32_t* before = block == 0 ? nullptr : passed + block - 1;
  for (int64_t i0 = j0; i0 < end; i0 += TILE) {
    const int64_t rows = min64(TILE, end - i0);
    for (int64_t h = g * group; h < (g + 1) * group; ++h) backward_tile(a, shared, x, start, i0, rows, j0, keys, h, before);
    __atomic_store_n(passed + block, static_cast<int32_t>(i0 + rows - start), __ATOMIC_RELEASE);
  }
  for (int64_t j = 0; j < keys; ++j) {
    memcpy(row_of(a.dk, j0 + j, g), x.dk + j * D, D * sizeof(float));
    memcpy(row_of(a.dv, j0 + j, g), x.dv + j * D, D * sizeof(float));
  }
}

void backward_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_attention_backward_args*>(p);
  const int64_t N = a.q.shape[0], H = a.q.shape[1], D = a.q.shape[2], G = a.k.shape[1], S = a.cu_seqlens.shape[0] - 1;
  const int32_t* cu_seqlens = i32(a.cu_seqlens);
  Space space{ctx->workspace};
  const Shared x = take_shared(space, N, H, D, S, G);
  int64_t blocks = 0;
  for (int64_t s = 0; s < S; ++s) {
    x.first_block[s] = static_cast<int32_t>(blocks);
    blocks += ceil_div(cu_seqlens[s + 1] - cu_seqlens[s], KEYS);
  }
  memset(x.next, 0, S * G * sizeof(int32_t));
  memset(x.passed, 0, blocks * G * sizeof(int32_t));
  parallel_rows(ctx, cu_seqlens[S], H * D, [&](int64_t begin, int64_t end) {
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t n = begin; n < end; ++n) {
        const float *out = row_of(a.out, n, h), *dout = row_of(a.dout, n, h);
        vf sum = vset(0.0f);
        for_lanes(D, [&](int64_t d, auto load, auto) { sum = vfma(load(out + d), load(dout + d), sum); });
        x.delta[h * N + n] = hsum(sum);
        memcpy(x.dout + (h * N + n) * D, dout, D * sizeof(float));
        memcpy(x.q + (h * N + n) * D, row_of(a.q, n, h), D * sizeof(float));
      }
      memset(x.dq + (h * N + begin) * D, 0, (end - begin) * D * sizeof(float));
    }
  });
  // Every thread may come by every head once: the first to do so begins it, later ones help.
  const int64_t heads = S * G;
  parallel_units(ctx, heads * max64(1, ctx->threads), [&](int64_t unit, int thread) {
    const int64_t head = unit % heads, s = head / G, g = head % G, start = cu_seqlens[s], end = cu_seqlens[s + 1];
    const int64_t own = ceil_div(end - start, KEYS);
    int32_t* passed = x.passed + x.first_block[s] * G + g * own;
    const TileSpace mine = take_tile({space.at + thread * tile_bytes(D)}, D);
    for (;;) {
      const int64_t block = __atomic_fetch_add(x.next + head, 1, __ATOMIC_RELAXED);
      if (block >= own) return;
      backward_block(a, x, mine, start, end, g, block, passed);
    }
  });
  parallel_rows(ctx, cu_seqlens[S], H * D, [&](int64_t begin, int64_t end) {
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t n = begin; n < end; ++n) memcpy(row_of(a.dq, n, h), x.dq + (h * N + n) * D, D * sizeof(float));
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
