// ptx.cuh: one function for each PTX instruction that C++ has no word for. nvcc's side is the instruction; the emulator's is its
// meaning (csrc/emulation/ptx.cpp). Operands and layouts are the PTX ISA's, chapter 9.7.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#ifdef FREEDIVE_CUDA_EMULATION

namespace freedive::cuda::ptx {

inline void cp_async_16(void* shared, const void* global, int source_bytes = 16, EMU_HERE) {
  emu::copy_async(shared, global, 16, source_bytes, file, line);
}
inline void cp_async_commit() { emu::copy_commit(); }
template <int N>
void cp_async_wait() {
  emu::copy_wait(N);
}
inline uint32_t bf16_pair(float low, float high) {
  return static_cast<uint32_t>(__float2bfloat16_rn(low).bits) | static_cast<uint32_t>(__float2bfloat16_rn(high).bits) << 16;
}
inline float exp2_approx(float x) {
  const float y = exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row, EMU_HERE) {
  emu::ldmatrix(r, 4, false, shared_row, file, line);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row, EMU_HERE) {
  emu::ldmatrix(r, 4, true, shared_row, file, line);
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, EMU_HERE) {
  emu::mma_m16n8k16_bf16(d, a, b0, b1, file, line);
}

}  // namespace freedive::cuda::ptx

#else

namespace freedive::cuda::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// 16 bytes from global to shared memory, both aligned to 16; of the source only source_bytes are read, the rest becomes 0.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, int source_bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(source_bytes)
               : "memory");
}
// What this thread copied since the last commit is a group.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Returns when all of this thread's groups but the newest N have arrived. Other threads' need a barrier after it.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
// Two numbers rounded to bfloat16, to nearest, ties to even.
__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
// 2^x within 2^-22 of itself, and 0 where that is below 2^-126: one instruction, where exp2f is four.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Four 8 x 8 matrices of 16-bit numbers: lane l gives the address of row l % 8 of matrix l / 8; register j of lane l gets row l /
// 4, columns 2 (l % 4) and one more, of matrix j (trans: of its transpose).
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}
// d [16 x 8] += a [16 x 16] b [16 x 8], bfloat16 operands and float32 sums, spread over the lanes as the ISA draws them.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace freedive::cuda::ptx

#endif
