// ptx_sm90.cuh: ptx.cuh goes on, with what only compute capability 9.0a has: mbarriers that count bytes, TMA, wgmma, setmaxnreg.
// Kernels that use it are empty in code for other GPUs (FD_SM90_CODE), and their launchers do not call them there.
#pragma once
#include <cuda.h>

#include "ptx.cuh"

#if defined(FREEDIVE_CUDA_EMULATION) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FD_SM90_CODE 1
#else
#define FD_SM90_CODE 0
#endif

namespace freedive::cuda::ptx {

// ---- mbarrier: 64 bits of shared memory. A phase ends when as many have arrived as init said, and all bytes they announced ----
#ifdef FREEDIVE_CUDA_EMULATION

inline void mbarrier_init(uint64_t* barrier, int count) { emu::mbarrier_init(barrier, count); }
inline void fence_mbarrier_init() { emu::fence_mbarrier_init(); }
inline void fence_proxy_async() { emu::fence_proxy_async(); }
inline void mbarrier_arrive(uint64_t* barrier, EMU_HERE) { emu::mbarrier_arrive(barrier, 0, file, line); }
inline void mbarrier_arrive_expect(uint64_t* barrier, int bytes, EMU_HERE) { emu::mbarrier_arrive(barrier, bytes, file, line); }
inline void mbarrier_wait(uint64_t* barrier, int parity, EMU_HERE) { emu::mbarrier_wait(barrier, parity, file, line); }
inline void tma_load_2d(void* shared, const CUtensorMap* map, uint64_t* barrier, int x, int y, EMU_HERE) {
  emu::tma_load_2d(shared, map, barrier, x, y, file, line);
}
inline void tma_store_2d(const CUtensorMap* map, const void* shared, int x, int y, EMU_HERE) {
  emu::tma_store_2d(map, shared, x, y, file, line);
}
inline void tma_load_2d_multicast(void* shared, const CUtensorMap* map, uint64_t* barrier, int x, int y, unsigned blocks,
                                  EMU_HERE) {
  emu::tma_load_2d_multicast(shared, map, barrier, x, y, blocks, file, line);
}
inline uint32_t cluster_rank() { return emu::current->rank; }
inline void cluster_sync(EMU_HERE) { emu::cluster_barrier(file, line); }
inline void mbarrier_arrive_at(uint64_t* barrier, uint32_t rank, EMU_HERE) { emu::mbarrier_arrive_at(barrier, rank, file, line); }
inline void bulk_commit() { emu::bulk_commit(); }
template <int N>
void bulk_wait_read(EMU_HERE) {
  emu::bulk_wait(N, file, line);
}
inline void wgmma_fence(EMU_HERE) { emu::wgmma_fence(file, line); }
inline void wgmma_commit(EMU_HERE) { emu::wgmma_commit(file, line); }
template <int N>
void wgmma_wait(EMU_HERE) {
  emu::wgmma_wait(N, file, line);
}
template <int N>
void hold(float (&)[N]) {}
inline uint32_t shared_address(const void* p) { return emu::shared_address(p); }
template <bool A_BY_K, bool B_BY_K, int N>
void wgmma_bf16(float (&d)[N], uint64_t a, uint64_t b, bool add, EMU_HERE) {
  emu::wgmma(d, 2 * N, a, b, A_BY_K, B_BY_K, add, file, line);
}
template <bool B_BY_K, int N>
void wgmma_bf16_rs(float (&d)[N], const uint32_t (&a)[4], uint64_t b, bool add, EMU_HERE) {
  emu::wgmma_rs(d, 2 * N, a, b, B_BY_K, add, file, line);
}
template <int REGISTERS>
void fewer_registers(EMU_HERE) {
  emu::set_registers(REGISTERS, file, line);
}
template <int REGISTERS>
void more_registers(EMU_HERE) {
  emu::set_registers(REGISTERS, file, line);
}
inline void barrier_sync(int id, int threads, EMU_HERE) { emu::barrier(id, threads, emu::Vote::NONE, 0, file, line); }

#else

__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
// After init, by the same thread: TMA sees the barrier. Other threads need a barrier of the block after it.
__device__ __forceinline__ void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// What this thread wrote to shared memory is seen by TMA and wgmma.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
// Returns when the phase of that parity (0 is a barrier's first) has ended; at once for the other one.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, int parity) {
  uint32_t ended = 0;
  while (ended == 0)
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
                 : "=r"(ended)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
}

// ---- clusters: blocks that run together ----
// This block's place in its cluster.
__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// All threads of all blocks of the cluster. Not .aligned: lanes of a producer's warp come one by one.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// On the mbarrier at the same place in block `rank`.
__device__ __forceinline__ void mbarrier_arrive_at(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}\n" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

// ---- TMA: a box of a tensor, by one thread. Rows of a box lie 128 bytes apart, pieces of 16 bytes exchanged by the lowest bits
// of the row ----
__device__ __forceinline__ void tma_load_2d(void* shared, const CUtensorMap* map, uint64_t* barrier, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
                   shared_address(shared)),
               "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y)
               : "memory");
}
// To the same place in each block of the cluster that has a bit in `blocks`, and the bytes to the mbarrier at the place of
// `barrier` in each.
__device__ __forceinline__ void tma_load_2d_multicast(void* shared, const CUtensorMap* map, uint64_t* barrier, int x, int y,
                                                      unsigned blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "h"(static_cast<uint16_t>(blocks))
      : "memory");
}
__device__ __forceinline__ void tma_store_2d(const CUtensorMap* map, const void* shared, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(shared_address(shared)), "r"(x), "r"(y)
               : "memory");
}
__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Shared memory of all of this thread's stores but the newest N groups may be written again.
template <int N>
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

// ---- wgmma: d [64 x N] (+)= a [64 x 16] b [N x 16]^T by four warps, operands in shared memory ----
// Before the first, and after registers of d were touched.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// Keeps the compiler from moving d's registers across this line: beside fence and wait.
template <int N>
__device__ __forceinline__ void hold(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
// add: false begins from 0. Thread t of the group holds rows 16 (t / 32) + t % 32 / 4 and 8 below, columns 8 j + 2 (t % 4) and
// the next, for each j. One definition for each width: COUNT registers of d, which are operands %0, %1, .. and are followed by a,
// b, add and the two layouts.
#define FD_8_REGISTERS(d, i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define FD_32_REGISTERS(d, i) FD_8_REGISTERS(d, i), FD_8_REGISTERS(d, i + 8), FD_8_REGISTERS(d, i + 16), FD_8_REGISTERS(d, i + 24)
#define FD_64_REGISTERS(d, i) FD_32_REGISTERS(d, i), FD_32_REGISTERS(d, i + 32)
#define FD_128_REGISTERS(d, i) FD_64_REGISTERS(d, i), FD_64_REGISTERS(d, i + 64)
#define FD_32_NAMES \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FD_64_NAMES FD_32_NAMES \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FD_128_NAMES FD_64_NAMES \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define FD_WGMMA(COUNT, SHAPE, A, B, ADD, A_ACROSS, B_ACROSS)                                                                 \
  template <bool A_BY_K, bool B_BY_K>                                                                                        \
  __device__ __forceinline__ void wgmma_bf16(float (&d)[COUNT], uint64_t a, uint64_t b, bool add) {                          \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\n"                                                            \
                 "wgmma.mma_async.sync.aligned." SHAPE ".f32.bf16.bf16 {" FD_##COUNT##_NAMES "}, "                           \
                 A ", " B ", p, 1, 1, " A_ACROSS ", " B_ACROSS ";\n}\n"                                                       \
                 : FD_##COUNT##_REGISTERS(d, 0)                                                                              \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(A_BY_K ? 0 : 1), "n"(B_BY_K ? 0 : 1));                    \
  }
FD_WGMMA(32, "m64n64k16", "%32", "%33", "%34", "%35", "%36")
FD_WGMMA(64, "m64n128k16", "%64", "%65", "%66", "%67", "%68")
FD_WGMMA(128, "m64n256k16", "%128", "%129", "%130", "%131", "%132")
#undef FD_WGMMA
// The same with a in registers: of the rows a thread holds of d, a[0] (8 below: a[1]) is columns 2 (t % 4) and the next, a[2] and
// a[3] those 8 further. They are read until the program has waited; what wrote them before needs wgmma_fence, as of d.
#define FD_WGMMA_RS(COUNT, SHAPE, A, B, ADD, B_ACROSS)                                                                       \
  template <bool B_BY_K>                                                                                                     \
  __device__ __forceinline__ void wgmma_bf16_rs(float (&d)[COUNT], const uint32_t (&a)[4], uint64_t b, bool add) {           \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\n"                                                            \
                 "wgmma.mma_async.sync.aligned." SHAPE ".f32.bf16.bf16 {" FD_##COUNT##_NAMES "}, "                           \
                 "{" A "}, " B ", p, 1, 1, " B_ACROSS ";\n}\n"                                                               \
                 : FD_##COUNT##_REGISTERS(d, 0)                                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), "n"(B_BY_K ? 0 : 1));     \
  }
FD_WGMMA_RS(32, "m64n64k16", "%32, %33, %34, %35", "%36", "%37", "%38")
FD_WGMMA_RS(64, "m64n128k16", "%64, %65, %66, %67", "%68", "%69", "%70")
#undef FD_WGMMA_RS
#undef FD_8_REGISTERS
#undef FD_32_REGISTERS
#undef FD_64_REGISTERS
#undef FD_128_REGISTERS
#undef FD_32_NAMES
#undef FD_64_NAMES
#undef FD_128_NAMES

// Registers of each thread of the warpgroup that calls it: given back, or taken from what others gave.
template <int REGISTERS>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
// Of some warps of the block: id from 1 on.
__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

#endif

// What wgmma is told of an operand in shared memory, swizzled by 128 bytes as TMA leaves it (matrix-descriptor format of the
// ISA).
//   along k:   box [rows][64 k]: 8 rows further are `stride` bytes (1024) further; `leading` is not used. 16 k further: 32 bytes
//   across k:  boxes [k][64 rows]: 8 k further are `stride` bytes (1024) further, the next 64 rows `leading` bytes. 16 k further:
//              2048 bytes
__device__ __forceinline__ uint64_t wgmma_operand(uint32_t address, uint32_t leading, uint32_t stride) {
  const uint64_t swizzle_128 = 1;
  return (address & 0x3FFFF) >> 4 | static_cast<uint64_t>(leading >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32 |
         swizzle_128 << 62;
}

// A map of bfloat16 (uint16_t) or float32 [rows, columns], rows `row` numbers apart, for boxes [box_rows][box_columns], outside
// of which is 0. False: the tensor is none that TMA takes, or the driver knows no TMA. The driver's function is asked for at run
// time: nothing is linked with libcuda.
template <class T>
bool tensor_map_2d(CUtensorMap* map, const T* data, int64_t rows, int64_t columns, int64_t row, int box_rows,
                   int box_columns) {
#ifdef FREEDIVE_CUDA_EMULATION
  const auto encode = &cuTensorMapEncodeTiled;
#else
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    return e == cudaSuccess && found == cudaDriverEntryPointSuccess
               ? reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function)
               : nullptr;
  }();
  if (encode == nullptr) return false;
#endif
  const cuuint64_t dimensions[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)},
                   strides[] = {static_cast<cuuint64_t>(row) * sizeof(T)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  return encode(map, sizeof(T) == 4 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
                const_cast<void*>(static_cast<const void*>(data)), dimensions, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// Multiprocessors of a GPU of compute capability 9.0; 0 of others.
inline int multiprocessors_of_sm90() {
  static const int n = [] {
    int device = 0, major = 0, minor = 0, count = 0;
    const bool told = cudaGetDevice(&device) == cudaSuccess &&
                      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
                      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
    return told && major == 9 && minor == 0 ? count : 0;
  }();
  return n;
}

}  // namespace freedive::cuda::ptx
