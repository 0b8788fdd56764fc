// Decoding: the trunk over a KV cache, then a token drawn after each row that asks for one; and logits of rows, for whoever draws
// by himself. Nothing is kept for a backward pass, and products read packed weights.
#include <cstring>

#include "decoder.h"
#include "view.h"

namespace freedive {

void Decoder::gather_hidden(const int32_t* rows, int64_t n_rows) {
  const int64_t C = config_.d_model;
  if (has_own_memory()) return copy_rows(view(sampled_hidden_, n_rows, C), view(final_, n_, C), in(rows, n_rows));
  for (int64_t r = 0; r < n_rows; ++r) std::memcpy(sampled_hidden_ + r * C, final_ + rows[r] * C, C * sizeof(float));
}

// One token after each of n_rows rows of `hidden`. All that is given lies where ops see it.
void Decoder::sample(const float* hidden, int64_t n_rows, const Sampling& p, int32_t* tokens, float* logprobs) {
  const int64_t C = config_.d_model, V = config_.vocab_size;
  if (const auto* parts = packed_rows(head_, V)) {
    fd_quantized_head_sample_args h{view(tokens, n_rows),
                                    view(logprobs, n_rows),
                                    view(hidden, n_rows, C),
                                    packed_view(parts->front()),
                                    mask(),
                                    view(p.temperature, n_rows),
                                    view(p.top_k, n_rows),
                                    view(p.top_p, n_rows),
                                    view(p.min_p, n_rows),
                                    view(p.seeds, n_rows),
                                    view(p.counters, n_rows),
                                    V,
                                    parts->front().type,
                                    packed_compute_};
    ops_.quantized_head_sample(&ctx_, &h);
  } else {
    fd_head_sample_args h{view(tokens, n_rows),
                          view(logprobs, n_rows),
                          view(hidden, n_rows, C),
                          head_weight(params_.floats()),
                          packed(param(head_), V, C, weight_version_),
                          mask(),
                          view(p.temperature, n_rows),
                          view(p.top_k, n_rows),
                          view(p.top_p, n_rows),
                          view(p.min_p, n_rows),
                          view(p.seeds, n_rows),
                          view(p.counters, n_rows),
                          compute_};
    ops_.head_sample(&ctx_, &h);
  }
}

Decoder::Sampling Decoder::in(const Sampling& s, int64_t n_rows, int64_t steps) {
  return {in(s.temperature, n_rows), in(s.top_p, n_rows), in(s.min_p, n_rows),
          in(s.top_k, n_rows),       in(s.seeds, n_rows), in(s.counters, n_rows * steps)};
}

void Decoder::decode(KVCache& cache, const BatchView& b, const int32_t* past_lens, const int32_t* block_table,
                     int64_t blocks_per_seq, const int32_t* rows, int64_t n_rows, const Sampling& s, int32_t* tokens,
                     float* logprobs) {
  Cached cached{&cache, in(past_lens, b.n_seqs), in(block_table, b.n_seqs * blocks_per_seq), blocks_per_seq};
  use_packed_ = true;
  trunk_forward(b, false, &cached);
  gather_hidden(rows, n_rows);
  tokens = out(tokens, n_rows), logprobs = out(logprobs, n_rows);
  sample(sampled_hidden_, n_rows, in(s, n_rows, 1), tokens, logprobs);
  use_packed_ = false;
  settle();
}

int64_t Decoder::decode_steps(KVCache& cache, const BatchView& b, const int32_t* past_lens, const int32_t* block_table,
                              int64_t blocks_per_seq, int64_t steps, const Sampling& s, const int32_t* stop_ids,
                              int64_t n_stop_ids, int32_t* tokens, float* logprobs) {
  const int64_t S = b.n_seqs;
  // What each step knows beforehand: where it stands. What it does not know, its tokens, never leaves the device.
  std::vector<int32_t> past(steps * S), positions(steps * S);
  std::vector<uint64_t> counters(steps * S);
  for (int64_t i = 0; i < steps * S; ++i) {
    const int32_t later = static_cast<int32_t>(i / S);
    past[i] = past_lens[i % S] + later, positions[i] = b.positions[i % S] + later;
    counters[i] = s.counters[i % S] + static_cast<uint64_t>(later);
  }
  Sampling known = s;
  known.counters = counters.data();
  Cached cached{&cache, in(past.data(), steps * S), in(block_table, S * blocks_per_seq), blocks_per_seq};
  const int32_t* at = in(positions.data(), steps * S);
  const int32_t* const host_tokens = tokens;
  tokens = out(tokens, steps * S), logprobs = out(logprobs, steps * S);
  Sampling p = in(known, S, steps);
  use_packed_ = true;
  accept(b);
  std::vector<char> stopped(S, 0);
  int64_t done = 0, going = S;
  while (done < steps && going > 0) {
    if (done > 0) {
      move(tokens_, tokens + (done - 1) * S, S * sizeof(int32_t));
      move(positions_, at + done * S, S * sizeof(int32_t));
    }
    trunk(false, &cached);
    sample(final_, S, p, tokens + done * S, logprobs + done * S);
    // The host sees tokens at once, so it stops with the last of them; a device goes on, and the caller throws away what follows.
    for (int64_t r = 0; r < S && !has_own_memory(); ++r)
      for (int64_t j = 0; j < n_stop_ids && !stopped[r]; ++j)
        if (stop_ids[r * n_stop_ids + j] == host_tokens[done * S + r]) stopped[r] = 1, --going;
    ++done;
    cached.past_lens += S, p.counters += S;
  }
  use_packed_ = false;
  settle();
  return done;
}

void Decoder::logits(const int32_t* rows, int64_t n_rows, float* out) {
  const int64_t C = config_.d_model, V = config_.vocab_size;
  gather_hidden(rows, n_rows);
  use_packed_ = true;
  multiply(this->out(out, n_rows * V), sampled_hidden_, n_rows, head_, -1, V, C, nullptr);
  use_packed_ = false;
  settle();
}

}  // namespace freedive
