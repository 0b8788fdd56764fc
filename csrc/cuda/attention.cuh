// attention.cuh: what attention.cu and attention_backward.cu, with the ladder's first rung and the tables of variants, ask of
// attention_tiled.cu and of the kernels on tensor cores.
#pragma once
#include "launch.cuh"

namespace freedive::cuda {

constexpr int64_t TILED_HEAD = 128;  // the longest head that attention_tiled.cu takes

void attention_forward_tiled(fd_context* ctx, const fd_attention_forward_args& a);
void attention_cached_tiled(fd_context* ctx, const fd_attention_cached_args& a);

bool attention_sm80_takes(int64_t head_dim, int64_t compute);  // else it is the rung below
void attention_forward_sm80(fd_context* ctx, const fd_attention_forward_args& a);
size_t attention_forward_sm80_workspace(const fd_attention_forward_args& a);
bool attention_sm90_takes(int64_t head_dim, int64_t compute);  // else it is sm80
void attention_forward_sm90(fd_context* ctx, const fd_attention_forward_args& a, bool ahead);  // ahead: the second rung of its ladder
size_t attention_forward_sm90_workspace(const fd_attention_forward_args& a);
void attention_cached_sm80(fd_context* ctx, const fd_attention_cached_args& a);
size_t attention_cached_sm80_workspace(const fd_attention_cached_args& a);
void attention_backward_sm80(fd_context* ctx, const fd_attention_backward_args& a);
size_t attention_backward_sm80_workspace(const fd_attention_backward_args& a);

}  // namespace freedive::cuda
