// Products with weights as a file holds them (quantized.h): 8 and 4 bits in blocks of 32 with a scale each, and float16,
// bfloat16, float32.
//   out[n,o] = sum_c x[n,c] w[o,c] (+ bias[o]) (+ residual[n,o])
//
// Memory plan: a token generated reads every weight once, so bytes a weight are the speed: 4.5 bits (Q4_0), 5 (Q4_1), 8.5 (Q8_0),
// 16 (the float types); nothing else is large. Few rows unpack a record in registers, on the way to the multiply-adds. Many rows
// unpack a block of columns once, into the panels of the blocked product (matmul.cpp), which then does the work; or, in int8,
// meet the packed record itself, INT8_ROWS rows at a time (int8_tile.h).
//
// Backward, through a frozen weight, needs rows of it as they are: some at a time are unpacked to float32, 2 MB of them, and the
// blocked product's chain over rows goes on from one such piece to the next.
//
// compute:
//   FD_F32   exact: weights take their exact values and every element is the one chain of matmul_forward, so results are those of
//   the
//            same model in float32, bit for bit, at a sixth of the memory
//   FD_BF16  the chain of pairs, both operands rounded to bfloat16 (matmul_forward's bits again)
//   FD_I8    rows are rounded to int8 in blocks of 32 (d = max|x| / 127): half to a third of the time. Weights that are not
//   integers: as FD_F32
// Variants:
//   naive    one number at a time
//   simd     as above, sums of integers by multiply-adds of 16 bits
//   vnni     the same with vpdpbusd; on processors that have it
#include "quantized.h"

#include "pack.h"
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

constexpr int64_t FEW = 8;          // rows for which a record is unpacked in registers
constexpr int64_t CHUNK = 1 << 19;  // floats of unpacked panels: 2 MB
constexpr int64_t SMALL = 1 << 18;  // multiply-adds: below this, waking other threads costs more than it brings
constexpr int64_t UNIT = 1 << 15;   // bytes of packed weight that are handed to a thread at a time

// ---- exact: lanes of one block, in order of k --------------------------------------------------------------------

template <int KIND>
FD_INLINE vf float_lanes(const uint8_t* record, int64_t k, int s) {
  if (KIND == W_F32) return vload(reinterpret_cast<const float*>(record) + k * STRIP + s * VL);
  if (KIND == W_F16) return half_floats(record + 2 * (k * STRIP + s * VL));
  const vi word = vloadi(reinterpret_cast<const int32_t*>(record) + k / 2 * STRIP + s * VL);
  return reinterpret_cast<vf>(k % 2 ? word & vseti(static_cast<int32_t>(0xffff0000u)) : word << 16);
}

// Calls body(w, weights) for each word w along the row: a number, or in HALF a pair rounded to bfloat16. weights: V * VS vectors.
template <int KIND, bool HALF, int V, class Body>
FD_INLINE void for_words(const uint8_t* strips, int64_t strip_bytes, int64_t C, int64_t ahead, const Body& body) {
  constexpr KindInfo K = KIND_INFO[KIND];
  constexpr int VV = V * VS;
  for (int64_t b = 0; b * BLOCK < C; ++b) {
    const uint8_t* record[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) record[v] = strips + v * strip_bytes + b * K.record;
    const int64_t first = b * BLOCK / (HALF ? 2 : 1);
    if (ahead != 0) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) fetch_ahead<K.record>(record[v] + ahead);
    }
    if (!K.integer) {
      const int64_t words = words_of<HALF>(min64(BLOCK, C - b * BLOCK));
#pragma GCC unroll 4
      for (int64_t i = 0; i < words; ++i) {
        vf w[VV];
#pragma GCC unroll 8
        for (int v = 0; v < VV; ++v) {
          const uint8_t* at = record[v / VS];
          if (HALF && KIND == W_BF16) {
            w[v] = vload(reinterpret_cast<const float*>(at) + i * STRIP + v % VS * VL);
          } else if (HALF) {
            w[v] = bf16_pairs(float_lanes<KIND>(at, 2 * i, v % VS), float_lanes<KIND>(at, 2 * i + 1, v % VS));
          } else {
            w[v] = float_lanes<KIND>(at, i, v % VS);
          }
        }
        body(first + i, w);
      }
      continue;
    }
    vf d[VV], m[VV];
#pragma GCC unroll 8
    for (int v = 0; v < VV; ++v) {
      d[v] = scale_lanes<KIND>(record[v / VS], v % VS);
      m[v] = minimum_lanes<KIND>(record[v / VS], v % VS, d[v]);
    }
    const vi mask = vseti(K.four ? 15 : 255);
    for (int g = 0; g < 8; ++g) {
      vi quants[VV];
#pragma GCC unroll 8
      for (int v = 0; v < VV; ++v) {
        quants[v] = vloadi(reinterpret_cast<const int32_t*>(record[v / VS]) + ((K.four ? g % 4 : g) * VS + v % VS) * VL);
        if (K.four && g >= 4) quants[v] = quants[v] >> 4;
      }
#pragma GCC unroll 4
      for (int j = 0; j < 4; j += HALF ? 2 : 1) {
        vf w[VV];
#pragma GCC unroll 8
        for (int v = 0; v < VV; ++v) {
          w[v] = vfma(__builtin_convertvector((quants[v] >> (8 * j)) & mask, vf), d[v], m[v]);
          if (HALF) w[v] = bf16_pairs(w[v], vfma(__builtin_convertvector((quants[v] >> (8 * j + 8)) & mask, vf), d[v], m[v]));
        }
        body(first + (4 * g + j) / (HALF ? 2 : 1), w);
      }
    }
  }
}

// R rows of words, V strips: sums [R][V * STRIP].
template <int KIND, bool HALF, int R, int V>
__attribute__((noinline)) void exact_tile(const uint8_t* strips, int64_t strip_bytes, int64_t C, const float* x, int64_t x_row,
                                          int64_t ahead, float* sums) {
  constexpr int VV = V * VS;
  vf acc[R][VV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < VV; ++v) acc[r][v] = vset(0.0f);
  }
  for_words<KIND, HALF, V>(strips, strip_bytes, C, ahead, [&](int64_t i, const vf(&w)[VV]) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const vf xv = vset(x[r * x_row + i]);
#pragma GCC unroll 8
      for (int v = 0; v < VV; ++v) acc[r][v] = step<HALF>(xv, w[v], acc[r][v]);
    }
  });
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < VV; ++v) vstore(sums + (r * VV + v) * VL, acc[r][v]);
  }
}

// One strip as columns of a panel of the blocked product, or of the panels it fills: to[w * PANEL + column].
template <int KIND, bool HALF>
__attribute__((noinline)) void unpack_strip(const uint8_t* strip, int64_t C, float* to) {
  for_words<KIND, HALF, 1>(strip, 0, C, AHEAD, [&](int64_t i, const vf(&w)[VS]) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int v = 0; v < VS; ++v) vstore(to + v * VL / PANEL * PANEL * words_of<HALF>(C) + i * PANEL + v * VL % PANEL, w[v]);
  });
}

#ifdef FREEDIVE_AVX512
constexpr int ROWS = 4, STRIPS = 2;  // of the tile for several rows
#elif defined(FREEDIVE_AVX2)
constexpr int ROWS = 4, STRIPS = 1;
#else
constexpr int ROWS = 2, STRIPS = 1;
#endif
// Strips for a lone row: one is read fastest, from front to back; of 4 bits more work than reading is left, and two chains keep
// it going.
template <int KIND>
constexpr int LONE_STRIPS = KIND_INFO[KIND].four ? 2 : 1;

template <int KIND, bool HALF>
void exact_strips(const Quantized& w, const float* x, int64_t x_row, int64_t rows, int64_t s0, int64_t s1, const Target& t) {
  const int64_t bytes = w.strip_bytes();
  alignas(64) float sums[ROWS * 2 * STRIP];
  const auto tile = [&](auto rows_, auto strips, int64_t r, int64_t s) {
    constexpr int R = decltype(rows_)::value, V = decltype(strips)::value;
    exact_tile<KIND, HALF, R, V>(w.data + s * bytes, bytes, w.C, x + r * x_row, x_row,
                                 r > 0    ? 0
                                 : V == 1 ? AHEAD
                                          : V * bytes,
                                 sums);
    finish_tile(t, sums, V * STRIP, r, R, s * STRIP, min64(V * STRIP, w.O - s * STRIP));
  };
  int64_t r = 0;
  for (; r + ROWS <= rows; r += ROWS) {
    int64_t s = s0;
    for (; s + STRIPS <= s1; s += STRIPS) tile(Number<ROWS>{}, Number<STRIPS>{}, r, s);
    for (; s < s1; ++s) tile(Number<ROWS>{}, Number<1>{}, r, s);
  }
  for (; r < rows; ++r) {
    int64_t s = s0;
    for (; s + LONE_STRIPS<KIND> <= s1; s += LONE_STRIPS<KIND>) tile(Number<1>{}, Number<LONE_STRIPS<KIND>>{}, r, s);
    for (; s < s1; ++s) tile(Number<1>{}, Number<1>{}, r, s);
  }
}

// The kernels of one kind.
struct Exact {
  void (*strips)(const Quantized&, const float*, int64_t, int64_t, int64_t, int64_t, const Target&);
  void (*unpack)(const uint8_t*, int64_t, float*);
};
template <bool HALF>
Exact exact_of(Kind kind) {
#define FD_EXACT(KIND) {exact_strips<KIND, HALF>, unpack_strip<KIND, HALF>}
  static constexpr Exact all[W_KINDS] = {FD_EXACT(W_F32),    FD_EXACT(W_F16),      FD_EXACT(W_BF16),
                                         FD_EXACT(W_I8),     FD_EXACT(W_I8_MIN),   FD_EXACT(W_I4),
                                         FD_EXACT(W_I4_MIN), FD_EXACT(W_I8_MIN32), FD_EXACT(W_I4_MIN32)};
#undef FD_EXACT
  return all[kind];
}

// ---- rows in int8 --------------------------------------------------------------------------------------------------

constexpr float SMALLEST = 1e-30f;

// d = max|x| / 127, q = x / d to nearest (ties to even). What is not finite makes d NaN, and with it the row's sums.
void round_row(const Quantized& w, const float* x, int8_t* q, float* scale, float* shift, int32_t* start) {
  constexpr int VB = static_cast<int>(BLOCK) / VL;
  const vf magic = vset(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  for (int64_t b = 0; b < w.blocks(); ++b) {
    vf v[VB], most = vset(0.0f), odd = vset(0.0f);
#pragma GCC unroll 4
    for (int i = 0; i < VB; ++i) {
      v[i] = vload(x + b * BLOCK + i * VL);
      most = vmax(most, vmax(v[i], -v[i]));
      odd = odd + (v[i] - v[i]);
    }
    // Below SMALLEST 127 / largest would overflow: such a block is 0. Where a number is none, the scale is none and the integers
    // are 0.
    const float largest = hmax(most), strange = hsum(odd), inverse = largest >= SMALLEST ? 127.0f / largest : 0.0f;
    vi sum = vseti(0);
#pragma GCC unroll 4
    for (int i = 0; i < VB; ++i) {
      const vf whole = strange == 0.0f ? v[i] * vset(inverse) : vset(0.0f);
      const vi n = reinterpret_cast<vi>(whole + magic) - reinterpret_cast<vi>(magic);
      sum += n;
      int8_t* to = q + b * BLOCK + i * VL;
#ifdef FREEDIVE_AVX512
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(n)));
#else
      for (int j = 0; j < VL; ++j) to[j] = static_cast<int8_t>(n[j]);
#endif
    }
    int32_t total = 0;
    for (int j = 0; j < VL; ++j) total = static_cast<int32_t>(static_cast<uint32_t>(total) + static_cast<uint32_t>(sum[j]));
    scale[b] = (largest >= SMALLEST ? largest / 127.0f : 0.0f) + strange;
    shift[b] = scale[b] * static_cast<float>(total);
    start[b] = static_cast<int32_t>(static_cast<uint32_t>(-KIND_INFO[w.kind].offset) * static_cast<uint32_t>(total));
  }
}

size_t int8_bytes(int64_t rows, int64_t C) {
  const int64_t blocks = ceil_div(C, BLOCK);
  return bytes64(rows * C, 1) + 3 * bytes64(rows * blocks, 4);
}

Int8Rows round_rows(fd_context* ctx, Space space, const Quantized& w, const float* x, int64_t x_row, int64_t rows) {
  const int64_t blocks = w.blocks();
  Int8Rows to;
  to.rows = rows;
  to.q = space.take<int8_t>(rows * w.C);
  to.scale = space.take<float>(rows * blocks), to.shift = space.take<float>(rows * blocks);
  to.start = space.take<int32_t>(rows * blocks);
  parallel_rows(ctx, rows, w.C, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      round_row(w, x + r * x_row, to.q + r * w.C, to.scale + r * blocks, to.shift + r * blocks, to.start + r * blocks);
  });
  return to;
}

// ---- naive -----------------------------------------------------------------------------------------------------

// One row's integer sum with block b of output o: the same numbers as int8_tile.h, one by one.
float int8_naive(const Quantized& w, int64_t o, const Int8Rows& x, int64_t n) {
  const KindInfo& K = KIND_INFO[w.kind];
  const int64_t blocks = w.blocks(), column = o % STRIP;
  float sum = 0.0f;
  for (int64_t b = 0; b < blocks; ++b) {
    const uint8_t* record = w.data + o / STRIP * w.strip_bytes() + b * K.record;
    const auto number = [&](int64_t at) {  // scales are numbers 0..15 behind the quants, minima 16..31
      float wide;
      if (!K.wide) return half_float(record + K.quants + 2 * at);
      memcpy(&wide, record + K.quants + 4 * at, 4);
      return wide;
    };
    int32_t products = K.has_min ? 0 : x.start[n * blocks + b];
    for (int64_t k = 0; k < BLOCK; ++k) {
      const int64_t g = k / 4, byte = ((K.four ? g % 4 : g) * STRIP + column) * 4 + k % 4;
      const int32_t quant = K.four ? record[byte] >> (g < 4 ? 0 : 4) & 15 : record[byte];
      products += quant * x.q[n * w.C + b * BLOCK + k];
    }
    sum = fma1(static_cast<float>(products), number(column) * x.scale[n * blocks + b], sum);
    if (K.has_min) sum = fma1(number(STRIP + column), x.shift[n * blocks + b], sum);
  }
  return sum;
}

}  // namespace

void quantized_naive(fd_context* ctx, uint8_t* workspace, const Quantized& w, const float* x, int64_t x_row, int64_t rows,
                     const Target& t, int64_t compute) {
  const bool int8 = compute == FD_I8 && KIND_INFO[w.kind].integer;
  const Int8Rows rounded = int8 ? round_rows(ctx, Space{workspace}, w, x, x_row, rows) : Int8Rows{};
  parallel_units(ctx, rows, [&](int64_t n, int) {
    for (int64_t o = 0; o < w.O; ++o) {
      float sum = int8 ? int8_naive(w, o, rounded, n) : 0.0f;
      for (int64_t c = 0; !int8 && c < w.C; ++c)
        sum = fma1(taken(x[n * x_row + c], compute), taken(quantized_value(w, o, c), compute), sum);
      if (t.bias != nullptr) sum = sum + t.bias[o];
      if (t.residual != nullptr) sum = sum + t.residual[n * t.residual_row + o];
      t.out[n * t.out_row + o] = sum;
    }
  });
}

namespace {

// ---- any number of rows --------------------------------------------------------------------------------------------

constexpr int64_t WHOLE = PANEL < STRIP ? STRIP : PANEL;  // columns that are whole strips and whole panels
int64_t chunk_columns(int64_t C) { return max64(4, CHUNK / max64(1, C) / WHOLE) * WHOLE; }
size_t panels_bytes(int64_t O, int64_t C) {
  return bytes64(min64(chunk_columns(C), ceil_div(O, WHOLE) * WHOLE) * C, sizeof(float));
}

template <bool HALF>
void exact_product(fd_context* ctx, uint8_t* workspace, const Quantized& w, const float* x, int64_t x_row, int64_t rows,
                   const Target& t) {
  const Exact exact = exact_of<HALF>(w.kind);
  const int64_t words = words_of<HALF>(w.C), bytes = w.strip_bytes();
  Space space{workspace};
  if (rows <= FEW) {
    if (HALF) {
      float* own = space.take<float>(rows * words);
      rows_of_words<HALF>(own, x, x_row, 1, rows, w.C);
      x = own, x_row = words;
    }
    const int64_t each = max64(2, UNIT / max64(1, bytes) / 2 * 2);
    parallel_units(ctx, ceil_div(w.strips(), each), [&](int64_t unit, int) {
      exact.strips(w, x, x_row, rows, unit * each, min64(w.strips(), (unit + 1) * each), t);
    });
    return;
  }
  uint8_t* blocks = space.take<uint8_t>(static_cast<int64_t>(gemm_workspace(ctx->threads)));
  const int64_t columns = chunk_columns(w.C);
  float* panels = space.take<float>(0);
  for (int64_t j0 = 0; j0 < w.O; j0 += columns) {
    const int64_t n = min64(columns, w.O - j0);
    parallel_units(ctx, ceil_div(n, STRIP), [&](int64_t s, int) {
      exact.unpack(w.data + (j0 / STRIP + s) * bytes, w.C, panels + s * STRIP / PANEL * PANEL * words + s * STRIP % PANEL);
    });
    const int64_t compute = HALF ? FD_BF16 : FD_F32;
    gemm(ctx, blocks,
         {rows, n, w.C, x, x_row, 1, nullptr, 0, 0, panels, t.out + j0, t.out_row, false,
          t.bias == nullptr ? nullptr : t.bias + j0, t.residual == nullptr ? nullptr : t.residual + j0, t.residual_row, compute});
  }
}

}  // namespace

size_t quantized_workspace(int64_t rows, int64_t O, int64_t C, int32_t threads) {
  const size_t few = bytes64(FEW * C, sizeof(float)), many = gemm_workspace(threads) + panels_bytes(O, C);
  const size_t exact = few > many ? few : many, whole = int8_bytes(rows, C);
  return exact > whole ? exact : whole;
}

void quantized_product(fd_context* context, uint8_t* workspace, const Quantized& w, const float* x, int64_t x_row, int64_t rows,
                       const Target& t, int64_t compute, Int8Kernel int8) {
  if (rows <= 0 || w.O <= 0) return;
  fd_context alone = *context;
  alone.threads = 1;
  fd_context* ctx = rows * w.O * w.C < SMALL ? &alone : context;
  if (compute == FD_I8 && KIND_INFO[w.kind].integer) {
    const Int8Rows rounded = round_rows(ctx, Space{workspace}, w, x, x_row, rows);
    const int64_t each = max64(2, UNIT / max64(1, w.strip_bytes()) / 2 * 2);
    parallel_units(ctx, ceil_div(w.strips(), each),
                   [&](int64_t unit, int) { int8(w, rounded, unit * each, min64(w.strips(), (unit + 1) * each), t); });
    return;
  }
  compute == FD_BF16 ? exact_product<true>(ctx, workspace, w, x, x_row, rows, t)
                     : exact_product<false>(ctx, workspace, w, x, x_row, rows, t);
}

// ---- backward --------------------------------------------------------------------------------------------------

namespace {

// Rows of the weight unpacked at a time: whole strips, so an even number, and pairs of bfloat16 stay pairs.
int64_t piece_rows(int64_t O, int64_t C) {
  return min64(ceil_div(O, STRIP), max64(1, CHUNK / max64(1, C) / STRIP)) * STRIP;
}

// One strip as STRIP plain rows of C numbers. columns: room for PANEL * C.
void unpack_rows(const Exact& exact, const uint8_t* strip, int64_t C, float* columns, float* rows) {
  exact.unpack(strip, C, columns);
  const int64_t whole = C / VL * VL;
  for (int64_t v = 0; v < STRIP; v += VL) {  // in the lower tiers a strip is several vectors, and may be several panels
    const float* from = columns + v / PANEL * PANEL * C + v % PANEL;
    for (int64_t c = 0; c < whole; c += VL) {
      vf r[VL];
#pragma GCC unroll 16
      for (int i = 0; i < VL; ++i) r[i] = vload(from + (c + i) * PANEL);
      turn(r);
#pragma GCC unroll 16
      for (int i = 0; i < VL; ++i) vstore(rows + (v + i) * C + c, r[i]);
    }
    for (int64_t c = whole; c < C; ++c) {
      for (int64_t i = 0; i < VL; ++i) rows[(v + i) * C + c] = from[c * PANEL + i];
    }
  }
}

}  // namespace

size_t quantized_backward_workspace(int64_t O, int64_t C, int32_t threads) {
  const size_t columns = bytes64(max64(PANEL, STRIP) * C, sizeof(float)) * static_cast<size_t>(max64(1, threads));
  return gemm_workspace(threads) + bytes64(piece_rows(O, C) * C, sizeof(float)) + columns;
}

void quantized_backward(fd_context* context, uint8_t* workspace, const Quantized& w, const InputGradient& g, int64_t compute) {
  if (g.rows <= 0 || w.C <= 0) return;
  fd_context alone = *context;
  alone.threads = 1;
  fd_context* ctx = g.rows * w.O * w.C < SMALL ? &alone : context;
  const Exact exact = exact_of<false>(w.kind);
  const int64_t each = piece_rows(w.O, w.C), bytes = w.strip_bytes(), room = max64(PANEL, STRIP) * w.C;
  Space space{workspace};
  uint8_t* blocks = space.take<uint8_t>(static_cast<int64_t>(gemm_workspace(context->threads)));
  float* rows = space.take<float>(each * w.C);
  float* columns = space.take<float>(room * max64(1, context->threads));
  for (int64_t o0 = 0; o0 < w.O; o0 += each) {
    const int64_t n = min64(each, w.O - o0);
    parallel_units(ctx, ceil_div(n, STRIP), [&](int64_t s, int thread) {
      unpack_rows(exact, w.data + (o0 / STRIP + s) * bytes, w.C, columns + thread * room, rows + s * STRIP * w.C);
    });
    gemm(ctx, blocks,
         {g.rows, w.C, n, g.dout + o0, g.dout_row, 1, rows, w.C, 1, nullptr, g.dx, g.dx_row, g.accumulate || o0 > 0, nullptr,
          nullptr, 0, compute == FD_BF16 ? FD_BF16 : FD_F32});
  }
}

// ---- the ops ---------------------------------------------------------------------------------------------------

namespace {

Quantized weight_of(const fd_tensor& weight, int64_t O, int64_t C, int64_t type) {
  return {static_cast<const uint8_t*>(weight.data), O, C, kind_of_type(type)};
}
Target target_of(const fd_quantized_matmul_args& a) {
  return {f32(a.out), a.out.stride[0], f32(a.bias), f32(a.residual), a.residual.stride[0]};
}

size_t matmul_workspace(const void* p, int32_t threads) {
  const auto& a = *static_cast<const fd_quantized_matmul_args*>(p);
  return quantized_workspace(a.x.shape[0], a.out.shape[1], a.x.shape[1], threads);
}

void matmul_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_quantized_matmul_args*>(p);
  const Quantized w = weight_of(a.weight, a.out.shape[1], a.x.shape[1], a.type);
  if (w.kind != W_NONE) quantized_naive(ctx, ctx->workspace, w, f32(a.x), a.x.stride[0], a.x.shape[0], target_of(a), a.compute);
}

void matmul_with(fd_context* ctx, const void* p, Int8Kernel int8) {
  const auto& a = *static_cast<const fd_quantized_matmul_args*>(p);
  const Quantized w = weight_of(a.weight, a.out.shape[1], a.x.shape[1], a.type);
  if (w.kind == W_NONE) return;
  quantized_product(ctx, ctx->workspace, w, f32(a.x), a.x.stride[0], a.x.shape[0], target_of(a), a.compute, int8);
}
void matmul_simd(fd_context* ctx, const void* p) { matmul_with(ctx, p, int8_strips_simd); }
#ifdef FREEDIVE_AVX512
void matmul_vnni(fd_context* ctx, const void* p) { matmul_with(ctx, p, int8_strips_vnni); }
#endif

size_t backward_workspace(const void* p, int32_t threads) {
  const auto& a = *static_cast<const fd_quantized_matmul_backward_input_args*>(p);
  return quantized_backward_workspace(a.dout.shape[1], a.dx.shape[1], threads);
}

void backward_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_quantized_matmul_backward_input_args*>(p);
  const int64_t N = a.dx.shape[0], C = a.dx.shape[1], O = a.dout.shape[1];
  const Quantized w = weight_of(a.weight, O, C, a.type);
  if (w.kind == W_NONE) return;
  parallel_units(ctx, N, [&](int64_t n, int) {
    const float* dout = f32(a.dout) + n * a.dout.stride[0];
    float* dx = f32(a.dx) + n * a.dx.stride[0];
    for (int64_t c = 0; c < C; ++c) {
      float sum = a.accumulate ? dx[c] : 0.0f;
      for (int64_t o = 0; o < O; ++o) sum = fma1(taken(dout[o], a.compute), taken(quantized_value(w, o, c), a.compute), sum);
      dx[c] = sum;
    }
  });
}

void backward_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_quantized_matmul_backward_input_args*>(p);
  const Quantized w = weight_of(a.weight, a.dout.shape[1], a.dx.shape[1], a.type);
  if (w.kind == W_NONE) return;
  quantized_backward(ctx, ctx->workspace, w,
                     {f32(a.dout), a.dout.stride[0], a.dout.shape[0], f32(a.dx), a.dx.stride[0], a.accumulate != 0}, a.compute);
}

void embedding(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_quantized_embedding_args*>(p);
  const int64_t N = a.out.shape[0], C = a.out.shape[1];
  const Quantized w = weight_of(a.weight, a.vocab, C, a.type);
  if (w.kind == W_NONE) return;
  parallel_rows(ctx, N, 16 * C, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      float* out = f32(a.out) + n * a.out.stride[0];
      const float* wpe = f32(a.wpe) == nullptr ? nullptr : f32(a.wpe) + i32(a.positions)[n] * a.wpe.stride[0];
      for (int64_t c = 0; c < C; ++c) {
        const float value = quantized_value(w, i32(a.tokens)[n], c);
        out[c] = wpe == nullptr ? value : value + wpe[c];
      }
    }
  });
}

}  // namespace

#ifdef FREEDIVE_AVX512
bool has_vnni() { return __builtin_cpu_supports("avx512vnni"); }
#endif
Int8Kernel best_int8() {
#ifdef FREEDIVE_AVX512
  if (has_vnni()) return int8_strips_vnni;
#endif
  return int8_strips_simd;
}

FD_VARIANT_LIST(quantized, {"quantized_matmul", "naive", 0, matmul_naive, matmul_workspace},
                {"quantized_matmul", "simd", 10, matmul_simd, matmul_workspace},
                {"quantized_matmul_backward_input", "naive", 0, backward_naive, nullptr},
                {"quantized_matmul_backward_input", "simd", 10, backward_simd, backward_workspace},
                {"quantized_embedding", "naive", 0, embedding, nullptr})

VariantList vnni_variants() {
#ifdef FREEDIVE_AVX512
  static const fd_variant list[] = {{"quantized_matmul", "vnni", 20, matmul_vnni, matmul_workspace}};
  if (has_vnni()) return {list, 1};
#endif
  return {nullptr, 0};
}

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
