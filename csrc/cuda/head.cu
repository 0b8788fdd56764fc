// head.cu: the language-model head. z = weight x / T over the ids the mask allows:
//
//   lse = log sum exp z,  logprobs = z[target] - lse,  entropy = lse - sum p z
//   dz_j = sum_k dlogprobs_k (1[j = target_k] - p_j) - dentropy p_j (log p_j + entropy) + dlse p_j
//   dx = weight^T dz / T,   dweight += dz x^T / T
//
// In chunks of tokens (head.cuh). Rows whose first target is -1 are skipped: their outputs are 0, and so are their
// derivatives. Per chunk it reads the weight once forward and twice backward (logits are computed again), whatever the batch.
//
// naive: statistics in two passes over a row of logits, for the maximum and for the sums; derivatives a thread per logit, with a
// 64-bit division each: 16 bytes a logit.
// vector: statistics in one pass (head.cuh), derivatives four logits a thread, both by 128 bits where rows begin on 16 bytes (V a
// multiple of 4): 12 bytes a logit, half of what the statistics read. Derivatives have naive's formula, and its bits for the same
// lse and entropy.
// sm80 (head_sm80.cu): in bfloat16 its products are on tensor cores, chunks larger, and derivatives are written as products take
// them; in float32 it is vector.
#include "head.cuh"
#include "matmul_rounded.cuh"

namespace freedive::cuda {
namespace {

// In two passes.
__device__ RowStats row_stats_naive(const float* z, int64_t V, const fd_tensor& mask, float temperature, double* shared) {
  float top = -INFINITY;
  for (int64_t v = threadIdx.x; v < V; v += THREADS)
    if (allowed(mask, v)) top = fmaxf(top, z[v] / temperature);
  top = block_max(top, shared);
  Seen seen{top};
  for (int64_t v = threadIdx.x; v < V; v += THREADS)
    if (allowed(mask, v)) seen.add(z[v] / temperature);
  const double sum = block_sum(seen.sum, shared), weighted = block_sum(seen.weighted, shared);
  return {top, log(sum), log(sum) - weighted / sum};
}

// A block for each row.
template <bool NAIVE>
__global__ void head_stats_kernel(HeadArguments a, const float* logits, int64_t begin) {
  FD_SHARED(double, shared, [WARPS]);
  const int64_t n = begin + blockIdx.x, K = a.targets.shape[1];
  const int32_t* targets = row<int32_t>(a.targets, n);
  const bool first = threadIdx.x == 0;
  if (targets[0] < 0) {  // the whole block
    if (!first) return;
    for (int64_t k = 0; k < K; ++k) row(a.logprobs, n)[k] = 0.0f;
    flat(a.entropy)[n] = flat(a.lse)[n] = 0.0f;
    return;
  }
  const float T = flat(a.temperature)[0];
  const float* z = logits + static_cast<int64_t>(blockIdx.x) * a.V;
  const RowStats stats = NAIVE ? row_stats_naive(z, a.V, a.vocab_mask, T, shared) : row_stats(z, a.V, a.vocab_mask, T, shared);
  if (!first) return;
  for (int64_t k = 0; k < K; ++k) {
    const int32_t t = targets[k];
    row(a.logprobs, n)[k] = t < 0 ? 0.0f : allowed(a.vocab_mask, t) ? stats.logprob(z[t] / T) : -INFINITY;
  }
  flat(a.entropy)[n] = static_cast<float>(stats.entropy);
  flat(a.lse)[n] = stats.lse();
}

// Of the loss by logit j of row n, which is z, divided by the temperature.
__device__ float derivative(const HeadArguments& a, int64_t n, int64_t j, float z) {
  const int32_t* targets = row<int32_t>(a.targets, n);
  if (targets[0] < 0 || !allowed(a.vocab_mask, j)) return 0.0f;
  const float T = flat(a.temperature)[0], log_p = z / T - flat(a.lse)[n], p = expf(log_p);
  float dz = 0.0f;
  if (a.dlogprobs.data != nullptr)
    for (int64_t k = 0; k < a.targets.shape[1]; ++k)
      if (targets[k] >= 0) dz += row(a.dlogprobs, n)[k] * ((targets[k] == j ? 1.0f : 0.0f) - p);
  if (a.dentropy.data != nullptr && p > 0.0f) dz -= flat(a.dentropy)[n] * p * (log_p + flat(a.entropy)[n]);
  if (a.dlse.data != nullptr) dz += flat(a.dlse)[n] * p;
  return dz / T;
}

__global__ void head_derivative_kernel(HeadArguments a, float* logits, int64_t begin, int64_t rows) {
  const int64_t i = global_thread(), r = i / a.V, j = i % a.V;
  if (r < rows) logits[i] = derivative(a, begin + r, j, logits[i]);
}

__global__ void head_derivative_vector_kernel(HeadArguments a, float* logits, int64_t begin, unsigned blocks_of_row) {
  const RowPiece p = row_piece(a.V, blocks_of_row);
  if (p.left <= 0) return;
  float* z = logits + p.n * a.V + p.at;
  Four x = load4(z, p.left);
#pragma unroll
  for (int c = 0; c < VECTOR; ++c)
    if (c < p.left) x.at[c] = derivative(a, begin + p.n, p.at + c, x.at[c]);
  store4(z, x, p.left);
}

__global__ void head_derivative_rounded_kernel(HeadArguments a, const float* logits, uint16_t* rounded, int64_t begin,
                                               int64_t rows) {
  const int64_t pieces = (a.V + PIECE - 1) / PIECE, e = global_thread(), r = e / pieces, j = e % pieces * PIECE;
  if (r >= rows) return;
  const float* z = logits + r * a.V + j;
  Four four[] = {load4(z, a.V - j), load4(z + VECTOR, a.V - j - VECTOR)};
#pragma unroll
  for (int c = 0; c < PIECE; ++c) {
    float& x = four[c / VECTOR].at[c % VECTOR];
    if (j + c < a.V) x = derivative(a, begin + r, j + c, x);
  }
  *reinterpret_cast<uint4*>(rounded + e * PIECE) = rounded8(four[0], four[1]);
}

}  // namespace

void head_stats(fd_context* ctx, const char* op, const HeadArguments& a, const float* logits, int64_t begin, int64_t rows,
                bool naive) {
  launch(ctx, op, rows, THREADS, naive ? head_stats_kernel<true> : head_stats_kernel<false>, a, logits, begin);
}

void head_derivatives(fd_context* ctx, const char* op, const HeadArguments& a, float* logits, int64_t begin, int64_t rows,
                      bool naive) {
  if (naive) return launch_threads(ctx, op, rows * a.V, head_derivative_kernel, a, logits, begin, rows);
  const RowLaunch by(a.V);
  launch(ctx, op, rows * by.blocks, by.threads, head_derivative_vector_kernel, a, logits, begin, by.blocks);
}

void head_derivatives_rounded(fd_context* ctx, const char* op, const HeadArguments& a, const float* logits, uint16_t* rounded,
                              int64_t begin, int64_t rows) {
  launch_threads(ctx, op, rows * (padded(a.V) / PIECE), head_derivative_rounded_kernel, a, logits, rounded, begin, rows);
}

void float_logits(fd_context* ctx, const char* op, const fd_tensor& x, const fd_tensor& weight, int64_t compute, float* z,
                  int64_t begin, int64_t rows) {
  const int64_t V = weight.shape[0];
  Operand chunk = by_rows(x);
  chunk.data += begin * chunk.row;
  multiply_tiled(ctx, op, {chunk, by_rows(weight), z, V, rows, V, x.shape[1], false, nullptr, nullptr, 0}, compute);
}

namespace {

// dx of the chunk's rows, and their part of dweight; z holds the derivatives by the logits.
void chunk_gradients(fd_context* ctx, const char* op, const HeadTensors& w, float* z, int64_t begin, int64_t rows) {
  const int64_t V = w.weight.shape[0], C = w.x.shape[1];
  Operand x = by_columns(w.x);
  x.data += begin * w.x.stride[0];
  float* dx = static_cast<float*>(w.dx.data) + begin * w.dx.stride[0];
  const Product to_x{{z, V, 1}, by_columns(w.weight), dx, w.dx.stride[0], rows, C, V, false, nullptr, nullptr, 0};
  multiply_tiled(ctx, op, to_x, w.compute);
  if (w.dweight.data == nullptr) return;
  float* dweight = static_cast<float*>(w.dweight.data);
  multiply_tiled(ctx, op, {{z, 1, V}, x, dweight, w.dweight.stride[0], V, C, rows, true, nullptr, nullptr, 0}, w.compute);
}

enum Rung { NAIVE, VECTORS, SM80 };  // of the ladder

template <Rung RUNG>
void run(fd_context* ctx, const char* op, const HeadArguments& a, const HeadTensors& w, bool forward, bool backward) {
  if (RUNG == SM80 && w.compute == FD_BF16) return head_sm80(ctx, op, a, w, forward, backward);
  run_head(
      ctx, op, a, w.x.shape[0], forward, backward,
      [&](float* z, int64_t begin, int64_t rows) { float_logits(ctx, op, w.x, w.weight, w.compute, z, begin, rows); },
      [&](float* z, int64_t begin, int64_t rows) { chunk_gradients(ctx, op, w, z, begin, rows); }, RUNG == NAIVE);
}

template <class Arguments, Rung RUNG, bool BACKWARD>
size_t workspace(const void* arguments, int32_t) {
  const auto& a = *static_cast<const Arguments*>(arguments);
  const int64_t N = a.x.shape[0], V = a.weight.shape[0];
  return RUNG == SM80 ? head_sm80_workspace(N, V, a.x.shape[1], BACKWARD) : head_workspace(N, V);
}

template <Rung RUNG>
void head_forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_head_forward_args*>(arguments);
  const HeadArguments h{a.logprobs,   a.entropy, a.lse,    a.targets, a.temperature,
                        a.vocab_mask, absent(),  absent(), absent(),  a.weight.shape[0]};
  run<RUNG>(ctx, "head_forward", h, {a.x, a.weight, a.packed, absent(), absent(), a.compute}, true, false);
}

template <Rung RUNG>
void head_backward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_head_backward_args*>(arguments);
  const HeadArguments h{absent(),     a.entropy,   a.lse,      a.targets, a.temperature,
                        a.vocab_mask, a.dlogprobs, a.dentropy, a.dlse,    a.weight.shape[0]};
  run<RUNG>(ctx, "head_backward", h, {a.x, a.weight, a.packed, a.dx, a.dweight, a.compute}, false, true);
}

template <Rung RUNG>
void head_forward_backward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_head_forward_backward_args*>(arguments);
  const HeadArguments h{a.logprobs,   a.entropy,   a.lse,    a.targets, a.temperature,
                        a.vocab_mask, a.dlogprobs, absent(), absent(),  a.weight.shape[0]};
  run<RUNG>(ctx, "head_forward_backward", h, {a.x, a.weight, a.packed, a.dx, a.dweight, a.compute}, true, true);
}

}  // namespace

#define FD_RUNGS(op, backward)                                                                         \
  {#op, "naive", 0, op<NAIVE>, workspace<fd_##op##_args, NAIVE, backward>},                            \
      {#op, "vector", 1, op<VECTORS>, workspace<fd_##op##_args, VECTORS, backward>},                   \
      {#op, "sm80", 2, op<SM80>, workspace<fd_##op##_args, SM80, backward>}

FD_VARIANT_LIST(head, FD_RUNGS(head_forward, false), FD_RUNGS(head_backward, true), FD_RUNGS(head_forward_backward, true))

}  // namespace freedive::cuda
