// rope.cu: rotary position embedding in half-rotation form, forward and (inverse) backward.
//
// Reads D and writes D floats per head, and D/2 of each table per token (from memory once, for the other heads from cache): 8
// bytes a number.
//
// naive: one thread per pair, so out may be x.
// vector: a block per token; a thread rotates four neighbouring pairs of a head by loads and stores of 128 bits. The same bits
// and bytes, a quarter of the instructions, and two 32-bit divisions for eight numbers where naive makes three of 64 bits for
// two. What is left of R / 4 goes number by number.
#include "launch.cuh"
#include "vector.cuh"

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
  launch_threads(ctx, "rope", a.x.shape[0] * a.x.shape[1] * (a.x.shape[2] / 2), rope_kernel, a.out, a.x, a.cos, a.sin,
                 a.positions, a.inverse);
}

__global__ void rope_vector_kernel(fd_tensor out, fd_tensor x, fd_tensor cos, fd_tensor sin, fd_tensor positions,
                                   int64_t inverse) {
  const int64_t n = blockIdx.x, R = x.shape[2] / 2, p = flat<int32_t>(positions)[n];
  const unsigned fours = static_cast<unsigned>((R + VECTOR - 1) / VECTOR), work = static_cast<unsigned>(x.shape[1]) * fours;
  for (unsigned i = threadIdx.x; i < work; i += blockDim.x) {
    const unsigned h = i / fours;
    const int64_t r = static_cast<int64_t>(i - h * fours) * VECTOR, left = R - r;
    const float* from = row(x, n, h) + r;
    float* to = row(out, n, h) + r;
    const Four a = load4(from, left), b = load4(from + R, left), c = load4(row(cos, p) + r, left);
    const Four s = map4([&](float v) { return inverse != 0 ? -v : v; }, load4(row(sin, p) + r, left));
    store4(to, map4([](float u, float v, float cosine, float sine) { return fmaf(u, cosine, -(v * sine)); }, a, b, c, s), left);
    store4(to + R, map4([](float u, float v, float cosine, float sine) { return fmaf(v, cosine, u * sine); }, a, b, c, s), left);
  }
}

void rope_vector(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_rope_args*>(arguments);
  const int64_t R = a.x.shape[2] / 2, width = a.x.shape[1] * blocks_for(R, VECTOR) * VECTOR;
  if (width == 0) return;
  launch(ctx, "rope", a.x.shape[0], RowLaunch(width).threads, rope_vector_kernel, a.out, a.x, a.cos, a.sin, a.positions,
         a.inverse);
}

}  // namespace

FD_VARIANT_LIST(rope, {"rope", "naive", 0, rope, nullptr}, {"rope", "vector", 1, rope_vector, nullptr})

}  // namespace freedive::cuda
