// Attention forward, over a flat batch (training) or a paged cache (prefill and decode): one arithmetic for all three.
//   s_j = scale q·k_j;  out = sum_j softmax(s)_j v_j over the keys j of the same sequence at or before the row.
//
// Keys come in blocks of 32 from the start of the sequence (FD_KV_BLOCK), four blocks a span. For a row and a span:
//   scores     a chain over d for every key, then scale / ln 2: exponentials are powers of two
//   maximum    m, what exponentials are relative to, becomes the largest score of the span if that is more than 8 above it; then
//              out and the sums are multiplied by 2^(m before - m). A probability is so at most 256, and m seldom moves
//   p          2^(s - m), 0 for keys beyond the row; summed in float32, unrounded, by lanes (key mod VL), key after key
//   values     one chain over the keys in order, which goes on from span to span
// and after the last span out / sum, lse = (m + log2 sum) ln 2. Nothing of this mentions other rows, the batch or where keys
// live, so packing, paging, tiling and threads never change a bit. A strip of rows goes as far as the last of them sees: what the
// others do not see is added to their sums and outputs as exact zeros.
//
// With compute = FD_BF16 the operands q, k, p and v are rounded to bfloat16 and chains run over pairs, of d and of keys; the
// rest, the sum of p included, is float32.
//
// Memory plan: no T x T matrix. Training writes keys and values of a chunk of sequences once as operands, block by block; a
// cache of the products' own dtype is read where it lies, of any other a span at a time is converted (kv_cache.h). A unit of work
// is 96 rows (positions x heads of a group, which share keys) of one sequence; the scores of a strip of six rows in a span (3
// KB), its probabilities and the operands it meets stay in L1 and L2. Rows of one head are a whole position apart in memory, so
// those of the next unit and the next block are fetched ahead.
//
// Variants, 4 x 1024, 12 heads of 64, one thread, GFLOP/s of the causal half at peaks of 118 (float32) and 236 (bfloat16):
//   naive   1.6; a row and a head at a time, keys three times over (max, sum, values); nothing is stored
//   simd    blocks of 32, the running maximum exact: eight lanes 67, 16 lanes 70
//           spans, 8 of slack, sums by lane, powers of two 78; rows fetched ahead, tensors on huge pages 88
//           bfloat16 155: products take 0.75 of the time (at 0.95 of their peak), the softmax 0.12, copying the rest
#include "attention.h"

#include "kv_cache.h"
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

constexpr int64_t UNIT_ROWS = 96;
constexpr int SPAN = 4;  // blocks of keys between two looks at the running maximum
constexpr int64_t SPAN_KEYS = SPAN * KEYS;
constexpr float MAX_SLACK = 8.0f;  // powers of two a score may be above it

// ---- naive -----------------------------------------------------------------------------------------------------

// key(j, d) and value(j, d) say where the numbers are; key_scale(j) and value_scale(j) what they count times.
template <class Key, class Value, class KeyScale, class ValueScale>
float attend_row_naive(float* out, const float* q, int64_t keys, int64_t D, float scale, int64_t compute, const Key& key,
                       const Value& value, const KeyScale& key_scale, const ValueScale& value_scale) {
  auto score = [&](int64_t j) {
    float s = 0;
    for (int64_t d = 0; d < D; ++d) s = fma1(taken(q[d], compute), taken(key(j, d), compute), s);
    return s * (scale * key_scale(j));
  };
  float max = NEG_INF;
  double sum = 0;
  for (int64_t j = 0; j < keys; ++j) max = score(j) > max ? score(j) : max;
  for (int64_t j = 0; j < keys; ++j) sum += exp(static_cast<double>(score(j)) - max);
  for (int64_t d = 0; d < D; ++d) out[d] = 0;
  for (int64_t j = 0; j < keys; ++j) {
    const float p = taken(static_cast<float>(exp(static_cast<double>(score(j)) - max)) * value_scale(j), compute);
    for (int64_t d = 0; d < D; ++d) out[d] += p * taken(value(j, d), compute);
  }
  for (int64_t d = 0; d < D; ++d) out[d] = static_cast<float>(out[d] / sum);
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
            row_of(a.out, start + t, h), row_of(a.q, start + t, h), t + 1, D, static_cast<float>(a.scale), a.compute,
            [&](int64_t j, int64_t d) { return row_of(a.k, start + j, g)[d]; },
            [&](int64_t j, int64_t d) { return row_of(a.v, start + j, g)[d]; }, [](int64_t) { return 1.0f; },
            [](int64_t) { return 1.0f; });
      }
    });
  }
  zero_tail(a.out, cu_seqlens[S]);
  zero_tail(a.lse, cu_seqlens[S]);
}

void cached_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_attention_cached_args*>(p);
  const int64_t H = a.q.shape[1], D = a.q.shape[2], G = a.k_cache.shape[1], S = a.cu_seqlens.shape[0] - 1;
  const int64_t P = fd_numbers_per_word(a.k_cache.dtype), key_row = cache_row(a.k_cache), value_row = cache_row(a.v_cache);
  // Number d of a row: in int8 H k' / B.
  const int64_t B = P == 4 ? mixed_width(D) : 1;
  const auto unmixed = [&](int64_t d, const auto& stored) {
    if (P != 4) return stored(d);
    float sum = 0;
    for (int64_t i = d / B * B; i < d / B * B + B; ++i) sum += mixed_sign(d, i, B) * stored(i);
    return sum / static_cast<float>(B);
  };
  const auto scale_at = [&](const fd_tensor& scale, int64_t s, int64_t j, int64_t g) {
    return P == 4 ? cache_scales(scale, a.block_table, s, j / KEYS, g)[j % KEYS] : 1.0f;
  };
  const int32_t* cu_seqlens = i32(a.cu_seqlens);
  for (int64_t s = 0; s < S; ++s) {
    const int64_t start = cu_seqlens[s], past = i32(a.past_lens)[s];
    parallel_units(ctx, cu_seqlens[s + 1] - start, [&](int64_t t, int) {
      for (int64_t h = 0; h < H; ++h) {
        const int64_t g = h / (H / G);
        attend_row_naive(
            row_of(a.out, start + t, h), row_of(a.q, start + t, h), past + t + 1, D, static_cast<float>(a.scale), a.compute,
            [&](int64_t j, int64_t d) {
              const float* block = cache_block(a.k_cache, a.block_table, s, j / KEYS, g);
              return unmixed(d, [&](int64_t i) { return number_of(block + i / P * key_row + j % KEYS, i % P, P); });
            },
            [&](int64_t j, int64_t d) {
              const float* block = cache_block(a.v_cache, a.block_table, s, j / KEYS, g);
              return unmixed(d, [&](int64_t i) { return number_of(block + j % KEYS / P * value_row + i, j % P, P); });
            },
            [&](int64_t j) { return scale_at(a.k_scale, s, j, g); }, [&](int64_t j) { return scale_at(a.v_scale, s, j, g); });
      }
    });
  }
  zero_tail(a.out, cu_seqlens[S]);
}

// ---- simd: the one inner function ------------------------------------------------------------------------------

// A thread's rows. Row r = (position i, head hh of the group) with r = i * group + hh.
struct Rows {
  float* q;       // [rows, words of D]
  float* out;     // [rows, padded D]
  float* sum;     // [rows, VL] a sum for each lane
  float* max;     // [rows] what the exponentials are relative to
  int32_t* seen;  // [rows] how many keys of the sequence the row sees; never falls with r
  float* scores;  // [SR, SPAN_KEYS] of the strip at work; words of probabilities afterwards
};
template <bool HALF>
Rows take_rows(Space& space, int64_t capacity, int64_t D) {
  Rows r;
  r.q = space.take<float>(capacity * words_of<HALF>(D));
  r.out = space.take<float>(capacity * padded(D));
  r.sum = space.take<float>(capacity * VL);
  r.max = space.take<float>(capacity);
  r.seen = space.take<int32_t>(capacity);
  r.scores = space.take<float>(SR * SPAN_KEYS);
  return r;
}
template <bool HALF>
size_t rows_bytes(int64_t capacity, int64_t D) {
  return bytes_of([=](Space& space) { take_rows<HALF>(space, capacity, D); });
}

// The blocks of one span of keys, and with SCALED what each key's score (in powers of two) and value count times.
struct Span {
  const float *keys[SPAN], *values[SPAN];
  const float *key_scales, *value_scales;  // [SPAN_KEYS]
};

// Scores of one row in BLOCKS blocks become words of probabilities relative to the row's `max`; `visible` keys count.
template <bool HALF, bool SCALED, int BLOCKS>
FD_INLINE void softmax_row(float* scores, int64_t visible, vf scale, const Span& span, float* max, float* sum, float* out,
                           int64_t out_row) {
  constexpr int V = BLOCKS * KEY_VECTORS;
  vf s[V];
#pragma GCC unroll 16
  for (int j = 0; j < V; ++j) s[j] = vload(scores + j * VL) * (SCALED ? vload(span.key_scales + j * VL) : scale);
  if (visible < BLOCKS * KEYS) {
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j) {
      s[j] = vselect(viota() + vseti(j * VL) < vseti(static_cast<int32_t>(visible)), s[j], vset(NEG_INF));
    }
  }
  vf top = s[0];
#pragma GCC unroll 16
  for (int j = 1; j < V; ++j) top = vmax(top, s[j]);
  if (any_above(top, *max + MAX_SLACK)) {
    const float now = hmax(top);
    const vf alpha = exp2_bounded<HALF>(vset(*max - now));
    *max = now;
    vstore(sum, vload(sum) * alpha);
    for (int64_t d = 0; d < out_row; d += VL) vstore(out + d, vload(out + d) * alpha);
  }
  vf total = vload(sum);
  const vf relative = vset(*max);
#pragma GCC unroll 16
  for (int j = 0; j < V; ++j) {
    s[j] = exp2_bounded<HALF>(s[j] - relative);
    total += s[j];
  }
  vstore(sum, total);
  if (SCALED) {
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j) s[j] = s[j] * vload(span.value_scales + j * VL);
  }
  if (HALF) {
#pragma GCC unroll 8
    for (int j = 0; j < V / 2; ++j) vstore(scores + j * VL, neighbour_words(s[2 * j], s[2 * j + 1]));
  } else {
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j) vstore(scores + j * VL, s[j]);
  }
}

template <bool HALF, bool SCALED, int BLOCKS>
__attribute__((noinline)) void softmax_strip(const Rows& x, int64_t r, int64_t rows, int64_t first, vf scale, const Span& span,
                                             int64_t out_row) {
  for (int64_t y = 0; y < rows; ++y) {
    softmax_row<HALF, SCALED, BLOCKS>(x.scores + y * SPAN_KEYS, x.seen[r + y] - first, scale, span, x.max + r + y,
                                      x.sum + (r + y) * VL, x.out + (r + y) * out_row, out_row);
  }
}

// One span of keys, the first of them key `first` of the sequence, for rows [begin, rows): earlier ones see none.
template <bool HALF, bool SCALED>
FD_INLINE void attend_span(const Rows& x, int64_t begin, int64_t rows, int64_t D, float scale, int64_t first, const Span& span,
                           int64_t key_row, int64_t value_row) {
  const int64_t q_row = words_of<HALF>(D), out_row = padded(D), block_words = words_of<HALF>(KEYS);
  const vf log2_scale = vset(scale * LOG2E);
  for (int64_t r = begin; r < rows; r += SR) {
    const int64_t n = min64(SR, rows - r), visible = min64(SPAN_KEYS, x.seen[r + n - 1] - first),
                  blocks = ceil_div(visible, KEYS);
    product<HALF, false>(n, blocks * KEY_VECTORS, q_row, x.q + r * q_row, q_row, Blocks{span.keys}, key_row, x.scores, SPAN_KEYS,
                         false);
    static_assert(SPAN == 4, "a case for every number of blocks");
    switch (blocks) {
      case 1:
        softmax_strip<HALF, SCALED, 1>(x, r, n, first, log2_scale, span, out_row);
        break;
      case 2:
        softmax_strip<HALF, SCALED, 2>(x, r, n, first, log2_scale, span, out_row);
        break;
      case 3:
        softmax_strip<HALF, SCALED, 3>(x, r, n, first, log2_scale, span, out_row);
        break;
      default:
        softmax_strip<HALF, SCALED, 4>(x, r, n, first, log2_scale, span, out_row);
    }
    for (int64_t b = 0, e; b < blocks; b = e) {  // blocks which follow each other in memory are one product
      for (e = b + 1; e < blocks && span.values[e] == span.values[e - 1] + block_words * value_row;) ++e;
      const int64_t words = min64(e * block_words, words_of<HALF>(visible)) - b * block_words;
      product<HALF, false>(n, out_row / VL, words, x.scores + b * block_words, SPAN_KEYS, Plain{span.values[b]}, value_row,
                           x.out + r * out_row, out_row, true);
    }
  }
}

// All keys for one piece and one group of heads. blocks(b, n, &span) gives the blocks b..b+n-1; `past` is how many keys precede
// the piece's first row.
template <bool HALF, bool SCALED, class BlocksAt>
FD_INLINE void attend(const Rows& x, const fd_tensor& q, const fd_tensor& out, const fd_tensor* lse, int64_t first,
                      int64_t positions, int64_t past, int64_t group, int64_t head, int64_t D, float scale, int64_t key_row,
                      int64_t value_row, const BlocksAt& blocks) {
  const int64_t rows = positions * group, keys = past + positions, q_row = words_of<HALF>(D), out_row = padded(D);
  for (int64_t i = 0, r = 0; i < positions; ++i) {
    for (int64_t h = 0; h < group; ++h, ++r) {
      const float* row = row_of(q, first + i, head + h);
      if (SCALED) {  // mixed as the keys are, in what will be the output
        memcpy(x.out + r * out_row, row, D * sizeof(float));
        mix(x.out + r * out_row, D);
        row = x.out + r * out_row;
      }
      rows_of_words<HALF>(x.q + r * q_row, row, 0, 1, 1, D);
      x.max[r] = NEG_INF;
      x.seen[r] = static_cast<int32_t>(past + i + 1);
    }
  }
  fetch_rows(out, first, positions, head, group, true);
  memset(x.out, 0, rows * out_row * sizeof(float));
  memset(x.sum, 0, rows * VL * sizeof(float));
  for (int64_t b = 0; b * KEYS < keys; b += SPAN) {
    Span span;
    blocks(b, min64(SPAN, ceil_div(keys, KEYS) - b), &span);
    attend_span<HALF, SCALED>(x, max64(0, b * KEYS - past) * group, rows, D, scale, b * KEYS, span, key_row, value_row);
  }
  for (int64_t i = 0, r = 0; i < positions; ++i) {
    for (int64_t h = 0; h < group; ++h, ++r) {
      const float sum = hsum(vload(x.sum + r * VL));
      float *from = x.out + r * out_row, *to = row_of(out, first + i, head + h);
      if (SCALED) mix(from, D);
      const vf weight = vset(SCALED ? sum * static_cast<float>(mixed_width(D)) : sum);
      for_lanes(D, [&](int64_t d, auto, auto store) { store(to + d, vload(from + d) / weight); });
      if (lse != nullptr) {
        *row_of(*lse, first + i, head + h) =
            static_cast<float>((x.max[r] + log2(static_cast<double>(sum))) * 0.69314718055994531);
      }
    }
  }
}

FD_INLINE int64_t unit_positions(int64_t group) { return max64(1, UNIT_ROWS / group); }

// ---- simd: training --------------------------------------------------------------------------------------------

template <bool HALF>
size_t forward_bytes(const fd_attention_forward_args& a, int32_t threads) {
  const int64_t N = a.q.shape[0], H = a.q.shape[1], D = a.q.shape[2], G = a.k.shape[1], S = a.cu_seqlens.shape[0] - 1;
  const int64_t blocks = max_pieces(N, S, KEYS);
  return bytes64(blocks, sizeof(Piece)) + bytes64(N + S, sizeof(Piece)) + bytes64(S, sizeof(int32_t)) +
         bytes64(blocks * G * words_of<HALF>(D) * KEYS, sizeof(float)) +
         bytes64(blocks * G * words_of<HALF>(KEYS) * padded(D), sizeof(float)) + threads * rows_bytes<HALF>(UNIT_ROWS + H, D);
}
size_t forward_workspace(const void* p, int32_t threads) {
  const auto& a = *static_cast<const fd_attention_forward_args*>(p);
  const size_t half = forward_bytes<true>(a, threads), full = forward_bytes<false>(a, threads);  // enough for either `compute`
  return half > full ? half : full;
}

// Sequences cu_seqlens[0..S].
template <bool HALF>
void forward_chunk(fd_context* ctx, const fd_attention_forward_args& a, const int32_t* cu_seqlens, int64_t S) {
  const int64_t N = cu_seqlens[S] - cu_seqlens[0], H = a.q.shape[1], D = a.q.shape[2], G = a.k.shape[1];
  const int64_t group = H / G, positions = unit_positions(group), capacity = max64(UNIT_ROWS, group);
  const int64_t key_block = words_of<HALF>(D) * KEYS, value_block = words_of<HALF>(KEYS) * padded(D);
  Space space{ctx->workspace};
  Piece* blocks = space.take<Piece>(max_pieces(N, S, KEYS));
  Piece* pieces = space.take<Piece>(N + S);
  int32_t* first_block = space.take<int32_t>(S);
  float* keys = space.take<float>(max_pieces(N, S, KEYS) * G * key_block);      // [G, block, words of D, 32]
  float* values = space.take<float>(max_pieces(N, S, KEYS) * G * value_block);  // [G, block, words of 32, padded D]

  const int64_t block_count = cut_sequences(cu_seqlens, S, KEYS, blocks);
  const int64_t piece_count = cut_sequences(cu_seqlens, S, positions, pieces);
  for (int64_t b = 0; b < block_count; ++b) {
    if (blocks[b].offset == 0) first_block[blocks[b].sequence] = static_cast<int32_t>(b);
  }
  parallel_units(ctx, block_count, [&](int64_t b, int) {
    for (int64_t g = 0; g < G; ++g) {
      const int64_t at = g * block_count + b;
      if (b + 1 < block_count) {
        fetch_rows(a.k, blocks[b + 1].first, blocks[b + 1].rows, g, 1, false);
        fetch_rows(a.v, blocks[b + 1].first, blocks[b + 1].rows, g, 1, false);
      }
      turn_keys<HALF>(keys + at * key_block, row_of(a.k, blocks[b].first, g), a.k.stride[0], blocks[b].rows, D);
      pair_rows<HALF>(values + at * value_block, row_of(a.v, blocks[b].first, g), a.v.stride[0], blocks[b].rows, D);
    }
  });
  // The pieces of one sequence and one group follow each other, so that its keys stay near; the last ones see the most keys and
  // go first.
  parallel_units(ctx, piece_count * G, [&](int64_t unit, int thread) {
    const Piece piece = pieces[piece_count - 1 - unit % piece_count];
    const int64_t g = unit / piece_count, begin = g * block_count + first_block[piece.sequence];
    Space mine{space.at + thread * rows_bytes<HALF>(capacity, D)};
    const int64_t next = unit + max64(1, ctx->threads);
    if (next < piece_count * G) {
      const Piece coming = pieces[piece_count - 1 - next % piece_count];
      fetch_rows(a.q, coming.first, coming.rows, next / piece_count * group, group, false);
    }
    attend<HALF, false>(take_rows<HALF>(mine, capacity, D), a.q, a.out, &a.lse, piece.first, piece.rows, piece.offset, group,
                        g * group, D, static_cast<float>(a.scale), KEYS, padded(D), [&](int64_t b, int64_t n, Span* span) {
                          for (int64_t i = 0; i < n; ++i) {
                            span->keys[i] = keys + (begin + b + i) * key_block;
                            span->values[i] = values + (begin + b + i) * value_block;
                          }
                        });
  });
}

template <bool HALF>
void forward_in(fd_context* ctx, const fd_attention_forward_args& a) {
  const int64_t S = a.cu_seqlens.shape[0] - 1;
  const int32_t* all_seqlens = i32(a.cu_seqlens);
  for (int64_t s = 0, end; s < S; s = end) {
    end = chunk_end(all_seqlens, S, s, ctx->threads);
    forward_chunk<HALF>(ctx, a, all_seqlens + s, end - s);
  }
  zero_tail(a.out, all_seqlens[S]);
  zero_tail(a.lse, all_seqlens[S]);
}
void forward_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_attention_forward_args*>(p);
  return a.compute == FD_BF16 ? forward_in<true>(ctx, a) : forward_in<false>(ctx, a);
}

// ---- simd: cache -----------------------------------------------------------------------------------------------

// A span of the cache as operands, taken where the cache is not read as it lies.
struct SpanCopy {
  float *keys, *values, *key_scales, *value_scales;
};
template <bool HALF>
SpanCopy take_span(Space& space, int64_t D) {
  SpanCopy c;
  c.keys = space.take<float>(SPAN * words_of<HALF>(ceil_div(D, 4) * 4) * KEYS);
  c.values = space.take<float>(SPAN * words_of<HALF>(KEYS) * padded(D));
  c.key_scales = space.take<float>(SPAN_KEYS);
  c.value_scales = space.take<float>(SPAN_KEYS);
  return c;
}
template <bool HALF>
size_t span_bytes(int64_t D) {
  return bytes_of([=](Space& space) { take_span<HALF>(space, D); });
}
template <bool HALF>
size_t cached_bytes(const fd_attention_cached_args& a, int32_t threads) {
  const int64_t N = a.q.shape[0], H = a.q.shape[1], D = a.q.shape[2], S = a.cu_seqlens.shape[0] - 1;
  return bytes64(N + S, sizeof(Piece)) + threads * (span_bytes<HALF>(D) + rows_bytes<HALF>(UNIT_ROWS + H, D));
}
size_t cached_workspace(const void* p, int32_t threads) {
  const auto& a = *static_cast<const fd_attention_cached_args*>(p);
  const size_t half = cached_bytes<true>(a, threads), full = cached_bytes<false>(a, threads);
  return half > full ? half : full;
}

template <bool HALF, int P>
void cached_in(fd_context* ctx, const fd_attention_cached_args& a) {
  constexpr bool SCALED = P == 4;
  const int64_t N = a.q.shape[0], H = a.q.shape[1], D = a.q.shape[2], G = a.k_cache.shape[1], S = a.cu_seqlens.shape[0] - 1;
  const int64_t group = H / G, positions = unit_positions(group), capacity = max64(UNIT_ROWS, group);
  const int64_t key_row = cache_row(a.k_cache), value_row = cache_row(a.v_cache);
  const int64_t key_block = words_of<HALF>(ceil_div(D, 4) * 4) * KEYS, value_block = words_of<HALF>(KEYS) * padded(D);
  const bool as_it_is = P == (HALF ? 2 : 1) && D % VL == 0;
  const float scale = static_cast<float>(a.scale), log2_scale = scale * LOG2E / static_cast<float>(SCALED ? mixed_width(D) : 1);
  const int32_t* cu_seqlens = i32(a.cu_seqlens);
  Space space{ctx->workspace};
  Piece* pieces = space.take<Piece>(N + S);
  const int64_t piece_count = cut_sequences(cu_seqlens, S, positions, pieces);
  parallel_units(ctx, piece_count * G, [&](int64_t unit, int thread) {
    const Piece piece = pieces[piece_count - 1 - unit / G];
    const int64_t s = piece.sequence, g = unit % G, past = i32(a.past_lens)[s] + piece.offset, written = past + piece.rows;
    Space mine{space.at + thread * (span_bytes<HALF>(D) + rows_bytes<HALF>(capacity, D))};
    const SpanCopy copy = take_span<HALF>(mine, D);
    attend<HALF, SCALED>(
        take_rows<HALF>(mine, capacity, D), a.q, a.out, nullptr, piece.first, piece.rows, past, group, g * group, D, scale,
        as_it_is ? key_row : KEYS, as_it_is ? value_row : padded(D), [&](int64_t b, int64_t n, Span* span) {
          span->key_scales = copy.key_scales, span->value_scales = copy.value_scales;
          for (int64_t i = 0; i < n; ++i) {
            span->keys[i] = cache_block(a.k_cache, a.block_table, s, b + i, g);
            span->values[i] = cache_block(a.v_cache, a.block_table, s, b + i, g);
            if (as_it_is) continue;
            // Slots nobody wrote are not values: they would be multiplied by 0, and may be NaN.
            const int64_t rows = min64(KEYS, written - (b + i) * KEYS);
            float *keys = copy.keys + i * key_block, *values = copy.values + i * value_block;
            if (P == 1) {
              pair_rows<HALF>(keys, span->keys[i], key_row, D, KEYS);
              pair_rows<HALF>(values, span->values[i], value_row, rows, D);
            } else {
              operand_words<HALF, P>(keys, KEYS, span->keys[i], key_row, ceil_div(D, P), KEYS);
              operand_words<HALF, P>(values, padded(D), span->values[i], value_row, ceil_div(rows, P), D);
            }
            span->keys[i] = keys, span->values[i] = values;
            if (!SCALED) continue;
            const float *key_scale = cache_scales(a.k_scale, a.block_table, s, b + i, g),
                        *value_scale = cache_scales(a.v_scale, a.block_table, s, b + i, g);
            for (int64_t t = 0; t < KEYS; ++t) {
              copy.key_scales[i * KEYS + t] = t < rows ? key_scale[t] * log2_scale : 0.0f;
              copy.value_scales[i * KEYS + t] = t < rows ? value_scale[t] : 0.0f;
            }
          }
        });
  });
  zero_tail(a.out, cu_seqlens[S]);
}
void cached_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_attention_cached_args*>(p);
  const bool half = a.compute == FD_BF16;
  switch (a.k_cache.dtype) {
    case FD_F32:
      return half ? cached_in<true, 1>(ctx, a) : cached_in<false, 1>(ctx, a);
    case FD_BF16:
      return half ? cached_in<true, 2>(ctx, a) : cached_in<false, 2>(ctx, a);
    default:
      return half ? cached_in<true, 4>(ctx, a) : cached_in<false, 4>(ctx, a);
  }
}

FD_INLINE size_t write_bytes(int64_t D) { return bytes64(D, sizeof(int8_t)) + bytes64(D, sizeof(float)); }  // of a thread
template <bool SIMD, int P>
void write_in(fd_context* ctx, const fd_kv_cache_write_args& a) {
  const int64_t G = a.k.shape[1], D = a.k.shape[2], S = a.cu_seqlens.shape[0] - 1;
  const int64_t key_row = cache_row(a.k_cache), value_row = cache_row(a.v_cache);
  const int32_t* cu_seqlens = i32(a.cu_seqlens);
  Space space{ctx->workspace};
  parallel_units(ctx, S * G, [&](int64_t unit, int thread) {
    const int64_t s = unit / G, g = unit % G;
    Space mine{space.at + thread * write_bytes(D)};
    int8_t* q = mine.take<int8_t>(D);
    float* mixed = mine.take<float>(D);
    for (int64_t n = cu_seqlens[s]; n < cu_seqlens[s + 1]; ++n) {
      const int64_t position = i32(a.past_lens)[s] + n - cu_seqlens[s], b = position / KEYS;
      write_position<SIMD, P>(cache_block(a.k_cache, a.block_table, s, b, g), key_row,
                              cache_block(a.v_cache, a.block_table, s, b, g), value_row,
                              P == 4 ? cache_scales(a.k_scale, a.block_table, s, b, g) : nullptr,
                              P == 4 ? cache_scales(a.v_scale, a.block_table, s, b, g) : nullptr, row_of(a.k, n, g),
                              row_of(a.v, n, g), D, position % KEYS, q, mixed);
    }
  });
}
template <bool SIMD>
void kv_cache_write(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_kv_cache_write_args*>(p);
  switch (a.k_cache.dtype) {
    case FD_F32:
      return write_in<SIMD, 1>(ctx, a);
    case FD_BF16:
      return write_in<SIMD, 2>(ctx, a);
    default:
      return write_in<SIMD, 4>(ctx, a);
  }
}
size_t write_workspace(const void* p, int32_t threads) {
  return threads * write_bytes(static_cast<const fd_kv_cache_write_args*>(p)->k.shape[2]);
}

}  // namespace

FD_VARIANT_LIST(attention, {"attention_forward", "naive", 0, forward_naive, nullptr},
                {"attention_forward", "simd", 10, forward_simd, forward_workspace},
                {"attention_cached", "naive", 0, cached_naive, nullptr},
                {"attention_cached", "simd", 10, cached_simd, cached_workspace},
                {"kv_cache_write", "naive", 0, kv_cache_write<false>, write_workspace},
                {"kv_cache_write", "simd", 10, kv_cache_write<true>, write_workspace})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
