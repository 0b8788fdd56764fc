// rope.cu: rotary position embedding in half-rotation form, forward and (inverse) backward.
//
// Reads D and writes D floats per head, and D/2 of each table per token. One thread per pair, so out may be x.
#include "launch.cuh"

namespace freedive::cuda {
namespace {

__global__ void rope_kernel(fd_tensor out, fd_tensor x, fd_tensor cos, fd_tensor sin, fd_tensor positions, int64_t inverse) {
  const int64_t N = x.shape[0], H = x.shape[1], R = x.shape[2] / 2, i = global_thread();
  if (i >= N * H * R) return;
  const int64_t n = i / (H * R), h = i / R % H, r = i % R;
  const int64_t p = flat<int32_t>(positions)[n];
  const float c = row(cos, p)[r], s = inverse != 0 ? -row(sin, p)[r] : row(sin, p)[r];
  const float* from = row(x, n, h);
  float* to = row(out, n, h);
  const float a = from[r], b = from[r + R];
  to[r] = fmaf(a, c, -(b * s));
  to[r + R] = fmaf(b, c, a * s);
}

void rope(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_rope_args*>(arguments);
  launch_threads(ctx, "rope", a.x.shape[0] * a.x.shape[1] * (a.x.shape[2] / 2), rope_kernel, a.out, a.x, a.cos, a.sin, a.positions, a.inverse);
}

}  // namespace

FD_VARIANT_LIST(rope, {"rope", "naive", 0, rope, nullptr})

}  // namespace freedive::cuda
