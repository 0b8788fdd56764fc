// attention_backward_sm80.cu: the derivatives of attention_backward.cu on tensor cores, from compute capability 8.0 on, in
// bfloat16 and for heads of 64 and 128.
//
//   P = exp(scale Q K^T - lse), dS = P (dO V^T - delta), delta_i = dO_i.out_i
//   dQ = scale dS K,  dK = scale dS^T Q,  dV = P^T dO
//
// Two passes over the same tiles, without atomics: a block to 64 queries of a head walks the keys and makes dQ; a block to 64
// keys of a group walks the queries of its heads and makes dK and dV. S and dO V^T are computed in both: 7 products instead of
// 5, for sums whose order is the sequence's alone. Seen from a block the passes are one: with `mine` = (Q, dO) and `theirs` =
// (K, V), or the other way round,
//
//   S = mine_0 theirs_0^T,  dP = mine_1 theirs_1^T,  out_0 = dS theirs_0,  out_1 = P theirs_1 (of keys alone)
//
// on S and dP as they lie or transposed, and so it is one kernel. 16 rows to a warp; theirs come 32 rows at a time by cp.async
// into a ring; sums of S go to the next products' operand in registers.
//
// Bytes: rounding dout, and of q, k and v what is not bfloat16 in memory, reads 4 and writes 2 a number, delta reads 6 or 8; then
// a tile of 64 rows reads 4 for each (row, d) of the other side that it sees, from the L2 cache. With keys mine and heads of 128
// their fragments are read from shared memory at every step, for the sums take 128 registers.
#include "attention.cuh"
#include "attention_sm80.cuh"
#include "vector.cuh"

namespace freedive::cuda {
namespace {

constexpr int MINE = 64, THEIRS = 32, TILE_WARPS = MINE / 16, TILE_THREADS = TILE_WARPS * WARP, STAGES = 3;

// Rounded rows [N, heads, D], from one row to the next as said, and for every place of 32 rows and each head the rows' lse in
// powers of two, then their deltas.
struct Arguments {
  fd_tensor dq, dk, dv, cu_seqlens;
  const uint16_t *q, *dout, *k, *v;
  const float* statistics;
  float scale, scale_of_powers;
  int H, G;
  int64_t q_row, k_row, v_row;  // of dout H D
};
#ifdef FREEDIVE_CUDA_EMULATION
void visit_pointers(const Arguments& a, int argument) {
  emu::visit_parts(argument, a.dq, a.dk, a.dv, a.cu_seqlens, a.q, a.dout, a.k, a.v, a.statistics);
}
#endif

// A thread to 8 numbers.
__global__ void round_heads_kernel(uint16_t* out, fd_tensor x) {
  const int64_t e = global_thread(), per_head = x.shape[2] / PIECE, at = e / per_head, n = at / x.shape[1], h = at % x.shape[1];
  if (n >= x.shape[0]) return;
  const int64_t from = row_at(x, n, h) + e % per_head * PIECE;
  *reinterpret_cast<uint4*>(out + e * PIECE) = rounded8(load4(x, from, VECTOR), load4(x, from + VECTOR, VECTOR));
}

// A block to each place of 32 rows, a warp to a row and head at a time. dout as dP takes it.
__global__ void statistics_kernel(float* statistics, fd_tensor dout, fd_tensor out, fd_tensor lse, fd_tensor cu_seqlens) {
  const TilePlace at = tile_place(cu_seqlens, blockIdx.x, THEIRS);
  if (at.s == cu_seqlens.shape[0] - 1) return;
  const int64_t begin = flat<int32_t>(cu_seqlens)[at.s] + at.first, left = flat<int32_t>(cu_seqlens)[at.s + 1] - begin;
  if (left <= 0) return;
  const int64_t H = out.shape[1], D = out.shape[2];
  for (int64_t i = warp_of_block(); i < THEIRS * H; i += WARPS) {
    const int64_t r = i % THEIRS, h = i / THEIRS;
    float sum = 0.0f, l = 0.0f;
    if (r < left) {
      const float* a = row(dout, begin + r, h);
      const int64_t b = row_at(out, begin + r, h);
      for (int64_t d = lane_id(); d < D; d += WARP) sum = fmaf(operand<true>(a[d]), number(out, b + d), sum);
      l = row(lse, begin + r)[h] * LOG2_E;
    }
    sum = warp_sum(sum);
    float* const to = statistics + (blockIdx.x * H + h) * 2 * THEIRS + r;
    if (lane_id() == 0) to[0] = l, to[THEIRS] = sum;
  }
}

template <int D, bool BY_KEYS>
struct Shape {
  static constexpr int BLOCKS = D == 64 ? 3 : 2;          // of a multiprocessor
  static constexpr bool KEPT = !(BY_KEYS && D == 128);    // mine stay in registers
  static constexpr int COLUMNS = D == 64 && !BY_KEYS ? 32 : 16;  // of S and dP at a time: registers
  static constexpr int TILE = THEIRS * D, STAGE = 2 * TILE + 2 * THEIRS * 2;  // in 16 bits; two tiles, and statistics
  static constexpr size_t SHARED = (size_t{2} * MINE * D + STAGES * STAGE) * 2;
  static_assert(THEIRS * D / PIECE % TILE_THREADS == 0, "whole pieces for every thread");
};

// ROWS rows of D numbers, `stride` apart, those from `rows` on as 0.
template <int D, int ROWS>
__device__ __forceinline__ void fetch_rows(uint16_t* tile, const uint16_t* x, int64_t stride, int rows) {
  constexpr int PIECES = D / PIECE;
#pragma unroll
  for (int n = 0; n < ROWS * PIECES / TILE_THREADS; ++n) {
    const int e = static_cast<int>(threadIdx.x) + n * TILE_THREADS, r = e / PIECES, q = e % PIECES;
    const bool inside = r < rows;
    ptx::cp_async_16(tile + swizzled<D>(r, q), x + (inside ? r : 0) * stride + q * PIECE, inside ? 16 : 0);
  }
}

// sums [16 x 8 N] += a warp's 16 rows of mine times theirs from row `column` on; D deep.
template <int D, bool KEPT, int N>
__device__ __forceinline__ void multiply(float (&sums)[N][4], const uint32_t (&kept)[KEPT ? D / 16 : 1][4], const uint16_t* mine,
                                         const uint16_t* theirs, int column) {
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    uint32_t a[4];
    if (KEPT) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = kept[KEPT ? k : 0][i];
    } else {
      load_a<true, D>(a, mine, warp_of_block() * 16, 16 * k);
    }
#pragma unroll
    for (int n = 0; n < N / 2; ++n) {
      uint32_t b[4];
      load_b<true, D>(b, theirs, column + 16 * n, 16 * k);
      ptx::mma_bf16(sums[2 * n], a, b[0], b[1]);
      ptx::mma_bf16(sums[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// out [16 x D] += weights [16 x 8 N], rounded, times as many rows of theirs, from `column` on.
template <int D, int N>
__device__ __forceinline__ void accumulate(float (&out)[D / 8][4], const float (&weights)[N][4], const uint16_t* theirs,
                                           int column) {
#pragma unroll
  for (int u = 0; u < N / 2; ++u) {
    const float(&w)[4] = weights[2 * u], (&x)[4] = weights[2 * u + 1];
    const uint32_t a[4] = {ptx::bf16_pair(w[0], w[1]), ptx::bf16_pair(w[2], w[3]), ptx::bf16_pair(x[0], x[1]),
                           ptx::bf16_pair(x[2], x[3])};
#pragma unroll
    for (int n = 0; n < D / 16; ++n) {
      uint32_t b[4];
      load_b<false, D>(b, theirs, 16 * n, column + 16 * u);
      ptx::mma_bf16(out[2 * n], a, b[0], b[1]);
      ptx::mma_bf16(out[2 * n + 1], a, b[2], b[3]);
    }
  }
}

template <int D>
__device__ __forceinline__ void store(const fd_tensor& to, int64_t n, int64_t h, int half, const float (&sums)[D / 8][4],
                                      float scale) {
  float* out = row(to, n, h) + lane_id() % 4 * 2;
  const bool pairs = (reinterpret_cast<uintptr_t>(out) & 7) == 0;
#pragma unroll
  for (int d = 0; d < D / 8; ++d) {
    const float x = sums[d][2 * half] * scale, y = sums[d][2 * half + 1] * scale;
    if (pairs)
      *reinterpret_cast<float2*>(out + 8 * d) = make_float2(x, y);
    else
      out[8 * d] = x, out[8 * d + 1] = y;
  }
}

// BY_KEYS: a block has 64 keys of a group, and makes dk and dv; else 64 queries of a head, and makes dq.
template <int D, bool BY_KEYS>
__global__ void __launch_bounds__(TILE_THREADS, Shape<D, BY_KEYS>::BLOCKS) attention_backward_sm80_kernel(Arguments a) {
  FD_DYNAMIC_SHARED(uint16_t, shared);
  using T = Shape<D, BY_KEYS>;
  const auto wide = static_cast<unsigned>(BY_KEYS ? a.G : a.H);
  const unsigned mine_head = blockIdx.x % wide, places = gridDim.x / wide;
  const unsigned place = BY_KEYS ? blockIdx.x / wide : places - 1 - blockIdx.x / wide;  // the longest first
  const auto* cu = flat<int32_t>(a.cu_seqlens);
  const int64_t S = a.cu_seqlens.shape[0] - 1, N = a.dq.shape[0];
  const TilePlace at = tile_place(a.cu_seqlens, place, MINE);
  const int64_t n0 = cu[at.s] + at.first, left = (at.s == S ? N : cu[at.s + 1]) - n0;
  if (left <= 0) return;
  const int rows = left < MINE ? static_cast<int>(left) : MINE;
  if (at.s == S) {  // the unused tail
    for (int i = static_cast<int>(threadIdx.x); i < rows * D; i += TILE_THREADS) {
      if (BY_KEYS)
        row(a.dk, n0 + i / D, mine_head)[i % D] = row(a.dv, n0 + i / D, mine_head)[i % D] = 0.0f;
      else
        row(a.dq, n0 + i / D, mine_head)[i % D] = 0.0f;
    }
    return;
  }
  const int64_t begin = cu[at.s], statistics_place = begin / THEIRS + at.s;  // as tile_place counts
  const int first = static_cast<int>(at.first), length = cu[at.s + 1] - cu[at.s], group = a.H / a.G;
  const int64_t dout_row = int64_t{a.H} * D;
  const int64_t mine_row_0 = BY_KEYS ? a.k_row : a.q_row, mine_row_1 = BY_KEYS ? a.v_row : dout_row;
  const int64_t theirs_row_0 = BY_KEYS ? a.q_row : a.k_row, theirs_row_1 = BY_KEYS ? dout_row : a.v_row;
  // keys see queries from the tile's first on, of each head of the group; queries see keys up to the tile's last
  const int theirs_begin = BY_KEYS ? first : 0, theirs_end = BY_KEYS ? length : first + rows;
  const int tiles = (theirs_end - theirs_begin + THEIRS - 1) / THEIRS, steps = BY_KEYS ? tiles * group : tiles;

  const int64_t their_head = BY_KEYS ? int64_t{mine_head} * group : mine_head / static_cast<unsigned>(group);  // the first
  uint16_t *const mine_0 = shared, *const mine_1 = mine_0 + MINE * D, *const ring = mine_1 + MINE * D;
  const auto fetch = [&](int step) {
    if (step < steps) {
      const int position = theirs_begin + step % tiles * THEIRS;
      const int64_t head = their_head + step / tiles;
      const int64_t n = begin + position;
      uint16_t* const stage = ring + step % STAGES * T::STAGE;
      fetch_rows<D, THEIRS>(stage, (BY_KEYS ? a.q : a.k) + n * theirs_row_0 + head * D, theirs_row_0, length - position);
      fetch_rows<D, THEIRS>(stage + T::TILE, (BY_KEYS ? a.dout : a.v) + n * theirs_row_1 + head * D, theirs_row_1,
                            length - position);
      const float* const statistics = a.statistics + ((statistics_place + position / THEIRS) * a.H + head) * 2 * THEIRS;
      if (BY_KEYS && threadIdx.x < 2 * THEIRS / VECTOR)
        ptx::cp_async_16(stage + 2 * T::TILE + threadIdx.x * PIECE, statistics + threadIdx.x * VECTOR);
    }
    ptx::cp_async_commit();  // an empty group, too: the wait below counts them
  };
  const int64_t head_at = static_cast<int64_t>(mine_head) * D;
  fetch_rows<D, MINE>(mine_0, (BY_KEYS ? a.k : a.q) + n0 * mine_row_0 + head_at, mine_row_0, rows);
  fetch_rows<D, MINE>(mine_1, (BY_KEYS ? a.v : a.dout) + n0 * mine_row_1 + head_at, mine_row_1, rows);
  ptx::cp_async_commit();
#pragma unroll
  for (int step = 0; step < STAGES - 1; ++step) fetch(step);

  uint32_t kept_0[T::KEPT ? D / 16 : 1][4], kept_1[T::KEPT ? D / 16 : 1][4];
  ptx::cp_async_wait<STAGES - 1>();
  __syncthreads();
  if (T::KEPT) {
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      load_a<true, D>(kept_0[T::KEPT ? k : 0], mine_0, warp_of_block() * 16, 16 * k);
      load_a<true, D>(kept_1[T::KEPT ? k : 0], mine_1, warp_of_block() * 16, 16 * k);
    }
  }
  // A lane holds rows lane / 4 and 8 below it, and columns 2 (lane % 4) and the next of every 8.
  const int warp_row = warp_of_block() * 16, lane_row = warp_row + lane_id() / 4, lane_column = lane_id() % 4 * 2;
  float lse[2] = {}, delta[2] = {};  // of queries mine
  if (!BY_KEYS) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = lane_row + 8 * half, position = first + r;
      if (r >= rows) continue;
      const float* x = a.statistics + ((statistics_place + position / THEIRS) * a.H + mine_head) * 2 * THEIRS + position % THEIRS;
      lse[half] = x[0], delta[half] = x[THEIRS];
    }
  }
  float out_0[D / 8][4] = {}, out_1[BY_KEYS ? D / 8 : 1][4] = {};
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait<STAGES - 2>();  // this step has arrived, of this thread's copies
    __syncthreads();                   // and of all; and nobody reads the stage any more that is filled now
    fetch(step + STAGES - 1);
    const int position = theirs_begin + step % tiles * THEIRS;  // of theirs
    // nothing of it is seen by, or sees, this warp's rows
    if (warp_row >= rows || (BY_KEYS ? position + THEIRS <= first + warp_row : position > first + warp_row + 15)) continue;
    const uint16_t *const theirs_0 = ring + step % STAGES * T::STAGE, *const theirs_1 = theirs_0 + T::TILE;
    const auto* const statistics = reinterpret_cast<const float*>(theirs_1 + T::TILE);
#pragma unroll 1
    for (int first_column = 0; first_column < THEIRS; first_column += T::COLUMNS) {
      float p[T::COLUMNS / 8][4] = {}, ds[T::COLUMNS / 8][4] = {};
      multiply<D, T::KEPT>(p, kept_0, mine_0, theirs_0, first_column);
      multiply<D, T::KEPT>(ds, kept_1, mine_1, theirs_1, first_column);
#pragma unroll
      for (int j = 0; j < T::COLUMNS / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = first_column + 8 * j + lane_column + e % 2;
          const int my = first + lane_row + e / 2 * 8, their = position + column;
          const int key = BY_KEYS ? my : their, query = BY_KEYS ? their : my;
          const float l = BY_KEYS ? statistics[column] : lse[e / 2], d = BY_KEYS ? statistics[THEIRS + column] : delta[e / 2];
          const float weight = ptx::exp2_approx(fmaf(p[j][e], a.scale_of_powers, -l));
          p[j][e] = key <= query && query < length ? weight : 0.0f;
          ds[j][e] = p[j][e] * (ds[j][e] - d);
        }
      accumulate<D>(out_0, ds, theirs_0, first_column);
      if constexpr (BY_KEYS) accumulate<D>(out_1, p, theirs_1, first_column);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = lane_row + 8 * half;
    if (r >= rows) continue;
    store<D>(BY_KEYS ? a.dk : a.dq, n0 + r, mine_head, half, out_0, a.scale);
    if constexpr (BY_KEYS) store<D>(a.dv, n0 + r, mine_head, half, out_1, 1.0f);
  }
}

template <int D, bool BY_KEYS>
void launch_backward(fd_context* ctx, const char* op, const Arguments& a) {
  const int64_t blocks = tile_places(a.dq.shape[0], a.cu_seqlens.shape[0] - 1, MINE) * (BY_KEYS ? a.G : a.H);
  launch_shared(ctx, op, blocks, TILE_THREADS, Shape<D, BY_KEYS>::SHARED, attention_backward_sm80_kernel<D, BY_KEYS>, a);
}

size_t bytes_of_numbers(const fd_tensor& x) {
  return static_cast<size_t>((x.shape[0] * x.shape[1] * x.shape[2] * 2 + 255) / 256 * 256);
}
size_t bytes_of_statistics(const fd_attention_backward_args& a) {
  const int64_t places = tile_places(a.q.shape[0], a.cu_seqlens.shape[0] - 1, THEIRS);
  return static_cast<size_t>(places * a.q.shape[1] * 2 * THEIRS) * sizeof(float);
}

}  // namespace

size_t attention_backward_sm80_workspace(const fd_attention_backward_args& a) {
  return 2 * bytes_of_numbers(a.q) + 2 * bytes_of_numbers(a.k) + bytes_of_statistics(a);
}

void attention_backward_sm80(fd_context* ctx, const fd_attention_backward_args& a) {
  const char* op = "attention_backward";
  if (a.q.shape[0] == 0) return;
  uint8_t* next = ctx->workspace;
  // Where rows are as the kernels take them, and `stride` from one to the next: in the tensor, or rounded in the workspace.
  const auto rounded = [&](const fd_tensor& x, int64_t& stride) -> const uint16_t* {
    stride = x.stride[0];
    if (x.dtype == FD_BF16 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && stride % PIECE == 0)
      return static_cast<const uint16_t*>(x.data);
    stride = x.shape[1] * x.shape[2];
    auto* const to = reinterpret_cast<uint16_t*>(next);
    next += bytes_of_numbers(x);
    launch_threads(ctx, op, x.shape[0] * x.shape[1] * x.shape[2] / PIECE, round_heads_kernel, to, x);
    return to;
  };
  int64_t q_row, dout_row, k_row, v_row;
  const uint16_t *q = rounded(a.q, q_row), *dout = rounded(a.dout, dout_row), *k = rounded(a.k, k_row), *v = rounded(a.v, v_row);
  auto* const statistics = reinterpret_cast<float*>(next);
  launch(ctx, op, tile_places(a.q.shape[0], a.cu_seqlens.shape[0] - 1, THEIRS), THREADS, statistics_kernel, statistics, a.dout,
         a.out, a.lse, a.cu_seqlens);
  const auto scale = static_cast<float>(a.scale), scale_of_powers = static_cast<float>(a.scale * LOG2_E_DOUBLE);
  const Arguments all{a.dq, a.dk, a.dv, a.cu_seqlens, q, dout, k, v, statistics, scale, scale_of_powers,
                      static_cast<int>(a.q.shape[1]), static_cast<int>(a.k.shape[1]), q_row, k_row, v_row};
  if (a.q.shape[2] == 64)
    launch_backward<64, true>(ctx, op, all), launch_backward<64, false>(ctx, op, all);
  else
    launch_backward<128, true>(ctx, op, all), launch_backward<128, false>(ctx, op, all);
}

}  // namespace freedive::cuda
