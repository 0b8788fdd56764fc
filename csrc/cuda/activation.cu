// activation.cu: gelu (tanh form) and swiglu, forward and backward.
//
// Forward reads 1 (2) floats and writes 1: 8 (12) bytes an element; backward reads 2 (3) and writes 1 (2): 12 (20). Two bytes less
// for each of x, gate, up and out that is bfloat16. Gradients may overwrite what they are computed from: a thread reads before it writes.
//
// cast: numbers to bfloat16 and back, 6 bytes an element.
//
// naive: one thread per element.
// vector: one per four, by loads and stores of 128 bits; the same formulas, the same bits and bytes. A quarter of the
// instructions that move them, no 64-bit division for every element, and four times as much under way for each thread. Views
// whose rows follow each other are taken as one row.
#include "activation.cuh"
#include "launch.cuh"
#include "vector.cuh"

namespace freedive::cuda {
namespace {

__device__ float gelu_slope(float x) {
  const float square = x * x, t = tanhf(GELU_SCALE * (x + GELU_CUBIC * square * x));
  // 1 - t^2 is 0 from |x| = 10 on, where x^2 may still be infinite times 0
  const float slope = (1.0f - t) * (1.0f + t), inner = GELU_SCALE * (1.0f + 3.0f * GELU_CUBIC * square);
  return 0.5f * (1.0f + t) + (slope == 0.0f ? 0.0f : 0.5f * x * slope * inner);
}

__global__ void gelu_forward_kernel(fd_tensor out, fd_tensor in) {
  const int64_t N = in.shape[0], F = in.shape[1], i = global_thread();
  if (i >= N * F) return;
  set_number(out, row_at(out, i / F) + i % F, gelu(number(in, row_at(in, i / F) + i % F)));
}

__global__ void gelu_backward_kernel(fd_tensor dx, fd_tensor dout, fd_tensor in) {
  const int64_t N = in.shape[0], F = in.shape[1], i = global_thread();
  if (i >= N * F) return;
  row(dx, i / F)[i % F] = row(dout, i / F)[i % F] * gelu_slope(number(in, row_at(in, i / F) + i % F));
}

__global__ void swiglu_forward_kernel(fd_tensor out, fd_tensor gate, fd_tensor up) {
  const int64_t N = out.shape[0], F = out.shape[1], i = global_thread();
  if (i >= N * F) return;
  const int64_t n = i / F, f = i % F;
  set_number(out, row_at(out, n) + f, swiglu(number(gate, row_at(gate, n) + f), number(up, row_at(up, n) + f)));
}

__global__ void swiglu_backward_kernel(fd_tensor dgate, fd_tensor dup, fd_tensor dout, fd_tensor gate, fd_tensor up) {
  const int64_t N = dout.shape[0], F = dout.shape[1], i = global_thread();
  if (i >= N * F) return;
  const int64_t n = i / F, f = i % F;
  const float g = number(gate, row_at(gate, n) + f), u = number(up, row_at(up, n) + f), d = row(dout, n)[f], s = sigmoid(g);
  row(dgate, n)[f] = d * u * s * (1.0f + g * (1.0f - s));
  row(dup, n)[f] = d * g * s;
}

__global__ void cast_kernel(fd_tensor out, fd_tensor in) {
  const int64_t N = in.shape[0], F = in.shape[1], i = global_thread();
  if (i >= N * F) return;
  set_number(out, row_at(out, i / F) + i % F, number(in, row_at(in, i / F) + i % F));
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
  launch_threads(ctx, "swiglu_backward", a.dout.shape[0] * a.dout.shape[1], swiglu_backward_kernel, a.dgate, a.dup, a.dout,
                 a.gate, a.up);
}

void cast(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_cast_args*>(arguments);
  launch_threads(ctx, "cast", a.x.shape[0] * a.x.shape[1], cast_kernel, a.out, a.x);
}

// ---- vector ----------------------------------------------------------------------------------------------------------------
__global__ void gelu_forward_vector_kernel(fd_tensor out, fd_tensor in, unsigned blocks_of_row) {
  const RowPiece p = row_piece(in.shape[1], blocks_of_row);
  store4(out, row_at(out, p.n) + p.at, map4(gelu, load4(in, row_at(in, p.n) + p.at, p.left)), p.left);
}

__global__ void gelu_backward_vector_kernel(fd_tensor dx, fd_tensor dout, fd_tensor in, unsigned blocks_of_row) {
  const RowPiece p = row_piece(in.shape[1], blocks_of_row);
  const Four x = load4(in, row_at(in, p.n) + p.at, p.left), d = load4(row(dout, p.n) + p.at, p.left);
  store4(row(dx, p.n) + p.at, map4([](float dy, float v) { return dy * gelu_slope(v); }, d, x), p.left);
}

__global__ void swiglu_forward_vector_kernel(fd_tensor out, fd_tensor gate, fd_tensor up, unsigned blocks_of_row) {
  const RowPiece p = row_piece(out.shape[1], blocks_of_row);
  store4(out, row_at(out, p.n) + p.at,
         map4(swiglu, load4(gate, row_at(gate, p.n) + p.at, p.left), load4(up, row_at(up, p.n) + p.at, p.left)), p.left);
}

__global__ void swiglu_backward_vector_kernel(fd_tensor dgate, fd_tensor dup, fd_tensor dout, fd_tensor gate, fd_tensor up,
                                              unsigned blocks_of_row) {
  const RowPiece p = row_piece(dout.shape[1], blocks_of_row);
  const Four g = load4(gate, row_at(gate, p.n) + p.at, p.left), u = load4(up, row_at(up, p.n) + p.at, p.left),
             d = load4(row(dout, p.n) + p.at, p.left);
  const Four s = map4(sigmoid, g);
  store4(row(dgate, p.n) + p.at,
         map4([](float dy, float b, float a, float t) { return dy * b * t * (1.0f + a * (1.0f - t)); }, d, u, g, s), p.left);
  store4(row(dup, p.n) + p.at, map4([](float dy, float a, float t) { return dy * a * t; }, d, g, s), p.left);
}

__global__ void cast_vector_kernel(fd_tensor out, fd_tensor in, unsigned blocks_of_row) {
  const RowPiece p = row_piece(in.shape[1], blocks_of_row);
  store4(out, row_at(out, p.n) + p.at, load4(in, row_at(in, p.n) + p.at, p.left), p.left);
}

// The views [N, F] of one call, as [1, N F] if the rows of all of them follow each other.
template <class Kernel, class... Views>
void launch_vector(fd_context* ctx, const char* op, Kernel* kernel, Views... views) {
  int64_t rows = 0, width = 0;
  bool all_flat = true;
  ((rows = views.shape[0], width = views.shape[1], all_flat = all_flat && is_flat(views)), ...);
  if (rows * width == 0) return;
  if (all_flat) ((views.shape[0] = 1, views.shape[1] = rows * width), ...), width *= rows, rows = 1;
  const RowLaunch by(width);
  launch(ctx, op, rows * by.blocks, by.threads, kernel, views..., by.blocks);
}

void gelu_forward_vector(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_gelu_forward_args*>(arguments);
  launch_vector(ctx, "gelu_forward", gelu_forward_vector_kernel, a.out, a.x);
}
void gelu_backward_vector(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_gelu_backward_args*>(arguments);
  launch_vector(ctx, "gelu_backward", gelu_backward_vector_kernel, a.dx, a.dout, a.x);
}
void swiglu_forward_vector(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_swiglu_forward_args*>(arguments);
  launch_vector(ctx, "swiglu_forward", swiglu_forward_vector_kernel, a.out, a.gate, a.up);
}
void swiglu_backward_vector(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_swiglu_backward_args*>(arguments);
  launch_vector(ctx, "swiglu_backward", swiglu_backward_vector_kernel, a.dgate, a.dup, a.dout, a.gate, a.up);
}

void cast_vector(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_cast_args*>(arguments);
  launch_vector(ctx, "cast", cast_vector_kernel, a.out, a.x);
}

}  // namespace

FD_VARIANT_LIST(
    activation, {"cast", "naive", 0, cast, nullptr}, {"cast", "vector", 1, cast_vector, nullptr},
    {"gelu_forward", "naive", 0, gelu_forward, nullptr}, {"gelu_forward", "vector", 1, gelu_forward_vector, nullptr},
    {"gelu_backward", "naive", 0, gelu_backward, nullptr}, {"gelu_backward", "vector", 1, gelu_backward_vector, nullptr},
    {"swiglu_forward", "naive", 0, swiglu_forward, nullptr}, {"swiglu_forward", "vector", 1, swiglu_forward_vector, nullptr},
    {"swiglu_backward", "naive", 0, swiglu_backward, nullptr}, {"swiglu_backward", "vector", 1, swiglu_backward_vector, nullptr})

}  // namespace freedive::cuda
