// The decoder, forward and backward, one line of maths per call.
//
//   x = wte[tokens] (+ wpe[positions], or + bigrams[row of the token and the one before it])
//   per layer:  x2 = x  + W_o attention(rope(norm_q(W_q n)), rope(norm_k(W_k n)), W_v n),   n = norm1(x)
//               x  = x2 + W_down act(W_up m),                                               m = norm2(x2)
//   head:       logprobs, entropy, lse of W_head norm(x)
//
// Kept for the backward pass: the members of Activations, 4 bytes a value. Outputs of norms and activation functions are cheap
// and as wide as what they come from: they are computed again (a third of the memory for under 1 % of the time); of what else,
// Recompute says. With compute = FD_BF16 q, k, v and the outputs of attention are kept as bfloat16, which is what products take
// of them: the same bits but for attention's sum of dout out. So are the outputs of W_up, and q and k before QK-norm: of these
// the backward pass sees the rounded numbers, the forward pass the exact ones. The residual stream stays float32. Everything
// lives in buffers taken once (memory.cpp), so a step allocates nothing. Scoring and decoding (decoding.cpp) reuse the buffers
// of layer 0 for every layer.
#include "decoder.h"

#include <cstring>
#include <stdexcept>
#include <utility>

#include "view.h"

namespace freedive {

// ---- small pieces ----------------------------------------------------------------------------------------------

// What products alone read: in their own dtype, so that they need not round it; packed rows take float32.
fd_tensor Decoder::operand(float* place, int64_t rows, int64_t width) const {
  fd_tensor t = view(place, rows, width);
  if (compute_ == FD_BF16 && packed_rows_.empty()) t.dtype = FD_BF16;
  return t;
}

void Decoder::cast(const fd_tensor& out, const fd_tensor& x) {
  fd_cast_args a{out, x};
  ops_.cast(&ctx_, &a);
}

void Decoder::norm_forward(const fd_tensor& out, float* stat, float* mean, const float* x, int64_t weight, int64_t bias) {
  const int64_t rows = out.shape[0], C = config_.d_model;
  if (config_.layernorm) {
    fd_layernorm_forward_args a{out, view(mean, rows), view(stat, rows), view(x, rows, C), view(param(weight), C),
                                view(param(bias), C), config_.norm_eps};
    ops_.layernorm_forward(&ctx_, &a);
  } else {
    fd_tensor one_head = view(static_cast<float*>(out.data), rows, 1, C);
    one_head.dtype = out.dtype;
    fd_rmsnorm_forward_args a{one_head, view(stat, rows, 1), view(x, rows, 1, C), view(param(weight), C), config_.norm_eps};
    ops_.rmsnorm_forward(&ctx_, &a);
  }
}

void Decoder::norm_backward(float* dx, bool accumulate, const float* dout, const float* x, int64_t weight, int64_t bias,
                            const float* stat, const float* mean, int64_t rows) {
  const int64_t C = config_.d_model;
  if (config_.layernorm) {
    fd_layernorm_backward_args a{view(dx, rows, C),   view(grad(weight), C), view(grad(bias, true), C),
                                 view(dout, rows, C), view(x, rows, C),        view(param(weight), C),
                                 view(mean, rows),    view(stat, rows),        accumulate};
    ops_.layernorm_backward(&ctx_, &a);
  } else {
    fd_rmsnorm_backward_args a{view(dx, rows, 1, C), view(grad(weight), C),  view(dout, rows, 1, C),
                               view(x, rows, 1, C),  view(param(weight), C), view(stat, rows, 1),
                               accumulate};
    ops_.rmsnorm_backward(&ctx_, &a);
  }
}

// out = x W^T (+ bias) (+ residual), of x [N, C] and O outputs
void Decoder::multiply(float* out, const fd_tensor& x, int64_t weight, int64_t bias, int64_t O, const float* residual) {
  const int64_t N = x.shape[0], C = x.shape[1];
  if (const auto* parts = packed_rows(weight, O)) {
    int64_t at = 0;  // rows of the weight before this part: columns of the output
    for (const PackedRows& part : *parts) {
      fd_quantized_matmul_args a{columns(out + at, N, part.rows, O),
                                 x,
                                 packed_view(part),
                                 bias >= 0 ? view(param(bias) + at, part.rows) : absent(),
                                 residual ? columns(residual + at, N, part.rows, O) : absent(),
                                 part.type,
                                 packed_compute_};
      ops_.quantized_matmul(&ctx_, &a);
      at += part.rows;
    }
    return;
  }
  fd_matmul_forward_args a{view(out, N, O),
                           x,
                           view(param(weight), O, C),
                           use_packed_ ? packed(param(weight), O, C, weight_version_) : absent(),
                           bias >= 0 ? view(param(bias), O) : absent(),
                           residual ? view(residual, N, O) : absent(),
                           0,
                           compute_};
  ops_.matmul_forward(&ctx_, &a);
}

void Decoder::linear(float* out, const fd_tensor& x, int64_t weight, int64_t bias, int64_t O, const float* residual) {
  multiply(out, x, weight, bias, O, residual);
  if (const AdapterGroup* group = adapters(weight, adapter_on_)) adapter_forward(*group, out, x, O);
}

// dx = dout W (+ what goes through the adapter)
void Decoder::linear_backward_frozen(float* dx, const float* dout, const fd_tensor& x, int64_t weight, int64_t O) {
  const int64_t N = x.shape[0], C = x.shape[1];
  if (const auto* parts = packed_rows(weight, O)) {
    int64_t at = 0;
    for (const PackedRows& part : *parts) {
      fd_quantized_matmul_backward_input_args i{view(dx, N, C), columns(dout + at, N, part.rows, O), packed_view(part), at > 0,
                                                part.type, compute_};
      if (dx != nullptr) ops_.quantized_matmul_backward_input(&ctx_, &i);
      at += part.rows;
    }
  } else if (dx != nullptr) {
    fd_matmul_backward_input_args i{view(dx, N, C), view(dout, N, O), view(param(weight), O, C), 0, compute_};
    ops_.matmul_backward_input(&ctx_, &i);
  }
  if (const AdapterGroup* group = adapters(weight, kept_adapter_)) adapter_backward(*group, dx, dout, x, O);
}

// dx = dout W; dW += dout^T x; dbias += sum dout
void Decoder::linear_backward(float* dx, const float* dout, const fd_tensor& x, int64_t weight, int64_t bias, int64_t O) {
  if (frozen()) return linear_backward_frozen(dx, dout, x, weight, O);
  const int64_t N = x.shape[0], C = x.shape[1];
  float* g = grads_.floats();
  fd_matmul_backward_input_args i{view(dx, N, C), view(dout, N, O), view(param(weight), O, C), 0, compute_};
  ops_.matmul_backward_input(&ctx_, &i);
  fd_matmul_backward_weight_args w{view(g + weight, O, C), bias >= 0 ? view(g + bias, O) : absent(), view(dout, N, O),
                                   x, compute_};
  ops_.matmul_backward_weight(&ctx_, &w);
}

fd_tensor Decoder::head_weight(float* base) const { return view(base + head_, config_.vocab_size, config_.d_model); }

// ---- one layer -------------------------------------------------------------------------------------------------

void Decoder::attention_forward(int64_t layer, Activations& a, bool keep, const Cached* cached) {
  const Layer& w = layers_[layer];
  const int64_t H = config_.n_head, G = config_.n_kv_head, D = config_.head_dim, E = config_.qkv_width(), C = config_.d_model;
  const double scale = attention_scale(D);

  const fd_tensor normed = operand(norm_, n_, C);
  norm_forward(normed, a.stat1, a.mean1, a.x, w.input_norm, w.input_norm_bias);
  linear(a.qkv, normed, w.qkv, w.qkv_bias, E, nullptr);

  // q and k after QK-norm and rotation; without the first they are where the product left them
  fd_tensor q = heads(a.qkv, n_, H, D, E), k = heads(a.qkv + H * D, n_, G, D, E), v = heads(a.qkv + (H + G) * D, n_, G, D, E);
  const int64_t R = (H + G) * D;
  if (a.qk) {
    fd_tensor q2 = heads(a.qk, n_, H, D, R), k2 = heads(a.qk + H * D, n_, G, D, R);
    fd_rmsnorm_forward_args nq{q2, view(a.qk_stat, n_, H), q, view(param(w.q_norm), D), config_.norm_eps};
    fd_rmsnorm_forward_args nk{k2, view(a.qk_stat + n_ * H, n_, G), k, view(param(w.k_norm), D), config_.norm_eps};
    ops_.rmsnorm_forward(&ctx_, &nq);
    ops_.rmsnorm_forward(&ctx_, &nk);
    q = q2, k = k2;
  }
  rotate(q, k, 0);
  if (keep && a.kept_qkv) cast(view(a.kept_qkv, n_, E), view(a.qkv, n_, E));
  if (keep && a.kept_qk) cast(view(a.kept_qk, n_, R), view(a.qk, n_, R));

  const fd_tensor out = view(a.attention, n_, H, D), cu = view(cu_seqlens_, s_ + 1);
  if (cached) {
    const KVCache::Layer c = cache_layer(*cached->cache, layer);
    const fd_tensor past = view(cached->past_lens, s_), table = view(cached->block_table, s_, cached->blocks_per_seq);
    fd_kv_cache_write_args wr{c.keys, c.values, c.key_scales, c.value_scales, k, v, cu, past, table};
    ops_.kv_cache_write(&ctx_, &wr);
    fd_attention_cached_args at{out, q, c.keys, c.values, c.key_scales, c.value_scales, cu, past, table, scale, compute_};
    ops_.attention_cached(&ctx_, &at);
  } else if (!pieces_.empty()) {
    shared_attention_forward(a, q, k, v);
  } else {
    fd_attention_forward_args at{out, view(a.lse, n_, H), q, k, v, cu, scale, compute_};
    ops_.attention_forward(&ctx_, &at);
  }
  fd_tensor x = view(a.attention, n_, H * D);
  if (keep && a.kept_attention) cast(kept_attention(a), x);
  if (keep && packed_rows_.empty()) x = kept_attention(a);
  linear(a.x2, x, w.o, w.o_bias, C, a.x);
}

// In place; inverse: backwards.
void Decoder::rotate(const fd_tensor& q, const fd_tensor& k, int64_t inverse) {
  if (config_.learned_positions) return;
  const int64_t R = config_.head_dim / 2;
  const fd_tensor cos = view(cos_.floats(), config_.max_positions, R), sin = view(sin_.floats(), config_.max_positions, R);
  for (const fd_tensor& x : {q, k}) {
    fd_rope_args a{x, x, cos, sin, view(positions_, n_), inverse};
    ops_.rope(&ctx_, &a);
  }
}

// What the backward pass reads.
fd_tensor Decoder::kept_attention(const Activations& a) const {
  const int64_t HD = config_.n_head * config_.head_dim;
  return a.kept_attention ? view(a.kept_attention, n_, HD) : view(a.attention, n_, HD);
}
fd_tensor Decoder::kept_up(const Activations& a, Rows r) const {
  const int64_t U = config_.up_width();
  return a.kept_up ? view(a.kept_up + r.begin * U, r.count, U) : view(a.up + r.begin * U, r.count, U);
}

// The MLP goes by chunks of rows: what passes between its ops is read from the cache, where of a whole batch it would go to
// memory and come back. Gradients sum over rows in order, so chunks change no bit as long as they are whole pairs of rows
// (bfloat16) and whole chunks of the norms' backward pass. As many rows as a slice of the products' k at most: with fewer,
// partial sums of the weights' gradients would be stored more often. A device with memory of its own takes all rows at once.
template <class Body>
void Decoder::in_chunks(const Body& body) {
  constexpr int64_t WHOLE = 64;
  static_assert(MLP_ROWS % WHOLE == 0, "chunks are no longer than that");
  const int64_t parts = has_own_memory() ? 1 : (n_ + MLP_ROWS - 1) / MLP_ROWS;
  const int64_t each = parts <= 1 ? n_ : ((n_ + parts - 1) / parts + WHOLE - 1) / WHOLE * WHOLE;
  for (int64_t begin = 0; begin < n_; begin += each) body(Rows{begin, std::min(each, n_ - begin)});
}

void Decoder::activation_forward(const fd_tensor& up) {
  const int64_t F = config_.d_ff;
  const fd_tensor out = operand(act_out_, up.shape[0], F);
  if (config_.gelu) {
    fd_gelu_forward_args g{out, up};
    ops_.gelu_forward(&ctx_, &g);
  } else {
    fd_swiglu_forward_args g{out, columns(up, 0, F), columns(up, F, F)};
    ops_.swiglu_forward(&ctx_, &g);
  }
}

// W_up norm2(x2) of some rows, kept for the backward pass (keep), and what the activation makes of it, in act_out_ (activate).
// One op where no packed rows and no adapter stand between the two, with the same bits.
void Decoder::up_forward(int64_t layer, Activations& a, bool keep, bool activate, Rows r) {
  const Layer& w = layers_[layer];
  const int64_t C = config_.d_model, U = config_.up_width();
  const fd_tensor normed = operand(norm_, r.count, C);
  norm_forward(normed, a.stat2 + r.begin, a.mean2 + r.begin, a.x2 + r.begin * C, w.mlp_norm, w.mlp_norm_bias);
  if (packed_rows(w.up, U) == nullptr && adapters(w.up, adapter_on_) == nullptr) {
    const fd_tensor out = activate ? operand(act_out_, r.count, config_.d_ff) : absent(), aux = keep ? kept_up(a, r) : absent();
    const fd_tensor packed = use_packed_ ? this->packed(param(w.up), U, C, weight_version_) : absent();
    const fd_tensor bias = w.up_bias >= 0 ? view(param(w.up_bias), U) : absent();
    if (config_.gelu) {
      fd_matmul_gelu_forward_args g{out, aux, normed, view(param(w.up), U, C), packed, bias, compute_};
      ops_.matmul_gelu_forward(&ctx_, &g);
    } else {
      fd_matmul_swiglu_forward_args g{out, aux, normed, view(param(w.up), U, C), packed, bias, compute_};
      ops_.matmul_swiglu_forward(&ctx_, &g);
    }
    return;
  }
  const bool one_place = compute_ == FD_BF16 || !trainable_;  // for all chunks
  float* up = one_place ? a.up : a.up + r.begin * U;
  linear(up, normed, w.up, w.up_bias, U, nullptr);
  if (keep && a.kept_up) cast(kept_up(a, r), view(up, r.count, U));
  if (activate) activation_forward(view(up, r.count, U));
}

void Decoder::mlp_forward(int64_t layer, Activations& a, bool keep, float* x_next) {
  const Layer& w = layers_[layer];
  const int64_t C = config_.d_model, F = config_.d_ff;
  in_chunks([&](Rows r) {
    up_forward(layer, a, keep, true, r);
    linear(x_next + r.begin * C, operand(act_out_, r.count, F), w.down, w.down_bias, C, a.x2 + r.begin * C);
  });
}

// In: dx_ = dL/d(output of the layer). Out: dx_ = dL/d(x2), the residual branch included.
void Decoder::mlp_backward(int64_t layer, Activations& a) {
  const Layer& w = layers_[layer];
  const int64_t C = config_.d_model, F = config_.d_ff, U = config_.up_width();
  in_chunks([&](Rows r) {
    float *dx = dx_ + r.begin * C, *x2 = a.x2 + r.begin * C;
    float *stat = a.stat2 + r.begin, *mean = a.mean2 + r.begin;
    const fd_tensor up = kept_up(a, r), normed = operand(norm_, r.count, C);
    activation_forward(up);
    linear_backward(dact_, dx, operand(act_out_, r.count, F), w.down, w.down_bias, C);
    if (config_.gelu) {
      fd_gelu_backward_args g{view(dup_, r.count, F), view(dact_, r.count, F), up};
      ops_.gelu_backward(&ctx_, &g);
    } else {
      fd_swiglu_backward_args g{columns(dup_, r.count, F, U), columns(dup_ + F, r.count, F, U), view(dact_, r.count, F),
                                columns(up, 0, F), columns(up, F, F)};
      ops_.swiglu_backward(&ctx_, &g);
    }
    norm_forward(normed, stat, mean, x2, w.mlp_norm, w.mlp_norm_bias);
    linear_backward(dnorm_, dup_, normed, w.up, w.up_bias, U);
    norm_backward(dx, true, dnorm_, x2, w.mlp_norm, w.mlp_norm_bias, stat, mean, r.count);
  });
}

// In: dx_ = dL/d(x2). Out: dx_ = dL/d(x).
void Decoder::attention_backward(int64_t layer, Activations& a) {
  const Layer& w = layers_[layer];
  const int64_t H = config_.n_head, G = config_.n_kv_head, D = config_.head_dim, E = config_.qkv_width(), C = config_.d_model;
  linear_backward(dattention_, dx_, kept_attention(a), w.o, w.o_bias, C);
  const int64_t R = (H + G) * D;
  if (a.kept_qkv && (a.qk || !pieces_.empty())) cast(view(a.qkv, n_, E), view(a.kept_qkv, n_, E));
  if (a.kept_qkv && !pieces_.empty()) {  // copies of shared rows are float32
    if (a.qk) cast(view(a.qk, n_, R), view(a.kept_qk, n_, R));
    cast(view(a.attention, n_, H * D), kept_attention(a));
  }

  fd_tensor q = heads(a.qkv, n_, H, D, E), k = heads(a.qkv + H * D, n_, G, D, E), v = heads(a.qkv + (H + G) * D, n_, G, D, E);
  fd_tensor dq = heads(dqkv_, n_, H, D, E), dk = heads(dqkv_ + H * D, n_, G, D, E), dv = heads(dqkv_ + (H + G) * D, n_, G, D, E);
  fd_tensor q2 = q, k2 = k, dq2 = dq, dk2 = dk;  // after norm and rotation, and their derivatives
  if (a.qk) {
    q2 = heads(a.qk, n_, H, D, R), k2 = heads(a.qk + H * D, n_, G, D, R);
    dq2 = heads(dqk_, n_, H, D, R), dk2 = heads(dqk_ + H * D, n_, G, D, R);
  }
  if (pieces_.empty()) {
    fd_attention_backward_args at{dq2, dk2, dv, view(dattention_, n_, H, D), view(a.attention, n_, H, D), view(a.lse, n_, H),
                                  q2,  k2,  v,  view(cu_seqlens_, s_ + 1),   attention_scale(D),          compute_};
    if (a.kept_qkv) {
      const auto kept = [](fd_tensor& t, const uint16_t* data) { t.data = const_cast<uint16_t*>(data), t.dtype = FD_BF16; };
      const uint16_t* qk = a.kept_qk ? a.kept_qk : a.kept_qkv;
      kept(at.q, qk), kept(at.k, qk + H * D), kept(at.v, a.kept_qkv + R), kept(at.out, a.kept_attention);
    }
    ops_.attention_backward(&ctx_, &at);
  } else {
    shared_attention_backward(a, dq2, dk2, dv, q2, k2, v);
  }
  rotate(dq2, dk2, 1);
  if (a.qk) {
    fd_rmsnorm_backward_args nq{dq, view(grad(w.q_norm), D), dq2, q, view(param(w.q_norm), D), view(a.qk_stat, n_, H), 0};
    fd_rmsnorm_backward_args nk{dk, view(grad(w.k_norm), D), dk2, k, view(param(w.k_norm), D), view(a.qk_stat + n_ * H, n_, G), 0};
    ops_.rmsnorm_backward(&ctx_, &nq);
    ops_.rmsnorm_backward(&ctx_, &nk);
  }
  const fd_tensor normed = operand(norm_, n_, C);
  norm_forward(normed, a.stat1, a.mean1, a.x, w.input_norm, w.input_norm_bias);
  // of a frozen model's first layer nothing below learns
  if (frozen() && layer == 0) return linear_backward(nullptr, dqkv_, normed, w.qkv, w.qkv_bias, E);
  linear_backward(dnorm_, dqkv_, normed, w.qkv, w.qkv_bias, E);
  norm_backward(dx_, true, dnorm_, a.x, w.input_norm, w.input_norm_bias, a.stat1, a.mean1, n_);
}

// What the forward pass did not keep of a layer.
void Decoder::compute_again(int64_t layer) {
  if (recompute_ == Recompute::NONE || layer == config_.n_layer - 1) return;  // the last layer's is still there
  Activations& a = act_[layer];
  const bool now = std::exchange(adapter_on_, kept_adapter_);
  if (recompute_ == Recompute::BLOCK) attention_forward(layer, a, true, nullptr);
  in_chunks([&](Rows r) { up_forward(layer, a, true, false, r); });
  adapter_on_ = now;
}

// ---- the whole trunk -------------------------------------------------------------------------------------------

void Decoder::trunk_forward(const BatchView& b, bool keep, const Cached* cached, const Trace* trace) {
  accept(b, cached == nullptr && trace == nullptr);
  trunk(keep, cached, trace);
}

// Each token and the one before it: which row of their table.
void Decoder::find_bigrams(const Cached* cached) {
  fd_bigram_ids_args a{view(bigrams_, n_), view(tokens_, n_), view(cu_seqlens_, s_ + 1), absent(), absent(), absent(), absent(),
                       config_.bigram_rows};
  if (has_prefixes_) a.prefixes = view(prefixes_, s_, 2);
  if (cached) {
    const KVCache& c = *cached->cache;
    a.seen = view(reinterpret_cast<int32_t*>(c.seen.bytes()), c.blocks, FD_KV_BLOCK);
    a.past_lens = view(cached->past_lens, s_), a.block_table = view(cached->block_table, s_, cached->blocks_per_seq);
  }
  ops_.bigram_ids(&ctx_, &a);
}

// What is added to the embedding, of parameters or gradients, and by which ids: learned positions or pairs of tokens, if any.
std::pair<fd_tensor, const int32_t*> Decoder::second_table(float* base) const {
  const int64_t C = config_.d_model;
  if (config_.bigram_rows > 0) return {view(base + embed_bigrams_, config_.bigram_rows, C), bigrams_};
  if (config_.learned_positions) return {view(base + embed_positions_, config_.max_positions, C), positions_};
  return {absent(), positions_};
}

// Of the batch that was accepted.
void Decoder::trunk(bool keep, const Cached* cached, const Trace* trace) {
  const int64_t C = config_.d_model, last = config_.n_layer - 1;
  if (config_.bigram_rows > 0) find_bigrams(cached);
  const auto [table, ids] = second_table(params_.floats());
  if (const auto* parts = packed_rows(embed_, config_.vocab_size)) {
    fd_quantized_embedding_args e{
        view(act_[0].x, n_, C), view(tokens_, n_),  view(ids, n_), packed_view(parts->front()), table,
        config_.vocab_size,     parts->front().type};
    ops_.quantized_embedding(&ctx_, &e);
  } else {
    fd_embedding_forward_args e{view(act_[0].x, n_, C), view(tokens_, n_), view(ids, n_),
                                view(param(embed_), config_.vocab_size, C), table};
    ops_.embedding_forward(&ctx_, &e);
  }
  if (trace) {
    get(trace->residual, act_[0].x, n_ * C * sizeof(float));
    settle();
  }
  for (int64_t i = 0; i <= last; ++i) {
    Activations& a = act_[keep ? i : 0];
    float* x_next = i == last ? x_last_ : act_[keep ? i + 1 : 0].x;
    attention_forward(i, a, keep, cached);
    mlp_forward(i, a, keep, x_next);
    if (trace) record(*trace, i, a, x_next);
  }
  norm_forward(view(final_, n_, C), final_stat_, final_mean_, x_last_, final_norm_, final_norm_bias_);
  kept_ = keep, kept_adapter_ = adapter_on_;
}

// In: dnorm_ = dL/d(final hidden states), to which dhidden is added.
void Decoder::trunk_backward(const float* dhidden) {
  const int64_t C = config_.d_model;
  if (dhidden) {
    fd_linear_combination_args sum{view(dnorm_, n_ * C), view(dnorm_, n_ * C), view(dhidden, n_ * C), 1.0, 1.0};
    ops_.linear_combination(&ctx_, &sum);
  }
  norm_backward(dx_, false, dnorm_, x_last_, final_norm_, final_norm_bias_, final_stat_, final_mean_, n_);
  for (int64_t i = config_.n_layer - 1; i >= 0; --i) {
    compute_again(i);
    mlp_backward(i, act_[i]);
    attention_backward(i, act_[i]);
  }
  kept_ = false;
  if (frozen()) return;
  float* g = grads_.floats();
  const auto [table, ids] = second_table(g);
  fd_embedding_backward_args e{view(g + embed_, config_.vocab_size, C), table, view(dx_, n_, C), view(tokens_, n_), view(ids, n_)};
  ops_.embedding_backward(&ctx_, &e);
}

void Decoder::forward(const BatchView& b, float temperature, bool keep, const TokenOutputs& out) {
  if (keep && !trainable_) throw std::logic_error("this model was made with trainable=False: use score()");
  put(scalars_, &temperature, sizeof temperature);
  trunk_forward(b, keep, nullptr);
  const int64_t C = config_.d_model;
  const TokenOutputs o = this->out(out);
  if (const auto* parts = packed_rows(head_, config_.vocab_size)) {
    fd_quantized_head_forward_args h{view(o.logprobs, n_, k_),    view(o.entropy, n_),    view(o.lse, n_),   view(final_, n_, C),
                                     packed_view(parts->front()), view(targets_, n_, k_), view(scalars_, 1), mask(),
                                     config_.vocab_size,          parts->front().type,    packed_compute_};
    ops_.quantized_head_forward(&ctx_, &h);
  } else {
    fd_head_forward_args h{view(o.logprobs, n_, k_),
                           view(o.entropy, n_),
                           view(o.lse, n_),
                           view(final_, n_, C),
                           head_weight(params_.floats()),
                           absent(),
                           view(targets_, n_, k_),
                           view(scalars_, 1),
                           mask(),
                           compute_};
    ops_.head_forward(&ctx_, &h);
  }
  move(final_lse_, o.lse, n_ * sizeof(float));
  move(final_entropy_, o.entropy, n_ * sizeof(float));
  settle();
}

void Decoder::backward(const float* dlogprobs, const float* dentropy, const float* dlse, const float* dhidden) {
  if (!kept_) throw std::logic_error("backward() needs a forward() before it; each forward serves one backward");
  const int64_t C = config_.d_model;
  dlogprobs = in_rows(dlogprobs, k_), dentropy = in_rows(dentropy, 1), dlse = in_rows(dlse, 1);
  if (const auto* parts = packed_rows(head_, config_.vocab_size)) {
    fd_quantized_head_backward_args h{view(dnorm_, n_, C),
                                      view(final_, n_, C),
                                      packed_view(parts->front()),
                                      view(targets_, n_, k_),
                                      view(scalars_, 1),
                                      mask(),
                                      view(final_lse_, n_),
                                      view(final_entropy_, n_),
                                      dlogprobs ? view(dlogprobs, n_, k_) : absent(),
                                      dentropy ? view(dentropy, n_) : absent(),
                                      dlse ? view(dlse, n_) : absent(),
                                      config_.vocab_size,
                                      parts->front().type,
                                      compute_};
    ops_.quantized_head_backward(&ctx_, &h);
  } else {
    fd_head_backward_args h{view(dnorm_, n_, C),
                            frozen() ? absent() : head_weight(grads_.floats()),
                            view(final_, n_, C),
                            head_weight(params_.floats()),
                            absent(),
                            view(targets_, n_, k_),
                            view(scalars_, 1),
                            mask(),
                            view(final_lse_, n_),
                            view(final_entropy_, n_),
                            dlogprobs ? view(dlogprobs, n_, k_) : absent(),
                            dentropy ? view(dentropy, n_) : absent(),
                            dlse ? view(dlse, n_) : absent(),
                            compute_};
    ops_.head_backward(&ctx_, &h);
  }
  trunk_backward(in_rows(dhidden, C));
  leave(nullptr);
}

std::shared_ptr<Scores> Decoder::forward_backward(const BatchView& b, float temperature, const float* dlogprobs) {
  if (!trainable_) throw std::logic_error("this model was made with trainable=False");
  put(scalars_, &temperature, sizeof temperature);
  trunk_forward(b, true, nullptr);
  const int64_t C = config_.d_model;
  const auto scores = std::make_shared<Scores>();
  scores->logprobs.resize(rows_ * k_), scores->entropy.resize(rows_), scores->lse.resize(rows_);
  const TokenOutputs o = out(TokenOutputs{scores->logprobs.data(), scores->entropy.data(), scores->lse.data()});
  dlogprobs = in_rows(dlogprobs, k_);
  if (const auto* parts = packed_rows(head_, config_.vocab_size)) {
    fd_quantized_head_forward_backward_args h{view(o.logprobs, n_, k_),
                                              view(o.entropy, n_),
                                              view(o.lse, n_),
                                              view(dnorm_, n_, C),
                                              view(final_, n_, C),
                                              packed_view(parts->front()),
                                              view(targets_, n_, k_),
                                              view(scalars_, 1),
                                              mask(),
                                              view(dlogprobs, n_, k_),
                                              config_.vocab_size,
                                              parts->front().type,
                                              compute_};
    ops_.quantized_head_forward_backward(&ctx_, &h);
  } else {
    fd_head_forward_backward_args h{view(o.logprobs, n_, k_),
                                    view(o.entropy, n_),
                                    view(o.lse, n_),
                                    view(dnorm_, n_, C),
                                    frozen() ? absent() : head_weight(grads_.floats()),
                                    view(final_, n_, C),
                                    head_weight(params_.floats()),
                                    absent(),
                                    view(targets_, n_, k_),
                                    view(scalars_, 1),
                                    mask(),
                                    view(dlogprobs, n_, k_),
                                    compute_};
    ops_.head_forward_backward(&ctx_, &h);
  }
  trunk_backward();
  leave(scores);
  return scores;
}

void Decoder::hidden(float* out) {
  get(out, final_, rows_ * config_.d_model * sizeof(float));
  settle();
}

// ---- optimizer -------------------------------------------------------------------------------------------------

void Decoder::zero_gradients() {
  zero(grads_.floats(), trained_floats() * sizeof(float));
  launch();
}

// One AdamW step on a range of the flat buffers; scalars_[1] holds the gradient norm.
void Decoder::adamw_range(int64_t begin, int64_t size, const float hyper[8], bool decay) {
  float *h = scalars_ + 8, mine[8];
  std::memcpy(mine, hyper, sizeof mine);
  if (!decay) mine[4] = 0.0f;
  put(h, mine, sizeof mine);
  fd_adamw_args a{view((frozen() ? adapter_params_ : params_).floats() + begin, size),
                  view(grads_.floats() + begin, size),
                  view(m_.floats() + begin, size),
                  view(v_.floats() + begin, size),
                  view(scalars_ + 1, 1),
                  view(h, 8)};
  ops_.adamw(&ctx_, &a);
}

float Decoder::adamw(const float hyper[8]) {
  const int64_t total = trained_floats(), matrices = frozen() ? total : table_.matrix_floats;
  float* norm = scalars_ + 1;
  let_snapshot_pass();
  fd_global_norm_args n{view(norm, 1), view(grads_.floats(), total)};
  ops_.global_norm(&ctx_, &n);
  adamw_range(0, matrices, hyper, true);  // matrices decay, vectors do not
  if (total > matrices) adamw_range(matrices, total - matrices, hyper, false);
  frozen() ? ++adapter_version_ : ++weight_version_;
  float total_norm = 0.0f;
  get(&total_norm, norm, sizeof total_norm);
  settle();
  return total_norm;
}

}  // namespace freedive
