// quantized.cuh: weights of 16, 8 and 4 bits as they are packed, rows of x in int8, and what the kernels on them share.
//
// A packed weight is the file's rows, each a whole number of ggml's blocks (ggml-common.h), of which types of 32 numbers a block
// are taken apart: all blocks' quants first, 16 or 32 bytes each, then all that stands before the quants in a block (scales,
// minima, fifth bits). Blocks of 256 numbers are whole 16 bytes as they are. So quants are read by 128 bits, and every byte once.
// A number's value is the very float32 that freedive/model/quants.py computes.
#pragma once
#include <cuda_fp16.h>

#include "launch.cuh"

namespace freedive::cuda {

enum Type : int64_t { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, BF16 = 30 };

struct Block {
  int64_t numbers, bytes;
};
__host__ __device__ inline Block block_of(int64_t type) {
  switch (type) {
    case F32:
      return {1, 4};
    case F16:
    case BF16:
      return {1, 2};
    case Q4_0:
      return {32, 18};
    case Q4_1:
      return {32, 20};
    case Q5_0:
      return {32, 22};
    case Q5_1:
      return {32, 24};
    case Q8_0:
      return {32, 34};
    case Q4_K:
      return {256, 144};
    case Q5_K:
      return {256, 176};
    default:
      return {1, 0};
  }
}
__host__ __device__ inline int64_t row_bytes(int64_t C, int64_t type) {
  const Block b = block_of(type);
  return C % b.numbers == 0 ? C / b.numbers * b.bytes : 0;
}
inline bool of_integers(int64_t type) { return type != F32 && type != F16 && type != BF16; }

__device__ inline uint16_t word_at(const uint8_t* p) { return *reinterpret_cast<const uint16_t*>(p); }  // every block is of even length
__device__ inline float half_at(const uint8_t* p) { return __half2float(__ushort_as_half(word_at(p))); }

// Scale and minimum of group j of a K block, 6 bits each of 12 bytes.
__device__ inline void six_bits(const uint8_t* s, int j, int* scale, int* minimum) {
  if (j < 4) {
    *scale = s[j] & 63, *minimum = s[j + 4] & 63;
  } else {
    *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4, *minimum = (s[j + 4] >> 4) | (s[j] >> 6) << 4;
  }
}

// Bytes of a block's quants, which end it, where they are taken apart from what stands before them; else 0.
__host__ __device__ inline int64_t quant_bytes(int64_t type) {
  return type == Q8_0 ? 32 : type == Q4_0 || type == Q4_1 || type == Q5_0 || type == Q5_1 ? 16 : 0;
}

struct Weight {
  const uint8_t* data;
  int64_t O, C, type;
  // Block b of row o: what stands before its quants, and these.
  __device__ const uint8_t* head(int64_t o, int64_t b) const {
    const Block size = block_of(type);
    const int64_t index = o * (C / size.numbers) + b, apart = quant_bytes(type);
    return apart == 0 ? data + index * size.bytes : data + O * (C / 32) * apart + index * (size.bytes - apart);
  }
  __device__ const uint8_t* quants(int64_t o, int64_t b) const {
    const Block size = block_of(type);
    const int64_t index = o * (C / size.numbers) + b, apart = quant_bytes(type);
    return apart == 0 ? data + index * size.bytes + (type == Q5_K ? 48 : 16) : data + index * apart;
  }
};
#ifdef FREEDIVE_CUDA_EMULATION
inline void visit_pointers(const Weight& w, int argument) { emu::visit_pointers(w.data, argument); }
#endif

// What 32 neighbours of a row share: value = scale (quant - offset) + minimum, rounded as `value_at` says.
struct Shared32 {
  float scale, minimum;
};
__host__ __device__ inline bool has_minimum(int64_t type) {
  return type == Q4_1 || type == Q5_1 || type == Q4_K || type == Q5_K;
}
__device__ inline int offset_of(int64_t type) { return type == Q4_0 ? 8 : type == Q5_0 ? 16 : 0; }

// Of group g of 32 numbers of row o.
__device__ inline Shared32 shared32(const Weight& w, int64_t o, int64_t g) {
  if (w.type != Q4_K && w.type != Q5_K) {
    const uint8_t* h = w.head(o, g);
    return {half_at(h), has_minimum(w.type) ? half_at(h + 2) : 0.0f};
  }
  const uint8_t* h = w.head(o, g / 8);
  int scale, minimum;
  six_bits(h + 4, static_cast<int>(g % 8), &scale, &minimum);
  return {half_at(h) * static_cast<float>(scale), -(half_at(h + 2) * static_cast<float>(minimum))};
}

// Quant i of group g of 32 numbers of row o.
__device__ inline int quant_at(const Weight& w, int64_t o, int64_t g, int i) {
  const int low = i % 16, shift = i < 16 ? 0 : 4;
  if (w.type == Q8_0) return static_cast<int8_t>(w.quants(o, g)[i]);
  if (w.type == Q4_K || w.type == Q5_K) {  // bytes 32 j .. hold group 2 j in low halves, group 2 j + 1 in high ones
    const int group = static_cast<int>(g % 8);
    const int n = w.quants(o, g / 8)[group / 2 * 32 + i] >> (group % 2 * 4) & 15;
    return w.type == Q4_K ? n : n | (w.head(o, g / 8)[16 + i] >> group & 1) << 4;
  }
  const int n = w.quants(o, g)[low] >> shift & 15;
  if (w.type == Q4_0 || w.type == Q4_1) return n;
  return n | (w.head(o, g)[(w.type == Q5_0 ? 2 : 4) + i / 8] >> i % 8 & 1) << 4;
}

// Number c of row o.
__device__ inline float value_at(const Weight& w, int64_t o, int64_t c) {
  if (w.type == F32) return reinterpret_cast<const float*>(w.data)[o * w.C + c];
  if (w.type == F16) return half_at(w.data + (o * w.C + c) * 2);
  if (w.type == BF16) return widened(word_at(w.data + (o * w.C + c) * 2));
  const Shared32 s = shared32(w, o, c / 32);
  const float x = s.scale * static_cast<float>(quant_at(w, o, c / 32, static_cast<int>(c % 32)) - offset_of(w.type));
  return has_minimum(w.type) ? x + s.minimum : x;
}

// ---- x in int8: blocks of 32 numbers, round(x 127 / most), and the scale most / 127 ------------------------------------------
struct Int8Rows {
  int8_t* q;       // [N, C]
  float* scale;    // [N, C / 32]; NaN where a number is not finite
  float* shift;    // the same times the block's sum, which a minimum is multiplied by
  int32_t* sum;    // of the block's integers
  int64_t C;
};
#ifdef FREEDIVE_CUDA_EMULATION
inline void visit_pointers(const Int8Rows& x, int argument) { emu::visit_pointers(x.q, argument); }
#endif
inline size_t rounded_bytes(int64_t N, int64_t C) { return static_cast<size_t>(N * (C / 32)) * (32 + 3 * sizeof(float)); }
inline Int8Rows int8_rows(void* memory, int64_t N, int64_t C) {
  auto* q = static_cast<int8_t*>(memory);
  const int64_t blocks = N * (C / 32);
  auto* scale = reinterpret_cast<float*>(q + blocks * 32);
  return {q, scale, scale + blocks, reinterpret_cast<int32_t*>(scale + 2 * blocks), C};
}

struct Target {
  fd_tensor out, bias, residual;
};
#ifdef FREEDIVE_CUDA_EMULATION
inline void visit_pointers(const Target& t, int argument) {
  emu::visit_parts(argument, t.out, t.bias, t.residual);
}
#endif

__device__ inline void store(const Target& to, int64_t r, int64_t o, float sum) {
  if (to.bias.data != nullptr) sum += flat(to.bias)[o];
  if (to.residual.data != nullptr) sum += row(to.residual, r)[o];
  row(to.out, r)[o] = sum;
}

// Where it is for quantized_few.cu: few rows in int8, a weight on the grid of 16 bytes. False: it is not.
bool product_of_few(fd_context* ctx, const char* op, const Target& to, const Int8Rows& rounded, const Weight& w, int64_t begin,
                    int64_t rows);

}  // namespace freedive::cuda
