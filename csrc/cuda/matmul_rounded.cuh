// matmul_rounded.cuh: what the tensor-core kernels (sm80, sm90) and the head share: operands rounded to bfloat16, and what is
// done with a finished sum.
#pragma once
#include "activation.cuh"
#include "fragments.cuh"
#include "matmul.cuh"
#include "vector.cuh"

namespace freedive::cuda {

inline int64_t padded(int64_t n) { return (n + PIECE - 1) / PIECE * PIECE; }
inline size_t bytes_of(int64_t rows, int64_t width) { return (static_cast<size_t>(rows * padded(width)) * 2 + 255) / 256 * 256; }

struct RoundedProduct {
  const uint16_t *a, *b;
  int64_t a_row, b_row;   // numbers from one row to the next: all of a row, its padding included
  bool a_by_k, b_by_k;    // rows along k, or across
  float* out;
  int64_t out_row, rows, columns, depth;
  bool add, pairs;  // pairs: two neighbours of out can be stored at once
  const float *bias, *residual;
  int64_t residual_row;
  // A long k in parts (Split): sums of `part_depth` k, each from 0 (the first from out when it adds), added in order. apart: by a
  // block each, which leaves its sum in `partial` [parts][rows, partial_row]; else by one block, whose sum so far is in [rows].
  int parts = 1, part_depth = 0;
  bool apart = false;
  float* partial = nullptr;
  int64_t partial_row = 0;
  Epilogue epilogue = Epilogue::SUM;
  Activated activated = {};  // instead of out, add and residual
};
#ifdef FREEDIVE_CUDA_EMULATION
inline void visit_pointers(const RoundedProduct& p, int argument) {
  emu::visit_parts(argument, p.a, p.b, p.out, p.bias, p.residual, p.partial, p.activated.out.data, p.activated.aux.data);
}
#endif

// Rounds the operands of p into the workspace (operand_bytes), b unless it is packed; what is bfloat16 in rows of whole 16 bytes
// without gaps is taken as it lies.
RoundedProduct round_operands(fd_context* ctx, const char* op, const Product& p, const void* packed_b, uint8_t* workspace);
size_t operand_bytes(int64_t rows, int64_t columns, int64_t depth);  // whichever way operands lie
// Rows of `width` numbers, `stride` apart, to rows of padded(width) bfloat16.
void round_rows(fd_context* ctx, const char* op, uint16_t* out, const float* x, int64_t rows, int64_t width, int64_t stride);
void round_rows(fd_context* ctx, const char* op, uint16_t* out, const uint16_t* x, int64_t rows, int64_t width, int64_t stride);

// A product of rounded operands (matmul_sm80.cu). partial: parts_bytes of the same split and sizes.
void multiply_rounded(fd_context* ctx, const char* op, const RoundedProduct& p, Split split, void* partial, bool wide = false);
size_t parts_bytes(Split split, int64_t rows, int64_t columns, int64_t depth);

__device__ __forceinline__ int clipped(int64_t n) { return static_cast<int>(n < 1 << 30 ? n : 1 << 30); }

// The place of a tile among down x across of them: GROUP rows of tiles at a time, so that blocks that run together
// read the same parts of a and b, from the L2 cache.
__device__ __forceinline__ void place_of_tile(unsigned tile, int64_t rows, int64_t columns, int m, int n, int64_t& i0,
                                              int64_t& j0) {
  constexpr unsigned GROUP = 8;
  const unsigned down = static_cast<unsigned>((rows + m - 1) / m), across = static_cast<unsigned>((columns + n - 1) / n);
  const unsigned first = tile / (GROUP * across) * GROUP, within = tile % (GROUP * across);
  const unsigned height = down - first < GROUP ? down - first : GROUP;
  i0 = static_cast<int64_t>(first + within % height) * m, j0 = static_cast<int64_t>(within / height) * n;
}

// What comes after the chains of a row's elements j and j + 1: bias, then residual.
__device__ __forceinline__ void add_bias(const RoundedProduct& p, int64_t j, bool both, float& x, float& y) {
  if (p.bias == nullptr) return;
  x += p.bias[j];
  if (both) y += p.bias[j + 1];
}

__device__ __forceinline__ void add_last(const RoundedProduct& p, int64_t i, int64_t j, float& x, float& y) {
  const bool both = j + 1 < p.columns;
  add_bias(p, j, both, x, y);
  if (p.residual != nullptr) {
    const float* residual = p.residual + i * p.residual_row + j;
    x += residual[0];
    if (both) y += residual[1];
  }
}

__device__ __forceinline__ void finish(const RoundedProduct& p, int64_t i, int64_t j, float x, float y) {
  add_last(p, i, j, x, y);
  float* out = p.out + i * p.out_row + j;
  const bool both = j + 1 < p.columns;
  if (both && p.pairs) {
    *reinterpret_cast<float2*>(out) = make_float2(x, y);
  } else {
    out[0] = x;
    if (both) out[1] = y;
  }
}

// Two neighbours of a row, rounded where they are bfloat16, the second if it is there; nothing where the tensor is absent.
__device__ __forceinline__ void store_two(const fd_tensor& t, int64_t i, int64_t j, float x, float y, bool both) {
  if (t.data == nullptr) return;
  if (t.dtype == FD_BF16) {
    uint16_t* to = row<uint16_t>(t, i) + j;
    const uint32_t pair = ptx::bf16_pair(x, y);
    if (both && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
      *reinterpret_cast<uint32_t*>(to) = pair;
    } else {
      to[0] = static_cast<uint16_t>(pair);
      if (both) to[1] = static_cast<uint16_t>(pair >> 16);
    }
  } else {
    float* to = row(t, i) + j;
    if (both && reinterpret_cast<uintptr_t>(to) % 8 == 0) {
      *reinterpret_cast<float2*>(to) = make_float2(x, y);
    } else {
      to[0] = x;
      if (both) to[1] = y;
    }
  }
}

// What becomes of the finished sums (x, y) of columns j and j + 1 of out; of SwiGLU they are the gate's, and up's are (up_x, up_y).
template <Epilogue E>
__device__ __forceinline__ void finish_two(const RoundedProduct& p, int64_t i, int64_t j, float x, float y, float up_x,
                                           float up_y) {
  if constexpr (E == Epilogue::SUM) {
    finish(p, i, j, x, y);
  } else {
    constexpr bool GATED = E == Epilogue::SWIGLU;
    const int64_t outputs = p.columns / SUMS_OF<E>;
    const bool both = j + 1 < outputs;
    add_bias(p, j, both, x, y);
    store_two(p.activated.aux, i, j, x, y, both);
    if (GATED) {
      add_bias(p, outputs + j, both, up_x, up_y);
      store_two(p.activated.aux, i, outputs + j, up_x, up_y, both);
    }
    if (p.activated.out.data == nullptr) return;
    store_two(p.activated.out, i, j, GATED ? swiglu(x, up_x) : gelu(x), GATED ? swiglu(y, up_y) : gelu(y), both);
  }
}

}  // namespace freedive::cuda
