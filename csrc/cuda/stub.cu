// stub.cu: three ops in CUDA, to prove that the signatures of ops.h suit a GPU before the real device is written.
//
// The kernels are the naive rung of the ladder: one thread or one warp per row, read and written in place, no shared memory.
// What the stub shows: views travel to a kernel by value, strides included; the stream and the workspace come from the
// context; a reduction has a fixed order without atomics; and a variant table fills without a change to ops.h.
// Nothing links it yet, and it has never run: see README.md.
#include <cuda_runtime.h>

#include "stub.h"

namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

cudaStream_t stream_of(const fd_context* ctx) { return static_cast<cudaStream_t>(ctx->stream); }

unsigned blocks_for(int64_t work, int64_t per_block) { return static_cast<unsigned>((work + per_block - 1) / per_block); }

__device__ int64_t global_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

__device__ float* floats(const fd_tensor& t) { return static_cast<float*>(t.data); }
__device__ const int32_t* ints(const fd_tensor& t) { return static_cast<const int32_t*>(t.data); }

// ---- embedding_forward: out[n] = wte[tokens[n]] (+ wpe[positions[n]]) ------------------------------------------------
// Reads C floats (2C with wpe) and one id, writes C floats per token. One thread per element; neighbours read neighbours.

__global__ void embedding_forward_kernel(fd_tensor out, fd_tensor tokens, fd_tensor positions, fd_tensor wte, fd_tensor wpe) {
  const int64_t N = out.shape[0], C = out.shape[1], i = global_thread();
  if (i >= N * C) return;
  const int64_t n = i / C, c = i % C;
  float value = floats(wte)[ints(tokens)[n] * wte.stride[0] + c];
  if (wpe.data != nullptr) value += floats(wpe)[ints(positions)[n] * wpe.stride[0] + c];
  floats(out)[n * out.stride[0] + c] = value;
}

void embedding_forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_embedding_forward_args*>(arguments);
  const int64_t work = a.out.shape[0] * a.out.shape[1];
  if (work == 0) return;
  embedding_forward_kernel<<<blocks_for(work, kThreads), kThreads, 0, stream_of(ctx)>>>(a.out, a.tokens, a.positions, a.wte,
                                                                                        a.wpe);
}

// ---- rmsnorm_forward: out = x rstd weight, rstd = 1/sqrt(mean(x^2) + eps) --------------------------------------------
// Reads D floats twice (the second time from cache), writes D + 1. One warp per row: lane l sums elements l, l+32, ... in
// order, then a butterfly in a fixed order, so the sum depends on D only. out may be x: a lane reads what it overwrites.

__global__ void rmsnorm_forward_kernel(fd_tensor out, fd_tensor rstd, fd_tensor x, fd_tensor weight, double eps) {
  const int64_t H = x.shape[1], D = x.shape[2], row = global_thread() / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (row >= x.shape[0] * H) return;  // whole warps leave together
  const int64_t n = row / H, h = row % H;
  const float* in = floats(x) + n * x.stride[0] + h * x.stride[1];
  float* to = floats(out) + n * out.stride[0] + h * out.stride[1];
  double sum = 0.0;
  for (int64_t d = lane; d < D; d += kWarp) sum = fma(static_cast<double>(in[d]), static_cast<double>(in[d]), sum);
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  const float r = static_cast<float>(1.0 / sqrt(sum / static_cast<double>(D) + eps));
  for (int64_t d = lane; d < D; d += kWarp) to[d] = in[d] * r * floats(weight)[d];
  if (lane == 0) floats(rstd)[n * rstd.stride[0] + h] = r;
}

void rmsnorm_forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_rmsnorm_forward_args*>(arguments);
  const int64_t rows = a.x.shape[0] * a.x.shape[1];
  if (rows == 0) return;
  rmsnorm_forward_kernel<<<blocks_for(rows, kThreads / kWarp), kThreads, 0, stream_of(ctx)>>>(a.out, a.rstd, a.x, a.weight,
                                                                                              a.eps);
}

// ---- swiglu_forward: out = silu(gate) up, silu(a) = a / (1 + exp(-a)) ------------------------------------------------
// Reads two floats, writes one. gate and up are the halves of one matrix product: strided views, one thread per element.

__global__ void swiglu_forward_kernel(fd_tensor out, fd_tensor gate, fd_tensor up) {
  const int64_t N = out.shape[0], F = out.shape[1], i = global_thread();
  if (i >= N * F) return;
  const int64_t n = i / F, f = i % F;
  const float g = floats(gate)[n * gate.stride[0] + f];
  floats(out)[n * out.stride[0] + f] = g / (1.0f + expf(-g)) * floats(up)[n * up.stride[0] + f];
}

void swiglu_forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_swiglu_forward_args*>(arguments);
  const int64_t work = a.out.shape[0] * a.out.shape[1];
  if (work == 0) return;
  swiglu_forward_kernel<<<blocks_for(work, kThreads), kThreads, 0, stream_of(ctx)>>>(a.out, a.gate, a.up);
}

// ---- the table -------------------------------------------------------------------------------------------------------

const fd_variant kVariants[] = {
    {"embedding_forward", "naive", 0, embedding_forward, nullptr},
    {"rmsnorm_forward", "naive", 0, rmsnorm_forward, nullptr},
    {"swiglu_forward", "naive", 0, swiglu_forward, nullptr},
};

int64_t packed_size(int64_t O, int64_t C, int64_t) { return O * C; }  // no packing: the weight as it is
int64_t quantized_size(int64_t, int64_t, int64_t) { return 0; }        // no type is held packed
int64_t quantized_row(int64_t, int64_t) { return 0; }
double peak_run(fd_context*, int64_t, int64_t) { return 0.0; }        // not measured by the stub

const fd_device_table kDevice = {"cuda-stub", "naive", kVariants, static_cast<int32_t>(sizeof(kVariants) / sizeof(kVariants[0])),
                                 packed_size, quantized_size, quantized_row, peak_run, 0};

}  // namespace

const fd_device_table* freedive::cuda_stub_device() { return &kDevice; }
