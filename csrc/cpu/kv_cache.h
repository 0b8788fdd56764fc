// kv_cache.h: how a paged cache stores keys and values in float32, bfloat16 or int8, and how attention takes its operands from
// there.
//
// A block of the cache is words of 32 bits holding P = 1, 2 or 4 numbers, neighbours along the index a product sums over (ops.h).
// So a bfloat16 cache is the operand of a bfloat16 product as it lies, a float32 one that of a float32 product, and what else
// there is needs shifts only: no gathering, the same source on every tier.
//
// int8: x = scale q with one scale for each position and group. A scale is constant along d, so it leaves the sum over d as a
// factor of the score, and the value's one joins the probability: products multiply the integers themselves, which are exact in
// bfloat16. A few channels are large throughout, above all of keys. A scale for each channel would suit them, but must be known
// before the block is full, or depends on how the prompt was cut. So rows are mixed first, H x: that spreads what is large over
// all channels, concerns one position only, and q' k' = B q k (QuaRot, arXiv:2404.00456). It halves the error (dev/LOG.md).
#pragma once
#include "attention.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

// The words of one block and one group.
FD_INLINE float* cache_block(const fd_tensor& cache, const fd_tensor& block_table, int64_t s, int64_t b, int64_t g) {
  const int64_t block = i32(block_table)[s * block_table.stride[0] + b];
  return f32(cache) + (block * cache.stride[0] + g * cache.stride[1]) / fd_numbers_per_word(cache.dtype);
}
FD_INLINE float* cache_scales(const fd_tensor& scale, const fd_tensor& block_table, int64_t s, int64_t b, int64_t g) {
  const int64_t block = i32(block_table)[s * block_table.stride[0] + b];
  return f32(scale) + block * scale.stride[0] + g * scale.stride[1];
}
// Words from one row of a block to the next.
FD_INLINE int64_t cache_row(const fd_tensor& cache) { return cache.stride[2] / fd_numbers_per_word(cache.dtype); }

// ---- writing ---------------------------------------------------------------------------------------------------

// Number `part` of a word.
template <class T>
FD_INLINE void put(float* word, int64_t part, T x) {
  memcpy(reinterpret_cast<uint8_t*>(word) + part * sizeof(T), &x, sizeof(T));
}
FD_INLINE float number_of(const float* word, int64_t part, int64_t per_word) {
  if (per_word == 1) return *word;
  uint32_t u;
  memcpy(&u, word, 4);
  if (per_word == 4) return static_cast<float>(static_cast<int8_t>(u >> (8 * part)));
  u = part != 0 ? u & 0xffff0000u : u << 16;
  float x;
  memcpy(&x, &u, 4);
  return x;
}

// x = H x, H the Walsh-Hadamard matrix of the largest power of two B in D on each B neighbours; H H = B.
FD_INLINE int64_t mixed_width(int64_t D) { return D & -D; }
FD_INLINE void mix(float* x, int64_t D) {
  for (int64_t half = 1; half < mixed_width(D); half *= 2) {
    for (int64_t at = 0; at < D; at += 2 * half) {
      for (int64_t i = at; i < at + half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b, x[i + half] = a - b;
      }
    }
  }
}
// +1 or -1: H's number in row i, column j of the same block of B.
FD_INLINE float mixed_sign(int64_t i, int64_t j, int64_t B) {
  return __builtin_parityll(static_cast<unsigned long long>(i & j & (B - 1))) != 0 ? -1.0f : 1.0f;
}

constexpr float FLOAT_MAX = 3.40282347e38f, SCALE_MIN = 1e-30f;

// q[d] = round(x[d] * 127 / max |x|), returns the scale. The simd way and the naive one give the same bits.
FD_INLINE float scale_of(float largest, float* inverse) {
  *inverse = largest >= SCALE_MIN && largest <= FLOAT_MAX ? 127.0f / largest : 0.0f;
  return largest <= FLOAT_MAX ? (largest >= SCALE_MIN ? largest / 127.0f : 0.0f) : __builtin_nanf("");
}
FD_INLINE float quantize_naive(int8_t* q, const float* x, int64_t D) {
  float largest = 0, inverse;
  for (int64_t d = 0; d < D; ++d) {
    const float size = x[d] < 0 ? -x[d] : x[d];
    if (!(size <= largest)) largest = size <= FLOAT_MAX ? size : __builtin_inff();
  }
  const float scale = scale_of(largest, &inverse);
  for (int64_t d = 0; d < D; ++d) q[d] = inverse == 0 ? 0 : static_cast<int8_t>(__builtin_rintf(x[d] * inverse));
  return scale;
}
FD_INLINE float quantize_simd(int8_t* q, const float* x, int64_t D) {
  const vf magic = vset(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  vf top = vset(0.0f);
  for_lanes(D, [&](int64_t d, auto load, auto) {
    const vf v = load(x + d), size = vselect(v < vset(0.0f), -v, v);
    top = vmax(top, vselect(size <= vset(FLOAT_MAX), size, vset(__builtin_inff())));
  });
  float inverse;
  const float scale = scale_of(hmax(top), &inverse);
  for_lanes(D, [&](int64_t d, auto load, auto) {
    const vi word = reinterpret_cast<vi>(load(x + d) * vset(inverse) + magic) - reinterpret_cast<vi>(magic);
    for (int64_t i = 0; i < min64(VL, D - d); ++i) q[d + i] = inverse == 0 ? 0 : static_cast<int8_t>(word[i]);
  });
  return scale;
}

// One key and one value at `slot` of a block.
template <bool SIMD, int P>
FD_INLINE void write_position(float* keys, int64_t key_row, float* values, int64_t value_row, float* key_scale,
                              float* value_scale, const float* k, const float* v, int64_t D, int64_t slot, int8_t* q,
                              float* mixed) {
  float* value = values + slot / P * value_row;
  if (P == 1) {
    for (int64_t d = 0; d < D; ++d) keys[d * key_row + slot] = k[d];
    memcpy(value, v, D * sizeof(float));
  } else if (P == 2) {
    for (int64_t d = 0; d < ceil_div(D, 2) * 2; ++d)
      put(keys + d / 2 * key_row + slot, d % 2, d < D ? bf16_bits(k[d]) : static_cast<uint16_t>(0));
    for (int64_t d = 0; d < D; ++d) {
      if (slot % 2 == 0) value[d] = 0;  // the neighbour too: a product may read it before it is written
      put(value + d, slot % 2, bf16_bits(v[d]));
    }
  } else {
    memcpy(mixed, k, D * sizeof(float));
    mix(mixed, D);
    key_scale[slot] = SIMD ? quantize_simd(q, mixed, D) : quantize_naive(q, mixed, D);
    for (int64_t d = 0; d < ceil_div(D, 4) * 4; ++d)
      put(keys + d / 4 * key_row + slot, d % 4, d < D ? q[d] : static_cast<int8_t>(0));
    memcpy(mixed, v, D * sizeof(float));
    mix(mixed, D);
    value_scale[slot] = SIMD ? quantize_simd(q, mixed, D) : quantize_naive(q, mixed, D);
    for (int64_t d = 0; d < D; ++d) put(value + d, slot % 4, q[d]);
  }
}

// ---- reading ---------------------------------------------------------------------------------------------------

// Rows of cache words of P numbers become operand words: P / (HALF ? 2 : 1) rows of each.
template <bool HALF, int P>
FD_INLINE void operand_words(float* to, int64_t to_row, const float* from, int64_t from_row, int64_t rows, int64_t columns) {
  const vi high = vseti(static_cast<int32_t>(0xffff0000u));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; c += VL) {
      const float* at = from + r * from_row + c;
      const vi word = reinterpret_cast<vi>(columns - c >= VL ? vload(at) : vload_n(at, columns - c));
      float* out = to + r * (HALF ? P / 2 : P) * to_row + c;
      if (P == 2) {
        vstore(out, reinterpret_cast<vf>(HALF ? word : word << 16));
        if (!HALF) vstore(out + to_row, reinterpret_cast<vf>(word & high));
      } else {
        vf n[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) n[i] = __builtin_convertvector((word << (24 - 8 * i)) >> 24, vf);
        if (HALF) {  // the low half of a small integer's float is 0
#pragma GCC unroll 2
          for (int i = 0; i < 2; ++i) {
            const vi even = reinterpret_cast<vi>(n[2 * i]) >> 16 & vseti(0xffff);
            vstore(out + i * to_row, reinterpret_cast<vf>(even | reinterpret_cast<vi>(n[2 * i + 1])));
          }
        } else {
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) vstore(out + i * to_row, n[i]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
