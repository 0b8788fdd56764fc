// Embedding: out[n] = wte[tokens[n]] (+ wpe[positions[n]]); backward adds dout[n] to those rows.
//
// Memory: forward reads one row (two with wpe) and writes one: 8 to 12 bytes an element, nothing else matters.
// Backward is a scatter where rows collide. Threads own columns, not tokens: every thread walks n = 0..N-1 in order,
// so a row's sum has one order whatever the number of threads, and no atomics.
// bigram_ids: 8 bytes a token; not worth a second thread.
#include "../core/bigram.h"
#include "stream.h"
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

void forward(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_embedding_forward_args*>(p);
  const int64_t N = a.out.shape[0], C = a.out.shape[1];
  const int32_t *tokens = i32(a.tokens), *positions = i32(a.positions);
  const bool stream = should_stream(a.out);
  parallel_rows(ctx, N, C, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      float* out = f32(a.out) + n * a.out.stride[0];
      const float* wte = f32(a.wte) + tokens[n] * a.wte.stride[0];
      if (f32(a.wpe) == nullptr) {
        for_lanes_to(stream, C, [&](int64_t c, auto load, auto store) { store(out + c, load(wte + c)); });
      } else {
        const float* wpe = f32(a.wpe) + positions[n] * a.wpe.stride[0];
        for_lanes_to(stream, C, [&](int64_t c, auto load, auto store) { store(out + c, load(wte + c) + load(wpe + c)); });
      }
    }
    stream_end(stream);
  });
}

void backward(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_embedding_backward_args*>(p);
  const int64_t N = a.dout.shape[0], C = a.dout.shape[1], COLUMNS = 128;
  const int32_t *tokens = i32(a.tokens), *positions = i32(a.positions);
  parallel_units(ctx, ceil_div(C, COLUMNS), [&](int64_t unit, int) {
    const int64_t begin = unit * COLUMNS, end = min64(C, begin + COLUMNS);
    for (int64_t n = 0; n < N; ++n) {
      const float* dout = f32(a.dout) + n * a.dout.stride[0];
      const auto add = [&](float* to) {
        for_lanes(end - begin, [&](int64_t c, auto load, auto store) { store(to + c, load(to + c) + load(dout + begin + c)); });
      };
      add(f32(a.dwte) + tokens[n] * a.dwte.stride[0] + begin);
      if (f32(a.dwpe) != nullptr) add(f32(a.dwpe) + positions[n] * a.dwpe.stride[0] + begin);
    }
  });
}

// A row of a two-dimensional tensor of ids.
int32_t* ids_row(const fd_tensor& t, int64_t r) { return static_cast<int32_t*>(t.data) + r * t.stride[0]; }

void bigram_ids(fd_context*, const void* p) {
  const auto& a = *static_cast<const fd_bigram_ids_args*>(p);
  const int64_t N = a.tokens.shape[0], S = a.cu_seqlens.shape[0] - 1;
  const int32_t *tokens = i32(a.tokens), *cu = i32(a.cu_seqlens);
  int32_t* out = ids_row(a.pairs, 0);
  const auto seen = [&](int64_t s, int64_t position) -> int32_t& {
    return ids_row(a.seen, ids_row(a.block_table, s)[position / FD_KV_BLOCK])[position % FD_KV_BLOCK];
  };
  for (int64_t s = 0; a.seen.data != nullptr && s < S; ++s)
    for (int64_t n = cu[s]; n < cu[s + 1]; ++n) seen(s, i32(a.past_lens)[s] + n - cu[s]) = tokens[n];
  for (int64_t s = 0; s < S; ++s) {
    int32_t before = -1;
    if (a.seen.data != nullptr && i32(a.past_lens)[s] > 0 && cu[s] < cu[s + 1]) before = seen(s, i32(a.past_lens)[s] - 1);
    if (const int32_t* prefix = a.prefixes.data == nullptr ? nullptr : ids_row(a.prefixes, s); prefix && prefix[1] > 0)
      before = tokens[cu[prefix[0]] + prefix[1] - 1];
    for (int64_t n = cu[s]; n < cu[s + 1]; before = tokens[n++]) out[n] = bigram_row(before, tokens[n], a.rows);
  }
  for (int64_t n = S < 1 ? 0 : cu[S]; n < N; ++n) out[n] = 0;
}

}  // namespace

FD_VARIANT_LIST(embedding, {"bigram_ids", "naive", 0, bigram_ids, nullptr},
                {"embedding_forward", "naive", 0, forward, nullptr},
                {"embedding_backward", "naive", 0, backward, nullptr})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
