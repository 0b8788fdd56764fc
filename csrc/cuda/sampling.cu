// sampling.cu: one token for each row of logits: the largest, or a draw after top_k, min_p and top_p.
//
// Nothing is sorted. What a cut keeps is everything above a threshold and the first few, by id, of what lies on it. A block to a
// row. The same order of every sum whatever else is in the batch, so the same seed draws the same token.
//
// naive: the threshold is found bit by bit in 32 rounds, each of which counts (top_k) or weighs (top_p) what lies at or above it;
// a round reads V floats. To draw, each thread walks ids that follow each other, which its neighbours' loads are far from.
// select: four bits a round: each thread counts or weighs its candidates in 16 bins by their next four bits, if they agree with
// the bits found so far. 8 rounds instead of 32, by loads of 128 bits, and an exponential only for who agrees. To draw, warps
// walk stretches of ids, 128 neighbours at a time. Reads V floats 2 times for a draw without cuts (naive: 4), 11 with top_k (38),
// 13 with top_p (44), 21 with both (78).
// sm80: select, of logits that tensor cores computed (head_sm80.cu); in bfloat16.
#include "../core/rng.h"
#include "head.cuh"

namespace freedive::cuda {
namespace {

// Bits that order as the numbers do.
__device__ unsigned order_of(float z) {
  const unsigned u = __float_as_uint(z);
  return u >> 31 != 0 ? ~u : u | 0x80000000u;
}

// One row: what is a candidate, and how much it weighs beside the best.
struct Candidates {
  const float* z;
  fd_tensor mask;
  float temperature, top, min_p;
  int64_t V;
  __device__ float weight(int64_t v) const {
    if (!allowed(mask, v)) return 0.0f;
    const float e = expf(z[v] / temperature - top);
    return e > 0.0f && e >= min_p ? e : 0.0f;  // false for what is no number
  }
  __device__ unsigned order(int64_t v) const { return order_of(z[v]); }
};

// Kept: what orders above `threshold`, and the first `ties` ids on it.
struct Kept {
  unsigned threshold = 0;
  int64_t ties = INT64_MAX;
};

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
    double total = 0.0, before = 0.0;
#pragma unroll 8  // all 256 at once would not fit the registers
    for (int t = 0; t < THREADS; ++t) total += masses[t];
    const float u = uniform(flat<uint64_t>(a.seeds)[s], STREAM_SAMPLE, flat<uint64_t>(a.counters)[s]);
    const double aim = static_cast<double>(u) * total;
    int owner = -1, last = -1;
#pragma unroll 1
    for (int t = 0; t < THREADS && owner < 0; ++t) {
      if (chosen[t] < 0) continue;
      last = t;
      if (before + masses[t] > aim)
        owner = t;
      else
        before += masses[t];
    }
    if (me != (owner >= 0 ? owner : last >= 0 ? last : 0)) return;
    token = chosen[me] >= 0 ? chosen[me] : 0;  // no candidate at all: logits that are no numbers
    if (owner == me) {
      double sum = before;
      each_kept([&](int64_t v, float w) {
        sum += static_cast<double>(w);
        if (!(sum > aim)) return true;
        token = v;
        return false;
      });
    }
  }
  flat<int32_t>(a.tokens)[s] = static_cast<int32_t>(token);
  flat(a.logprobs)[s] = stats.logprob(z[token] / T);
}

// ---- select ----------------------------------------------------------------------------------------------------------------
constexpr int BIN_BITS = 4, BINS = 1 << BIN_BITS, STRIP = WARP * VECTOR;

// Calls visit(v, z[v]) for the ids of this thread: fours, every THREADS-th.
template <class Visit>
__device__ void each_id(const float* z, int64_t V, const Visit& visit) {
#pragma unroll 1
  for (int64_t v = threadIdx.x * VECTOR; v < V; v += THREADS * VECTOR) {
    const Four x = load4(z + v, V - v);
#pragma unroll
    for (int c = 0; c < VECTOR; ++c)
      if (v + c < V) visit(v + c, x.at[c]);
  }
}

struct Threshold {
  unsigned order;
  double above, at;  // what lies above it, and on it
};

// The highest threshold at or above which lies at least `wanted`; without any (everything is less), 0. `total`: of all
// candidates.
template <class Value>
__device__ Threshold select(const Candidates& c, double wanted, const Value& value, double (*bins)[THREADS], double* sums,
                            double* total) {
  Threshold found{0, 0.0, 0.0};
  const int me = static_cast<int>(threadIdx.x);
#pragma unroll 1
  for (int shift = 32 - BIN_BITS; shift >= 0; shift -= BIN_BITS) {
    for (int b = 0; b < BINS; ++b) bins[b][me] = 0.0;
    each_id(c.z, c.V, [&](int64_t v, float z) {
      const unsigned order = order_of(z);
      if (shift < 32 - BIN_BITS && (order ^ found.order) >> (shift + BIN_BITS) != 0) return;
      const float w = c.weight(v);
      if (w > 0.0f) bins[order >> shift & (BINS - 1)][me] += value(w);  // of this thread alone
    });
    __syncthreads();
    for (int b = warp_of_block(); b < BINS; b += WARPS) {
      double sum = 0.0;
#pragma unroll
      for (int k = 0; k < THREADS; k += WARP) sum += bins[b][k + lane_id()];
      sum = warp_sum(sum);
      if (lane_id() == 0) sums[b] = sum;
    }
    __syncthreads();
    if (shift == 32 - BIN_BITS) {
      double all = 0.0;
      for (int b = 0; b < BINS; ++b) all += sums[b];
      *total = all;
    }
    int b = BINS - 1;
    while (b > 0 && found.above + sums[b] < wanted) found.above += sums[b--];
    found.order |= static_cast<unsigned>(b) << shift;
    found.at = sums[b];
    __syncthreads();  // before the next round's sums
  }
  return found;
}

// How many candidates lie on a threshold, the mass of those, and of those above.
struct Around {
  double on, at, above;
};
__device__ Around around(const Candidates& c, unsigned threshold, double* shared) {
  Around sum{0.0, 0.0, 0.0};
  each_id(c.z, c.V, [&](int64_t v, float z) {
    const unsigned order = order_of(z);
    if (order < threshold) return;
    const float w = c.weight(v);
    if (!(w > 0.0f)) return;
    if (order > threshold)
      sum.above += static_cast<double>(w);
    else
      sum.on += 1.0, sum.at += static_cast<double>(w);
  });
  return {block_sum(sum.on, shared), block_sum(sum.at, shared), block_sum(sum.above, shared)};
}

// What top_k and top_p keep.
__device__ Kept cut(const Candidates& c, int64_t top_k, float top_p, double (*bins)[THREADS], double* sums, double* shared) {
  Kept kept;
  if (top_k > 0) {
    double total = 0.0;
    const Threshold t = select(c, static_cast<double>(top_k), [](float) { return 1.0; }, bins, sums, &total);
    if (static_cast<double>(top_k) < total) kept.threshold = t.order, kept.ties = top_k - static_cast<int64_t>(t.above);
  }
  if (top_p < 1.0f) {
    // of what top_k left: all above its threshold, and its ties, which weigh the same
    const Around left = around(c, kept.threshold, shared);
    const double share = kept.ties == INT64_MAX || left.on == 0.0 ? 1.0 : static_cast<double>(kept.ties) / left.on;
    const double wanted = static_cast<double>(top_p) * (left.above + left.at * share);
    double total = 0.0;
    const Threshold t = select(c, wanted, [](float w) { return static_cast<double>(w); }, bins, sums, &total);
    if (t.order > kept.threshold || kept.ties == INT64_MAX) kept.threshold = t.order, kept.ties = INT64_MAX;
    const Around here = around(c, kept.threshold, shared);
    const double weight = here.on > 0.0 ? here.at / here.on : 0.0;
    int64_t needed = 1;
    while (static_cast<double>(needed) < here.on && here.above + static_cast<double>(needed) * weight < wanted) ++needed;
    if (needed < kept.ties) kept.ties = needed;
  }
  return kept;
}

// The sum of x over the lanes before this one, and of all lanes.
template <class T>
__device__ T sum_before(T x, T* all) {
  const T sum = warp_sum_up_to(x);
  *all = __shfl_sync(ALL_LANES, sum, WARP - 1);
  return sum - x;
}

// Weights of the four ids from v on that are kept, 0 of the others. `ties`: how many lay on the threshold before this strip, then
// behind it.
__device__ Four kept_weights(const Candidates& c, const Kept& kept, int64_t v, int64_t end, int64_t* ties) {
  Four w{};
  int on = 0;
  bool tie[VECTOR];
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) {
    tie[i] = false;
    if (v + i >= end) continue;
    const unsigned order = c.order(v + i);
    if (order < kept.threshold) continue;
    w.at[i] = c.weight(v + i);
    tie[i] = w.at[i] > 0.0f && order == kept.threshold;
    on += tie[i];
  }
  if (kept.ties == INT64_MAX) return w;  // the whole block
  int all;
  int64_t rank = *ties + sum_before(on, &all);
#pragma unroll
  for (int i = 0; i < VECTOR; ++i)
    if (tie[i] && rank++ >= kept.ties) w.at[i] = 0.0f;
  *ties += all;
  return w;
}

__global__ void select_kernel(SampleArguments a, const float* logits, int64_t begin) {
  FD_SHARED(double, bins, [BINS][THREADS]);
  FD_SHARED(double, sums, [BINS]);
  FD_SHARED(double, shared, [WARPS]);
  FD_SHARED(double, masses, [WARPS]);
  FD_SHARED(int64_t, ids, [WARPS]);
  FD_SHARED(int64_t, counts, [WARPS]);
  const int64_t s = begin + blockIdx.x, V = a.V;
  const int warp = warp_of_block(), lane = lane_id();
  const float* z = logits + static_cast<int64_t>(blockIdx.x) * V;
  const bool greedy = flat(a.temperature)[s] == 0.0f;
  const float T = greedy ? 1.0f : flat(a.temperature)[s];
  const RowStats stats = row_stats(z, V, a.vocab_mask, T, shared);
  int64_t token = 0;
  if (greedy) {
    int64_t least = INT64_MAX;
    each_id(z, V, [&](int64_t v, float x) {
      if (v < least && x == stats.top && allowed(a.vocab_mask, v)) least = v;
    });
    least = -warp_max(-least);
    if (lane == 0) ids[warp] = least;
    __syncthreads();
    for (int w = 0; w < WARPS; ++w)
      if (ids[w] < least) least = ids[w];
    token = least < V ? least : 0;
    if (threadIdx.x != 0) return;
  } else {
    const Candidates c{z, a.vocab_mask, T, stats.top, flat(a.min_p)[s], V};
    const Kept kept = cut(c, flat<int32_t>(a.top_k)[s], flat(a.top_p)[s], bins, sums, shared);
    const int64_t each = (V + WARPS * STRIP - 1) / (WARPS * STRIP) * STRIP, from = warp * each,
                  to = from + each < V ? from + each : V;
    int64_t ties_before = 0;
    if (kept.ties != INT64_MAX) {
      int64_t on = 0;
      for (int64_t v = from + lane; v < to; v += WARP) on += c.order(v) == kept.threshold && c.weight(v) > 0.0f;
      on = warp_sum(on);
      if (lane == 0) counts[warp] = on;
      __syncthreads();
      for (int w = 0; w < warp; ++w) ties_before += counts[w];
    }
    double mine = 0.0;
    int64_t last = -1, ties = ties_before;
#pragma unroll 1
    for (int64_t first = from; first < to; first += STRIP) {
      const int64_t v = first + lane * VECTOR;
      const Four w = kept_weights(c, kept, v, to, &ties);
#pragma unroll
      for (int i = 0; i < VECTOR; ++i)
        if (w.at[i] > 0.0f) mine += static_cast<double>(w.at[i]), last = v + i;
    }
    mine = warp_sum(mine), last = warp_max(last);
    if (lane == 0) masses[warp] = mine, ids[warp] = last;
    __syncthreads();
    double total = 0.0, before = 0.0;
    for (int w = 0; w < WARPS; ++w) total += masses[w];
    const double aim =
        static_cast<double>(uniform(flat<uint64_t>(a.seeds)[s], STREAM_SAMPLE, flat<uint64_t>(a.counters)[s])) * total;
    int owner = -1, fallback = 0;
    for (int w = 0; w < WARPS && owner < 0; ++w) {
      if (ids[w] < 0) continue;
      fallback = w;
      if (before + masses[w] > aim)
        owner = w;
      else
        before += masses[w];
    }
    if (warp != (owner >= 0 ? owner : fallback)) return;  // whole warps
    token = last >= 0 ? last : 0;                         // no candidate at all: logits that are no numbers
    if (owner >= 0) {
      ties = ties_before;
#pragma unroll 1
      for (int64_t first = from; first < to; first += STRIP) {
        const int64_t v = first + lane * VECTOR;
        const Four w = kept_weights(c, kept, v, to, &ties);
        double of_lane = 0.0, of_strip;
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) of_lane += static_cast<double>(w.at[i]);
        double sum = before + sum_before(of_lane, &of_strip);
        int64_t found = INT64_MAX;
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
          sum += static_cast<double>(w.at[i]);
          if (w.at[i] > 0.0f && sum > aim && found == INT64_MAX) found = v + i;
        }
        found = -warp_max(-found);
        if (found != INT64_MAX) {
          token = found;
          break;
        }
        before += of_strip;
      }
    }
    if (lane != 0) return;
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
  launch(ctx, op, rows, THREADS, naive ? sample_kernel : select_kernel, a, logits, begin);
}

FD_VARIANT_LIST(sampling, {"head_sample", "naive", 0, head_sample<NAIVE>, workspace<NAIVE>},
                {"head_sample", "select", 1, head_sample<SELECT>, workspace<SELECT>},
                {"head_sample", "sm80", 2, head_sample<SM80>, workspace<SM80>})

}  // namespace freedive::cuda
