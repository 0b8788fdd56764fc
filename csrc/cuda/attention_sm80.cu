// attention_sm80.cu: causal attention on tensor cores, from rows and from the paged cache, for GPUs from compute capability 8.0
// on, in bfloat16 and for heads of 64 and 128.
//
//   out[n,h] = sum_j softmax_j(scale q[n,h].k[j,g]) v[j,g],  operands rounded to bfloat16, sums in float32
//
// One kernel for training, prefill and decode. It reads keys and values in the paged cache's layout (kv_cache_write in ops.h):
// blocks of 32 positions whose words are pairs of neighbours along the index that is summed over, which is what a register of
// mma.sync's second operand is. The forward pass of a flat batch first rounds its keys and values into such blocks, in the
// workspace; a bfloat16 cache is read as it is, by cp.async; a float32 cache is rounded on its way to shared memory.
//
// A block of 4 warps takes 64 pairs of a query and a head of one key-value group, 16 to a warp, and walks the keys 64 at a time
// through a ring of stages. q stays in registers; the weights go from one product's sums straight to the next one's operand. A
// lane reads 16 bytes of 4 neighbouring keys (or dimensions), a column for each of 4 products: so it owns 8 neighbouring keys of
// a score row, and 8 dimensions of an output row. Training with heads of 64 takes 32 pairs to a warp, and reads q again for each
// tile: half of shared memory's bytes for each product. A row has the same bits either way.
//
// The order of sums, for whoever asks: an online softmax over tiles of 64 keys, begun anew at every CHUNK of 512 keys; the
// chunks' (maximum, sum, output) are merged in order. A decode step can give the chunks of a long cache to blocks of their own
// (a sequence and group alone would keep one multiprocessor busy), and a second kernel merges them: the same bits. What is
// masked adds exact zeros; whole tiles of it are skipped. The merged output of the chunks so far waits in `out`: beside a
// chunk's own it would not fit the registers.
//
// Bytes: rounding reads 4 and writes 2 for a number of k and v; then a tile of pairs reads 2 for each number it sees, from the
// L2 cache. A decode step reads the bfloat16 cache once for the heads of a group. Shared memory is read once for 16 (32) pairs.
#include "attention.cuh"
#include "attention_forward.cuh"
#include "vector.cuh"

namespace freedive::cuda {
namespace {

constexpr int BLOCK = FD_KV_BLOCK, TILE_KEYS = 64, TILE_BLOCKS = 2, TILE_WARPS = 4,
              TILE_THREADS = TILE_WARPS * WARP;
constexpr int CHUNK_TILES = CHUNK / TILE_KEYS;
constexpr int WORDS = 4;  // in 16 bytes
static_assert(TILE_KEYS == TILE_BLOCKS * BLOCK && CHUNK == CHUNK_TILES * TILE_KEYS, "whole blocks and tiles");

// Keys and values in blocks, in words of 32 bits: two bfloat16 or one float32.
struct KeyBlocks {
  const uint32_t *k, *v;
  int64_t k_block, k_group, v_block, v_group;  // words from one to the next
};

struct Arguments : PairTiles {
  fd_tensor past_lens, block_table;  // of a cache
  KeyBlocks keys;
  float* parts;  // of a split: [N, H, chunks] outputs of D, then as many maxima and sums
  int chunks, width;  // of a split: chunks a row may have, and blocks that share them
};
#ifdef FREEDIVE_CUDA_EMULATION
void visit_pointers(const Arguments& a, int argument) {
  emu::visit_parts(argument, static_cast<const PairTiles&>(a), a.past_lens, a.block_table, a.keys.k, a.keys.v, a.parts);
}
#endif

// ---- rows to blocks -----------------------------------------------------------------------------------------------------
// A block's numbers are 4 D pieces of 16 bytes, of keys and of values alike: of keys [D / 2][8], of values [16][D / 4].
template <int D>
constexpr int BLOCK_PIECES = 4 * D;
template <int D>
constexpr int BLOCK_WORDS = BLOCK_PIECES<D> * WORDS;

// A CUDA block to each place of 32 rows: keys and values of all groups, 0 behind the sequence's end.
template <int D>
__global__ void round_to_blocks_kernel(uint32_t* keys, uint32_t* values, fd_tensor k, fd_tensor v, fd_tensor cu_seqlens) {
  const TilePlace at = tile_place(cu_seqlens, blockIdx.x, BLOCK);
  if (at.s == cu_seqlens.shape[0] - 1) return;
  const int64_t begin = flat<int32_t>(cu_seqlens)[at.s] + at.first, left = flat<int32_t>(cu_seqlens)[at.s + 1] - begin;
  if (left <= 0) return;
  const int G = static_cast<int>(k.shape[1]);
  const int64_t to = static_cast<int64_t>(blockIdx.x) * G * BLOCK_WORDS<D>;
  for (int e = static_cast<int>(threadIdx.x); e < G * BLOCK_PIECES<D>; e += THREADS) {
    const int g = e / BLOCK_PIECES<D>, piece = e % BLOCK_PIECES<D>;
    const int pair = piece / (BLOCK / WORDS), slot = piece % (BLOCK / WORDS) * WORDS;
    Four first{}, second{};
#pragma unroll
    for (int i = 0; i < WORDS; ++i)
      if (slot + i < left) {
        const float* x = row(k, begin + slot + i, g) + 2 * pair;
        first.at[i] = x[0], second.at[i] = x[1];
      }
    *reinterpret_cast<uint4*>(keys + to + int64_t{e} * WORDS) = rounded_pairs(first, second);
    const int position = piece / (D / WORDS) * 2, d = piece % (D / WORDS) * WORDS;
    first = position < left ? load4(row(v, begin + position, g) + d, WORDS) : Four{};
    second = position + 1 < left ? load4(row(v, begin + position + 1, g) + d, WORDS) : Four{};
    *reinterpret_cast<uint4*>(values + to + int64_t{e} * WORDS) = rounded_pairs(first, second);
  }
}

// ---- one block's walk over the keys -----------------------------------------------------------------------------------------
enum Kind : int { ROWS, CACHE_BF16, CACHE_F32 };

template <int D_, int KIND>
struct Shape {
  static constexpr int D = D_;
  // Groups of 16 pairs to a warp. Two halve what is read from shared memory; heads of 128 have no registers for them, and a
  // decode step seldom has the pairs.
  static constexpr int GROUPS = D == 64 && KIND == ROWS ? 2 : 1, PAIRS = TILE_WARPS * 16 * GROUPS;
  static constexpr int STAGES = D == 64 ? 3 : 2, BLOCKS = D == 64 && GROUPS == 1 ? 3 : 2;  // of a ring; of a multiprocessor
  static constexpr int PART = TILE_BLOCKS * BLOCK_WORDS<D>;  // words of a tile's keys, or values
  static constexpr bool KEPT = GROUPS == 1;  // q in registers; else it is read again for each tile, 16 bytes beside 64 of keys
  static constexpr size_t SHARED = size_t{STAGES} * 2 * PART * 4 + (KEPT ? 0 : PAIRS * D * 2);
  static_assert(PAIRS * D * 2 <= 2 * PART * 4, "kept, q goes through the last stage, which is filled when q is in registers");
};

// Where a piece of a key block lies in shared memory, and one of a value block: the four rows (neighbours of keys, every fourth
// of values) and two neighbouring pieces that eight lanes read at a time are in different banks.
__device__ __forceinline__ int key_place(int pair, int piece) { return pair * BLOCK + (piece ^ 2 * (pair % 4)) * WORDS; }
template <int D>
__device__ __forceinline__ int value_place(int pair, int piece) {
  return pair * D + piece / 8 * 8 * WORDS + (piece % 8 ^ 2 * (pair / 4)) * WORDS;
}

struct Pages {
  KeyBlocks keys;         // of the group
  const int32_t* blocks;  // of the sequence; null: they follow each other
  int positions;          // of the sequence
};

// Keys and values of tile `tile` to shared memory. What lies behind the last position is 0 in the values: weights there are 0,
// and 0 times what nobody wrote may not be a number.
template <int D, bool FLOATS>
__device__ __forceinline__ void fetch_tile(uint32_t* shared, const Pages& pages, int tile) {
  constexpr int ROUNDS = BLOCK_PIECES<D> / TILE_THREADS;
#pragma unroll
  for (int b = 0; b < TILE_BLOCKS; ++b) {
    const int first = tile * TILE_KEYS + b * BLOCK;  // position
    uint32_t *const keys = shared + b * BLOCK_WORDS<D>, *const values = keys + TILE_BLOCKS * BLOCK_WORDS<D>;
    const bool there = first < pages.positions;
    const int64_t block = there ? (pages.blocks != nullptr ? pages.blocks[first / BLOCK] : first / BLOCK) : 0;
    const uint32_t *const k = pages.keys.k + block * pages.keys.k_block, *const v = pages.keys.v + block * pages.keys.v_block;
#pragma unroll
    for (int n = 0; n < ROUNDS; ++n) {
      const int me = static_cast<int>(threadIdx.x), piece = me + n * TILE_THREADS;
      const int key_pair = me / (BLOCK / WORDS) + n * (TILE_THREADS * WORDS / BLOCK), key_piece = me % (BLOCK / WORDS);
      const int value_pair = me / (D / WORDS) + n * (TILE_THREADS * WORDS / D), value_piece = me % (D / WORDS);
      uint32_t* const key_to = keys + key_place(me / (BLOCK / WORDS), key_piece) + n * TILE_THREADS * WORDS;
      uint32_t* const value_to = values + value_place<D>(value_pair, value_piece);
      const int behind = pages.positions - first - 2 * value_pair;  // positions from the pair on
      if constexpr (FLOATS) {
        const auto *x = reinterpret_cast<const float*>(k), *y = reinterpret_cast<const float*>(v);
        x += 2 * key_pair * BLOCK + key_piece * WORDS, y += 2 * value_pair * D + value_piece * WORDS;
        const Four none{};
        *reinterpret_cast<uint4*>(key_to) =
            rounded_pairs(there ? load4(x, WORDS) : none, there ? load4(x + BLOCK, WORDS) : none);
        *reinterpret_cast<uint4*>(value_to) =
            rounded_pairs(behind > 0 ? load4(y, WORDS) : none, behind > 1 ? load4(y + D, WORDS) : none);
      } else {
        // A cache's own 0 stands beside a lone last position.
        const uint32_t *const x = k + piece * WORDS, *const y = v + piece * WORDS;
        if (aligned(k) && aligned(v)) {
          ptx::cp_async_16(key_to, x, there ? 16 : 0);
          ptx::cp_async_16(value_to, y, behind > 0 ? 16 : 0);
        } else {
#pragma unroll
          for (int i = 0; i < WORDS; ++i) key_to[i] = there ? x[i] : 0u, value_to[i] = behind > 0 ? y[i] : 0u;
        }
      }
    }
  }
}

// Of a warp's 16 pairs: a lane holds rows lane / 4 and 8 below it, and of each 32 dimensions 8 (lane % 4), .. + 7: of e and j
// dimension 4 (e % 2) + j of the first row, e < 2, or the second.
template <int D>
struct Sums {
  float top[2], sum[2], out[D / 32][4][4];  // maximum (of scores in powers of two), sum of weights, weighted sum of values
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int half = 0; half < 2; ++half) top[half] = -INFINITY, sum[half] = 0.0f;
#pragma unroll
    for (int i = 0; i < D / 32 * 16; ++i) out[i / 16][i / 4 % 4][i % 4] = 0.0f;
  }
};

// One tile of keys for a warp's GROUPS of 16 pairs. last[m][half]: the last position that its rows see, from the tile's first.
template <int D, int GROUPS, bool KEPT>
__device__ __forceinline__ void attend_tile(Sums<D> (&sums)[GROUPS], const uint32_t (&kept)[KEPT ? D / 16 : 1][GROUPS][4],
                                            const uint16_t* q_tile, const uint32_t* shared, float scale,
                                            const int (&last)[GROUPS][2], bool masked) {
  const int lane = lane_id(), t = lane % 4, column = lane / 4;
  // scores: [m][block][j][e] of key 8 t + 4 (e % 2) + j of the block
  float s[GROUPS][TILE_BLOCKS][4][4] = {};
  const uint32_t* const keys = shared + key_place(t, column);
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    uint32_t q[GROUPS][4];
#pragma unroll
    for (int m = 0; m < GROUPS; ++m) {
      if (!KEPT) load_a<true, D>(q[m], q_tile, (warp_of_block() * GROUPS + m) * 16, 16 * k);
#pragma unroll
      for (int i = 0; KEPT && i < 4; ++i) q[m][i] = kept[KEPT ? k : 0][m][i];
    }
#pragma unroll
    for (int b = 0; b < TILE_BLOCKS; ++b) {
      const uint32_t* const row = keys + b * BLOCK_WORDS<D> + 8 * k * BLOCK;  // pair 8 k + t, and 4 below it
      const uint4 low = *reinterpret_cast<const uint4*>(row), high = *reinterpret_cast<const uint4*>(row + 4 * BLOCK);
#pragma unroll
      for (int m = 0; m < GROUPS; ++m) {
        ptx::mma_bf16(s[m][b][0], q[m], low.x, high.x);
        ptx::mma_bf16(s[m][b][1], q[m], low.y, high.y);
        ptx::mma_bf16(s[m][b][2], q[m], low.z, high.z);
        ptx::mma_bf16(s[m][b][3], q[m], low.w, high.w);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < GROUPS * TILE_BLOCKS * 16; ++i) s[i / 32][i / 16 % 2][i / 4 % 4][i % 4] *= scale;
  if (masked) {  // of most tiles nothing is
#pragma unroll
    for (int i = 0; i < GROUPS * TILE_BLOCKS * 16; ++i) {
      const int m = i / 32, b = i / 16 % 2, j = i / 4 % 4, e = i % 4;
      if (b * BLOCK + 8 * t + 4 * (e % 2) + j > last[m][e / 2]) s[m][b][j][e] = -INFINITY;
    }
  }
#pragma unroll
  for (int m = 0; m < GROUPS; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = sums[m].top[half];
#pragma unroll
      for (int b = 0; b < TILE_BLOCKS; ++b)
#pragma unroll
        for (int i = 0; i < 8; ++i) top = fmaxf(top, s[m][b][i / 2][2 * half + i % 2]);
      top = row_max(top);
      const float base = top == -INFINITY ? 0.0f : top;  // a row that has seen no key yet
      float part = 0.0f;
#pragma unroll
      for (int b = 0; b < TILE_BLOCKS; ++b)
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          float& x = s[m][b][i / 2][2 * half + i % 2];
          x = ptx::exp2_approx(x - base);
          part += x;
        }
      const float fade = ptx::exp2_approx(sums[m].top[half] - base);
      sums[m].sum[half] = fmaf(sums[m].sum[half], fade, part);  // of this lane's keys; the four lanes meet at the chunk's end
      sums[m].top[half] = top;
#pragma unroll
      for (int d = 0; d < D / 32; ++d)
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[m].out[d][i / 2][2 * half + i % 2] *= fade;
    }
  const uint32_t* const values = shared + TILE_BLOCKS * BLOCK_WORDS<D> + value_place<D>(4 * t, column);
#pragma unroll
  for (int b = 0; b < TILE_BLOCKS; ++b)
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      uint32_t p[GROUPS][4];  // pairs of keys 4 t + 2 u and 4 t + 2 u + 1 of the block
#pragma unroll
      for (int m = 0; m < GROUPS; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int j = i / 2 * 2, e = i % 2 * 2 + u;
          p[m][i] = ptx::bf16_pair(s[m][b][j][e], s[m][b][j + 1][e]);
        }
#pragma unroll
      for (int d = 0; d < D / 32; ++d) {
        const uint32_t* const row = values + b * BLOCK_WORDS<D> + 2 * u * D + 32 * d;  // pair 4 t + 2 u, and the next
        const uint4 low = *reinterpret_cast<const uint4*>(row), high = *reinterpret_cast<const uint4*>(row + D);
#pragma unroll
        for (int m = 0; m < GROUPS; ++m) {
          ptx::mma_bf16(sums[m].out[d][0], p[m], low.x, high.x);
          ptx::mma_bf16(sums[m].out[d][1], p[m], low.y, high.y);
          ptx::mma_bf16(sums[m].out[d][2], p[m], low.z, high.z);
          ptx::mma_bf16(sums[m].out[d][3], p[m], low.w, high.w);
        }
      }
    }
}

// SPLIT: `width` blocks to a tile, which take every width-th chunk each; a chunk's sums go to `parts`.
template <int D, int KIND, bool SPLIT>
__global__ void __launch_bounds__(TILE_THREADS, Shape<D, KIND>::BLOCKS) attention_sm80_kernel(Arguments a) {
  FD_DYNAMIC_SHARED(uint32_t, shared);
  using T = Shape<D, KIND>;
  constexpr int STAGES = T::STAGES, STAGE = 2 * T::PART, GROUPS = T::GROUPS;
  const unsigned width = SPLIT ? static_cast<unsigned>(a.width) : 1u, part_of_tile = blockIdx.x % width;
  PairTile at;
  if (!take_tile<TILE_THREADS>(at, a, blockIdx.x / width, gridDim.x / width, part_of_tile == 0)) return;
  const int heads = at.heads, pairs = at.queries * heads;
  const int64_t n0 = at.n0, h0 = at.h0;
  const int past = KIND == ROWS ? 0 : flat<int32_t>(a.past_lens)[at.s];
  const int first_position = past + at.first;
  const int tiles = (first_position + at.queries - 1) / TILE_KEYS + 1;
  const auto tile_of = [&](int step) {
    if (!SPLIT) return step;
    return (step / CHUNK_TILES * a.width + static_cast<int>(part_of_tile)) * CHUNK_TILES + step % CHUNK_TILES;
  };
  if (tile_of(0) >= tiles) return;

  Pages pages{a.keys, KIND == ROWS ? nullptr : row<int32_t>(a.block_table, at.s),
              past + flat<int32_t>(a.cu_seqlens)[at.s + 1] - flat<int32_t>(a.cu_seqlens)[at.s]};
  pages.keys.k += at.g * a.keys.k_group, pages.keys.v += at.g * a.keys.v_group;
  if (KIND == ROWS) {
    const int64_t block = flat<int32_t>(a.cu_seqlens)[at.s] / BLOCK + at.s;  // as tile_place counts
    pages.keys.k += block * a.keys.k_block, pages.keys.v += block * a.keys.v_block;
  }
  const auto fetch = [&](int step) {
    const int tile = tile_of(step);
    if (tile < tiles) fetch_tile<D, KIND == CACHE_F32>(shared + step % STAGES * STAGE, pages, tile);
    ptx::cp_async_commit();  // an empty group, too: the wait below counts them
  };
#pragma unroll
  for (int i = 0; i < STAGES - 1; ++i) fetch(i);

  // q; kept, through the stage that is filled last; pair p is query p / heads, head p % heads
  auto* const q_tile = reinterpret_cast<uint16_t*>(shared + (T::KEPT ? STAGES - 1 : STAGES) * STAGE);
  for (int i = static_cast<int>(threadIdx.x); i < T::PAIRS * D / PIECE; i += TILE_THREADS) {
    const int p = i / (D / PIECE), d = i % (D / PIECE) * static_cast<int>(PIECE);
    Four low{}, high{};
    if (p < pairs) {
      const float* x = row(a.q, n0 + p / heads, h0 + p % heads) + d;
      low = load4(x, VECTOR), high = load4(x + VECTOR, VECTOR);
    }
    *reinterpret_cast<uint4*>(q_tile + swizzled<D>(p, d / PIECE)) =
        make_uint4(ptx::bf16_pair(low.at[0], low.at[1]), ptx::bf16_pair(low.at[2], low.at[3]),
                   ptx::bf16_pair(high.at[0], high.at[1]), ptx::bf16_pair(high.at[2], high.at[3]));
  }
  __syncthreads();
  const int warp_pair = warp_of_block() * 16 * GROUPS, pair = warp_pair + lane_id() / 4;
  uint32_t q[T::KEPT ? D / 16 : 1][GROUPS][4];
  int position[GROUPS][2];
  // Of the chunks before: maximum and sum, and in `out` the values' sum, which is looked at again only by longer sequences.
  float total_top[GROUPS][2], total_sum[GROUPS][2];
  Sums<D> part[GROUPS];  // of a chunk
#pragma unroll
  for (int m = 0; m < GROUPS; ++m) {
#pragma unroll
    for (int k = 0; T::KEPT && k < D / 16; ++k) load_a<true, D>(q[T::KEPT ? k : 0][m], q_tile, warp_pair + 16 * m, 16 * k);
    part[m].clear();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      position[m][half] = first_position + (pair + 16 * m + 8 * half) / heads;
      total_top[m][half] = -INFINITY, total_sum[m][half] = 0.0f;
    }
  }
  const int warp_first = first_position + warp_pair / heads,
            warp_last = first_position + (warp_pair + 16 * GROUPS - 1) / heads;
#pragma unroll 1
  for (int step = 0, tile = tile_of(0); tile < tiles; tile = tile_of(++step)) {
    ptx::cp_async_wait<STAGES - 2>();  // this tile has arrived, of this thread's copies
    __syncthreads();                   // and of all; and nobody reads the stage any more that is filled now
    fetch(step + STAGES - 1);
    const int key = tile * TILE_KEYS;
    if (warp_pair < pairs && key <= warp_last) {
      int last[GROUPS][2];
#pragma unroll
      for (int i = 0; i < 2 * GROUPS; ++i) last[i / 2][i % 2] = position[i / 2][i % 2] - key;
      attend_tile<D, GROUPS, T::KEPT>(part, q, q_tile, shared + step % STAGES * STAGE, a.scale, last,
                                      key + TILE_KEYS - 1 > warp_first);
    }
    if (tile % CHUNK_TILES != CHUNK_TILES - 1 && tile != tiles - 1) continue;
    const bool merges = !SPLIT && tile >= CHUNK_TILES, divides = !SPLIT && tile == tiles - 1;
#pragma unroll
    for (int i = 0; i < 2 * GROUPS; ++i) {
      const int m = i / 2, half = i % 2, p = pair + 16 * m + 8 * half, t = lane_id() % 4;
      part[m].sum[half] = row_sum(part[m].sum[half]);
      if (p >= pairs) continue;
      const int64_t n = n0 + p / heads, h = h0 + p % heads;
      const int64_t place_of_part = (n * a.q.shape[1] + h) * a.chunks + tile / CHUNK_TILES;
      const Merged both = merged(total_top[m][half], part[m].top[half]);
      total_top[m][half] = both.top, total_sum[m][half] = merged(both, total_sum[m][half], part[m].sum[half]);
      const float divided = divides ? 1.0f / total_sum[m][half] : 1.0f;
      float* const to = (SPLIT ? a.parts + place_of_part * D : row(a.out, n, h)) + 8 * t;
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {  // dimensions 32 (d / 2) + 8 t + 4 (d % 2) and 3 more
        float* const four = to + 32 * (d / 2) + 4 * (d % 2);
        Four x, before{};
        if (merges) before = load4(four, VECTOR);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float y = part[m].out[d / 2][j][2 * half + d % 2];
          x.at[j] = (merges ? merged(both, before.at[j], y) : y) * divided;
        }
        store4(four, x, VECTOR);
      }
      if (t != 0) continue;
      if (SPLIT) {
        float* const statistics = a.parts + a.q.shape[0] * a.q.shape[1] * a.chunks * D + 2 * place_of_part;
        statistics[0] = part[m].top[half], statistics[1] = part[m].sum[half];
      } else if (KIND == ROWS && divides) {
        row(a.lse, n)[h] = fmaf(total_top[m][half], LN_2, logf(total_sum[m][half]));
      }
    }
#pragma unroll
    for (int m = 0; m < GROUPS; ++m) part[m].clear();
  }
}

// The chunks of a row and head, merged as attention_sm80_kernel merges them: a warp to each, four dimensions a lane.
__global__ void merge_chunks_kernel(Arguments a) {
  const int64_t H = a.q.shape[1], n = global_warp() / H, h = global_warp() % H;
  if (n >= a.q.shape[0]) return;
  const int64_t s = sequence_of(a.cu_seqlens, n);
  if (s < 0) return;  // cleared already
  const int D = static_cast<int>(a.q.shape[2]), d = lane_id() * VECTOR;
  const int64_t keys = flat<int32_t>(a.past_lens)[s] + n - flat<int32_t>(a.cu_seqlens)[s] + 1;
  const int chunks = static_cast<int>((keys + CHUNK - 1) / CHUNK);
  const float *part = a.parts + (n * H + h) * a.chunks * D,
              *statistics = a.parts + a.q.shape[0] * H * a.chunks * D + 2 * (n * H + h) * a.chunks;
  float top = -INFINITY, sum = 0.0f;
  Four out{};
  for (int c = 0; c < chunks; ++c) {
    const Merged m = merged(top, statistics[2 * c]);
    const Four other = load4(part + c * D + d, D - d);
    top = m.top;
    sum = merged(m, sum, statistics[2 * c + 1]);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) out.at[i] = merged(m, out.at[i], other.at[i]);
  }
  const float divided = 1.0f / sum;
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) out.at[i] *= divided;
  store4(row(a.out, n, h) + d, out, D - d);
}

// ---- launching -------------------------------------------------------------------------------------------------------------
template <int KIND, bool SPLIT>
void launch_attention(fd_context* ctx, const char* op, const Arguments& a) {
  const int64_t H = a.q.shape[1], D = a.q.shape[2];
  const int64_t blocks = blocks_of(a) * (SPLIT ? a.width : 1);
  if (a.q.shape[0] == 0) return;
  if (D == 64)
    launch_shared(ctx, op, blocks, TILE_THREADS, Shape<64, KIND>::SHARED, attention_sm80_kernel<64, KIND, SPLIT>, a);
  else
    launch_shared(ctx, op, blocks, TILE_THREADS, Shape<128, KIND>::SHARED, attention_sm80_kernel<128, KIND, SPLIT>, a);
  if (SPLIT) launch_warps(ctx, op, a.q.shape[0] * H, merge_chunks_kernel, a);
}

// Words of the blocks that hold keys, or values, of a flat batch.
int64_t rounded_words(int64_t N, int64_t S, int64_t G, int64_t D) { return tile_places(N, S, BLOCK) * G * BLOCK * D / 2; }

int64_t chunks_of(const fd_attention_cached_args& a) { return blocks_for(a.block_table.shape[1] * BLOCK, CHUNK); }
// Decoding: rows are few, and a cache may be long.
bool decodes(const fd_attention_cached_args& a) { return a.q.shape[0] <= a.past_lens.shape[0]; }

}  // namespace

bool attention_sm80_takes(int64_t D, int64_t compute) { return compute == FD_BF16 && (D == 64 || D == 128); }

size_t attention_forward_sm80_workspace(const fd_attention_forward_args& a) {
  return static_cast<size_t>(2 * rounded_words(a.k.shape[0], a.cu_seqlens.shape[0] - 1, a.k.shape[1], a.k.shape[2])) * 4;
}

void attention_forward_sm80(fd_context* ctx, const fd_attention_forward_args& a) {
  const char* op = "attention_forward";
  const int64_t N = a.k.shape[0], S = a.cu_seqlens.shape[0] - 1, G = a.k.shape[1], D = a.k.shape[2];
  auto* const keys = scratch<uint32_t>(ctx);
  uint32_t* const values = keys + rounded_words(N, S, G, D);
  launch(ctx, op, tile_places(N, S, BLOCK), THREADS, D == 64 ? round_to_blocks_kernel<64> : round_to_blocks_kernel<128>, keys,
         values, a.k, a.v, a.cu_seqlens);
  const int64_t words = BLOCK * D / 2;
  const KeyBlocks blocks{keys, values, G * words, words, G * words, words};
  const int pairs = D == 64 ? Shape<64, ROWS>::PAIRS : Shape<128, ROWS>::PAIRS;
  const Arguments all{pair_tiles(a.out, a.lse, a.q, a.cu_seqlens, a.scale, G, pairs), absent(), absent(), blocks, nullptr, 1, 1};
  launch_attention<ROWS, false>(ctx, op, all);
}

size_t attention_cached_sm80_workspace(const fd_attention_cached_args& a) {
  const int64_t rows = a.q.shape[0] < a.past_lens.shape[0] ? a.q.shape[0] : a.past_lens.shape[0], chunks = chunks_of(a);
  return chunks > 1 ? static_cast<size_t>(rows * a.q.shape[1] * chunks * (a.q.shape[2] + 2)) * sizeof(float) : 0;
}

void attention_cached_sm80(fd_context* ctx, const fd_attention_cached_args& a) {
  const char* op = "attention_cached";
  const bool floats = a.k_cache.dtype == FD_F32;
  const int64_t per_word = floats ? 1 : 2;
  const KeyBlocks keys{static_cast<const uint32_t*>(a.k_cache.data), static_cast<const uint32_t*>(a.v_cache.data),
                       a.k_cache.stride[0] / per_word, a.k_cache.stride[1] / per_word, a.v_cache.stride[0] / per_word,
                       a.v_cache.stride[1] / per_word};
  const int pairs = Shape<64, CACHE_BF16>::PAIRS;  // of all caches
  Arguments all{pair_tiles(a.out, absent(), a.q, a.cu_seqlens, a.scale, a.k_cache.shape[1], pairs), a.past_lens, a.block_table,
                keys, scratch(ctx), static_cast<int>(chunks_of(a)), 1};
  // As many blocks as fill a GPU a few times over, and no more: those of a short sequence end with nothing done. A table that
  // is wider than the workspace was asked for is no error: the bits are the same either way.
  constexpr int64_t ENOUGH = 1024;
  const int64_t width = blocks_for(ENOUGH, blocks_of(all));
  all.width = static_cast<int>(width < all.chunks ? width : all.chunks);
  if (all.width > 1 && decodes(a) && attention_cached_sm80_workspace(a) <= ctx->workspace_bytes)
    floats ? launch_attention<CACHE_F32, true>(ctx, op, all) : launch_attention<CACHE_BF16, true>(ctx, op, all);
  else
    floats ? launch_attention<CACHE_F32, false>(ctx, op, all) : launch_attention<CACHE_BF16, false>(ctx, op, all);
}

}  // namespace freedive::cuda
