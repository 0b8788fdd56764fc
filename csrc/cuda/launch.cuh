// launch.cuh: what every file of kernels is written with: how a kernel is launched, shared memory, views, and sums in a fixed
// order.
//
// nvcc compiles these files for a GPU; the C++ compiler compiles the same files for csrc/emulation. The two differ here and in
// ptx.cuh and ptx_sm90.cuh: no kernel says <<<>>>, __shared__ or asm itself, and where else FREEDIVE_CUDA_EMULATION is asked, it
// is for the device's name or the pointers within an argument.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "../core/context.h"
#include "../ops.h"
#include "describe.h"
#include "device.h"

#ifdef FREEDIVE_CUDA_EMULATION
namespace freedive::cuda {
template <class T>
struct Same {
  using type = T;
};
}  // namespace freedive::cuda
// FD_SHARED(float, tile, [32][33]): an array of the block, filled with NaN when a block begins
#define FD_SHARED(T, name, ...)                                                     \
  static char name##_key;                                                           \
  auto& name = *static_cast<typename ::freedive::cuda::Same<T __VA_ARGS__>::type*>( \
      ::emu::shared_array(&name##_key, sizeof(T __VA_ARGS__), 128))
// FD_DYNAMIC_SHARED(float, tiles): as many bytes as launch_shared gave the block, aligned to 1024, NaN here too
#define FD_DYNAMIC_SHARED(T, name) auto* const name = static_cast<T*>(::emu::dynamic_shared())
// The emulator looks at every pointer that a kernel is given: one of the host's would do here and fail on a GPU.
inline void visit_pointers(const fd_tensor& t, int argument) {
  if (t.data != nullptr) emu::require_device_memory(t.data, argument);
}
constexpr int tensors_in(const char* schema) { return *schema == 0 ? 0 : (*schema == '[') + tensors_in(schema + 1); }
#define FD_VISIT(op, schema)                                                                                        \
  inline void visit_pointers(const fd_##op##_args& a, int argument) {                                               \
    for (int i = 0; i < tensors_in(schema); ++i) visit_pointers(reinterpret_cast<const fd_tensor*>(&a)[i], argument); \
  }
FD_OPS(FD_VISIT)
#undef FD_VISIT
#else
#define FD_SHARED(T, name, ...) __shared__ __align__(128) T name __VA_ARGS__
#define FD_DYNAMIC_SHARED(T, name)                                       \
  extern __shared__ __align__(1024) unsigned char fd_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(fd_dynamic_shared)
#endif

namespace freedive::cuda {

constexpr int THREADS = 256, WARP = 32, WARPS = THREADS / WARP;
constexpr unsigned ALL_LANES = 0xffffffffu;

// Launches kernel(arguments...) on the context's stream, with so many bytes of FD_DYNAMIC_SHARED, in clusters of so many blocks.
// What goes wrong is told by the device's synchronize(), with the op's name.
template <int CLUSTER, class... Parameters, class... Arguments>
void launch_cluster(fd_context* ctx, const char* op, int64_t blocks, int threads, size_t shared, void (*kernel)(Parameters...),
                   Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "as many arguments as the kernel takes");
  if (blocks <= 0) return;
  const dim3 grid(static_cast<unsigned>(blocks)), block(static_cast<unsigned>(threads));
  const auto stream = static_cast<cudaStream_t>(ctx == nullptr ? nullptr : ctx->stream);
  auto failed = [=](const char* what) {
    std::string where = std::string(op) + ", " + std::to_string(blocks) + " blocks of " + std::to_string(threads) +
                        (shared > 0 ? " with " + std::to_string(shared) + " bytes of shared memory" : "");
    (describe(where, arguments), ...);
    record_error(stream, where.c_str(), what);
  };
  if (blocks > INT32_MAX) return failed("a grid has at most 2147483647 blocks");
  note_launch(stream, op);
  if (shared > (48 << 10) &&
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)) != cudaSuccess) {
    cudaGetLastError();
    return failed("a block needs more shared memory than this GPU has");
  }
#ifdef FREEDIVE_CUDA_EMULATION
  emu::launch_kernel(stream, [=] {
    try {
      emu::launch({grid, block, shared, CLUSTER}, kernel, arguments...);
    } catch (const std::exception& e) {
      failed(e.what());
    }
  });
  if (wait_after_each()) emu::synchronize(stream);
#else
  cudaError_t e;
  if constexpr (CLUSTER == 1) {
    kernel<<<grid, block, shared, stream>>>(static_cast<Parameters>(arguments)...);
    e = cudaGetLastError();
  } else {
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = CLUSTER, cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t how{};
    how.gridDim = grid, how.blockDim = block, how.dynamicSmemBytes = shared, how.stream = stream;
    how.attrs = &cluster, how.numAttrs = 1;
    e = cudaLaunchKernelEx(&how, kernel, static_cast<Parameters>(arguments)...);
  }
  if (e == cudaSuccess && wait_after_each()) e = cudaStreamSynchronize(stream);
  if (e != cudaSuccess) failed(cudaGetErrorString(e));
#endif
}

template <class... Parameters, class... Arguments>
void launch_shared(fd_context* ctx, const char* op, int64_t blocks, int threads, size_t shared, void (*kernel)(Parameters...),
                   Arguments&&... arguments) {
  launch_cluster<1>(ctx, op, blocks, threads, shared, kernel, std::forward<Arguments>(arguments)...);
}

template <class... Parameters, class... Arguments>
void launch(fd_context* ctx, const char* op, int64_t blocks, int threads, void (*kernel)(Parameters...),
            Arguments&&... arguments) {
  launch_shared(ctx, op, blocks, threads, 0, kernel, std::forward<Arguments>(arguments)...);
}

inline int64_t blocks_for(int64_t work, int64_t per_block) { return (work + per_block - 1) / per_block; }

// One thread for each of `work` pieces; kernels return where global_thread() is beyond.
template <class... Parameters, class... Arguments>
void launch_threads(fd_context* ctx, const char* op, int64_t work, void (*kernel)(Parameters...), Arguments&&... arguments) {
  launch(ctx, op, blocks_for(work, THREADS), THREADS, kernel, std::forward<Arguments>(arguments)...);
}
// One warp for each.
template <class... Parameters, class... Arguments>
void launch_warps(fd_context* ctx, const char* op, int64_t work, void (*kernel)(Parameters...), Arguments&&... arguments) {
  launch(ctx, op, blocks_for(work, WARPS), THREADS, kernel, std::forward<Arguments>(arguments)...);
}

__device__ inline int64_t global_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t global_warp() { return global_thread() / WARP; }
__device__ inline int lane_id() { return static_cast<int>(threadIdx.x) % WARP; }
__device__ inline int warp_of_block() { return static_cast<int>(threadIdx.x) / WARP; }

template <class T = float>
__device__ T* flat(const fd_tensor& t) {
  return static_cast<T*>(t.data);
}
// Row n of a view, or element [n, h, 0] of one with heads: they lie D apart, only the first dimension is strided. row_at: its number.
__device__ inline int64_t row_at(const fd_tensor& t, int64_t n) { return n * t.stride[0]; }
__device__ inline int64_t row_at(const fd_tensor& t, int64_t n, int64_t h) { return n * t.stride[0] + h * t.stride[1]; }
template <class T = float>
__device__ T* row(const fd_tensor& t, int64_t n) {
  return flat<T>(t) + row_at(t, n);
}
template <class T = float>
__device__ T* row(const fd_tensor& t, int64_t n, int64_t h) {
  return flat<T>(t) + row_at(t, n, h);
}
// A number as it lies in memory; uint16_t: the bits of a bfloat16.
__device__ inline float widened(float x) { return x; }
__device__ inline float widened(int8_t x) { return static_cast<float>(x); }
__device__ inline float widened(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widened(uint16_t x) { return widened(__ushort_as_bfloat16(x)); }
// Number i of a tensor that is of floats or of bfloat16; and stored, rounded, as what it is.
__device__ inline float number(const fd_tensor& t, int64_t i) {
  return t.dtype == FD_BF16 ? widened(flat<const uint16_t>(t)[i]) : flat<const float>(t)[i];
}
__device__ inline void set_number(const fd_tensor& t, int64_t i, float x) {
  if (t.dtype == FD_BF16)
    flat<uint16_t>(t)[i] = __bfloat16_as_ushort(__float2bfloat16_rn(x));
  else
    flat(t)[i] = x;
}
template <class T = float>
T* scratch(fd_context* ctx) {
  return reinterpret_cast<T*>(ctx->workspace);
}
// A view that is not there: it has no data.
inline fd_tensor absent() { return fd_tensor{nullptr, {0, 0, 0, 0}, {0, 0, 0, 0}, 0, FD_F32}; }

// What a product takes of x.
template <bool BF16>
__device__ float operand(float x) {
  return BF16 ? __bfloat162float(__float2bfloat16_rn(x)) : x;
}

// The sum over the lanes of a warp, the same bits in all of them: a + b is b + a.
template <class T>
__device__ T warp_sum(T x) {
  for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
}
// The largest of a warp; of floats, NaN counts for nothing.
__device__ inline float larger(float a, float b) { return fmaxf(a, b); }
__device__ inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
template <class T>
__device__ T warp_max(T x) {
  for (int step = WARP / 2; step > 0; step /= 2) x = larger(x, __shfl_xor_sync(ALL_LANES, x, step));
  return x;
}
// The sum over the lanes up to this one.
template <class T>
__device__ T warp_sum_up_to(T x) {
  for (int step = 1; step < WARP; step *= 2) {
    const T below = __shfl_up_sync(ALL_LANES, x, static_cast<unsigned>(step));
    if (lane_id() >= step) x += below;
  }
  return x;
}

// The sum over the threads of a block, the same bits in all of them; `shared`: WARPS of the block's own. Every thread must come.
__device__ inline double block_sum(double x, double* shared) {
  x = warp_sum(x);
  if (lane_id() == 0) shared[warp_of_block()] = x;
  __syncthreads();
  double total = 0.0;
  for (int w = 0; w < WARPS; ++w) total += shared[w];
  __syncthreads();  // before the next sum overwrites it
  return total;
}
// The largest float over the threads of a block, in the same way.
__device__ inline float block_max(float x, double* shared) {
  x = warp_max(x);
  if (lane_id() == 0) shared[warp_of_block()] = static_cast<double>(x);
  __syncthreads();
  for (int w = 0; w < WARPS; ++w) x = fmaxf(x, static_cast<float>(shared[w]));
  __syncthreads();
  return x;
}

}  // namespace freedive::cuda
