// head.cuh: what the heads of float32 and of packed weights share: chunks of logits, and the statistics of a row of them.
//
// Logits [N, V] never exist: the workspace holds those of a chunk of tokens, and the host walks through the chunks, whose number
// follows from the batch's size. How a chunk is made is all in which the heads differ.
#pragma once
#include "matmul.cuh"
#include "vector.cuh"

namespace freedive::cuda {

constexpr int64_t HEAD_ROWS = 128;  // a block to a row: about as many as a GPU has multiprocessors

inline int64_t head_rows(int64_t N) { return N < HEAD_ROWS ? N : HEAD_ROWS; }
inline size_t head_workspace(int64_t N, int64_t V) { return static_cast<size_t>(head_rows(N) * V) * sizeof(float); }

// Everything but the weight. Views that are absent have no data.
struct HeadArguments {
  fd_tensor logprobs, entropy, lse, targets, temperature, vocab_mask, dlogprobs, dentropy, dlse;
  int64_t V;
};
#ifdef FREEDIVE_CUDA_EMULATION
inline void visit_pointers(const HeadArguments& a, int argument) {
  emu::visit_parts(argument, a.logprobs, a.entropy, a.lse, a.targets, a.temperature, a.vocab_mask, a.dlogprobs, a.dentropy, a.dlse);
}
#endif

struct RowStats {
  float top;
  double log_sum, entropy;  // log sum exp(z - top)
  __device__ float lse() const { return static_cast<float>(static_cast<double>(top) + log_sum); }
  __device__ float logprob(float z) const {
    return static_cast<float>(static_cast<double>(z) - static_cast<double>(top) - log_sum);
  }
};

__device__ inline bool allowed(const fd_tensor& mask, int64_t v) { return mask.data == nullptr || flat<uint8_t>(mask)[v] != 0; }

// What a thread has seen of a row: sums of exp(z - top) and of exp(z - top) (z - top).
struct Seen {
  float top = -INFINITY;
  double sum = 0.0, weighted = 0.0;
  // The sums below another maximum. What is no number stays it.
  __device__ void raise(float higher) {
    if (!(higher > top)) return;
    if (sum > 0.0) {
      const double d = static_cast<double>(top) - static_cast<double>(higher),
                   fade = static_cast<double>(expf(static_cast<float>(d)));
      weighted = fade > 0.0 ? fade * (weighted + d * sum) : 0.0;
      sum *= fade;
    }
    top = higher;
  }
  __device__ void add(float z) {
    if (z == -INFINITY) return;
    const double d = static_cast<double>(z) - static_cast<double>(top), e = static_cast<double>(expf(static_cast<float>(d)));
    sum += e;
    weighted += e > 0.0 ? e * d : e;  // 0 times minus infinity is 0; NaN stays
  }
};

// Of z[v] / temperature over the allowed ids, by one block, which reads them once: a thread's maximum rises as it goes (online
// softmax), at the end all take the block's. The same bits in head.cu's vector variants and in every sampler: the sampler's
// log-prob is the trainer's.
__device__ inline RowStats row_stats(const float* z, int64_t V, const fd_tensor& mask, float temperature, double* shared) {
  Seen seen;
  for (int64_t v = threadIdx.x * VECTOR; v < V; v += THREADS * VECTOR) {
    const Four x = map4([&](float number) { return number / temperature; }, load4(z + v, V - v));
    bool in[VECTOR];
    float best = seen.top;
#pragma unroll
    for (int c = 0; c < VECTOR; ++c) {
      in[c] = v + c < V && allowed(mask, v + c);
      if (in[c]) best = fmaxf(best, x.at[c]);
    }
    seen.raise(best);
#pragma unroll
    for (int c = 0; c < VECTOR; ++c)
      if (in[c]) seen.add(x.at[c]);
  }
  const float top = block_max(seen.top, shared);
  seen.raise(top);
  const double sum = block_sum(seen.sum, shared), weighted = block_sum(seen.weighted, shared);
  return {top, log(sum), log(sum) - weighted / sum};
}

// logprobs, entropy and lse of rows begin, begin + 1, .. of the batch, from their logits.
void head_stats(fd_context* ctx, const char* op, const HeadArguments& a, const float* logits, int64_t begin, int64_t rows,
                bool naive);
// Logits become the derivatives of the loss by them, divided by the temperature.
void head_derivatives(fd_context* ctx, const char* op, const HeadArguments& a, float* logits, int64_t begin, int64_t rows,
                      bool naive);
// The same derivatives in bfloat16, in rows padded to 16 bytes: what products on tensor cores take.
void head_derivatives_rounded(fd_context* ctx, const char* op, const HeadArguments& a, const float* logits, uint16_t* rounded,
                              int64_t begin, int64_t rows);

// The chunks of one head: make(z, begin, rows) writes logits, use(z, begin, rows) takes the derivatives further. naive: of
// head.cu's two ladders.
template <class Make, class Use>
void run_head(fd_context* ctx, const char* op, const HeadArguments& a, int64_t N, bool forward, bool backward, const Make& make,
              const Use& use, bool naive = false) {
  float* z = scratch(ctx);
  for (int64_t begin = 0; begin < N; begin += HEAD_ROWS) {
    const int64_t rows = head_rows(N - begin);
    make(z, begin, rows);
    if (forward) head_stats(ctx, op, a, z, begin, rows, naive);
    if (!backward) continue;
    head_derivatives(ctx, op, a, z, begin, rows, naive);
    use(z, begin, rows);
  }
}

// What a row's draw depends on, beside its logits.
struct SampleArguments {
  fd_tensor tokens, logprobs, vocab_mask, temperature, top_k, top_p, min_p, seeds, counters;
  int64_t V;
};
#ifdef FREEDIVE_CUDA_EMULATION
inline void visit_pointers(const SampleArguments& a, int argument) {
  emu::visit_parts(argument, a.tokens, a.logprobs, a.vocab_mask, a.temperature, a.top_k, a.top_p, a.min_p, a.seeds, a.counters);
}
#endif
void sample_rows(fd_context* ctx, const char* op, const SampleArguments& a, const float* logits, int64_t begin, int64_t rows,
                 bool naive = false);

// logits = x W^T of a chunk, of the tiled head and sampler
void float_logits(fd_context* ctx, const char* op, const fd_tensor& x, const fd_tensor& weight, int64_t compute, float* z,
                  int64_t begin, int64_t rows);

// ---- on tensor cores, in bfloat16 (head_sm80.cu) -----------------------------------------------------------------------------
// What the products of a head read and write. packed: the weight as matmul_pack has rounded it, or absent.
struct HeadTensors {
  fd_tensor x, weight, packed, dx, dweight;
  int64_t compute;
};
void head_sm80(fd_context* ctx, const char* op, const HeadArguments& a, const HeadTensors& t, bool forward, bool backward);
void sample_sm80(fd_context* ctx, const char* op, const SampleArguments& a, const HeadTensors& t);
// For either compute: in float32 the tiled head works in chunks of HEAD_ROWS.
size_t head_sm80_workspace(int64_t N, int64_t V, int64_t C, bool backward);

}  // namespace freedive::cuda
