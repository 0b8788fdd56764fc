// The decoder's configuration and its parameter table: which tensor lies where in the one flat buffer of parameters
// (and, at the same offset, of gradients and moments). Matrices first, then vectors, so that weight decay is a range.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace freedive {

struct DecoderConfig {
  int64_t vocab_size = 0, n_layer = 0, n_head = 0, n_kv_head = 0, d_model = 0, head_dim = 0, d_ff = 0, max_positions = 0;
  int64_t bigram_rows = 0;  // of a table of pairs of tokens beside the embedding; 0: there is none
  bool layernorm = false;  // else RMSNorm
  double norm_eps = 1e-6;
  bool learned_positions = false;  // else rotary
  bool gelu = false;               // else SwiGLU
  bool attention_bias = false, attention_out_bias = false, mlp_bias = false, qk_norm = false, tie_embeddings = true;

  int64_t qkv_width() const { return (n_head + 2 * n_kv_head) * head_dim; }
  int64_t up_width() const { return gelu ? d_ff : 2 * d_ff; }  // gate and up side by side
};

struct Parameter {
  std::string name;
  std::vector<int64_t> shape;
  int64_t offset;  // in floats
  int64_t size;
  bool matrix;  // weight decay applies
};

struct ParameterTable {
  std::vector<Parameter> rows;
  int64_t matrix_floats = 0;  // [0, matrix_floats) are matrices
  int64_t total_floats = 0;
  explicit ParameterTable(const DecoderConfig& c);
  int64_t offset(const std::string& name) const;  // -1 if there is none
};

}  // namespace freedive
