// matmul.h: the blocked product, as matmul.cpp lends it to the head, and matmul_forward to the products that an activation follows.
#pragma once
#include "simd.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {

// C[m,n] = (accumulate ? C : 0) + A[m,k] B[k,n] (+ bias[n]) (+ residual[m,n]): every element one chain over k.
struct Gemm {
  int64_t m, n, k;
  const float* a;  // A(i, k) = a[i*a_row + k*a_k]; one of the two strides is 1
  int64_t a_row, a_k;
  const float* b;  // B(k, j) = b[k*b_k + j*b_j]; one of the two strides is 1
  int64_t b_k, b_j;
  const float* packed;  // the same from pack_weight, or NULL
  float* c;
  int64_t c_row;
  bool accumulate;
  const float* bias;      // or NULL
  const float* residual;  // or NULL; may be c
  int64_t residual_row;
  int64_t compute;  // FD_F32 or FD_BF16
  const bf16 *a16 = nullptr, *b16 = nullptr;  // instead of a (with a_k = 1) and of b (with b_j = 1): numbers that are bfloat16
  float* sums = nullptr;  // or [m], to which the rows of an A stored by columns (a_row = 1) are added, in the order of k
};

size_t gemm_workspace(int32_t threads);  // bytes, whatever the shape
void gemm(fd_context* ctx, uint8_t* workspace, const Gemm& g);

int64_t matmul_packed_size(int64_t O, int64_t C, int64_t compute);  // words of 32 bits
// The variants of matmul_forward.
void matmul_forward_naive(fd_context* ctx, const void* arguments);
void matmul_forward_simd(fd_context* ctx, const void* arguments);
size_t matmul_forward_workspace(const fd_tensor& weight, int32_t threads);  // of the second

void pack_weight(fd_context* ctx, float* packed, const float* weight, int64_t weight_row, int64_t O, int64_t C, int64_t compute);

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
