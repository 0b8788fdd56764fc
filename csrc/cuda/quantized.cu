// quantized.cu: weights of 16, 8 and 4 bits: products, embedding and head, the weight never written out in float32.
//
// A packed weight is the file's rows, one after another, each a whole number of ggml's blocks (ggml-common.h). A number's value
// is the very float32 that freedive/model/quants.py computes. In int8 (compute = FD_I8) rows of x are rounded to int8 in blocks
// of 32 with a scale each.
// naive: a thread per output element decodes its row of the weight as it goes: what a byte costs in memory is saved, arithmetic
// is not.
#include <cuda_fp16.h>

#include "head.cuh"

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

// Number c of a row.
__device__ float value_at(const uint8_t* weight_row, int64_t type, int64_t c) {
  const Block size = block_of(type);
  const uint8_t* b = weight_row + c / size.numbers * size.bytes;
  const int i = static_cast<int>(c % size.numbers), low = i % 16, shift = i < 16 ? 0 : 4;
  switch (type) {
    case F32:
      return *reinterpret_cast<const float*>(b);
    case F16:
      return half_at(b);
    case BF16:
      return __bfloat162float(__ushort_as_bfloat16(word_at(b)));
    case Q8_0:
      return static_cast<float>(static_cast<int8_t>(b[2 + i])) * half_at(b);
    case Q4_0:
      return (static_cast<float>(b[2 + low] >> shift & 15) - 8.0f) * half_at(b);
    case Q4_1:
      return static_cast<float>(b[4 + low] >> shift & 15) * half_at(b) + half_at(b + 2);
    case Q5_0: {
      const int fifth = (b[2 + i / 8] >> i % 8 & 1) << 4;
      return (static_cast<float>((b[6 + low] >> shift & 15) | fifth) - 16.0f) * half_at(b);
    }
    case Q5_1: {
      const int fifth = (b[4 + i / 8] >> i % 8 & 1) << 4;
      return static_cast<float>((b[8 + low] >> shift & 15) | fifth) * half_at(b) + half_at(b + 2);
    }
    default: {  // Q4_K and Q5_K: bytes 32 j .. hold group 2 j in their low halves and group 2 j + 1 in their high ones
      const int group = i / 32, at = i % 32;
      int scale, minimum;
      six_bits(b + 4, group, &scale, &minimum);
      const uint8_t* q = b + (type == Q5_K ? 48 : 16);
      int n = q[group / 2 * 32 + at] >> (group % 2 * 4) & 15;
      if (type == Q5_K) n |= (b[16 + at] >> group & 1) << 4;
      return half_at(b) * static_cast<float>(scale) * static_cast<float>(n) - half_at(b + 2) * static_cast<float>(minimum);
    }
  }
}

struct Weight {
  const uint8_t* rows;
  int64_t O, C, type;
  __device__ const uint8_t* row(int64_t o) const { return rows + o * row_bytes(C, type); }
};
#ifdef FREEDIVE_CUDA_EMULATION
void visit_pointers(const Weight& w, int argument) { emu::visit_pointers(w.rows, argument); }
#endif

// ---- x in int8: blocks of 32 numbers, round(x 127 / most), and the scale most / 127 ------------------------------------------
__global__ void round_kernel(float* rounded, fd_tensor x) {
  const int64_t blocks = x.shape[1] / 32, i = global_thread();
  if (i >= x.shape[0] * blocks) return;
  const float* from = row(x, i / blocks) + i % blocks * 32;
  float most = 0.0f;
  for (int j = 0; j < 32; ++j) most = fmaxf(most, fabsf(from[j]));
  const bool zero = !(most >= 1e-30f);
  float* to = rounded + i * 33;  // the scale, then 32 integers
  to[0] = zero ? 0.0f : most / 127.0f;
  const float inverse = zero ? 0.0f : 127.0f / most;
  for (int j = 0; j < 32; ++j) to[1 + j] = rintf(from[j] * inverse);
}

struct Target {
  fd_tensor out, bias, residual;
};
#ifdef FREEDIVE_CUDA_EMULATION
void visit_pointers(const Target& t, int argument) {
  for (const fd_tensor* x : {&t.out, &t.bias, &t.residual}) ::visit_pointers(*x, argument);
}
#endif

template <int64_t COMPUTE>
__global__ void product_kernel(Target to, fd_tensor x, const float* rounded, Weight w, int64_t begin, int64_t rows) {
  const int64_t i = global_thread(), r = i / w.O, o = i % w.O;
  if (r >= rows) return;
  const uint8_t* weight_row = w.row(o);
  float sum = 0.0f;
  if (COMPUTE == FD_I8) {
    for (int64_t b = 0; b < w.C / 32; ++b) {
      const float* block = rounded + ((begin + r) * (w.C / 32) + b) * 33;
      float inner = 0.0f;
      for (int j = 0; j < 32; ++j) inner = fmaf(block[1 + j], value_at(weight_row, w.type, b * 32 + j), inner);
      sum = fmaf(block[0], inner, sum);
    }
  } else {
    const float* x_row = row(x, begin + r);
    for (int64_t c = 0; c < w.C; ++c)
      sum = fmaf(operand<COMPUTE == FD_BF16>(x_row[c]), operand<COMPUTE == FD_BF16>(value_at(weight_row, w.type, c)), sum);
  }
  if (to.bias.data != nullptr) sum += flat(to.bias)[o];
  if (to.residual.data != nullptr) sum += row(to.residual, r)[o];
  row(to.out, r)[o] = sum;
}

size_t rounded_bytes(int64_t N, int64_t C) { return static_cast<size_t>(N * (C / 32) * 33) * sizeof(float); }

// x in int8, of all rows, where the type and `compute` ask for it. Returns the `compute` of the product.
int64_t round_rows(fd_context* ctx, const char* op, const fd_tensor& x, const Weight& w, int64_t compute, float* rounded) {
  if (compute != FD_I8) return compute;
  if (!of_integers(w.type)) return FD_F32;
  launch_threads(ctx, op, x.shape[0] * (w.C / 32), round_kernel, rounded, x);
  return FD_I8;
}

// Rows begin, begin + 1, .. of x times the weight; compute as round_rows returned it.
void product(fd_context* ctx, const char* op, const Target& to, const fd_tensor& x, const float* rounded, const Weight& w,
             int64_t begin, int64_t rows, int64_t compute) {
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

void matmul(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_quantized_matmul_args*>(arguments);
  const char* op = "quantized_matmul";
  const Weight w = weight_of(a.weight, a.out.shape[1], a.x.shape[1], a.type);
  const int64_t compute = round_rows(ctx, op, a.x, w, a.compute, scratch(ctx));
  product(ctx, op, {a.out, a.bias, a.residual}, a.x, scratch(ctx), w, 0, a.x.shape[0], compute);
}

// A thread per element of dx walks down a column of the weight.
template <bool BF16_OPERANDS>
__global__ void backward_input_kernel(fd_tensor dx, fd_tensor dout, Weight w, bool add) {
  const int64_t i = global_thread(), n = i / w.C, c = i % w.C;
  if (n >= dx.shape[0]) return;
  float sum = add ? row(dx, n)[c] : 0.0f;
  for (int64_t o = 0; o < w.O; ++o)
    sum = fmaf(operand<BF16_OPERANDS>(row(dout, n)[o]), operand<BF16_OPERANDS>(value_at(w.row(o), w.type, c)), sum);
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
__global__ void pack_kernel(fd_tensor packed, fd_tensor rows) {
  const int64_t R = rows.shape[1], i = global_thread();
  if (i < rows.shape[0] * R) flat<uint8_t>(packed)[i] = row<uint8_t>(rows, i / R)[i % R];
}

void pack(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_quantized_pack_args*>(arguments);
  launch_threads(ctx, "quantized_pack", a.rows.shape[0] * a.rows.shape[1], pack_kernel, a.packed, a.rows);
}

__global__ void embedding_kernel(fd_quantized_embedding_args a, Weight w) {
  const int64_t i = global_thread(), n = i / w.C, c = i % w.C;
  if (n >= a.out.shape[0]) return;
  float x = value_at(w.row(flat<int32_t>(a.tokens)[n]), w.type, c);
  if (a.wpe.data != nullptr) x += row(a.wpe, flat<int32_t>(a.positions)[n])[c];
  row(a.out, n)[c] = x;
}

void embedding(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_quantized_embedding_args*>(arguments);
  launch_threads(ctx, "quantized_embedding", a.out.shape[0] * a.out.shape[1], embedding_kernel, a,
                 weight_of(a.weight, a.vocab, a.out.shape[1], a.type));
}

// ---- the head: logits of a chunk, then x rounded ------------------------------------------------------------------------
template <class Arguments>
size_t head_workspace_of(const void* arguments, int32_t) {
  const auto& a = *static_cast<const Arguments*>(arguments);
  return head_workspace(a.x.shape[0], a.vocab) + rounded_bytes(a.x.shape[0], a.x.shape[1]);
}

void run(fd_context* ctx, const char* op, const HeadArguments& a, const fd_tensor& x, const fd_tensor& weight, int64_t type,
         int64_t compute, const fd_tensor& dx, bool forward, bool backward) {
  const Weight w = weight_of(weight, a.V, x.shape[1], type);
  float* rounded = scratch(ctx) + head_rows(x.shape[0]) * a.V;
  const int64_t how = round_rows(ctx, op, x, w, compute, rounded);
  run_head(
      ctx, op, a, x.shape[0], forward, backward,
      [&](float* z, int64_t begin, int64_t rows) {
        product(ctx, op, {rows_of(z, rows, a.V), absent(), absent()}, x, rounded, w, begin, rows, how);
      },
      [&](float* z, int64_t begin, int64_t rows) {
        fd_tensor part = rows_of(static_cast<float*>(dx.data) + begin * dx.stride[0], rows, w.C);
        part.stride[0] = dx.stride[0];
        backward_input(ctx, op, part, rows_of(z, rows, a.V), w, false, compute);
      });
}

void head_forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_quantized_head_forward_args*>(arguments);
  const HeadArguments h{a.logprobs,   a.entropy, a.lse,    a.targets, a.temperature,
                        a.vocab_mask, absent(),  absent(), absent(),  a.vocab};
  run(ctx, "quantized_head_forward", h, a.x, a.weight, a.type, a.compute, absent(), true, false);
}

void head_backward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_quantized_head_backward_args*>(arguments);
  const HeadArguments h{absent(),     a.entropy,   a.lse,      a.targets, a.temperature,
                        a.vocab_mask, a.dlogprobs, a.dentropy, a.dlse,    a.vocab};
  run(ctx, "quantized_head_backward", h, a.x, a.weight, a.type, a.compute, a.dx, false, true);
}

void head_forward_backward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_quantized_head_forward_backward_args*>(arguments);
  const HeadArguments h{a.logprobs,   a.entropy,   a.lse,    a.targets, a.temperature,
                        a.vocab_mask, a.dlogprobs, absent(), absent(),  a.vocab};
  run(ctx, "quantized_head_forward_backward", h, a.x, a.weight, a.type, a.compute, a.dx, true, true);
}

void head_sample(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_quantized_head_sample_args*>(arguments);
  const char* op = "quantized_head_sample";
  const SampleArguments s{a.tokens, a.logprobs, a.vocab_mask, a.temperature, a.top_k,
                          a.top_p,  a.min_p,    a.seeds,      a.counters,    a.vocab};
  const Weight w = weight_of(a.weight, a.vocab, a.x.shape[1], a.type);
  float *z = scratch(ctx), *rounded = z + head_rows(a.x.shape[0]) * a.vocab;
  const int64_t how = round_rows(ctx, op, a.x, w, a.compute, rounded);
  for (int64_t begin = 0; begin < a.x.shape[0]; begin += HEAD_ROWS) {
    const int64_t rows = head_rows(a.x.shape[0] - begin);
    product(ctx, op, {rows_of(z, rows, a.vocab), absent(), absent()}, a.x, rounded, w, begin, rows, how);
    sample_rows(ctx, op, s, z, begin, rows);
  }
}

}  // namespace

int64_t quantized_row(int64_t C, int64_t type) { return row_bytes(C, type); }
int64_t quantized_size(int64_t O, int64_t C, int64_t type) { return O * row_bytes(C, type); }

FD_VARIANT_LIST(quantized, {"quantized_pack", "naive", 0, pack, nullptr}, {"quantized_embedding", "naive", 0, embedding, nullptr},
                {"quantized_matmul", "naive", 0, matmul, matmul_workspace},
                {"quantized_matmul_backward_input", "naive", 0, matmul_backward_input, nullptr},
                {"quantized_head_forward", "naive", 0, head_forward, head_workspace_of<fd_quantized_head_forward_args>},
                {"quantized_head_backward", "naive", 0, head_backward, head_workspace_of<fd_quantized_head_backward_args>},
                {"quantized_head_forward_backward", "naive", 0, head_forward_backward,
                 head_workspace_of<fd_quantized_head_forward_backward_args>},
                {"quantized_head_sample", "naive", 0, head_sample, head_workspace_of<fd_quantized_head_sample_args>})

}  // namespace freedive::cuda
