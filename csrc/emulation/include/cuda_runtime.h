// What kernels and launchers of csrc/cuda use of <cuda_runtime.h>, made of the emulator. Found first on the path of the emulated build; nvcc
// finds its own.
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
  return emu::shuffle(mask, value, static_cast<unsigned>((from & ~(width - 1)) > (lane & ~(width - 1)) ? lane : from), file, line);
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
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }

// ---- the runtime's functions -----------------------------------------------------------------------------------------
using cudaStream_t = emu::Stream*;
using cudaEvent_t = emu::Event*;
using cudaError_t = int;
enum { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorNotReady = 600 };
enum cudaMemcpyKind { cudaMemcpyDefault = 4 };
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
constexpr unsigned cudaMemAttachGlobal = 1;
inline cudaError_t cudaMallocManaged(void** p, size_t bytes, unsigned = cudaMemAttachGlobal) {
  *p = emu::allocate(bytes);
  return *p == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
inline cudaError_t cudaMalloc(void** p, size_t bytes) {
  *p = emu::allocate_private(bytes);
  return *p == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
inline cudaError_t cudaFree(void* p) {
  emu::synchronize(static_cast<emu::Stream*>(nullptr));
  if (!emu::release_private(p)) emu::release(p);
  return cudaSuccess;
}
inline cudaError_t cudaMallocHost(void** p, size_t bytes) {
  *p = emu::allocate_pinned(bytes);
  return *p == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* p) {
  emu::release_pinned(p);
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = emu::free_memory();
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  emu::copy(stream, to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  emu::fill(stream, p, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = emu::open_stream();
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  emu::close_stream(stream);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  emu::synchronize(stream);
  return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned = 0) {
  emu::stream_wait(stream, event);
  return cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = emu::open_event();
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  emu::close_event(event);
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  emu::record(event, stream);
  return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  emu::synchronize(event);
  return cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) { return emu::reached(event) ? cudaSuccess : cudaErrorNotReady; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }  // launches tell of theirs by an exception
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76 };
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {  // 9.0: every instruction of the emulator
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaSuccess ? "no error" : e == cudaErrorMemoryAllocation ? "out of memory" : "invalid argument";
}
template <class F>
cudaError_t cudaFuncSetAttribute(F* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > (227 << 10)) return cudaErrorInvalidValue;
  emu::allow_shared(reinterpret_cast<const void*>(kernel), static_cast<size_t>(bytes));
  return cudaSuccess;
}
