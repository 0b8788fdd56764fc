// Attention forward, over a flat batch (training) or a paged cache (prefill and decode): one arithmetic for all three.
//   s_j = scale q·k_j;  out = sum_j softmax(s)_j v_j over the keys j of the same sequence at or before the row.
//
// Keys come in blocks of 32 from the start of the sequence (FD_KV_BLOCK). For a row and a block:
//   scores     32 chains over d, read from keys stored transposed [D][32]; scaled; keys beyond the row excluded
//   softmax    online: m' = max(m, max s), alpha = exp(m - m'), p = exp(s - m'), l = l alpha + sum p
//   values     out = out alpha, then one chain over the block's visible keys in order
// and after the last block out / l, lse = m + log l. Nothing of this mentions other rows, the batch or where keys live,
// so packing, paging, tiling and threads never change a bit. Scores and values go through the tile kernel of matmul.
//
// Memory plan: no T x T matrix. Training copies keys (transposed) and values into the workspace once, block by block (2 N D G
// floats): where they lie, rows of one head are a whole position apart, and such strides land in a few sets of L1. The cache
// stores them by blocks anyway. A unit of work is 48 rows (positions x heads of a group, which share keys) of one sequence: its
// queries and outputs (2 x 48 x D floats), scores (48 x 32) and the key and value block (2 x 32 x D) stay in L2, what a strip of
// six rows reads in L1.
//
// Variants (how fast: benchmarks/attention.py):
//   naive   a row and a head at a time, keys three times over (max, sum, values); nothing is stored
//   simd    as above; the exp of a score costs as much as 20 of its multiply-adds
#include "attention.h"

#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

constexpr int64_t UNIT_ROWS = 48;

// ---- naive -----------------------------------------------------------------------------------------------------

// key(j, d) and value(j, d) say where the numbers are.
template <class Key, class Value>
float attend_row_naive(float* out, const float* q, int64_t keys, int64_t D, float scale, const Key& key, const Value& value) {
  auto score = [&](int64_t j) {
    float s = 0;
    for (int64_t d = 0; d < D; ++d) s = fma1(q[d], key(j, d), s);
    return s * scale;
  };
  float max = NEG_INF;
  double sum = 0;
  for (int64_t j = 0; j < keys; ++j) max = score(j) > max ? score(j) : max;
  for (int64_t j = 0; j < keys; ++j) sum += exp(static_cast<double>(score(j)) - max);
  for (int64_t d = 0; d < D; ++d) out[d] = 0;
  for (int64_t j = 0; j < keys; ++j) {
    const float p = static_cast<float>(exp(static_cast<double>(score(j)) - max) / sum);
    for (int64_t d = 0; d < D; ++d) out[d] += p * value(j, d);
  }
  return static_cast<float>(max + log(sum));
}

void forward_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_attention_forward_args*>(p);
  const int64_t H = a.q.shape[1], D = a.q.shape[2], G = a.k.shape[1], S = a.cu_seqlens.shape[0] - 1;
  const int32_t* cu_seqlens = i32(a.cu_seqlens);
  for (int64_t s = 0; s < S; ++s) {
    const int64_t start = cu_seqlens[s];
    parallel_units(ctx, cu_seqlens[s + 1] - start, [&](int64_t t, int) {
      for (int64_t h = 0; h < H; ++h) {
        const int64_t g = h / (H / G);
        *row_of(a.lse, start + t, h) = attend_row_naive(
            row_of(a.out, start + t, h), row_of(a.q, start + t, h), t + 1, D, static_cast<float>(a.scale),
            [&](int64_t j, int64_t d) { return row_of(a.k, start + j, g)[d]; },
            [&](int64_t j, int64_t d) { return row_of(a.v, start + j, g)[d]; });
      }
    });
  }
  zero_tail(a.out, cu_seqlens[S]);
  zero_tail(a.lse, cu_seqlens[S]);
}

FD_INLINE float* cache_block(const fd_tensor& cache, const fd_tensor& block_table, int64_t s, int64_t b, int64_t g) {
  const int64_t block = i32(block_table)[s * block_table.stride[0] + b];
  return f32(cache) + block * cache.stride[0] + g * cache.stride[1];
}

void cached_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_attention_cached_args*>(p);
  const int64_t H = a.q.shape[1], D = a.q.shape[2], G = a.k_cache.shape[1], S = a.cu_seqlens.shape[0] - 1;
  const int32_t* cu_seqlens = i32(a.cu_seqlens);
  for (int64_t s = 0; s < S; ++s) {
    const int64_t start = cu_seqlens[s], past = i32(a.past_lens)[s];
    parallel_units(ctx, cu_seqlens[s + 1] - start, [&](int64_t t, int) {
      for (int64_t h = 0; h < H; ++h) {
        const int64_t g = h / (H / G);
        attend_row_naive(
            row_of(a.out, start + t, h), row_of(a.q, start + t, h), past + t + 1, D, static_cast<float>(a.scale),
            [&](int64_t j, int64_t d) {
              return cache_block(a.k_cache, a.block_table, s, j / KEYS, g)[d * a.k_cache.stride[2] + j % KEYS];
            },
            [&](int64_t j, int64_t d) {
              return cache_block(a.v_cache, a.block_table, s, j / KEYS, g)[j % KEYS * a.v_cache.stride[2] + d];
            });
      }
    });
  }
  zero_tail(a.out, cu_seqlens[S]);
}

// ---- simd: the one inner function ------------------------------------------------------------------------------

// A thread's rows. Row r = (position i, head hh of the group) with r = i * group + hh.
struct Rows {
  float *q, *out;    // [rows, D]
  float* scores;     // [rows, 32]
  float *max, *sum;  // [rows]
};
FD_INLINE Rows take_rows(Space& space, int64_t capacity, int64_t D) {
  Rows r;
  r.q = space.take<float>(capacity * D);
  r.out = space.take<float>(capacity * D);
  r.scores = space.take<float>(capacity * KEYS);
  r.max = space.take<float>(capacity);
  r.sum = space.take<float>(capacity);
  return r;
}
size_t rows_bytes(int64_t capacity, int64_t D) {
  return 2 * bytes64(capacity * D, sizeof(float)) + bytes64(capacity * KEYS, sizeof(float)) +
         2 * bytes64(capacity, sizeof(float));
}

// Scores of one row in one block become probabilities relative to the running maximum; `visible` keys count.
FD_INLINE void softmax_row(float* scores, int64_t visible, float scale, float* max, float* sum, float* out, int64_t D) {
  vf s[KEYS / VL];
  vf top = vset(NEG_INF);
#pragma GCC unroll 4
  for (int j = 0; j < KEYS / VL; ++j) {
    s[j] = vload(scores + j * VL) * vset(scale);
    s[j] = vselect(viota() + vseti(j * VL) < vseti(static_cast<int32_t>(visible)), s[j], vset(NEG_INF));
    top = vmax(top, s[j]);
  }
  const float block_max = hmax(top);
  if (block_max > *max) {  // otherwise alpha is exp(0), exactly 1
    const float alpha = exp1(*max - block_max);
    *max = block_max;
    *sum *= alpha;
    for_lanes(D, [&](int64_t d, auto load, auto store) { store(out + d, load(out + d) * vset(alpha)); });
  }
  vf total = vset(0.0f);
#pragma GCC unroll 4
  for (int j = 0; j < KEYS / VL; ++j) {
    const vf p = vexp_bounded(s[j] - vset(*max));
    vstore(scores + j * VL, p);
    total += p;
  }
  *sum += hsum(total);
}

// One block of keys for rows [begin, rows) (earlier rows see none of it). visible(r) counts the keys row r sees, 1..32,
// never falling with r.
template <class Visible>
FD_INLINE void attend_block(const Rows& x, int64_t begin, int64_t rows, int64_t D, float scale, const float* keys,
                            int64_t key_row, const float* values, int64_t value_row, const Visible& visible) {
  product(rows - begin, KEYS, D, x.q + begin * D, D, 1, keys, key_row, x.scores + begin * KEYS, KEYS, false);
  for (int64_t r = begin; r < rows; ++r) {
    softmax_row(x.scores + r * KEYS, visible(r), scale, x.max + r, x.sum + r, x.out + r * D, D);
  }
  // Six rows go together as far as the first of them sees; the others' chains then go on alone.
  for (int64_t r = begin; r < rows; r += MR) {
    const int64_t end = min64(rows, r + MR), common = visible(r);
    product(end - r, D, common, x.scores + r * KEYS, KEYS, 1, values, value_row, x.out + r * D, D, true);
    for (int64_t y = r + 1; y < end; ++y) {
      const int64_t rest = visible(y) - common;
      if (rest == 0) continue;
      product(1, D, rest, x.scores + y * KEYS + common, KEYS, 1, values + common * value_row, value_row, x.out + y * D, D, true);
    }
  }
}

// All blocks for one piece and one group of heads. block(b, &keys, &values) gives the addresses of block b; `past` is how
// many keys precede the piece's first row.
template <class Block>
FD_INLINE void attend(const Rows& x, const fd_tensor& q, const fd_tensor& out, const fd_tensor* lse, int64_t first,
                      int64_t positions, int64_t past, int64_t group, int64_t head, int64_t D, float scale, int64_t key_row,
                      int64_t value_row, const Block& block) {
  const int64_t rows = positions * group, blocks = ceil_div(past + positions, KEYS);
  for (int64_t r = 0; r < rows; ++r) {
    memcpy(x.q + r * D, row_of(q, first + r / group, head + r % group), D * sizeof(float));
    memset(x.out + r * D, 0, D * sizeof(float));
    x.max[r] = NEG_INF;
    x.sum[r] = 0.0f;
  }
  for (int64_t b = 0; b < blocks; ++b) {
    const float *keys, *values;
    block(b, &keys, &values);
    const int64_t begin = max64(0, b * KEYS - past) * group;
    attend_block(x, begin, rows, D, scale, keys, key_row, values, value_row,
                 [=](int64_t r) { return min64(KEYS, past + r / group + 1 - b * KEYS); });
  }
  for (int64_t r = 0; r < rows; ++r) {
    const float sum = x.sum[r], *from = x.out + r * D;
    float* to = row_of(out, first + r / group, head + r % group);
    for_lanes(D, [&](int64_t d, auto load, auto store) { store(to + d, load(from + d) / vset(sum)); });
    if (lse != nullptr) {
      *row_of(*lse, first + r / group, head + r % group) = static_cast<float>(x.max[r] + log(static_cast<double>(sum)));
    }
  }
}

FD_INLINE int64_t unit_positions(int64_t group) { return max64(1, UNIT_ROWS / group); }

// ---- simd: training --------------------------------------------------------------------------------------------

size_t forward_workspace(const void* p, int32_t threads) {
  const auto& a = *static_cast<const fd_attention_forward_args*>(p);
  const int64_t N = a.q.shape[0], H = a.q.shape[1], D = a.q.shape[2], G = a.k.shape[1], S = a.cu_seqlens.shape[0] - 1;
  const int64_t blocks = max_pieces(N, S, KEYS);
  return bytes64(blocks, sizeof(Piece)) + bytes64(N + S, sizeof(Piece)) + bytes64(S, sizeof(int32_t)) +
         2 * bytes64(blocks * G * D * KEYS, sizeof(float)) + threads * rows_bytes(UNIT_ROWS + H, D);
}

void forward_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_attention_forward_args*>(p);
  const int64_t N = a.q.shape[0], H = a.q.shape[1], D = a.q.shape[2], G = a.k.shape[1], S = a.cu_seqlens.shape[0] - 1;
  const int64_t group = H / G, positions = unit_positions(group), capacity = max64(UNIT_ROWS, group);
  const int32_t* cu_seqlens = i32(a.cu_seqlens);
  Space space{ctx->workspace};
  Piece* blocks = space.take<Piece>(max_pieces(N, S, KEYS));
  Piece* pieces = space.take<Piece>(N + S);
  int32_t* first_block = space.take<int32_t>(S);
  float* keys = space.take<float>(max_pieces(N, S, KEYS) * G * D * KEYS);    // [block, G, D, 32]
  float* values = space.take<float>(max_pieces(N, S, KEYS) * G * D * KEYS);  // [block, G, 32, D]

  const int64_t block_count = cut_sequences(cu_seqlens, S, KEYS, blocks);
  const int64_t piece_count = cut_sequences(cu_seqlens, S, positions, pieces);
  for (int64_t b = 0; b < block_count; ++b) {
    if (blocks[b].offset == 0) first_block[blocks[b].sequence] = static_cast<int32_t>(b);
  }
  parallel_units(ctx, block_count, [&](int64_t b, int) {
    for (int64_t g = 0; g < G; ++g) {
      transpose_keys(keys + (b * G + g) * D * KEYS, row_of(a.k, blocks[b].first, g), a.k.stride[0], blocks[b].rows, D);
      float* to = values + (b * G + g) * D * KEYS;
      for (int64_t j = 0; j < blocks[b].rows; ++j) memcpy(to + j * D, row_of(a.v, blocks[b].first + j, g), D * sizeof(float));
    }
  });
  // The pieces of one sequence and one group follow each other, so that its keys stay near; the last ones see the most keys and
  // go first.
  parallel_units(ctx, piece_count * G, [&](int64_t unit, int thread) {
    const Piece piece = pieces[piece_count - 1 - unit % piece_count];
    const int64_t g = unit / piece_count, begin = (first_block[piece.sequence] * G + g) * D * KEYS;
    Space mine{space.at + thread * rows_bytes(capacity, D)};
    attend(take_rows(mine, capacity, D), a.q, a.out, &a.lse, piece.first, piece.rows, piece.offset, group, g * group, D,
           static_cast<float>(a.scale), KEYS, D, [&](int64_t b, const float** k, const float** v) {
             *k = keys + begin + b * G * D * KEYS;
             *v = values + begin + b * G * D * KEYS;
           });
  });
  zero_tail(a.out, cu_seqlens[S]);
  zero_tail(a.lse, cu_seqlens[S]);
}

// ---- simd: cache -----------------------------------------------------------------------------------------------

size_t cached_workspace(const void* p, int32_t threads) {
  const auto& a = *static_cast<const fd_attention_cached_args*>(p);
  const int64_t N = a.q.shape[0], H = a.q.shape[1], D = a.q.shape[2], S = a.cu_seqlens.shape[0] - 1;
  return bytes64(N + S, sizeof(Piece)) + threads * rows_bytes(UNIT_ROWS + H, D);
}

void cached_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_attention_cached_args*>(p);
  const int64_t N = a.q.shape[0], H = a.q.shape[1], D = a.q.shape[2], G = a.k_cache.shape[1], S = a.cu_seqlens.shape[0] - 1;
  const int64_t group = H / G, positions = unit_positions(group), capacity = max64(UNIT_ROWS, group);
  const int32_t* cu_seqlens = i32(a.cu_seqlens);
  Space space{ctx->workspace};
  Piece* pieces = space.take<Piece>(N + S);
  const int64_t piece_count = cut_sequences(cu_seqlens, S, positions, pieces);
  parallel_units(ctx, piece_count * G, [&](int64_t unit, int thread) {
    const Piece piece = pieces[piece_count - 1 - unit / G];
    const int64_t g = unit % G, past = i32(a.past_lens)[piece.sequence] + piece.offset;
    Space mine{space.at + thread * rows_bytes(capacity, D)};
    attend(take_rows(mine, capacity, D), a.q, a.out, nullptr, piece.first, piece.rows, past, group, g * group, D,
           static_cast<float>(a.scale), a.k_cache.stride[2], a.v_cache.stride[2],
           [&](int64_t b, const float** k, const float** v) {
             *k = cache_block(a.k_cache, a.block_table, piece.sequence, b, g);
             *v = cache_block(a.v_cache, a.block_table, piece.sequence, b, g);
           });
  });
  zero_tail(a.out, cu_seqlens[S]);
}

void kv_cache_write(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_kv_cache_write_args*>(p);
  const int64_t G = a.k.shape[1], D = a.k.shape[2], S = a.cu_seqlens.shape[0] - 1;
  const int32_t* cu_seqlens = i32(a.cu_seqlens);
  parallel_units(ctx, S, [&](int64_t s, int) {
    for (int64_t n = cu_seqlens[s]; n < cu_seqlens[s + 1]; ++n) {
      const int64_t position = i32(a.past_lens)[s] + n - cu_seqlens[s], slot = position % KEYS;
      for (int64_t g = 0; g < G; ++g) {
        const float *k = row_of(a.k, n, g), *v = row_of(a.v, n, g);
        float* keys = cache_block(a.k_cache, a.block_table, s, position / KEYS, g) + slot;
        float* values = cache_block(a.v_cache, a.block_table, s, position / KEYS, g) + slot * a.v_cache.stride[2];
        for (int64_t d = 0; d < D; ++d) keys[d * a.k_cache.stride[2]] = k[d];
        memcpy(values, v, D * sizeof(float));
      }
    }
  });
}

}  // namespace

FD_VARIANT_LIST(attention, {"attention_forward", "naive", 0, forward_naive, nullptr},
                {"attention_forward", "simd", 10, forward_simd, forward_workspace},
                {"attention_cached", "naive", 0, cached_naive, nullptr},
                {"attention_cached", "simd", 10, cached_simd, cached_workspace},
                {"kv_cache_write", "naive", 0, kv_cache_write, nullptr})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
