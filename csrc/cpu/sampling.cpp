// Sampling: one token per row from softmax(W x / T), with its log-probability before truncation.
//
// temperature 0: the largest logit, the smallest id on ties. Otherwise candidates are the allowed ids in the order
// (logit falling, id rising), cut by top_k, then min_p (p >= min_p p_max), then top_p (the shortest beginning which holds
// top_p of what is left, at least one), and drawn by inverting the cumulative sum at u = uniform(seed, STREAM_SAMPLE,
// counter). Without any cut the sum runs over ids in order and nothing is sorted.
//
// Memory: reads the packed weight once per 256 (128) rows: for a few rows that is all the time it takes. Logits come
// from the head's own functions, so log-probabilities are head_forward's, bit for bit. Sorting is lazy: a heap is built
// in O(V) and gives out only as many candidates as the draw needs.
//
// Variants: naive computes the logits one chain at a time; simd uses the blocked product. The draw is the same code.
#include "../core/rng.h"
#include "head.h"
#include "kernel.h"
#include "quantized.h"
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

// ---- a heap of ids ---------------------------------------------------------------------------------------------

FD_INLINE bool before(const float* z, int32_t a, int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); }

void sift(int32_t* heap, int64_t count, int64_t at, const float* z) {
  for (;;) {
    int64_t child = 2 * at + 1;
    if (child >= count) return;
    if (child + 1 < count && before(z, heap[child + 1], heap[child])) ++child;
    if (!before(z, heap[child], heap[at])) return;
    const int32_t t = heap[at];
    heap[at] = heap[child], heap[child] = t, at = child;
  }
}

// Gives the candidates in order; the r-th one given lies at ids[count - 1 - r].
struct Sorted {
  int32_t* ids;
  int64_t count, given;
  const float* z;
  int32_t get(int64_t r) {
    for (; given <= r; ++given) {
      const int64_t last = count - 1 - given;
      const int32_t best = ids[0];
      ids[0] = ids[last], ids[last] = best;
      sift(ids, last, 0, z);
    }
    return ids[count - 1 - r];
  }
};

struct Cut {
  int64_t top_k;
  float top_p, min_p;
};

// z: the row's z; e: exp(z - max), 0 where not allowed. Returns an id with e > 0; 0 if there is none.
int32_t draw(const float* z, const float* e, int64_t V, Cut cut, float u, int32_t* ids) {
  const bool by_k = cut.top_k > 0 && cut.top_k < V, by_p = cut.top_p < 1.0f, by_min = cut.min_p > 0.0f;
  double total = 0, sum = 0;
  if (!by_k && !by_p && !by_min) {
    int32_t id = 0;
    for (int64_t v = 0; v < V; ++v) total += e[v];
    const double aim = u * total;
    for (int64_t v = 0; v < V; ++v) {
      if (e[v] <= 0) continue;
      id = static_cast<int32_t>(v);
      sum += e[v];
      if (sum > aim) break;
    }
    return id;
  }

  Sorted sorted = {ids, 0, 0, z};
  for (int64_t v = 0; v < V; ++v) {
    if (e[v] > 0 && e[v] >= cut.min_p) ids[sorted.count++] = static_cast<int32_t>(v), total += e[v];
  }
  if (sorted.count == 0) return 0;  // logits that are not numbers: weights have diverged
  for (int64_t at = sorted.count / 2 - 1; at >= 0; --at) sift(ids, sorted.count, at, z);
  int64_t kept = sorted.count;
  if (by_k && cut.top_k < kept) {
    kept = cut.top_k, total = 0;
    for (int64_t r = 0; r < kept; ++r) total += e[sorted.get(r)];
  }
  if (by_p) {
    const double wanted = cut.top_p * total;
    total = 0;
    for (int64_t r = 0; r < kept; ++r) {
      total += e[sorted.get(r)];
      if (total >= wanted) kept = r + 1;
    }
  }
  const double aim = u * total;
  for (int64_t r = 0; r < kept; ++r) {
    sum += e[sorted.get(r)];
    if (sum > aim) return sorted.get(r);
  }
  return sorted.get(kept - 1);
}

// One row of logits to a token. e and ids are the thread's, V each.
void sample_row(const fd_head_sample_args& a, int64_t s, float* z, float* e, int32_t* ids) {
  const int64_t V = a.weight.shape[0];
  const float temperature = f32(a.temperature)[s];
  const RowStats stats =
      row_stats(z, V, static_cast<const uint8_t*>(a.vocab_mask.data), temperature == 0.0f ? 1.0f : temperature);
  int32_t token = 0;
  if (temperature == 0.0f) {
    for (int64_t v = 0; v < V; ++v) {
      if (z[v] == stats.max) {
        token = static_cast<int32_t>(v);
        break;
      }
    }
  } else {
    for (int64_t v = 0; v < V; v += VL) vstore(e + v, vexp(vload(z + v) - vset(stats.max)));
    const float u =
        uniform(static_cast<const uint64_t*>(a.seeds.data)[s], STREAM_SAMPLE, static_cast<const uint64_t*>(a.counters.data)[s]);
    token = draw(z, e, V, {i32(a.top_k)[s], f32(a.top_p)[s], f32(a.min_p)[s]}, u, ids);
  }
  static_cast<int32_t*>(a.tokens.data)[s] = token;
  f32(a.logprobs)[s] = logprob_of(stats, z[token]);
}

// ---- the ops ---------------------------------------------------------------------------------------------------

size_t draw_bytes(int64_t V, int32_t threads) { return threads * 2 * bytes64(logits_row(V), sizeof(float)); }

size_t workspace(const void* p, int32_t threads) {
  const auto& a = *static_cast<const fd_head_sample_args*>(p);
  const int64_t S = a.x.shape[0], C = a.x.shape[1], V = a.weight.shape[0];
  return bytes64(chunk_floats(S, V), sizeof(float)) + draw_bytes(V, threads) + gemm_workspace(threads) +
         bytes64(matmul_packed_size(V, C, a.compute), sizeof(float));
}

template <class Logits>
void sample(fd_context* ctx, const fd_head_sample_args& a, Space space, const Logits& logits) {
  const int64_t S = a.x.shape[0], V = a.weight.shape[0], wide = logits_row(V);
  float* z = space.take<float>(chunk_floats(S, V));
  uint8_t* threads = space.take<uint8_t>(static_cast<int64_t>(draw_bytes(V, ctx->threads)));
  for (int64_t begin = 0; begin < S; begin += chunk_rows(V)) {
    const int64_t rows = min64(chunk_rows(V), S - begin);
    logits(begin, rows, z, wide);
    parallel_units(ctx, rows, [&](int64_t r, int thread) {
      Space mine{threads + thread * draw_bytes(V, 1)};
      float* e = mine.take<float>(wide);
      sample_row(a, begin + r, z + r * wide, e, mine.take<int32_t>(wide));
    });
  }
}

void sample_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_head_sample_args*>(p);
  const int64_t C = a.x.shape[1], V = a.weight.shape[0];
  sample(ctx, a, Space{ctx->workspace}, [&](int64_t begin, int64_t rows, float* z, int64_t wide) {
    parallel_units(ctx, rows, [&](int64_t r, int) {
      const float* x = f32(a.x) + (begin + r) * a.x.stride[0];
      for (int64_t v = 0; v < V; ++v) {
        const float* weight = f32(a.weight) + v * a.weight.stride[0];
        float logit = 0;
        for (int64_t c = 0; c < C; ++c) logit = fma1(taken(x[c], a.compute), taken(weight[c], a.compute), logit);
        z[r * wide + v] = logit;
      }
    });
  });
}

void sample_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_head_sample_args*>(p);
  const int64_t C = a.x.shape[1], V = a.weight.shape[0];
  Space space{ctx->workspace};
  uint8_t* blocks = space.take<uint8_t>(static_cast<int64_t>(gemm_workspace(ctx->threads)));
  const float* packed = f32(a.packed);
  if (packed == nullptr)
    packed = packed_weight(ctx, a.packed, a.weight, space.take<float>(matmul_packed_size(V, C, a.compute)), a.compute);
  sample(ctx, a, space, [&](int64_t begin, int64_t rows, float* z, int64_t wide) {
    gemm(ctx, blocks,
         {rows, V, C, f32(a.x) + begin * a.x.stride[0], a.x.stride[0], 1, nullptr, 0, 0, packed, z, wide, false, nullptr, nullptr,
          0, a.compute});
  });
}

// The same with a packed weight. The draw reads the weight's shape only.
fd_head_sample_args sampled(const fd_quantized_head_sample_args& a) {
  const int64_t V = a.vocab, C = a.x.shape[1];
  const fd_tensor shape = {nullptr, {V, C, 1, 1}, {C, 1, 1, 1}, 2, FD_F32},
                  none = {nullptr, {0, 0, 0, 0}, {0, 0, 0, 0}, 0, FD_F32};
  return {a.tokens, a.logprobs, a.x,     shape,   none,       a.vocab_mask, a.temperature,
          a.top_k,  a.top_p,    a.min_p, a.seeds, a.counters, a.compute};
}
size_t quantized_sample_workspace(const void* p, int32_t threads) {
  const auto& a = *static_cast<const fd_quantized_head_sample_args*>(p);
  const int64_t S = a.x.shape[0];
  return bytes64(chunk_floats(S, a.vocab), sizeof(float)) + draw_bytes(a.vocab, threads) +
         quantized_workspace(S, a.vocab, a.x.shape[1], threads);
}
template <bool naive>
void quantized_sample(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_quantized_head_sample_args*>(p);
  const Quantized w = {static_cast<const uint8_t*>(a.weight.data), a.vocab, a.x.shape[1], kind_of_type(a.type)};
  if (w.kind == W_NONE) return;
  Space space{ctx->workspace};
  uint8_t* blocks = space.take<uint8_t>(static_cast<int64_t>(quantized_workspace(a.x.shape[0], w.O, w.C, ctx->threads)));
  sample(ctx, sampled(a), space, [&](int64_t begin, int64_t rows, float* z, int64_t wide) {
    const float* x = f32(a.x) + begin * a.x.stride[0];
    const Target to = {z, wide, nullptr, nullptr, 0};
    naive ? quantized_naive(ctx, blocks, w, x, a.x.stride[0], rows, to, a.compute)
          : quantized_product(ctx, blocks, w, x, a.x.stride[0], rows, to, a.compute, best_int8());
  });
}

}  // namespace

FD_VARIANT_LIST(sampling, {"quantized_head_sample", "naive", 0, quantized_sample<true>, quantized_sample_workspace},
                {"quantized_head_sample", "simd", 10, quantized_sample<false>, quantized_sample_workspace},
                {"head_sample", "naive", 0, sample_naive, workspace}, {"head_sample", "simd", 10, sample_simd, workspace})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
