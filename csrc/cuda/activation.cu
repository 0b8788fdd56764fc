// activation.cu: gelu (tanh form) and swiglu, forward and backward.
//
// One thread per element. Forward reads 1 (2) floats and writes 1; backward reads 2 (3) and writes 1 (2). Gradients may overwrite what they
// are computed from: a thread reads before it writes.
#include "launch.cuh"

namespace freedive::cuda {
namespace {

constexpr float GELU_SCALE = 0.7978845608028654f, GELU_CUBIC = 0.044715f;  // sqrt(2/pi)

__global__ void gelu_forward_kernel(fd_tensor out, fd_tensor in) {
  const int64_t N = in.shape[0], F = in.shape[1], i = global_thread();
  if (i >= N * F) return;
  const float x = row(in, i / F)[i % F];
  row(out, i / F)[i % F] = 0.5f * x * (1.0f + tanhf(GELU_SCALE * (x + GELU_CUBIC * x * x * x)));
}

__global__ void gelu_backward_kernel(fd_tensor dx, fd_tensor dout, fd_tensor in) {
  const int64_t N = in.shape[0], F = in.shape[1], i = global_thread();
  if (i >= N * F) return;
  const float x = row(in, i / F)[i % F], square = x * x;
  const float t = tanhf(GELU_SCALE * (x + GELU_CUBIC * square * x));
  // 1 - t^2 is 0 from |x| = 10 on, where x^2 may still be infinite times 0
  const float slope = (1.0f - t) * (1.0f + t), inner = GELU_SCALE * (1.0f + 3.0f * GELU_CUBIC * square);
  const float d = 0.5f * (1.0f + t) + (slope == 0.0f ? 0.0f : 0.5f * x * slope * inner);
  row(dx, i / F)[i % F] = row(dout, i / F)[i % F] * d;
}

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__global__ void swiglu_forward_kernel(fd_tensor out, fd_tensor gate, fd_tensor up) {
  const int64_t N = out.shape[0], F = out.shape[1], i = global_thread();
  if (i >= N * F) return;
  const int64_t n = i / F, f = i % F;
  const float g = row(gate, n)[f];
  row(out, n)[f] = g * sigmoid(g) * row(up, n)[f];
}

__global__ void swiglu_backward_kernel(fd_tensor dgate, fd_tensor dup, fd_tensor dout, fd_tensor gate, fd_tensor up) {
  const int64_t N = dout.shape[0], F = dout.shape[1], i = global_thread();
  if (i >= N * F) return;
  const int64_t n = i / F, f = i % F;
  const float g = row(gate, n)[f], u = row(up, n)[f], d = row(dout, n)[f], s = sigmoid(g);
  row(dgate, n)[f] = d * u * s * (1.0f + g * (1.0f - s));
  row(dup, n)[f] = d * g * s;
}

void gelu_forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_gelu_forward_args*>(arguments);
  launch_threads(ctx, "gelu_forward", a.x.shape[0] * a.x.shape[1], gelu_forward_kernel, a.out, a.x);
}
void gelu_backward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_gelu_backward_args*>(arguments);
  launch_threads(ctx, "gelu_backward", a.x.shape[0] * a.x.shape[1], gelu_backward_kernel, a.dx, a.dout, a.x);
}
void swiglu_forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_swiglu_forward_args*>(arguments);
  launch_threads(ctx, "swiglu_forward", a.out.shape[0] * a.out.shape[1], swiglu_forward_kernel, a.out, a.gate, a.up);
}
void swiglu_backward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_swiglu_backward_args*>(arguments);
  launch_threads(ctx, "swiglu_backward", a.dout.shape[0] * a.dout.shape[1], swiglu_backward_kernel, a.dgate, a.dup, a.dout, a.gate, a.up);
}

}  // namespace

FD_VARIANT_LIST(activation, {"gelu_forward", "naive", 0, gelu_forward, nullptr}, {"gelu_backward", "naive", 0, gelu_backward, nullptr},
                {"swiglu_forward", "naive", 0, swiglu_forward, nullptr}, {"swiglu_backward", "naive", 0, swiglu_backward, nullptr})

}  // namespace freedive::cuda
