// quantized.h: weights as inference holds them: the numbers of a file's own type, rearranged, never a float32 copy of the whole.
//
// A weight [O, C] is cut into strips of 16 rows of O ("columns" of the product) and these into blocks of 32 along C. One record
// holds one block of one strip: its quants first, then the strip's 16 scales, then its 16 minima if the type has them. Records of
// a strip follow each other along C, strips along O, so a product of few rows reads memory once, from front to back.
//   quants of 8 bits  [8 groups][16 columns][4 k]: a load gives four neighbours along k of each column, as vpdpbusd wants them
//   quants of 4 bits  [4 groups][16 columns][4 k]: low halves are k = 4g..4g+3, high halves 16 + 4g.., which is ggml's own order
//   float32, float16  [32 k][16 columns];   bfloat16  [16 pairs of k][16 columns]
// value = scale * (quant - offset) + minimum. Every type here is exact: unpacked, it gives the very float32 of `dequantize` in
// Python.
#pragma once
#include "matmul.h"
#include "simd.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {

constexpr int64_t STRIP = 16, BLOCK = 32;

// How a record is laid out. Types of a file that differ only in how they are read share one.
enum Kind { W_F32, W_F16, W_BF16, W_I8, W_I8_MIN, W_I4, W_I4_MIN, W_I8_MIN32, W_I4_MIN32, W_KINDS, W_NONE = W_KINDS };

struct KindInfo {
  int64_t quants, record;             // bytes
  int32_t offset;                     // taken off a quant
  bool integer, four, has_min, wide;  // quants are integers; of 4 bits; minima; scales in float32 rather than float16
};
constexpr KindInfo KIND_INFO[W_KINDS] = {{2048, 2048, 0, false, false, false, false}, {1024, 1024, 0, false, false, false, false},
                                         {1024, 1024, 0, false, false, false, false}, {512, 544, 128, true, false, false, false},
                                         {512, 576, 0, true, false, true, false},     {256, 288, 8, true, true, false, false},
                                         {256, 320, 0, true, true, true, false},      {512, 640, 0, true, false, true, true},
                                         {256, 384, 0, true, true, true, true}};

// A packed weight.
struct Quantized {
  const uint8_t* data;
  int64_t O, C;
  Kind kind;
  int64_t blocks() const { return (C + BLOCK - 1) / BLOCK; }
  int64_t strips() const { return (O + STRIP - 1) / STRIP; }
  int64_t strip_bytes() const { return blocks() * KIND_INFO[kind].record; }
  // n of its rows, from one at the beginning of a strip.
  Quantized rows(int64_t first, int64_t n) const { return {data + first / STRIP * strip_bytes(), n, C, kind}; }
};

Kind kind_of_type(int64_t type);                             // of a ggml type; W_NONE for one that is not held packed
int64_t quantized_size(int64_t O, int64_t C, int64_t type);  // bytes; 0 where there is no such packed weight
int64_t quantized_row(int64_t C, int64_t type);              // bytes of a row in the file; 0 likewise

// What happens to the sums: out = sum (+ bias) (+ residual), as in kernel.h's Finish, tails included.
struct Target {
  float* out;
  int64_t out_row;
  const float *bias, *residual;  // or NULL
  int64_t residual_row;
};

// Rows rounded to int8 in blocks of 32: x ~ scale * q. Made once for all strips.
struct Int8Rows {
  int8_t* q;       // [rows, C]
  float* scale;    // [rows, blocks]
  float* shift;    // [rows, blocks]: scale * sum of q, what a minimum is multiplied by
  int32_t* start;  // [rows, blocks]: -offset * sum of q, where the sums of products begin
  int64_t rows;
};

// out[rows, strips s0..s1 of w]. One on plain instructions; one on AVX-512 VNNI's vpdpbusd, which is there if it may run here.
// Sums of integers are exact, so the two give the same bits.
using Int8Kernel = void (*)(const Quantized& w, const Int8Rows& x, int64_t s0, int64_t s1, const Target& t);
void int8_strips_simd(const Quantized& w, const Int8Rows& x, int64_t s0, int64_t s1, const Target& t);
#ifdef FREEDIVE_AVX512
void int8_strips_vnni(const Quantized& w, const Int8Rows& x, int64_t s0, int64_t s1, const Target& t);
bool has_vnni();
#endif
Int8Kernel best_int8();

// out = x W^T (+ bias) (+ residual): each element one chain over k (compute FD_F32: of the weights' exact values; FD_BF16: of
// pairs rounded to bfloat16), or with FD_I8 a sum over blocks of 32 of exact integer sums, in order. The same bits for one row
// and for many.
size_t quantized_workspace(int64_t rows, int64_t O, int64_t C, int32_t threads);  // bytes, whatever the compute
void quantized_product(fd_context* ctx, uint8_t* workspace, const Quantized& w, const float* x, int64_t x_row, int64_t rows,
                       const Target& t, int64_t compute, Int8Kernel int8);
// dx[n,c] = (accumulate ? dx : 0) + sum_o dout[n,o] w[o,c]: one chain over o, with the bits of matmul_backward_input on the
// unpacked weight.
struct InputGradient {
  const float* dout;
  int64_t dout_row, rows;
  float* dx;
  int64_t dx_row;
  bool accumulate;
};
size_t quantized_backward_workspace(int64_t O, int64_t C, int32_t threads);  // bytes, whatever the rows
void quantized_backward(fd_context* ctx, uint8_t* workspace, const Quantized& w, const InputGradient& g, int64_t compute);
// The same as quantized_product, one number at a time.
void quantized_naive(fd_context* ctx, uint8_t* workspace, const Quantized& w, const float* x, int64_t x_row, int64_t rows,
                     const Target& t, int64_t compute);

namespace {

template <int N>
struct Number {  // a number known to the compiler, as an argument
  static constexpr int value = N;
};

// float16 to float32, exactly.
FD_INLINE vf half_floats(const uint8_t* p) {
#if defined(FREEDIVE_AVX512)
  return reinterpret_cast<vf>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(FREEDIVE_AVX2)
  return reinterpret_cast<vf>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  vi h;
  for (int i = 0; i < VL; ++i) {
    uint16_t u;
    memcpy(&u, p + 2 * i, 2);
    h[i] = u;
  }
  const vi magnitude = (h & vseti(0x7fff)) << 13;
  const vf finite = reinterpret_cast<vf>(magnitude) * vset(0x1p112f);  // moves the exponent; denormals become normal
  const vi bits = magnitude >= vseti(0x0f800000) ? magnitude | vseti(0x7f800000) : reinterpret_cast<vi>(finite);
  return reinterpret_cast<vf>(bits | ((h & vseti(0x8000)) << 16));
#endif
}
FD_INLINE float half_float(const uint8_t* p) {
  alignas(64) uint8_t pad[2 * VL] = {0};
  memcpy(pad, p, 2);
  return half_floats(pad)[0];
}

// Memory is far: processors fetch ahead by themselves within 4 KB only, and begin anew with every strip. So records are asked for
// before their turn: a lone row AHEAD bytes before (a strip, the next, the next weight: they lie one behind the other), which
// reads at 23 GB/s instead of 13.
constexpr int64_t AHEAD = 4096;
template <int64_t BYTES>
FD_INLINE void fetch_ahead(const uint8_t* record) {
#pragma GCC unroll 32
  for (int64_t line = 0; line < BYTES; line += 64) __builtin_prefetch(record + line);
}

constexpr int VS = static_cast<int>(STRIP) / VL;  // vectors of a strip

template <int KIND>
FD_INLINE vf scale_lanes(const uint8_t* record, int s) {
  constexpr KindInfo K = KIND_INFO[KIND];
  if (K.wide) return vload(reinterpret_cast<const float*>(record + K.quants) + s * VL);
  return half_floats(record + K.quants + 2 * s * VL);
}
// What is added to scale * quant: the minimum, or -offset * scale.
template <int KIND>
FD_INLINE vf minimum_lanes(const uint8_t* record, int s, vf scale) {
  constexpr KindInfo K = KIND_INFO[KIND];
  if (!K.has_min) return scale * vset(static_cast<float>(-K.offset));
  if (K.wide) return vload(reinterpret_cast<const float*>(record + K.quants) + STRIP + s * VL);
  return half_floats(record + K.quants + 2 * STRIP + 2 * s * VL);
}

// One number of a packed weight.
FD_INLINE float quantized_value(const Quantized& w, int64_t o, int64_t c) {
  const KindInfo& K = KIND_INFO[w.kind];
  const uint8_t* record = w.data + o / STRIP * w.strip_bytes() + c / BLOCK * K.record;
  const int64_t column = o % STRIP, k = c % BLOCK;
  if (w.kind == W_F32) return reinterpret_cast<const float*>(record)[k * STRIP + column];
  if (w.kind == W_F16) return half_float(record + 2 * (k * STRIP + column));
  if (w.kind == W_BF16) {
    const uint32_t word = reinterpret_cast<const uint32_t*>(record)[k / 2 * STRIP + column];
    const uint32_t bits = k % 2 ? word & 0xffff0000u : word << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
  }
  const int64_t g = k / 4, j = k % 4;
  const int32_t quant =
      K.four ? record[(g % 4 * STRIP + column) * 4 + j] >> (g < 4 ? 0 : 4) & 15 : record[(g * STRIP + column) * 4 + j];
  const uint8_t* scales = record + K.quants;
  const float* wide = reinterpret_cast<const float*>(scales);
  const float scale = K.wide ? wide[column] : half_float(scales + 2 * column);
  const float product = scale * static_cast<float>(quant - K.offset);  // exact
  if (!K.has_min) return product;
  return product + (K.wide ? wide[STRIP + column] : half_float(scales + 2 * (STRIP + column)));
}

// The sums of a tile, [rows][width], to where they belong: rows from row0, columns from j0, of which there are `columns`.
FD_INLINE void finish_tile(const Target& t, const float* sums, int64_t width, int64_t row0, int64_t rows, int64_t j0,
                           int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    float* out = t.out + (row0 + r) * t.out_row + j0;
    const float* residual = t.residual == nullptr ? nullptr : t.residual + (row0 + r) * t.residual_row + j0;
    for_lanes(columns, [&](int64_t j, auto load, auto store) {
      vf y = load(sums + r * width + j);
      if (t.bias != nullptr) y = y + load(t.bias + j0 + j);
      if (residual != nullptr) y = y + load(residual + j);
      store(out + j, y);
    });
  }
}

}  // namespace
}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
