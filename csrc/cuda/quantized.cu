// quantized.cu: weights of 16, 8 and 4 bits: products, embedding and head, the weight never written out in float32.
//
// A packed weight is the file's rows, each a whole number of ggml's blocks (ggml-common.h), of which types of 32 numbers a block
// are taken apart: all blocks' quants first, 16 or 32 bytes each, then all that stands before the quants in a block (scales,
// minima, fifth bits). Blocks of 256 numbers are whole 16 bytes as they are. So quants are read by 128 bits, and every byte once.
// A number's value is the very float32 that freedive/model/quants.py computes.
//
// compute = FD_I8: rows of x are rounded to int8 in blocks of 32, and an element is a sum over blocks, in order, of
// fma(exact sum of integers, scale of w times scale of x, .), then fma(minimum of w, scale of x times sum of x, .): the same bits
// in both variants, for one row or many.
// naive: a thread per output element decodes its row of the weight as it goes: what a byte costs in memory is saved, arithmetic
// is not.
// few (FD_I8, up to 16 rows, else naive): a warp reads the blocks of 8 rows of the weight, a lane 32 numbers, 4 KB under way in
// 4 bits; sums of integers by dp4a, for all rows of x from one reading of the weight; sums over blocks by a lane an output.
#include <cuda_fp16.h>

#include "head.cuh"
#include "int8.cuh"

namespace freedive::cuda {
namespace {

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
bool of_integers(int64_t type) { return type != F32 && type != F16 && type != BF16; }

__device__ uint16_t word_at(const uint8_t* p) { return *reinterpret_cast<const uint16_t*>(p); }  // every block is of even length
__device__ float half_at(const uint8_t* p) { return __half2float(__ushort_as_half(word_at(p))); }

// Scale and minimum of group j of a K block, 6 bits each of 12 bytes.
__device__ void six_bits(const uint8_t* s, int j, int* scale, int* minimum) {
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
void visit_pointers(const Weight& w, int argument) { emu::visit_pointers(w.data, argument); }
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
__device__ Shared32 shared32(const Weight& w, int64_t o, int64_t g) {
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
__device__ int quant_at(const Weight& w, int64_t o, int64_t g, int i) {
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
__device__ float value_at(const Weight& w, int64_t o, int64_t c) {
  if (w.type == F32) return reinterpret_cast<const float*>(w.data)[o * w.C + c];
  if (w.type == F16) return half_at(w.data + (o * w.C + c) * 2);
  if (w.type == BF16) return __bfloat162float(__ushort_as_bfloat16(word_at(w.data + (o * w.C + c) * 2)));
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
void visit_pointers(const Int8Rows& x, int argument) { emu::visit_pointers(x.q, argument); }
#endif
size_t rounded_bytes(int64_t N, int64_t C) { return static_cast<size_t>(N * (C / 32)) * (32 + 3 * sizeof(float)); }
Int8Rows int8_rows(void* memory, int64_t N, int64_t C) {
  auto* q = static_cast<int8_t*>(memory);
  const int64_t blocks = N * (C / 32);
  auto* scale = reinterpret_cast<float*>(q + blocks * 32);
  return {q, scale, scale + blocks, reinterpret_cast<int32_t*>(scale + 2 * blocks), C};
}

__global__ void round_kernel(Int8Rows rounded, fd_tensor x) {
  const int64_t blocks = x.shape[1] / 32, i = global_thread();
  if (i >= x.shape[0] * blocks) return;
  const float* from = row(x, i / blocks) + i % blocks * 32;
  float most = 0.0f;
  for (int j = 0; j < 32; ++j) most = fmaxf(most, int8_size(from[j]));
  const Int8Scale of_block = int8_scale(most);
  int sum = 0;
  for (int j = 0; j < 32; ++j) sum += rounded.q[i * 32 + j] = to_int8(from[j], of_block.inverse);
  rounded.scale[i] = of_block.scale, rounded.shift[i] = of_block.scale * static_cast<float>(sum), rounded.sum[i] = sum;
}

struct Target {
  fd_tensor out, bias, residual;
};
#ifdef FREEDIVE_CUDA_EMULATION
void visit_pointers(const Target& t, int argument) {
  for (const fd_tensor* x : {&t.out, &t.bias, &t.residual}) ::visit_pointers(*x, argument);
}
#endif

__device__ void store(const Target& to, int64_t r, int64_t o, float sum) {
  if (to.bias.data != nullptr) sum += flat(to.bias)[o];
  if (to.residual.data != nullptr) sum += row(to.residual, r)[o];
  row(to.out, r)[o] = sum;
}

template <int64_t COMPUTE>
__global__ void product_kernel(Target to, fd_tensor x, Int8Rows rounded, Weight w, int64_t begin, int64_t rows) {
  const int64_t i = global_thread(), r = i / w.O, o = i % w.O;
  if (r >= rows) return;
  float sum = 0.0f;
  if (COMPUTE == FD_I8) {
    for (int64_t b = 0; b < w.C / 32; ++b) {
      const int64_t block = (begin + r) * (w.C / 32) + b;
      const Shared32 s = shared32(w, o, b);
      int inner = 0;
      for (int j = 0; j < 32; ++j) inner += (quant_at(w, o, b, j) - offset_of(w.type)) * rounded.q[block * 32 + j];
      sum = fmaf(static_cast<float>(inner), s.scale * rounded.scale[block], sum);
      if (has_minimum(w.type)) sum = fmaf(s.minimum, rounded.shift[block], sum);
    }
  } else {
    const float* x_row = row(x, begin + r);
    for (int64_t c = 0; c < w.C; ++c)
      sum = fmaf(operand<COMPUTE == FD_BF16>(x_row[c]), operand<COMPUTE == FD_BF16>(value_at(w, o, c)), sum);
  }
  store(to, r, o, sum);
}

// ---- few rows -------------------------------------------------------------------------------------------------------------
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

// x in int8, of all rows, where the type and `compute` ask for it. Returns the `compute` of the product.
int64_t round_rows(fd_context* ctx, const char* op, const fd_tensor& x, const Weight& w, int64_t compute,
                   const Int8Rows& rounded) {
  if (compute != FD_I8) return compute;
  if (!of_integers(w.type)) return FD_F32;
  launch_threads(ctx, op, x.shape[0] * (w.C / 32), round_kernel, rounded, x);
  return FD_I8;
}

// Rows begin, begin + 1, .. of x times the weight; compute as round_rows returned it.
void product(fd_context* ctx, const char* op, const Target& to, const fd_tensor& x, const Int8Rows& rounded, const Weight& w,
             int64_t begin, int64_t rows, int64_t compute, bool naive) {
  if (!naive && compute == FD_I8 && rows <= FEW && reinterpret_cast<uintptr_t>(w.data) % 16 == 0) {
    const auto with = [&](auto* kernel) {
      launch(ctx, op, blocks_for(w.O, OUTPUTS * FEW_WARPS), FEW_WARPS * WARP, kernel, to, rounded, w, begin,
             static_cast<int>(rows));
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
        break;
    }
  }
  auto* kernel = compute == FD_I8 ? product_kernel<FD_I8> : compute == FD_BF16 ? product_kernel<FD_BF16> : product_kernel<FD_F32>;
  launch_threads(ctx, op, rows * w.O, kernel, to, x, rounded, w, begin, rows);
}

fd_tensor rows_of(float* data, int64_t rows, int64_t width) {
  return fd_tensor{data, {rows, width, 1, 1}, {width, 1, 1, 1}, 2, FD_F32};
}
Weight weight_of(const fd_tensor& packed, int64_t O, int64_t C, int64_t type) {
  return {static_cast<const uint8_t*>(packed.data), O, C, type};
}

// ---- the product, forward and backward ---------------------------------------------------------------------------------
size_t matmul_workspace(const void* arguments, int32_t) {
  const auto& a = *static_cast<const fd_quantized_matmul_args*>(arguments);
  return rounded_bytes(a.x.shape[0], a.x.shape[1]);
}

template <bool NAIVE>
void matmul(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_quantized_matmul_args*>(arguments);
  const char* op = "quantized_matmul";
  const Weight w = weight_of(a.weight, a.out.shape[1], a.x.shape[1], a.type);
  const Int8Rows rounded = int8_rows(ctx->workspace, a.x.shape[0], w.C);
  const int64_t compute = round_rows(ctx, op, a.x, w, a.compute, rounded);
  product(ctx, op, {a.out, a.bias, a.residual}, a.x, rounded, w, 0, a.x.shape[0], compute, NAIVE);
}

// A thread per element of dx walks down a column of the weight.
template <bool BF16_OPERANDS>
__global__ void backward_input_kernel(fd_tensor dx, fd_tensor dout, Weight w, bool add) {
  const int64_t i = global_thread(), n = i / w.C, c = i % w.C;
  if (n >= dx.shape[0]) return;
  float sum = add ? row(dx, n)[c] : 0.0f;
  for (int64_t o = 0; o < w.O; ++o)
    sum = fmaf(operand<BF16_OPERANDS>(row(dout, n)[o]), operand<BF16_OPERANDS>(value_at(w, o, c)), sum);
  row(dx, n)[c] = sum;
}

void backward_input(fd_context* ctx, const char* op, const fd_tensor& dx, const fd_tensor& dout, const Weight& w, bool add,
                    int64_t compute) {
  launch_threads(ctx, op, dx.shape[0] * w.C, compute == FD_BF16 ? backward_input_kernel<true> : backward_input_kernel<false>, dx,
                 dout, w, add);
}

void matmul_backward_input(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_quantized_matmul_backward_input_args*>(arguments);
  backward_input(ctx, "quantized_matmul_backward_input", a.dx, a.dout,
                 weight_of(a.weight, a.dout.shape[1], a.dx.shape[1], a.type), a.accumulate != 0, a.compute);
}

// ---- packing, embedding ------------------------------------------------------------------------------------------------
// A thread a byte: from its place in the file's row to that of a Weight.
__global__ void pack_kernel(fd_tensor packed, fd_tensor rows, int64_t block_bytes, int64_t apart) {
  const int64_t O = rows.shape[0], R = rows.shape[1], i = global_thread(), o = i / R, at = i % R;
  if (o >= O) return;
  int64_t to = i;
  if (apart != 0) {
    const int64_t head = block_bytes - apart, blocks = R / block_bytes, index = o * blocks + at / block_bytes,
                  byte = at % block_bytes;
    to = byte < head ? O * blocks * apart + index * head + byte : index * apart + byte - head;
  }
  flat<uint8_t>(packed)[to] = row<uint8_t>(rows, o)[at];
}

void pack(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_quantized_pack_args*>(arguments);
  launch_threads(ctx, "quantized_pack", a.rows.shape[0] * a.rows.shape[1], pack_kernel, a.packed, a.rows, block_of(a.type).bytes,
                 quant_bytes(a.type));
}

__global__ void embedding_kernel(fd_quantized_embedding_args a, Weight w) {
  const int64_t i = global_thread(), n = i / w.C, c = i % w.C;
  if (n >= a.out.shape[0]) return;
  float x = value_at(w, flat<int32_t>(a.tokens)[n], c);
  if (a.wpe.data != nullptr) x += row(a.wpe, flat<int32_t>(a.positions)[n])[c];
  row(a.out, n)[c] = x;
}

void embedding(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_quantized_embedding_args*>(arguments);
  launch_threads(ctx, "quantized_embedding", a.out.shape[0] * a.out.shape[1], embedding_kernel, a,
                 weight_of(a.weight, a.vocab, a.out.shape[1], a.type));
}

// ---- the head: logits of a chunk, then x rounded ------------------------------------------------------------------------
size_t logits_bytes(int64_t N, int64_t V) { return (head_workspace(N, V) + 255) / 256 * 256; }
template <class Arguments>
size_t head_workspace_of(const void* arguments, int32_t) {
  const auto& a = *static_cast<const Arguments*>(arguments);
  return logits_bytes(a.x.shape[0], a.vocab) + rounded_bytes(a.x.shape[0], a.x.shape[1]);
}
Int8Rows behind_logits(fd_context* ctx, const fd_tensor& x, int64_t V) {
  return int8_rows(ctx->workspace + logits_bytes(x.shape[0], V), x.shape[0], x.shape[1]);
}

void run(fd_context* ctx, const char* op, const HeadArguments& a, const fd_tensor& x, const fd_tensor& weight, int64_t type,
         int64_t compute, const fd_tensor& dx, bool forward, bool backward, bool naive) {
  const Weight w = weight_of(weight, a.V, x.shape[1], type);
  const Int8Rows rounded = behind_logits(ctx, x, a.V);
  const int64_t how = round_rows(ctx, op, x, w, compute, rounded);
  run_head(
      ctx, op, a, x.shape[0], forward, backward,
      [&](float* z, int64_t begin, int64_t rows) {
        product(ctx, op, {rows_of(z, rows, a.V), absent(), absent()}, x, rounded, w, begin, rows, how, naive);
      },
      [&](float* z, int64_t begin, int64_t rows) {
        fd_tensor part = rows_of(static_cast<float*>(dx.data) + begin * dx.stride[0], rows, w.C);
        part.stride[0] = dx.stride[0];
        backward_input(ctx, op, part, rows_of(z, rows, a.V), w, false, compute);
      });
}

template <bool NAIVE>
void head_forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_quantized_head_forward_args*>(arguments);
  const HeadArguments h{a.logprobs,   a.entropy, a.lse,    a.targets, a.temperature,
                        a.vocab_mask, absent(),  absent(), absent(),  a.vocab};
  run(ctx, "quantized_head_forward", h, a.x, a.weight, a.type, a.compute, absent(), true, false, NAIVE);
}

template <bool NAIVE>
void head_backward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_quantized_head_backward_args*>(arguments);
  const HeadArguments h{absent(),     a.entropy,   a.lse,      a.targets, a.temperature,
                        a.vocab_mask, a.dlogprobs, a.dentropy, a.dlse,    a.vocab};
  run(ctx, "quantized_head_backward", h, a.x, a.weight, a.type, a.compute, a.dx, false, true, NAIVE);
}

template <bool NAIVE>
void head_forward_backward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_quantized_head_forward_backward_args*>(arguments);
  const HeadArguments h{a.logprobs,   a.entropy,   a.lse,    a.targets, a.temperature,
                        a.vocab_mask, a.dlogprobs, absent(), absent(),  a.vocab};
  run(ctx, "quantized_head_forward_backward", h, a.x, a.weight, a.type, a.compute, a.dx, true, true, NAIVE);
}

template <bool NAIVE>
void head_sample(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_quantized_head_sample_args*>(arguments);
  const char* op = "quantized_head_sample";
  const SampleArguments s{a.tokens, a.logprobs, a.vocab_mask, a.temperature, a.top_k,
                          a.top_p,  a.min_p,    a.seeds,      a.counters,    a.vocab};
  const Weight w = weight_of(a.weight, a.vocab, a.x.shape[1], a.type);
  float* z = scratch(ctx);
  const Int8Rows rounded = behind_logits(ctx, a.x, a.vocab);
  const int64_t how = round_rows(ctx, op, a.x, w, a.compute, rounded);
  for (int64_t begin = 0; begin < a.x.shape[0]; begin += HEAD_ROWS) {
    const int64_t rows = head_rows(a.x.shape[0] - begin);
    product(ctx, op, {rows_of(z, rows, a.vocab), absent(), absent()}, a.x, rounded, w, begin, rows, how, NAIVE);
    sample_rows(ctx, op, s, z, begin, rows);
  }
}

}  // namespace

int64_t quantized_row(int64_t C, int64_t type) { return row_bytes(C, type); }
int64_t quantized_size(int64_t O, int64_t C, int64_t type) { return O * row_bytes(C, type); }

#define FD_RUNGS(op, run, ...) {op, "naive", 0, run<true>, __VA_ARGS__}, {op, "few", 1, run<false>, __VA_ARGS__}

FD_VARIANT_LIST(quantized, {"quantized_pack", "naive", 0, pack, nullptr}, {"quantized_embedding", "naive", 0, embedding, nullptr},
                FD_RUNGS("quantized_matmul", matmul, matmul_workspace),
                {"quantized_matmul_backward_input", "naive", 0, matmul_backward_input, nullptr},
                FD_RUNGS("quantized_head_forward", head_forward, head_workspace_of<fd_quantized_head_forward_args>),
                FD_RUNGS("quantized_head_backward", head_backward, head_workspace_of<fd_quantized_head_backward_args>),
                FD_RUNGS("quantized_head_forward_backward", head_forward_backward,
                         head_workspace_of<fd_quantized_head_forward_backward_args>),
                FD_RUNGS("quantized_head_sample", head_sample, head_workspace_of<fd_quantized_head_sample_args>))

}  // namespace freedive::cuda
