// quantized_few.cu: products in int8 of up to 16 rows with a packed weight: decoding. Naive's bits (quantized.cu).
//
// A warp reads the blocks of 8 rows of the weight, a lane 32 numbers, 4 KB under way in 4 bits; sums of integers by dp4a, for all
// rows of x from one reading of the weight; sums over blocks by a lane an output.
#include "quantized.cuh"

namespace freedive::cuda {
namespace {

constexpr int FEW = 16, OUTPUTS = 8, TOGETHER = WARP / OUTPUTS, FEW_WARPS = 2;  // rows; of a warp: outputs, rows at a time

// The quants of group g of row o, four neighbours a word, less nothing: 8 words, the first 16 numbers' in the first four.
template <int64_t TYPE>
__device__ __forceinline__ void load_quants(uint32_t (&q)[8], const Weight& w, int64_t o, int64_t g) {
  const auto at = [](const uint8_t* p) { return *reinterpret_cast<const uint4*>(p); };
  if (TYPE == Q8_0) {
    const uint8_t* p = w.quants(o, g);
    const uint4 first = at(p), second = at(p + 16);
    q[0] = first.x, q[1] = first.y, q[2] = first.z, q[3] = first.w;
    q[4] = second.x, q[5] = second.y, q[6] = second.z, q[7] = second.w;
    return;
  }
  constexpr uint32_t LOW = 0x0F0F0F0F;
  if (TYPE == Q4_K || TYPE == Q5_K) {
    const int group = static_cast<int>(g % 8), shift = group % 2 * 4;
    const uint8_t* p = w.quants(o, g / 8) + group / 2 * 32;
    const uint4 first = at(p), second = at(p + 16);
    const uint32_t words[] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) q[i] = words[i] >> shift & LOW;
    if (TYPE == Q4_K) return;
    const uint8_t* h = w.head(o, g / 8) + 16;
    const uint4 low = at(h), high = at(h + 16);
    const uint32_t fifth[] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) q[i] |= (fifth[i] >> group & 0x01010101u) << 4;
    return;
  }
  const uint4 both = at(w.quants(o, g));
  const uint32_t words[] = {both.x, both.y, both.z, both.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) q[i] = words[i] & LOW, q[4 + i] = words[i] >> 4 & LOW;
  if (TYPE == Q4_0 || TYPE == Q4_1) return;
  const uint8_t* h = w.head(o, g) + (TYPE == Q5_0 ? 2 : 4);
  const uint32_t fifth = word_at(h) | static_cast<uint32_t>(word_at(h + 2)) << 16;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t four = fifth >> (4 * i) & 15;  // bits 0, 1, 2, 3 to bytes 0, 1, 2, 3
    q[i] |= (four * 0x00204081u & 0x01010101u) << 4;
  }
}

// Rows begin, .. of x (at most FEW), outputs OUTPUTS a warp. Lane l takes blocks l, l + 32, .. of all these outputs and rows and
// leaves its terms in shared memory; then a lane for each output and row adds the terms of 32 blocks in order.
template <int64_t TYPE>
__global__ void few_kernel(Target to, Int8Rows x, Weight w, int64_t begin, int rows) {
  FD_SHARED(float2, terms, [FEW_WARPS][TOGETHER][OUTPUTS][WARP + 1]);  // sum of integers, scale
  FD_SHARED(float, minima, [FEW_WARPS][OUTPUTS][WARP + 1]);
  const int lane = lane_id(), warp = warp_of_block(), my_output = lane % OUTPUTS, my_row = lane / OUTPUTS;
  const int64_t blocks = w.C / 32, first = global_warp() * OUTPUTS;
  if (first >= w.O) return;  // the whole warp
  const int outputs = w.O - first < OUTPUTS ? static_cast<int>(w.O - first) : OUTPUTS;
  float sum[FEW / TOGETHER] = {};
#pragma unroll 1
  for (int64_t from = 0; from < blocks; from += WARP) {
    const int64_t b = from + lane;
    const int here = blocks - from < WARP ? static_cast<int>(blocks - from) : WARP;
    uint32_t q[OUTPUTS][8];
    float scale[OUTPUTS];
    if (lane < here)
#pragma unroll
      for (int o = 0; o < OUTPUTS; ++o)
        if (o < outputs) load_quants<TYPE>(q[o], w, first + o, b);
    if (lane < here)
#pragma unroll
      for (int o = 0; o < OUTPUTS; ++o)
        if (o < outputs) {
          const Shared32 s = shared32(w, first + o, b);
          scale[o] = s.scale;
          if (has_minimum(TYPE)) minima[warp][o][lane] = s.minimum;
        }
#pragma unroll
    for (int group = 0; group < FEW / TOGETHER; ++group) {
      if (group * TOGETHER >= rows) break;
      if (lane < here)
#pragma unroll 1
        for (int r = 0; r < TOGETHER && group * TOGETHER + r < rows; ++r) {
          const int64_t block = (begin + group * TOGETHER + r) * blocks + b;
          const auto* four = reinterpret_cast<const uint4*>(x.q + block * 32);
          const uint4 low = four[0], high = four[1];
          const uint32_t words[] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
          const float x_scale = x.scale[block];
          const int start = -offset_of(TYPE) * x.sum[block];
#pragma unroll
          for (int o = 0; o < OUTPUTS; ++o) {
            if (o >= outputs) continue;
            int inner = start;
#pragma unroll
            for (int i = 0; i < 8; ++i) inner = __dp4a(static_cast<int>(q[o][i]), static_cast<int>(words[i]), inner);
            terms[warp][r][o][lane] = make_float2(static_cast<float>(inner), scale[o] * x_scale);
          }
        }
      __syncwarp();
      const int r = group * TOGETHER + my_row;
      if (r < rows && my_output < outputs) {
        const float* shift = x.shift + (begin + r) * blocks + from;
        for (int k = 0; k < here; ++k) {
          const float2 term = terms[warp][my_row][my_output][k];
          sum[group] = fmaf(term.x, term.y, sum[group]);
          if (has_minimum(TYPE)) sum[group] = fmaf(minima[warp][my_output][k], shift[k], sum[group]);
        }
      }
      __syncwarp();  // before the next terms overwrite these
    }
  }
#pragma unroll
  for (int group = 0; group < FEW / TOGETHER; ++group) {
    const int r = group * TOGETHER + my_row;
    if (r < rows && my_output < outputs) store(to, r, first + my_output, sum[group]);
  }
}

}  // namespace

bool product_of_few(fd_context* ctx, const char* op, const Target& to, const Int8Rows& rounded, const Weight& w, int64_t begin,
                    int64_t rows) {
  if (rows > FEW || reinterpret_cast<uintptr_t>(w.data) % 16 != 0) return false;
  const auto with = [&](auto* kernel) {
    launch(ctx, op, blocks_for(w.O, OUTPUTS * FEW_WARPS), FEW_WARPS * WARP, kernel, to, rounded, w, begin,
           static_cast<int>(rows));
    return true;
  };
  switch (w.type) {
    case Q8_0:
      return with(few_kernel<Q8_0>);
    case Q4_0:
      return with(few_kernel<Q4_0>);
    case Q4_1:
      return with(few_kernel<Q4_1>);
    case Q5_0:
      return with(few_kernel<Q5_0>);
    case Q5_1:
      return with(few_kernel<Q5_1>);
    case Q4_K:
      return with(few_kernel<Q4_K>);
    case Q5_K:
      return with(few_kernel<Q5_K>);
    default:
      return false;
  }
}

}  // namespace freedive::cuda
