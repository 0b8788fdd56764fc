#include "parameters.h"

namespace freedive {

ParameterTable::ParameterTable(const DecoderConfig& c) {
  int64_t at = 0;
  bool matrix = true;
  // q, k, v lie next to each other without a gap, and so do gate and up: each group is one matrix product.
  auto align = [&] { at = (at + 15) / 16 * 16; };
  auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    int64_t size = 1;
    for (int64_t d : shape) size *= d;
    rows.push_back({name, shape, at, size, matrix});
    at += size;
  };
  const int64_t C = c.d_model, HD = c.n_head * c.head_dim, GD = c.n_kv_head * c.head_dim, F = c.d_ff;

  add("embed_tokens.weight", {c.vocab_size, C});
  if (c.learned_positions) align(), add("embed_positions.weight", {c.max_positions, C});
  if (c.bigram_rows > 0) align(), add("embed_bigrams.weight", {c.bigram_rows, C});
  for (int64_t i = 0; i < c.n_layer; ++i) {
    const std::string p = "layers." + std::to_string(i) + ".";
    align();
    add(p + "q_proj.weight", {HD, C});
    add(p + "k_proj.weight", {GD, C});
    add(p + "v_proj.weight", {GD, C});
    align();
    add(p + "o_proj.weight", {C, HD});
    align();
    if (!c.gelu) add(p + "gate_proj.weight", {F, C});
    add(p + "up_proj.weight", {F, C});
    align();
    add(p + "down_proj.weight", {C, F});
  }
  if (!c.tie_embeddings) align(), add("lm_head.weight", {c.vocab_size, C});
  align();
  matrix_floats = at;

  matrix = false;
  auto norm = [&](const std::string& name, int64_t width) {
    align();
    add(name + ".weight", {width});
    if (c.layernorm) align(), add(name + ".bias", {width});
  };
  for (int64_t i = 0; i < c.n_layer; ++i) {
    const std::string p = "layers." + std::to_string(i) + ".";
    norm(p + "input_norm", C);
    if (c.attention_bias) {
      align();
      add(p + "q_proj.bias", {HD});
      add(p + "k_proj.bias", {GD});
      add(p + "v_proj.bias", {GD});
    }
    if (c.qk_norm) {
      align(), add(p + "q_norm.weight", {c.head_dim});
      align(), add(p + "k_norm.weight", {c.head_dim});
    }
    if (c.attention_out_bias) align(), add(p + "o_proj.bias", {C});
    norm(p + "mlp_norm", C);
    if (c.mlp_bias) {
      align();
      if (!c.gelu) add(p + "gate_proj.bias", {F});
      add(p + "up_proj.bias", {F});
      align(), add(p + "down_proj.bias", {C});
    }
  }
  norm("final_norm", C);
  align();
  total_floats = at;
}

int64_t ParameterTable::offset(const std::string& name) const {
  for (const auto& r : rows)
    if (r.name == name) return r.offset;
  return -1;
}

}  // namespace freedive
