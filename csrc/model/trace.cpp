// Looking into the decoder: what each layer passes on, and what the head would say to it.
//
// The forward is the decoder's own (trunk_forward), with a copy taken after each layer: the residual stream, and the queries and
// keys as attention multiplies them. So what is shown is what was computed, bit for bit. Copies cost 4 (C + (H + G) D) bytes a
// token and layer; the attention of a head is softmax(scale q k^T), made of them by whoever looks.
#include <cstring>
#include <stdexcept>

#include "decoder.h"
#include "view.h"

namespace freedive {

void Decoder::record(const Trace& t, int64_t layer, const Activations& a, const float* output) {
  const int64_t C = config_.d_model, H = config_.n_head, G = config_.n_kv_head, D = config_.head_dim;
  get(t.residual + (layer + 1) * n_ * C, output, n_ * C * sizeof(float));
  // without QK-norm they lie where the product of W_qkv left them, v beside them
  const float* from = a.qk ? a.qk : a.qkv;
  const int64_t row = a.qk ? (H + G) * D : config_.qkv_width();
  std::vector<float> rows(has_own_memory() ? static_cast<size_t>(n_ * row) : 0);
  if (has_own_memory()) {
    get(rows.data(), from, rows.size() * sizeof(float));
    from = rows.data();
  }
  settle();
  for (int64_t i = 0; i < n_; ++i) {
    std::memcpy(t.q + (layer * n_ + i) * H * D, from + i * row, H * D * sizeof(float));
    std::memcpy(t.k + (layer * n_ + i) * G * D, from + i * row + H * D, G * D * sizeof(float));
  }
}

void Decoder::trace(const BatchView& b, const Trace& out) {
  trunk_forward(b, false, nullptr, &out);
  settle();
}

// The logit lens (nostalgebraist 2020): an intermediate residual stream read as if it were the last one.
void Decoder::lens(const float* x, int64_t n_rows, float* out) {
  const int64_t C = config_.d_model;
  if (n_rows > max_seqs_ || n_rows > max_tokens_) throw std::invalid_argument("more rows than this model's capacity");
  const fd_tensor hidden = view(sampled_hidden_, n_rows, C);
  norm_forward(hidden, final_stat_, final_mean_, in(x, n_rows * C), final_norm_, final_norm_bias_);
  use_packed_ = true;
  multiply(this->out(out, n_rows * config_.vocab_size), hidden, head_, -1, config_.vocab_size, nullptr);
  use_packed_ = false;
  settle();
  kept_ = false;  // the statistics of the final norm are another batch's now
}

}  // namespace freedive
