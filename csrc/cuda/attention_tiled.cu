// attention_tiled.cu: the attention of attention.cu, from rows and from the paged cache, by blocks that share what they read: the
// same bits.
//
// A block takes up to 8 queries of one key-value group: the heads of the group and, where a batch has more rows than sequences,
// neighbouring rows. Keys and values come in tiles of 128 (heads of up to 64) or 64 (up to 128) positions, by loads of 128 bits,
// and wait in shared memory for all of them:
//   1. keys to shared memory
//   2. scores: a thread to a key and 2 or 4 queries, one chain over d
//   3. values to the same shared memory, while a warp to a query takes its softmax on, 32 keys at a time
//   4. the output: a thread to a dimension and 2 or 4 queries, one chain over the keys
// The order of every sum is attention.cu's (blocks of FD_KV_BLOCK keys from the start of the sequence), whoever sits in the
// block: sampler and trainer stay bit-equal, and a sequence is not cut among blocks, for that would be another order.
//
// Bytes: a query and head of naive reads its keys and values from memory or cache each for itself, number by number, 8 D bytes a
// key in float32. Here they are read once for the H / G heads of a group in decoding, and once for 8 queries and heads in
// training and prefill, in a quarter of the loads (an eighth of bfloat16's, a sixteenth of int8's, which naive loads one by one);
// and 256 threads have a tile of 32 KB under way where a warp has 32 numbers. int8 mixes q and the output in shared memory, where
// naive has two more kernels of one thread a row.
#include "attention.cuh"
#include "int8.cuh"
#include "sequences.cuh"
#include "vector.cuh"

namespace freedive::cuda {
namespace {

constexpr int PAIRS = WARPS, BLOCK = FD_KV_BLOCK;  // pairs of a query and a head; a warp to each in the softmax
static_assert(BLOCK == WARP, "a lane to a key");

enum Kind : int { ROWS, CACHE_F32, CACHE_BF16, CACHE_I8 };
__host__ __device__ constexpr int numbers_per_word(int kind) { return kind == CACHE_BF16 ? 2 : kind == CACHE_I8 ? 4 : 1; }

// Absent views have no data: scales but for int8; lse, past_lens and block_table of the one source or the other.
struct Arguments {
  fd_tensor out, lse, q, k, v, k_scale, v_scale, cu_seqlens, past_lens, block_table;
  float scale;
  unsigned rows, heads;  // of a block at most
};
#ifdef FREEDIVE_CUDA_EMULATION
void visit_pointers(const Arguments& a, int argument) {
  emu::visit_parts(argument, a.out, a.lse, a.q, a.k, a.v, a.k_scale, a.v_scale, a.cu_seqlens, a.past_lens, a.block_table);
}
#endif

struct Words {
  unsigned at[4];
};
// Four words from p on; of the first `left`, and 0.
__device__ Words load_words(const unsigned* p, int64_t left) {
  if (left >= 4 && aligned(p)) {
    const uint4 v = *reinterpret_cast<const uint4*>(p);
    return {{v.x, v.y, v.z, v.w}};
  }
  Words v;
#pragma unroll
  for (int i = 0; i < 4; ++i) v.at[i] = i < left ? p[i] : 0u;
  return v;
}

// Number i of a word.
template <int KIND>
__device__ float number_of(unsigned word, int i) {
  if constexpr (KIND == CACHE_BF16) return __uint_as_float(i == 0 ? word << 16 : word & 0xffff0000u);
  if constexpr (KIND == CACHE_I8) return static_cast<float>(static_cast<int8_t>(word >> (8 * i) & 0xffu));
  return __uint_as_float(word);
}

// The keys and values of one sequence and group.
template <int KIND, bool BF16, int D_MAX, int KEYS>
struct Source {
  static constexpr int KEY_STRIDE = KEYS + 1;
  const fd_tensor &k, &v, &k_scales, &v_scales;
  const int32_t* blocks;
  int64_t first_row, g, D;

  __device__ const unsigned* words(const fd_tensor& t, int64_t block) const {
    return flat<unsigned>(t) + row_at(t, blocks[block], g) / numbers_per_word(KIND);
  }
  __device__ float scale_of(const fd_tensor& scales, int64_t j) const {
    return KIND == CACHE_I8 ? row(scales, blocks[j / BLOCK], g)[j % BLOCK] : 1.0f;
  }

  // tile[d][j] of keys first + j below `end`
  __device__ void keys(float* tile, int64_t first, int64_t end) const {
    const int here = end - first < KEYS ? static_cast<int>(end - first) : KEYS;
    if constexpr (KIND == ROWS) {
      const int fours = static_cast<int>((D + VECTOR - 1) / VECTOR);
      for (int i = static_cast<int>(threadIdx.x); i < here * fours; i += THREADS) {
        const int j = i / fours, d = (i - j * fours) * VECTOR;
        const Four x = load4(row(k, first_row + first + j, g) + d, D - d);
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) tile[(d + c) * KEY_STRIDE + j] = operand<BF16>(x.at[c]);
      }
    } else {
      constexpr int P = numbers_per_word(KIND);
      const int word_rows = static_cast<int>((D + P - 1) / P), blocks_here = (here + BLOCK - 1) / BLOCK;
      for (int i = static_cast<int>(threadIdx.x); i < blocks_here * word_rows * (BLOCK / 4); i += THREADS) {
        const int slot = i % (BLOCK / 4) * 4, b = i / (BLOCK / 4) / word_rows, w = i / (BLOCK / 4) - b * word_rows;
        const Words x = load_words(words(k, first / BLOCK + b) + w * BLOCK + slot, 4);
#pragma unroll
        for (int c = 0; c < 4; ++c)
#pragma unroll
          for (int p = 0; p < P; ++p)
            tile[(w * P + p) * KEY_STRIDE + b * BLOCK + slot + c] = operand<BF16>(number_of<KIND>(x.at[c], p));
      }
    }
  }

  // tile[j][d] of the values
  __device__ void values(float* tile, int64_t first, int64_t end) const {
    const int here = end - first < KEYS ? static_cast<int>(end - first) : KEYS,
              fours = static_cast<int>((D + VECTOR - 1) / VECTOR);
    if constexpr (KIND == ROWS) {
      for (int i = static_cast<int>(threadIdx.x); i < here * fours; i += THREADS) {
        const int j = i / fours, d = (i - j * fours) * VECTOR;
        const Four x = load4(row(v, first_row + first + j, g) + d, D - d);
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) tile[j * D_MAX + d + c] = operand<BF16>(x.at[c]);
      }
    } else {
      constexpr int P = numbers_per_word(KIND);
      const int word_rows = (here + P - 1) / P;
      for (int i = static_cast<int>(threadIdx.x); i < word_rows * fours; i += THREADS) {
        const int w = i / fours, d = (i - w * fours) * 4, j = w * P;
        const Words x = load_words(words(v, first / BLOCK + j / BLOCK) + j % BLOCK / P * D + d, D - d);
#pragma unroll
        for (int c = 0; c < 4; ++c)
#pragma unroll
          for (int p = 0; p < P; ++p) tile[(j + p) * D_MAX + d + c] = operand<BF16>(number_of<KIND>(x.at[c], p));
      }
    }
  }
};

// Of every pair, by the block; ends behind a barrier.
__device__ void mix(float (*x)[PAIRS], int D) {
  const auto number = [&](int d, int p) -> float& { return x[d][p]; };
  butterflies(D, PAIRS, static_cast<int>(threadIdx.x), THREADS, number, [] { __syncthreads(); });
}

template <int KIND, bool BF16, int D_MAX>
__global__ void attention_tiled_kernel(Arguments a) {
  constexpr int KEYS = 8192 / D_MAX, PER_KEY = PAIRS * KEYS / THREADS, PER_DIMENSION = PAIRS * D_MAX / THREADS;
  FD_SHARED(float, tile, [D_MAX * (KEYS + 1)]);
  FD_SHARED(float, q, [D_MAX][PAIRS]);
  FD_SHARED(float, weights, [PAIRS][KEYS]);
  FD_SHARED(float, fades, [PAIRS][KEYS / BLOCK]);
  FD_SHARED(float, sums, [PAIRS]);
  const int me = static_cast<int>(threadIdx.x), warp = warp_of_block(), lane = lane_id(), D = static_cast<int>(a.q.shape[2]);
  const auto G = static_cast<unsigned>(a.k.shape[1]), group = static_cast<unsigned>(a.q.shape[1]) / G,
             slices = (group + a.heads - 1) / a.heads;
  const unsigned slice = blockIdx.x % slices, g = blockIdx.x / slices % G;
  const int64_t N = a.q.shape[0], last = static_cast<int64_t>(blockIdx.x / slices / G + 1) * a.rows, end = last < N ? last : N;
  const int heads = static_cast<int>(group - slice * a.heads < a.heads ? group - slice * a.heads : a.heads);
  const int64_t h0 = g * group + slice * a.heads;
  // rows n .. of one sequence after the other
  for (int64_t n = last - a.rows, next = 0; n < end; n = next) {
    const int64_t s = sequence_of(a.cu_seqlens, n);
    if (s < 0) {  // nor has any row behind it one
      for (int64_t i = me; i < (end - n) * heads * D; i += THREADS)
        row(a.out, n + i / (heads * D), h0 + i / D % heads)[i % D] = 0.0f;
      if (KIND == ROWS)
        for (int64_t i = me; i < (end - n) * heads; i += THREADS) row(a.lse, n + i / heads)[h0 + i % heads] = 0.0f;
      return;
    }
    const int64_t begin = flat<int32_t>(a.cu_seqlens)[s], behind = flat<int32_t>(a.cu_seqlens)[s + 1];
    next = behind < end ? behind : end;
    const int pairs = static_cast<int>(next - n) * heads;  // pair p: row n + p / heads, head h0 + p % heads
    const int64_t seen = n - begin + 1 + (KIND == ROWS ? 0 : flat<int32_t>(a.past_lens)[s]);  // keys of the first row
    const int64_t most = seen + (next - n - 1);
    const Source<KIND, BF16, D_MAX, KEYS> source{
        a.k, a.v, a.k_scale, a.v_scale, KIND == ROWS ? nullptr : row<int32_t>(a.block_table, s), begin, g, D};

    for (int i = me; i < D_MAX * PAIRS; i += THREADS) {
      const int p = i / D_MAX, d = i % D_MAX;
      const float x = p < pairs && d < D ? row(a.q, n + p / heads, h0 + p % heads)[d] : 0.0f;
      q[d][p] = KIND == CACHE_I8 ? x : operand<BF16>(x);
    }
    if (KIND == CACHE_I8) {
      mix(q, D);
      for (int i = me; BF16 && i < D_MAX * PAIRS; i += THREADS) q[i / PAIRS][i % PAIRS] = operand<BF16>(q[i / PAIRS][i % PAIRS]);
    }
    float top = -INFINITY, sum = 0.0f;  // of the warp's pair
    const int64_t warp_keys = warp < pairs ? seen + warp / heads : 0;
    const int first_pair = me / D_MAX * PER_DIMENSION, my_d = me % D_MAX;
    float out[PER_DIMENSION] = {};
    int64_t out_keys[PER_DIMENSION];
#pragma unroll
    for (int j = 0; j < PER_DIMENSION; ++j)
      out_keys[j] = my_d < D && first_pair + j < pairs ? seen + (first_pair + j) / heads : 0;

    for (int64_t first = 0; first < most; first += KEYS) {
      source.keys(tile, first, most);
      __syncthreads();
      const int key = me % KEYS, from_pair = me / KEYS * PER_KEY;
      if (from_pair < pairs && first + key < most) {
        float score[PER_KEY] = {};
#pragma unroll 4
        for (int d = 0; d < D; ++d) {
          const float x = tile[d * (KEYS + 1) + key];
#pragma unroll
          for (int j = 0; j < PER_KEY; ++j) score[j] = fmaf(q[d][from_pair + j], x, score[j]);
        }
        const float scale = a.scale * source.scale_of(a.k_scale, first + key);
#pragma unroll
        for (int j = 0; j < PER_KEY; ++j) weights[from_pair + j][key] = score[j] * scale;
      }
      __syncthreads();
      source.values(tile, first, most);
      for (int b = 0; b < KEYS / BLOCK; ++b) {
        const int64_t begins = first + b * BLOCK;
        if (begins >= warp_keys) break;  // whole warps
        const int here = warp_keys - begins < BLOCK ? static_cast<int>(warp_keys - begins) : BLOCK;
        float* mine = weights[warp] + b * BLOCK;
        const float score = lane < here ? mine[lane] : -INFINITY, new_top = fmaxf(top, warp_max(score)),
                    weight = expf(score - new_top);
        mine[lane] = weight;
        __syncwarp();
        float block_sum = 0.0f;
        for (int i = 0; i < here; ++i) block_sum += mine[i];
        const float fade = expf(top - new_top);  // 0 for the first block
        sum = fmaf(sum, fade, block_sum);
        top = new_top;
        __syncwarp();
        if (lane < here) mine[lane] = operand<BF16>(weight * source.scale_of(a.v_scale, begins + lane));
        if (lane == 0) fades[warp][b] = fade;
      }
      __syncthreads();
      for (int b = 0; b < KEYS / BLOCK; ++b) {
        int here[PER_DIMENSION], longest = 0;
#pragma unroll
        for (int j = 0; j < PER_DIMENSION; ++j) {
          const int64_t left = out_keys[j] - first - b * BLOCK;
          here[j] = left < BLOCK ? static_cast<int>(left > 0 ? left : 0) : BLOCK;
          if (here[j] > longest) longest = here[j];
          if (here[j] > 0) out[j] *= fades[first_pair + j][b];
        }
#pragma unroll 4
        for (int i = 0; i < longest; ++i) {
          const float x = tile[(b * BLOCK + i) * D_MAX + my_d];
#pragma unroll
          for (int j = 0; j < PER_DIMENSION; ++j)
            if (i < here[j]) out[j] = fmaf(weights[first_pair + j][b * BLOCK + i], x, out[j]);
        }
      }
      __syncthreads();  // before the next tile overwrites this one
    }
    if (lane == 0 && warp < pairs) {
      sums[warp] = sum;
      if (KIND == ROWS) row(a.lse, n + warp / heads)[h0 + warp % heads] = top + logf(sum);
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < PER_DIMENSION; ++j) {
      const int p = first_pair + j;
      if (out_keys[j] == 0) continue;
      out[j] /= sums[p];
      if (KIND == CACHE_I8)
        q[my_d][p] = out[j];
      else
        row(a.out, n + p / heads, h0 + p % heads)[my_d] = out[j];
    }
    if (KIND == CACHE_I8) {
      mix(q, D);
      for (int i = me; i < pairs * D; i += THREADS)
        row(a.out, n + i / D / heads, h0 + i / D % heads)[i % D] = q[i % D][i / D] / static_cast<float>(D & -D);
    }
    __syncthreads();  // before the next sequence's q and sums
  }
}

template <int KIND, bool BF16>
void launch_tiled(fd_context* ctx, const char* op, Arguments a, bool one_row) {
  const int64_t group = a.q.shape[1] / a.k.shape[1];
  a.heads = static_cast<unsigned>(group < PAIRS ? group : PAIRS);
  a.rows = one_row ? 1 : PAIRS / a.heads;
  const int64_t blocks = blocks_for(a.q.shape[0], a.rows) * a.k.shape[1] * blocks_for(group, a.heads);
  launch(ctx, op, blocks, THREADS,
         a.q.shape[2] <= 64 ? attention_tiled_kernel<KIND, BF16, 64> : attention_tiled_kernel<KIND, BF16, 128>, a);
}

template <int KIND>
void launch_tiled(fd_context* ctx, const char* op, const Arguments& a, bool one_row, int64_t compute) {
  compute == FD_BF16 ? launch_tiled<KIND, true>(ctx, op, a, one_row) : launch_tiled<KIND, false>(ctx, op, a, one_row);
}

}  // namespace

void attention_forward_tiled(fd_context* ctx, const fd_attention_forward_args& a) {
  const Arguments all{
      a.out, a.lse, a.q, a.k, a.v, absent(), absent(), a.cu_seqlens, absent(), absent(), static_cast<float>(a.scale), 0, 0};
  launch_tiled<ROWS>(ctx, "attention_forward", all, false, a.compute);
}

// A row to a block where there are no more rows than sequences: decoding, where blocks are scarce.
void attention_cached_tiled(fd_context* ctx, const fd_attention_cached_args& a) {
  const bool decoding = a.q.shape[0] <= a.past_lens.shape[0], int8 = a.k_cache.dtype != FD_F32 && a.k_cache.dtype != FD_BF16;
  const int64_t D = a.q.shape[2];
  const auto scale = static_cast<float>(int8 ? a.scale / static_cast<double>(D & -D) : a.scale);  // H H = B
  const Arguments all{a.out,        absent(),    a.q,           a.k_cache, a.v_cache, a.k_scale, a.v_scale,
                      a.cu_seqlens, a.past_lens, a.block_table, scale,     0,         0};
  const char* op = "attention_cached";
  if (int8)
    launch_tiled<CACHE_I8>(ctx, op, all, decoding, a.compute);
  else if (a.k_cache.dtype == FD_BF16)
    launch_tiled<CACHE_BF16>(ctx, op, all, decoding, a.compute);
  else
    launch_tiled<CACHE_F32>(ctx, op, all, decoding, a.compute);
}

}  // namespace freedive::cuda
