// sampling.cu: one token for each row of logits: the largest, or a draw after top_k, min_p and top_p.
//
// Nothing is sorted. What a cut keeps is everything above a threshold and the first few, by id, of what lies on it. A block to a
// row. The same order of every sum whatever else is in the batch, so the same seed draws the same token.
//
// naive: the threshold is found bit by bit in 32 rounds, each of which counts (top_k) or weighs (top_p) what lies at or above it;
// a round reads V floats. To draw, each thread walks ids that follow each other, which its neighbours' loads are far from.
// select: sampling_select.cu.
// sm80: select, of logits that tensor cores computed (head_sm80.cu); in bfloat16.
#include "sampling.cuh"

namespace freedive::cuda {
namespace {

// Sum over the candidates at or above (strictly above) a threshold of `value(weight)`.
template <class Value>
__device__ double weigh(const Candidates& c, unsigned threshold, bool strictly, const Value& value, double* shared) {
  double sum = 0.0;
#pragma unroll 1
  for (int64_t v = threadIdx.x; v < c.V; v += THREADS) {
    const float w = c.weight(v);
    if (w > 0.0f && (strictly ? c.order(v) > threshold : c.order(v) >= threshold)) sum += value(w);
  }
  return block_sum(sum, shared);
}

// The highest threshold at or above which lies at least `wanted`.
template <class Value>
__device__ unsigned find_threshold(const Candidates& c, double wanted, const Value& value, double* shared) {
  unsigned threshold = 0;
#pragma unroll 1  // a round is long enough
  for (int bit = 31; bit >= 0; --bit) {
    const unsigned higher = threshold | 1u << bit;
    if (weigh(c, higher, false, value, shared) >= wanted) threshold = higher;  // all threads see one sum
  }
  return threshold;
}

__global__ void sample_kernel(SampleArguments a, const float* logits, int64_t begin) {
  FD_SHARED(double, shared, [WARPS]);
  FD_SHARED(double, masses, [THREADS]);
  FD_SHARED(int64_t, counts, [THREADS]);
  FD_SHARED(int64_t, chosen, [THREADS]);
  const int64_t s = begin + blockIdx.x, V = a.V;
  const int me = static_cast<int>(threadIdx.x);
  const float* z = logits + static_cast<int64_t>(blockIdx.x) * V;
  const bool greedy = flat(a.temperature)[s] == 0.0f;
  const float T = greedy ? 1.0f : flat(a.temperature)[s];
  const RowStats stats = row_stats(z, V, a.vocab_mask, T, shared);

  // Each thread looks at ids that follow each other, so that "the first by id" is the first thread's.
  const int64_t each = (V + THREADS - 1) / THREADS, from = me * each, to = from + each < V ? from + each : V;
  int64_t token = 0;
  if (greedy) {
    chosen[me] = -1;
    for (int64_t v = from; v < to && chosen[me] < 0; ++v)
      if (allowed(a.vocab_mask, v) && z[v] == stats.top) chosen[me] = v;
    __syncthreads();
    if (me != 0) return;
#pragma unroll 8
    for (int t = THREADS - 1; t >= 0; --t)
      if (chosen[t] >= 0) token = chosen[t];
  } else {
    const Candidates c{z, a.vocab_mask, T, stats.top, flat(a.min_p)[s], V};
    const int64_t top_k = flat<int32_t>(a.top_k)[s];
    const float top_p = flat(a.top_p)[s];
    const auto one = [](float) { return 1.0; };
    const auto mass = [](float w) { return static_cast<double>(w); };
    Kept kept;
    if (top_k > 0 && static_cast<double>(top_k) < weigh(c, 0, false, one, shared)) {
      kept.threshold = find_threshold(c, static_cast<double>(top_k), one, shared);
      kept.ties = top_k - static_cast<int64_t>(weigh(c, kept.threshold, true, one, shared));
    }
    if (top_p < 1.0f) {
      // of what top_k left: all above its threshold, and its ties, which weigh the same
      const double above = weigh(c, kept.threshold, true, mass, shared),
                   at = weigh(c, kept.threshold, false, mass, shared) - above;
      const double on = weigh(c, kept.threshold, false, one, shared) - weigh(c, kept.threshold, true, one, shared);
      const double share = kept.ties == INT64_MAX || on == 0.0 ? 1.0 : static_cast<double>(kept.ties) / on;
      const double wanted = static_cast<double>(top_p) * (above + at * share);
      const unsigned threshold = find_threshold(c, wanted, mass, shared);
      if (threshold > kept.threshold || kept.ties == INT64_MAX) kept.threshold = threshold, kept.ties = INT64_MAX;
      const double higher = weigh(c, kept.threshold, true, mass, shared);
      const double number = weigh(c, kept.threshold, false, one, shared) - weigh(c, kept.threshold, true, one, shared);
      const double weight = number > 0.0 ? (weigh(c, kept.threshold, false, mass, shared) - higher) / number : 0.0;
      int64_t needed = 1;
      while (static_cast<double>(needed) < number && higher + static_cast<double>(needed) * weight < wanted) ++needed;
      if (needed < kept.ties) kept.ties = needed;
    }
    // Ties before each thread's ids, then the mass of what each keeps, then who holds the drawn number.
    counts[me] = 0;
    for (int64_t v = from; v < to; ++v) counts[me] += c.weight(v) > 0.0f && c.order(v) == kept.threshold;
    __syncthreads();
    int64_t ties_before = 0;
    for (int t = 0; t < me; ++t) ties_before += counts[t];
    const auto each_kept = [&](auto&& visit) {
      int64_t ties = ties_before;
      for (int64_t v = from; v < to; ++v) {
        const float w = c.weight(v);
        if (!(w > 0.0f) || c.order(v) < kept.threshold) continue;
        if (c.order(v) == kept.threshold && ties++ >= kept.ties) continue;
        if (!visit(v, w)) return;
      }
    };
    double mine = 0.0;
    chosen[me] = -1;
    each_kept([&](int64_t v, float w) {
      mine += static_cast<double>(w);
      chosen[me] = v;  // the last that is kept
      return true;
    });
    masses[me] = mine;
    __syncthreads();
    const Draw drawn = draw(a, s, masses, chosen);
    if (me != drawn.part) return;
    token = chosen[me] >= 0 ? chosen[me] : 0;  // no candidate at all: logits that are no numbers
    if (drawn.found) {
      double sum = drawn.before;
      each_kept([&](int64_t v, float w) {
        sum += static_cast<double>(w);
        if (!(sum > drawn.aim)) return true;
        token = v;
        return false;
      });
    }
  }
  flat<int32_t>(a.tokens)[s] = static_cast<int32_t>(token);
  flat(a.logprobs)[s] = stats.logprob(z[token] / T);
}

enum Rung { NAIVE, SELECT, SM80 };  // of the ladder

template <Rung RUNG>
size_t workspace(const void* arguments, int32_t) {
  const auto& a = *static_cast<const fd_head_sample_args*>(arguments);
  const int64_t S = a.x.shape[0], V = a.weight.shape[0];
  return RUNG == SM80 ? head_sm80_workspace(S, V, a.x.shape[1], false) : head_workspace(S, V);
}

template <Rung RUNG>
void head_sample(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_head_sample_args*>(arguments);
  const char* op = "head_sample";
  const SampleArguments s{a.tokens, a.logprobs, a.vocab_mask, a.temperature, a.top_k,
                          a.top_p,  a.min_p,    a.seeds,      a.counters,    a.weight.shape[0]};
  if (RUNG == SM80 && a.compute == FD_BF16)
    return sample_sm80(ctx, op, s, {a.x, a.weight, a.packed, absent(), absent(), a.compute});
  float* z = scratch(ctx);
  for (int64_t begin = 0; begin < a.x.shape[0]; begin += HEAD_ROWS) {
    const int64_t rows = head_rows(a.x.shape[0] - begin);
    float_logits(ctx, op, a.x, a.weight, a.compute, z, begin, rows);
    sample_rows(ctx, op, s, z, begin, rows, RUNG == NAIVE);
  }
}

}  // namespace

void sample_rows(fd_context* ctx, const char* op, const SampleArguments& a, const float* logits, int64_t begin, int64_t rows,
                 bool naive) {
  if (!naive) return select_rows(ctx, op, a, logits, begin, rows);
  launch(ctx, op, rows, THREADS, sample_kernel, a, logits, begin);
}

FD_VARIANT_LIST(sampling, {"head_sample", "naive", 0, head_sample<NAIVE>, workspace<NAIVE>},
                {"head_sample", "select", 1, head_sample<SELECT>, workspace<SELECT>},
                {"head_sample", "sm80", 2, head_sample<SM80>, workspace<SM80>})

}  // namespace freedive::cuda
