// attention.cuh: what attention.cu, with the ladder's first rung and the table of variants, asks of attention_tiled.cu.
#pragma once
#include "launch.cuh"

namespace freedive::cuda {

constexpr int64_t TILED_HEAD = 128;  // the longest head that attention_tiled.cu takes

void attention_forward_tiled(fd_context* ctx, const fd_attention_forward_args& a);
void attention_cached_tiled(fd_context* ctx, const fd_attention_cached_args& a);

}  // namespace freedive::cuda
