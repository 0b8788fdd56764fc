// What kernels and launchers of csrc/cuda use of <cuda_runtime.h>, made of the emulator. Found first on the path of the emulated
// build; nvcc finds its own.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../emulator.h"
#include "../streams.h"

#define FREEDIVE_CUDA_EMULATION 1
#define __host__
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

#define threadIdx (::emu::current->index)
#define blockIdx (::emu::current->block)
#define blockDim (::emu::block_dim)
#define gridDim (::emu::grid_dim)

// ---- vectors -------------------------------------------------------------------------------------------------------
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- barriers and collectives of a warp ----------------------------------------------------------------------------
inline void __syncthreads(EMU_HERE) { emu::barrier(0, 0, emu::Vote::NONE, 0, file, line); }
inline int __syncthreads_count(int p, EMU_HERE) { return emu::barrier(0, 0, emu::Vote::COUNT, p, file, line); }
inline int __syncthreads_and(int p, EMU_HERE) { return emu::barrier(0, 0, emu::Vote::ALL, p, file, line); }
inline int __syncthreads_or(int p, EMU_HERE) { return emu::barrier(0, 0, emu::Vote::ANY, p, file, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_HERE) {
  emu::collective(mask, 0, nullptr, [](void**, unsigned) {}, true, file, line);
}

namespace emu {

template <class T>
T shuffle(unsigned mask, T value, unsigned from, const char* file, int line) {
  static_assert(std::is_trivially_copyable<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "shuffles move 4 or 8 bytes");
  T got = value;
  shuffle_bytes(mask, &value, &got, static_cast<int>(sizeof(T)), from, file, line);
  return got;
}

}  // namespace emu

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, EMU_HERE) {
  const int lane = static_cast<int>(emu::current->lane);
  return emu::shuffle(mask, value, static_cast<unsigned>((lane & ~(width - 1)) | (from & (width - 1))), file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMU_HERE) {
  const int lane = static_cast<int>(emu::current->lane), from = lane ^ bits;
  return emu::shuffle(mask, value, static_cast<unsigned>((from & ~(width - 1)) > (lane & ~(width - 1)) ? lane : from), file,
                      line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, EMU_HERE) {
  const unsigned lane = emu::current->lane, w = static_cast<unsigned>(width);
  return emu::shuffle(mask, value, (lane & (w - 1)) + by < w ? lane + by : lane, file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, EMU_HERE) {
  const unsigned lane = emu::current->lane, w = static_cast<unsigned>(width);
  return emu::shuffle(mask, value, (lane & (w - 1)) >= by ? lane - by : lane, file, line);
}
inline unsigned __ballot_sync(unsigned mask, int p, EMU_HERE) { return emu::ballot(mask, p, file, line); }
inline int __any_sync(unsigned mask, int p, EMU_HERE) { return emu::ballot(mask, p, file, line) != 0; }
inline int __all_sync(unsigned mask, int p, EMU_HERE) { return emu::ballot(mask, !p, file, line) == 0; }

// ---- arithmetic ----------------------------------------------------------------------------------------------------
inline unsigned __float_as_uint(float f) {
  unsigned u;
  std::memcpy(&u, &f, 4);
  return u;
}
inline float __uint_as_float(unsigned u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __dp4a(int a, int b, int sum) {  // of four signed bytes each
  for (int i = 0; i < 32; i += 8) sum += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
  return sum;
}

// ---- the runtime's functions -----------------------------------------------------------------------------------------
using cudaStream_t = emu::Stream*;
using cudaEvent_t = emu::Event*;
using cudaError_t = int;
using cudaGraph_t = emu::Graph*;
using cudaGraphExec_t = emu::Runnable*;
enum { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum cudaMemcpyKind { cudaMemcpyDefault = 4 };
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDefault = 0, cudaEventDisableTiming = 2;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
constexpr unsigned cudaMemAttachGlobal = 1;
namespace emu {
inline cudaError_t given(void** p, void* memory) { return (*p = memory) == nullptr ? cudaErrorMemoryAllocation : cudaSuccess; }
}  // namespace emu
inline cudaError_t cudaMallocManaged(void** p, size_t bytes, unsigned = cudaMemAttachGlobal) {
  if (const int e = emu::unsafe_call()) return e;
  if (!emu::managed_memory()) return cudaErrorMemoryAllocation;  // nobody takes what it would fault on
  return emu::given(p, emu::allocate(bytes));
}
inline cudaError_t cudaMalloc(void** p, size_t bytes) {
  if (const int e = emu::unsafe_call()) return e;
  return emu::given(p, emu::allocate_private(bytes));
}
inline cudaError_t cudaMallocHost(void** p, size_t bytes) {
  if (const int e = emu::unsafe_call()) return e;
  return emu::given(p, emu::allocate_pinned(bytes));
}
constexpr unsigned cudaHostAllocMapped = 2;
inline cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned flags) {
  if (flags != cudaHostAllocMapped) return cudaErrorInvalidValue;
  if (const int e = emu::unsafe_call()) return e;
  return emu::given(p, emu::allocate_mapped(bytes));
}
enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice, cudaMemoryTypeManaged };
struct cudaPointerAttributes {
  cudaMemoryType type;
};
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* of, const void* p) {  // of what is allocated here
  of->type = emu::is_hosts(p) ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* p) {
  if (const int e = emu::unsafe_call()) return e;
  if (emu::is_hosts(p)) return cudaErrorInvalidValue;
  emu::synchronize(static_cast<emu::Stream*>(nullptr));
  if (!emu::release_private(p)) emu::release(p);
  return cudaSuccess;
}
// Of the rest each has one function of streams.h, which fails by an exception.
inline cudaError_t cudaFreeHost(void* p) {
  if (const int e = emu::unsafe_call()) return e;
  return emu::release_pinned(p), cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(size_t* free, size_t* total) { return *free = *total = emu::free_memory(), cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return emu::copy(stream, to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  return emu::fill(stream, p, value, bytes), cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = emu::open_stream(), cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return emu::close_stream(stream), cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const int e = emu::unsafe_call()) return e;
  if (const int e = emu::spoiled(stream, emu::UNSUPPORTED)) return e;
  return emu::synchronize(stream), cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned = 0) {
  return emu::stream_wait(stream, event), cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return *event = emu::open_event((flags & cudaEventDisableTiming) == 0), cudaSuccess;
}
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  return *milliseconds = 1e3f * static_cast<float>(emu::seconds_between(from, to)), cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { return emu::close_event(event), cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return emu::record(event, stream), cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (const int e = emu::spoiled(event)) return e;
  return emu::synchronize(event), cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) { return emu::begin_capture(stream); }
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) { return emu::end_capture(stream, graph); }
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long = 0) {
  return *made = emu::instantiate(graph), cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) { return emu::launch(graph, stream), cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return emu::close_graph(graph), cudaSuccess; }
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return emu::close_graph(graph), cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }  // launches tell of theirs by an exception
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrConcurrentManagedAccess = 89
};
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {  // 9.0: every instruction of the emulator
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
  if (attribute == cudaDevAttrMultiProcessorCount) *value = 4;  // few: a persistent block has several tiles
  if (attribute == cudaDevAttrConcurrentManagedAccess) *value = emu::managed_memory();
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t e) {
  if (e >= emu::UNSUPPORTED) return "not permitted while a stream is captured";
  return e == cudaSuccess ? "no error" : e == cudaErrorMemoryAllocation ? "out of memory" : "invalid argument";
}
template <class F>
cudaError_t cudaFuncSetAttribute(F* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > (227 << 10)) return cudaErrorInvalidValue;
  emu::allow_shared(reinterpret_cast<const void*>(kernel), static_cast<size_t>(bytes));
  return cudaSuccess;
}
