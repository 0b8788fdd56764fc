// quantized.cu: weights of 16, 8 and 4 bits: products, embedding and head, the weight never written out in float32.
//
// compute = FD_I8: rows of x are rounded to int8 in blocks of 32, round(x 127 / most), and an element is a sum over blocks, in
// order, of fma(exact sum of integers, scale of w times scale of x, .), then fma(minimum of w, scale of x times sum of x, .): the
// same bits in both variants, for one row or many.
// naive: a thread per output element decodes its row of the weight as it goes: what a byte costs in memory is saved, arithmetic
// is not.
// few (FD_I8, up to 16 rows, else naive): quantized_few.cu.
#include "head.cuh"
#include "int8.cuh"
#include "quantized.cuh"

namespace freedive::cuda {
namespace {

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
  if (!naive && compute == FD_I8 && product_of_few(ctx, op, to, rounded, w, begin, rows)) return;
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
