// sampling_select.cu: the sampler that looks at four bits a round; what is drawn is sampling.cu's.
//
// Each thread counts or weighs its candidates in 16 bins by their next four bits, if they agree with the bits found so far. 8
// rounds instead of 32, by loads of 128 bits, and an exponential only for who agrees. To draw, warps walk stretches of ids, 128
// neighbours at a time. Reads V floats 2 times for a draw without cuts (naive: 4), 11 with top_k (38), 13 with top_p (44), 21
// with both (78).
#include "sampling.cuh"

namespace freedive::cuda {
namespace {

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
    const Draw drawn = draw(a, s, masses, ids);
    if (warp != drawn.part) return;  // whole warps
    token = last >= 0 ? last : 0;    // no candidate at all: logits that are no numbers
    if (drawn.found) {
      ties = ties_before;
      double before = drawn.before;
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
          if (w.at[i] > 0.0f && sum > drawn.aim && found == INT64_MAX) found = v + i;
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

}  // namespace

void select_rows(fd_context* ctx, const char* op, const SampleArguments& a, const float* logits, int64_t begin, int64_t rows) {
  launch(ctx, op, rows, THREADS, select_kernel, a, logits, begin);
}

}  // namespace freedive::cuda
