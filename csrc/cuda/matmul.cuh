// matmul.cuh: the product that the three layouts of training and the head are made of.
#pragma once
#include "launch.cuh"

namespace freedive::cuda {

// A product of A [rows, K] and B [columns, K], wherever their elements lie: element (i, k) of A is at i * row + k * step.
struct Operand {
  const float* data;
  int64_t row, step;
  const uint16_t* half = nullptr;  // instead of data: its elements are bfloat16
};
// What is stored of a product: its sums; or, where an activation follows, the sums (aux) and what it makes of them (out), each
// where it is wanted. SWIGLU: columns are the gate's and then up's, and a column of out comes from one of both.
enum class Epilogue { SUM, GELU, SWIGLU };
template <Epilogue E>
constexpr int SUMS_OF = E == Epilogue::SWIGLU ? 2 : 1;  // a column of out
struct Activated {
  fd_tensor out, aux;
};
struct Product {
  Operand a, b;
  float* out;
  int64_t out_row, rows, columns, depth;
  bool add;
  const float *bias, *residual;
  int64_t residual_row;
  Epilogue epilogue = Epilogue::SUM;
  Activated activated = {};  // instead of out, add and residual
};
#ifdef FREEDIVE_CUDA_EMULATION
inline void visit_pointers(const Product& p, int argument) {
  emu::visit_parts(argument, p.a.data, p.b.data, p.a.half, p.b.half, p.out, p.bias, p.residual, p.activated.out.data,
                   p.activated.aux.data);
}
#endif

inline Operand operand_of(const fd_tensor& t, int64_t row, int64_t step) {
  if (t.dtype == FD_BF16) return {nullptr, row, step, static_cast<const uint16_t*>(t.data)};
  return {static_cast<const float*>(t.data), row, step};
}
inline Operand by_rows(const fd_tensor& t) { return operand_of(t, t.stride[0], 1); }
inline Operand by_columns(const fd_tensor& t) { return operand_of(t, 1, t.stride[0]); }

// out = (out +) A B^T (+ bias) (+ residual): every element one chain over k, then bias, then residual; the bits of
// the naive kernel.
void multiply_tiled(fd_context* ctx, const char* op, const Product& p, int64_t compute);

// How a long sum over k is cut into parts on tensor cores, so that an output too small to fill a GPU is computed by more blocks.
// BY_SHAPE: it follows from columns and depth, never from rows: one row has the bits of thousands. BY_SIZE: from all three.
enum class Split { NEVER, BY_SHAPE, BY_SIZE };

// The same on tensor cores, in bfloat16 (matmul_sm80.cu): every element one chain of steps of 16 k (of each part of k), the same
// for one row or many. workspace: sm80_workspace bytes, aligned to 64. packed_b: what sm80_pack made of b when b is a weight by
// rows, or null. wide: tiles of 128 x 256 in any case, for tests; the bits are the same.
void multiply_sm80(fd_context* ctx, const char* op, const Product& p, Split split, const void* packed_b, uint8_t* workspace,
                   bool wide = false);
size_t sm80_workspace(Split split, int64_t rows, int64_t columns, int64_t depth);
// By TMA and wgmma (matmul_sm90.cu) where the GPU has them, else as sm80. The same workspace and packed weight.
enum class Sm90 { PLAIN, PERSISTENT, MULTICAST, STORED };  // of its ladder
void multiply_sm90(fd_context* ctx, const char* op, const Product& p, Split split, const void* packed_b, uint8_t* workspace,
                   Sm90 rung);
// A weight [O, C] rounded to bfloat16 in rows padded to 16 bytes, and its size in words of 32 bits.
void sm80_pack(fd_context* ctx, const char* op, void* packed, const fd_tensor& weight);
int64_t sm80_packed_words(int64_t O, int64_t C);

}  // namespace freedive::cuda
