// Decoding: the trunk over a KV cache, then a token drawn after each row that asks for one; and logits of rows, for whoever draws
// by himself. Nothing is kept for a backward pass, and products read packed weights.
#include <algorithm>
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

Decoder::Sampling Decoder::in(const Sampling& s, int64_t n_rows) {
  return {in(s.temperature, n_rows), in(s.top_p, n_rows), in(s.min_p, n_rows),
          in(s.top_k, n_rows),       in(s.seeds, n_rows), in(s.counters, n_rows)};
}

void Decoder::decode(KVCache& cache, const BatchView& b, const int32_t* past_lens, const int32_t* block_table,
                     int64_t blocks_per_seq, const int32_t* rows, int64_t n_rows, const Sampling& s, int32_t* tokens,
                     float* logprobs) {
  Cached cached{&cache, in(past_lens, b.n_seqs), in(block_table, b.n_seqs * blocks_per_seq), blocks_per_seq};
  use_packed_ = true;
  trunk_forward(b, false, &cached);
  gather_hidden(rows, n_rows);
  tokens = out(tokens, n_rows), logprobs = out(logprobs, n_rows);
  sample(sampled_hidden_, n_rows, in(s, n_rows), tokens, logprobs);
  use_packed_ = false;
  settle();
}

Decoder::Running Decoder::running(uint8_t* memory, int64_t rows) {
  Running r;
  r.seeds = reinterpret_cast<uint64_t*>(memory), r.counters = r.seeds + rows;
  r.past_lens = reinterpret_cast<int32_t*>(r.counters + rows), r.remaining = r.past_lens + rows;
  r.top_k = r.remaining + rows, r.sampled = r.top_k + rows;
  r.temperature = reinterpret_cast<float*>(r.sampled + rows), r.top_p = r.temperature + rows;
  r.min_p = r.top_p + rows, r.logprobs = r.min_p + rows;
  return r;
}

std::shared_ptr<Visit> Decoder::decode_steps(KVCache& cache, const BatchView& b, const int32_t* past_lens,
                                             const int32_t* remaining, const int32_t* block_table, int64_t blocks_per_seq,
                                             int64_t steps, const Sampling& s, const int32_t* stop_ids, int64_t n_stop_ids) {
  const int64_t S = b.n_seqs, most = std::min(max_seqs_, max_tokens_), R = has_own_memory() ? padded_sequences(S, most) : S;
  auto v = std::make_shared<Visit>();
  v->steps = steps, v->seqs = S, v->padded = R, v->blocks_per_seq = blocks_per_seq, v->n_stop_ids = n_stop_ids, v->cache = &cache;
  v->stop_ids.assign(R * n_stop_ids, -1);
  std::copy(stop_ids, stop_ids + S * n_stop_ids, v->stop_ids.begin());
  std::vector<int32_t> tokens(R, b.tokens[0]), positions(R, b.positions[0]), cu_seqlens(R + 1, static_cast<int32_t>(S));
  std::copy(b.tokens, b.tokens + S, tokens.begin()), std::copy(b.positions, b.positions + S, positions.begin());
  std::copy(b.cu_seqlens, b.cu_seqlens + S, cu_seqlens.begin());
  accept({tokens.data(), nullptr, positions.data(), cu_seqlens.data(), R, R, 0}, false);
  std::vector<uint8_t> state(running_bytes(most), 0);
  const Running r = running(state.data(), most);
  for (int64_t i = 0; i < S; ++i) {
    r.past_lens[i] = past_lens[i], r.remaining[i] = remaining[i];
    r.temperature[i] = s.temperature[i], r.top_k[i] = s.top_k[i], r.top_p[i] = s.top_p[i], r.min_p[i] = s.min_p[i];
    r.seeds[i] = s.seeds[i], r.counters[i] = s.counters[i];
    v->lengths.push_back(past_lens[i]), v->limits.push_back(past_lens[i] + remaining[i]);
  }
  put(running_.bytes(), state.data(), state.size());
  return visit(v, block_table);
}

std::shared_ptr<Visit> Decoder::decode_on(const Visit& before, const int32_t* block_table) {
  if (before.turn != turn_) return nullptr;
  auto v = std::make_shared<Visit>();
  v->steps = before.steps, v->seqs = before.seqs, v->padded = before.padded, v->blocks_per_seq = before.blocks_per_seq;
  v->n_stop_ids = before.n_stop_ids, v->cache = before.cache, v->stop_ids = before.stop_ids;
  v->lengths = before.lengths, v->limits = before.limits;
  ++turn_;
  return visit(v, block_table);
}

// From what running_ and the batch hold.
std::shared_ptr<Visit> Decoder::visit(std::shared_ptr<Visit> v, const int32_t* block_table) {
  const int64_t S = v->padded, J = v->n_stop_ids, M = v->blocks_per_seq, steps = v->steps;
  for (int64_t i = 0; i < v->seqs; ++i)
    v->lengths[i] = static_cast<int32_t>(std::min<int64_t>(v->lengths[i] + steps, v->limits[i]));
  std::vector<int32_t> table(S * M, 0);
  std::copy(block_table, block_table + v->seqs * M, table.begin());
  v->tokens.assign(steps * S, -1), v->logprobs.assign(steps * S, 0.0f), v->turn = turn_;
  const Running r = running(running_.bytes(), std::min(max_seqs_, max_tokens_));
  const Sampling p{r.temperature, r.top_p, r.min_p, r.top_k, r.seeds, r.counters};
  const Cached cached{v->cache, r.past_lens, in(table.data(), S * M), M};
  const fd_tensor stop_ids = J > 0 ? view(in(v->stop_ids.data(), S * J), S, J) : absent();
  int32_t* const tokens = out(v->tokens.data(), steps * S);
  float* const logprobs = out(v->logprobs.data(), steps * S);
  n_ = s_ = S;
  if (!has_own_memory()) n_ = cu_seqlens_[S];
  use_packed_ = true;
  while (v->done < steps && n_ > 0) {
    trunk(false, &cached);
    sample(final_, n_, p, r.sampled, r.logprobs);
    fd_decode_advance_args a{view(tokens + v->done * S, S), view(logprobs + v->done * S, S), view(r.sampled, S), view(r.logprobs, S),
                             stop_ids, view(cu_seqlens_, S + 1), view(r.past_lens, S), view(r.remaining, S), view(tokens_, S),
                             view(positions_, S), view(p.temperature, S), view(p.top_k, S), view(p.top_p, S), view(p.min_p, S),
                             view(p.seeds, S), view(p.counters, S)};
    ops_.decode_advance(&ctx_, &a);
    ++v->done;
    if (!has_own_memory()) n_ = cu_seqlens_[S];  // the host sees it: who has stopped costs nothing more
  }
  use_packed_ = false, n_ = rows_ = 0;  // rows have moved: nobody may ask for those of this batch
  leave(v);
  return v;
}

void Decoder::logits(const int32_t* rows, int64_t n_rows, float* out) {
  const int64_t C = config_.d_model, V = config_.vocab_size;
  gather_hidden(rows, n_rows);
  use_packed_ = true;
  multiply(this->out(out, n_rows * V), view(sampled_hidden_, n_rows, C), head_, -1, V, nullptr);
  use_packed_ = false;
  settle();
}

}  // namespace freedive
