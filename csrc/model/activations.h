// activations.h: where lies what passes through the layers, forward and backward.
#pragma once
#include <cstdint>
#include <vector>

namespace freedive {

// Of one layer: [N, width] each. Of a model that computes in bfloat16 what only its products and its attention read again is
// kept as bfloat16 (kept_*, else null), and qkv, qk, attention and up are places where all layers work.
struct Activations {
  float *x, *stat1, *mean1, *qkv, *qk, *qk_stat, *attention, *lse, *x2, *stat2, *mean2, *up;
  uint16_t *kept_qkv, *kept_qk, *kept_attention, *kept_up;
};

// Pieces of two buffers, the second for gradients; lay_out (memory.cpp) says which, to a decoder and, without memory, to a plan.
struct Places {
  std::vector<Activations> act_;  // of each layer where a backward pass may come, else one for all
  // Of the layer at work: outputs of its norms and of its activation, computed again for the backward pass. See operand().
  float *norm_ = nullptr, *act_out_ = nullptr;
  float *lora_h_ = nullptr, *lora_dh_ = nullptr, *unread_ = nullptr;
  float *x_last_ = nullptr, *final_ = nullptr, *final_stat_ = nullptr, *final_mean_ = nullptr;
  float *final_lse_ = nullptr, *final_entropy_ = nullptr, *sampled_hidden_ = nullptr;
  float* scalars_ = nullptr;  // temperature, norm, (one unused), Muon's hyper[5], AdamW's hyper[8]
  float *dx_ = nullptr, *dnorm_ = nullptr, *dqkv_ = nullptr, *dqk_ = nullptr, *dattention_ = nullptr;
  float *dup_ = nullptr, *dact_ = nullptr;
};

}  // namespace freedive
