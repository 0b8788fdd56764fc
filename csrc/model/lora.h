// Low-rank adapters (LoRA; Hu et al. 2021, arXiv:2106.09685): beside a frozen product, a pair of skinny ones,
//   out = x W^T + s (x A^T) B^T,  A [rank, C], B [O, rank], s = alpha / rank (rsLoRA, arXiv:2312.03732: alpha / sqrt(rank)).
// Here is where they lie: in one flat buffer (and, at the same offsets, gradients and moments), for each layer and product the A
// of all its targets side by side, so that x is read once, then their B. lora.cpp computes with them.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "parameters.h"

namespace freedive {

struct AdapterConfig {
  int64_t rank = 0;  // 0: no adapter
  float scale = 1.0f;
  std::vector<std::string> targets;  // of q_proj k_proj v_proj o_proj gate_proj up_proj down_proj
};

// The adapters of one product of the decoder: q, k and v are one, and gate and up.
struct AdapterGroup {
  struct Part {
    int64_t column, rows, b;  // its outputs among those of the product, and where B [rows, rank] lies
  };
  int64_t a;  // where A [parts * rank, C] lies
  std::vector<Part> parts;
};

struct AdapterTable {
  std::vector<Parameter> rows;             // "layers.0.q_proj.lora_A" ...
  std::map<int64_t, AdapterGroup> groups;  // by offset of the product's weight in the decoder's own table
  int64_t total_floats = 0;
  int64_t widest = 0;  // parts * rank, at most
  AdapterTable(const DecoderConfig& config,
               const AdapterConfig& adapter);  // throws std::invalid_argument for an unknown target, or none
};

}  // namespace freedive
