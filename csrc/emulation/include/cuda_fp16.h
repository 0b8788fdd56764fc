// Half precision as <cuda_fp16.h> has it: what is read from files; no arithmetic.
#pragma once
#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline float __half2float(__half h) {
  const unsigned sign = static_cast<unsigned>(h.bits & 0x8000u) << 16, exponent = h.bits >> 10 & 31u, fraction = h.bits & 0x3FFu;
  if (exponent == 31) return __uint_as_float(sign | 0x7F800000u | fraction << 13);
  if (exponent > 0) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
  return __uint_as_float(sign | __float_as_uint(static_cast<float>(fraction) * 0x1p-24f));
}
