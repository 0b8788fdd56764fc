// attention_sm90.cu: attention_forward by what only compute capability 9.0a has: TMA, mbarriers and wgmma; in bfloat16, for heads
// of 64 and 128.
//
// A tile is 128 pairs of a query and a head of one key-value group, 64 to each of two consumer warpgroups; the third is the
// producer, one thread of which has TMA copy keys and values, 64 at a time and swizzled by 128 bytes, into a ring of stages.
// full[s]: the bytes of stage s have come; empty[s]: all eight consumer warps are done with it. q stays in registers, and so do
// scores and sums: both products take their first operand from registers (q, then the weights, whose accumulators lie as an
// operand does) and the second from shared memory, keys along their dimensions, values across.
//
// The ladder, each rung on top of those before (FlashAttention-3's ablation, heads of 128 without a mask on an H100: 582 TFLOP/s
// without the second, 661 with it; ours are not measured):
//   plain   scores, softmax, values, one after the other; the other consumer has the tensor cores meanwhile.
//   ahead   the next tile's scores are asked for before this one's values are added: a softmax runs beside its own
//           warpgroup's product. Not across chunks.
// Left out: turns between the two consumers (ping-pong), a block for more than one tile, clusters.
//
// Order of sums: attention_sm80's. Its lanes own 8 neighbouring keys of a score row, and it sums values in the order that makes
// of them; here keys and values are put into that order (key_of) when they are rounded, so that every product's step of 16 has
// the same 16 numbers in the same places, and sums are rescaled and chunks begun at the same keys. What hardware does within a
// step is its own: a wgmma may add 16 products in another order than an mma.sync. If it does not, the bits are sm80's, which are
// decoding's (attention_cached), as they are under emulation; until a GPU has told, nothing takes this variant by default.
//
// Every sequence's keys begin a tile in the workspace, zeros behind its end: a box never holds another sequence's numbers.
// Tensors that are bfloat16 in memory would be copied in the same way, or fetched by a map of five dimensions: (d; 1, 8, 2 and 32
// keys apart) is key_of's order.
//
// Bytes: rounding reads 4 and writes 2 for a number of k and v; then a tile of pairs reads 2 for each number it sees, from the L2
// cache. Of shared memory 64 keys cost a warpgroup two reads of their bytes for 64 rows: half of what it can do, at full speed.
#include "attention.cuh"
#include "attention_forward.cuh"
#include "ptx_sm90.cuh"
#include "vector.cuh"

namespace freedive::cuda {
namespace {

constexpr int KEYS = 64;
constexpr int ROWS = 64, GROUP_THREADS = 128, CONSUMERS = 2, PAIRS = ROWS * CONSUMERS, BLOCK_THREADS = GROUP_THREADS * (1 + CONSUMERS);
constexpr int STAGES = 4, BOX_BYTES = KEYS * 64 * 2;  // a box: 64 keys, 64 of their dimensions
template <int D>
constexpr int PART = D / 64 * BOX_BYTES;  // keys of a stage, or values
template <int D>
constexpr int STAGE = 2 * PART<D>;

// The key that lies in row `slot` of a tile. A thread has columns 8 w + 2 t and the next (t = lane % 4) of a product's sums, for
// each w: so keys 8 t, .. 8 t + 7 of each 32, as in attention_sm80.
__device__ __forceinline__ int key_of(int slot) { return slot / 32 * 32 + slot % 8 / 2 * 8 + slot % 32 / 8 * 2 + slot % 2; }

// ---- rows to tiles ---------------------------------------------------------------------------------------------------------
// [places][G][64 keys][D]. A CUDA block to each place of 64 rows, 0 behind the sequence's end.
__global__ void round_to_tiles_kernel(uint16_t* keys, uint16_t* values, fd_tensor k, fd_tensor v, fd_tensor cu_seqlens) {
  const TilePlace at = tile_place(cu_seqlens, blockIdx.x, KEYS);
  if (at.s == cu_seqlens.shape[0] - 1) return;
  const int64_t begin = flat<int32_t>(cu_seqlens)[at.s] + at.first, left = flat<int32_t>(cu_seqlens)[at.s + 1] - begin;
  if (left <= 0) return;
  const int G = static_cast<int>(k.shape[1]), per_row = static_cast<int>(k.shape[2] / PIECE);
  const int64_t to = static_cast<int64_t>(blockIdx.x) * G * KEYS * k.shape[2];
  for (int e = static_cast<int>(threadIdx.x); e < G * KEYS * per_row; e += THREADS) {
    const int g = e / per_row / KEYS, key = key_of(e / per_row % KEYS), d = e % per_row * static_cast<int>(PIECE);
    const auto rounded = [&](const fd_tensor& t) {
      if (key >= left) return make_uint4(0, 0, 0, 0);
      const float* x = row(t, begin + key, g) + d;
      return rounded8(load4(x, VECTOR), load4(x + VECTOR, VECTOR));
    };
    *reinterpret_cast<uint4*>(keys + to + int64_t{e} * PIECE) = rounded(k);
    *reinterpret_cast<uint4*>(values + to + int64_t{e} * PIECE) = rounded(v);
  }
}

// ---- one warpgroup's walk over the keys -----------------------------------------------------------------------------------
// Two rows of a tile's pairs, 8 apart, that a thread has a quarter of.
template <int D>
struct Rows {
  uint32_t q[D / 16][4], weights[KEYS / 16][4];  // operands
  float scores[KEYS / 2], out[D / 2];            // sums of products; e: row e / 2 % 2, column 8 (e / 4) + 2 t + e % 2
  float top[2], sum[2], fade[2];  // maximum (of scores in powers of two), sum of weights; what a new maximum leaves of sums
};

template <int D>
__device__ __forceinline__ void ask_for_scores(Rows<D>& r, uint32_t stage) {
#pragma unroll
  for (int k = 0; k < D / 16; ++k)
    ptx::wgmma_bf16_rs<true>(r.scores, r.q[k],
                             ptx::wgmma_operand(stage + static_cast<uint32_t>(k / 4 * BOX_BYTES + k % 4 * 32), 16, 1024), k > 0);
  ptx::wgmma_commit();
}
template <int D>
__device__ __forceinline__ void ask_for_values(Rows<D>& r, uint32_t stage, bool add) {
#pragma unroll
  for (int k = 0; k < KEYS / 16; ++k)
    ptx::wgmma_bf16_rs<false>(r.out, r.weights[k],
                              ptx::wgmma_operand(stage + static_cast<uint32_t>(PART<D> + k * 2048), BOX_BYTES, 1024), add || k > 0);
  ptx::wgmma_commit();
}

// Scores to weights. last: the last position that the rows see, from the tile's first.
template <int D>
__device__ __forceinline__ void soften(Rows<D>& r, float scale, const int (&last)[2], bool masked) {
#pragma unroll
  for (int e = 0; e < KEYS / 2; ++e) r.scores[e] *= scale;
  if (masked) {  // of most tiles nothing is
    const int t = lane_id() % 4;
#pragma unroll
    for (int e = 0; e < KEYS / 2; ++e)
      if (key_of(e / 4 * 8 + e % 2) + 8 * t > last[e / 2 % 2]) r.scores[e] = -INFINITY;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = r.top[half];
#pragma unroll
    for (int i = 0; i < KEYS / 4; ++i) top = fmaxf(top, r.scores[i / 2 * 4 + 2 * half + i % 2]);
    top = row_max(top);
    const float base = top == -INFINITY ? 0.0f : top;  // a row that has seen no key yet
    float part = 0.0f;
#pragma unroll
    for (int i = 0; i < KEYS / 4; ++i) {  // of each 32 keys 0, 4, 1, 5, 2, 6, 3, 7 of this lane's: sm80's order
      const int key = i % 2 * 4 + i % 8 / 2;
      float& x = r.scores[(i / 8 * 4 + key / 2) * 4 + 2 * half + key % 2];
      x = ptx::exp2_approx(x - base);
      part += x;
    }
    r.fade[half] = ptx::exp2_approx(r.top[half] - base);
    r.sum[half] = fmaf(r.sum[half], r.fade[half], part);  // of this lane's keys; the four lanes meet at the chunk's end
    r.top[half] = top;
  }
}
// What follows when nobody reads the weights before, or adds to the sums.
template <int D>
__device__ __forceinline__ void take_weights(Rows<D>& r) {
#pragma unroll
  for (int e = 0; e < D / 2; ++e) r.out[e] *= r.fade[e / 2 % 2];
#pragma unroll
  for (int i = 0; i < KEYS / 4; ++i) r.weights[i / 4][i % 4] = ptx::bf16_pair(r.scores[2 * i], r.scores[2 * i + 1]);
}

template <int D, bool AHEAD>
__global__ void __launch_bounds__(BLOCK_THREADS, 1)
    attention_sm90_kernel(const __grid_constant__ PairTiles a, const __grid_constant__ CUtensorMap keys,
                          const __grid_constant__ CUtensorMap values) {
#if FD_SM90_CODE
  FD_DYNAMIC_SHARED(unsigned char, stages);
  FD_SHARED(uint64_t, full, [STAGES]);
  FD_SHARED(uint64_t, empty, [STAGES]);
  PairTile at;
  if (!take_tile<BLOCK_THREADS>(at, a, blockIdx.x, gridDim.x, true)) return;
  const int thread = static_cast<int>(threadIdx.x), heads = at.heads, pairs = at.queries * heads;
  const int tiles = (at.first + at.queries - 1) / KEYS + 1;
  if (thread == 0) {
#pragma unroll
    for (int s = 0; s < STAGES; ++s) ptx::mbarrier_init(&full[s], 1), ptx::mbarrier_init(&empty[s], CONSUMERS * GROUP_THREADS / WARP);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();

  if (thread < GROUP_THREADS) {
    ptx::fewer_registers<40>();
    const int place = flat<int32_t>(a.cu_seqlens)[at.s] / KEYS + static_cast<int>(at.s);  // as tile_place counts
    for (int tile = 0; thread == 0 && tile < tiles; ++tile) {
      const int s = tile % STAGES, from = ((place + tile) * a.groups + at.g) * KEYS;
      unsigned char* const stage = stages + s * STAGE<D>;
      ptx::mbarrier_wait(&empty[s], (tile / STAGES + 1) % 2);  // first round: nobody has used it, and the phase before counts as ended
      ptx::mbarrier_arrive_expect(&full[s], STAGE<D>);
#pragma unroll
      for (int i = 0; i < D / 64; ++i) {
        ptx::tma_load_2d(stage + i * BOX_BYTES, &keys, &full[s], 64 * i, from);
        ptx::tma_load_2d(stage + PART<D> + i * BOX_BYTES, &values, &full[s], 64 * i, from);
      }
    }
    return;
  }
  ptx::more_registers<232>();
  const int t = lane_id() % 4, warp = thread / WARP % (GROUP_THREADS / WARP), group_pair = (thread / GROUP_THREADS - 1) * ROWS;
  const int pair = group_pair + warp * 16 + lane_id() / 4;
  Rows<D> r;
  float total_top[2] = {-INFINITY, -INFINITY}, total_sum[2] = {};  // of the chunks before; their sum of values is in `out`
#pragma unroll
  for (int k = 0; k < D / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int p = pair + i % 2 * 8;
      const float* x = row(a.q, at.n0 + p / heads, at.h0 + p % heads) + 16 * k + i / 2 * 8 + 2 * t;
      r.q[k][i] = p < pairs ? ptx::bf16_pair(x[0], x[1]) : 0;
    }
  // Tiles of this warpgroup's last pair; those behind it are the other's.
  const int last_pair = pairs - group_pair < ROWS ? pairs - 1 : group_pair + ROWS - 1;
  const int mine = pairs > group_pair ? (at.first + last_pair / heads) / KEYS + 1 : 0;
  const auto stage_of = [&](int tile) { return ptx::shared_address(stages) + static_cast<uint32_t>(tile % STAGES * STAGE<D>); };
  const auto arrived = [&](int tile) { ptx::mbarrier_wait(&full[tile % STAGES], tile / STAGES % 2); };
  const auto free_stage = [&](int tile) {
    if (lane_id() == 0) ptx::mbarrier_arrive(&empty[tile % STAGES]);
  };
  const auto soften_tile = [&](int tile) {
    const int first = tile * KEYS, warp_first = at.first + (group_pair + warp * 16) / heads;
    const int last[2] = {at.first + pair / heads - first, at.first + (pair + 8) / heads - first};
    soften(r, a.scale, last, first + KEYS - 1 > warp_first);
  };
#pragma unroll 1
  for (int first = 0; first < mine; first += CHUNK / KEYS) {
    const int end = mine - first < CHUNK / KEYS ? mine : first + CHUNK / KEYS;
    r.top[0] = r.top[1] = -INFINITY, r.sum[0] = r.sum[1] = 0.0f;
#pragma unroll
    for (int e = 0; e < D / 2; ++e) r.out[e] = 0.0f;
    if (AHEAD) {
      arrived(first);
      ptx::wgmma_fence();
      ask_for_scores(r, stage_of(first));
      ptx::wgmma_wait<0>();
      ptx::hold(r.scores);
      soften_tile(first);
      take_weights(r);
      arrived(first + (end - first > 1));
    }
#pragma unroll 1
    for (int tile = first + AHEAD; tile < end; ++tile) {
      if (!AHEAD) arrived(tile);
      ptx::wgmma_fence();
      ask_for_scores(r, stage_of(tile));
      if (AHEAD) ask_for_values(r, stage_of(tile - 1), true);
      ptx::wgmma_wait<AHEAD>();
      ptx::hold(r.scores);
      soften_tile(tile);
      if (AHEAD) {
        // Here and not at the loop's top: ptxas moves no exp behind a loop, as it does behind wgmma_wait, where nothing runs beside it.
        arrived(tile + (tile + 1 < end));
        ptx::wgmma_wait<0>();
        ptx::hold(r.out);
        free_stage(tile - 1);
      }
      take_weights(r);
      if (!AHEAD) {
        ptx::wgmma_fence();
        ask_for_values(r, stage_of(tile), true);
        ptx::wgmma_wait<0>();
        ptx::hold(r.out);
        free_stage(tile);
      }
    }
    if (AHEAD) {
      ptx::wgmma_fence();
      ask_for_values(r, stage_of(end - 1), true);
      ptx::wgmma_wait<0>();
      ptx::hold(r.out);
      free_stage(end - 1);
    }

    const bool merges = first > 0, divides = end == mine;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int p = pair + 8 * half;
      r.sum[half] = row_sum(r.sum[half]);
      if (p >= pairs) continue;
      const int64_t n = at.n0 + p / heads, h = at.h0 + p % heads;
      const Merged both = merged(total_top[half], r.top[half]);
      total_top[half] = both.top, total_sum[half] = merged(both, total_sum[half], r.sum[half]);
      const float divided = divides ? 1.0f / total_sum[half] : 1.0f;
      float* const to = row(a.out, n, h) + 2 * t;
      const bool whole = reinterpret_cast<uintptr_t>(to) % 8 == 0;
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
        float x[2], before[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          before[i] = merges ? to[8 * j + i] : 0.0f;
          x[i] = (merges ? merged(both, before[i], r.out[4 * j + 2 * half + i]) : r.out[4 * j + 2 * half + i]) * divided;
        }
        if (whole)
          *reinterpret_cast<float2*>(to + 8 * j) = make_float2(x[0], x[1]);
        else
          to[8 * j] = x[0], to[8 * j + 1] = x[1];
      }
      if (t == 0 && divides) row(a.lse, n)[h] = fmaf(total_top[half], LN_2, logf(total_sum[half]));
    }
  }
  // One lane: others, still waiting for a stage that it has freed, could find the phase after the next.
  for (int tile = mine; lane_id() == 0 && tile < tiles; ++tile) arrived(tile), free_stage(tile);
#else
  __trap();  // code for another GPU: nobody launches it
#endif
}

// ---- launching -------------------------------------------------------------------------------------------------------------
int64_t tile_rows(int64_t N, int64_t S, int64_t G) { return tile_places(N, S, KEYS) * G * KEYS; }

template <int D>
void launch_attention(fd_context* ctx, const char* op, const PairTiles& a, const CUtensorMap& keys, const CUtensorMap& values,
                      bool ahead) {
  launch_shared(ctx, op, blocks_of(a), BLOCK_THREADS, STAGES * STAGE<D>, ahead ? attention_sm90_kernel<D, true> : attention_sm90_kernel<D, false>,
                a, keys, values);
}

}  // namespace

bool attention_sm90_takes(int64_t D, int64_t compute) { return attention_sm80_takes(D, compute) && ptx::multiprocessors_of_sm90() > 0; }

size_t attention_forward_sm90_workspace(const fd_attention_forward_args& a) {
  return static_cast<size_t>(2 * tile_rows(a.k.shape[0], a.cu_seqlens.shape[0] - 1, a.k.shape[1]) * a.k.shape[2]) * 2;
}

void attention_forward_sm90(fd_context* ctx, const fd_attention_forward_args& a, bool ahead) {
  const char* op = "attention_forward";
  const int64_t N = a.k.shape[0], S = a.cu_seqlens.shape[0] - 1, G = a.k.shape[1], D = a.k.shape[2], rows = tile_rows(N, S, G);
  if (N == 0) return;
  auto* const keys = scratch<uint16_t>(ctx);
  uint16_t* const values = keys + rows * D;
  CUtensorMap key_map, value_map;
  if (!ptx::tensor_map_2d(&key_map, keys, rows, D, D, KEYS, 64) || !ptx::tensor_map_2d(&value_map, values, rows, D, D, KEYS, 64))
    return record_error(ctx->stream, op, "the driver makes no tensor map of its operands");
  launch(ctx, op, tile_places(N, S, KEYS), THREADS, round_to_tiles_kernel, keys, values, a.k, a.v, a.cu_seqlens);
  const PairTiles tiles = pair_tiles(a.out, a.lse, a.q, a.cu_seqlens, a.scale, G, PAIRS);
  D == 64 ? launch_attention<64>(ctx, op, tiles, key_map, value_map, ahead)
          : launch_attention<128>(ctx, op, tiles, key_map, value_map, ahead);
}

}  // namespace freedive::cuda
