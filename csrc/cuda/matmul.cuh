// matmul.cuh: the product that the three layouts of training and the head are made of.
#pragma once
#include "launch.cuh"

namespace freedive::cuda {

// A product of A [rows, K] and B [columns, K], wherever their elements lie: element (i, k) of A is at i * row + k * step.
struct Operand {
  const float* data;
  int64_t row, step;
};
struct Product {
  Operand a, b;
  float* out;
  int64_t out_row, rows, columns, depth;
  bool add;
  const float *bias, *residual;
  int64_t residual_row;
};
#ifdef FREEDIVE_CUDA_EMULATION
inline void visit_pointers(const Product& p, int argument) {
  for (const float* x : {p.a.data, p.b.data, static_cast<const float*>(p.out), p.bias, p.residual})
    if (x != nullptr) emu::require_device_memory(x, argument);
}
#endif


inline Operand by_rows(const fd_tensor& t) { return {static_cast<const float*>(t.data), t.stride[0], 1}; }
inline Operand by_columns(const fd_tensor& t) { return {static_cast<const float*>(t.data), 1, t.stride[0]}; }

// out = (out +) A B^T (+ bias) (+ residual): every element one chain over k, then bias, then residual; the same bits tiled or not.
void multiply(fd_context* ctx, const char* op, const Product& p, int64_t compute, bool tiled);

}  // namespace freedive::cuda
