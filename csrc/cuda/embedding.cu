// embedding.cu: out[n] = wte[tokens[n]] (+ wpe[positions[n]]), and its gradient.
//
// Forward reads C floats (2C with wpe) and an id, writes C floats per token. Backward reads C and adds to C (2C) per token.
#include "launch.cuh"

namespace freedive::cuda {
namespace {

// One thread per element; neighbours read neighbours.
__global__ void forward_kernel(fd_tensor out, fd_tensor tokens, fd_tensor positions, fd_tensor wte, fd_tensor wpe) {
  const int64_t N = out.shape[0], C = out.shape[1], i = global_thread();
  if (i >= N * C) return;
  const int64_t n = i / C, c = i % C;
  float x = row(wte, flat<int32_t>(tokens)[n])[c];
  if (wpe.data != nullptr) x += row(wpe, flat<int32_t>(positions)[n])[c];
  row(out, n)[c] = x;
}

void forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_embedding_forward_args*>(arguments);
  launch_threads(ctx, "embedding_forward", a.out.shape[0] * a.out.shape[1], forward_kernel, a.out, a.tokens, a.positions, a.wte, a.wpe);
}

// One thread per column walks through the tokens: rows that several tokens share are added to in the tokens' order, and no two
// threads write one address. Only C threads: the ladder's next rung sorts ids on the device.
__global__ void backward_kernel(fd_tensor dtable, fd_tensor dout, fd_tensor ids) {
  const int64_t N = dout.shape[0], C = dout.shape[1], c = global_thread();
  if (c >= C) return;
  for (int64_t n = 0; n < N; ++n) row(dtable, flat<int32_t>(ids)[n])[c] += row(dout, n)[c];
}

void backward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_embedding_backward_args*>(arguments);
  launch(ctx, "embedding_backward", blocks_for(a.dout.shape[1], WARP), WARP, backward_kernel, a.dwte, a.dout, a.tokens);
  if (a.dwpe.data != nullptr)
    launch(ctx, "embedding_backward", blocks_for(a.dout.shape[1], WARP), WARP, backward_kernel, a.dwpe, a.dout, a.positions);
}

}  // namespace

FD_VARIANT_LIST(embedding, {"embedding_forward", "naive", 0, forward, nullptr}, {"embedding_backward", "naive", 0, backward, nullptr})

}  // namespace freedive::cuda
