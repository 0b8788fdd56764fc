// The language-model head for training: logits, softmax, log-probabilities, entropy, and their derivatives.
//   z = W x / T over the allowed ids;  lse = log sum exp z;  logprob_k = z[t_k] - lse;  entropy = lse - sum p z
//   dz_j = sum_k dlogprob_k (1[j = t_k] - p_j) - dentropy p_j (log p_j + entropy) + dlse p_j
//   dx = W^T dz / T,  dW += dz x^T / T
//
// Memory plan: logits [N, V] never exist. Rows without a target are dropped first, the others gathered; some of them at a time
// (512 for V = 4096 and more) make a chunk of logits, which turns in place into z, and is overwritten by the next chunk: 8 MB up
// to V = 4096, 103 MB for GPT-2's 50257. Then 2,048 ids at a time: dz of the chunk's rows, which stays in cache, and from it this
// part of the chain of dx over ids, and these rows of dW. The chain of dW over rows goes on from chunk to chunk: neither size
// changes a bit.
//
// Variants:
//   naive   one row at a time, softmax in double
//   simd    chunks through the blocked product, eight lanes of exp
#include "head.h"

#include "kernel.h"
#include "quantized.h"
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

// The ops in one shape; absent tensors have data NULL. With `quantized` the weight gives its shape only.
struct Job {
  const Quantized* quantized;
  const fd_tensor *x, *weight, *packed, *targets;
  float temperature;
  const uint8_t* mask;
  fd_tensor *logprobs, *entropy, *lse;           // written, or NULL
  const fd_tensor *dlogprobs, *dentropy, *dlse;  // derivatives, or NULL
  const float *lse_given, *entropy_given;        // from head_forward, or NULL: computed here
  float *dx, *dweight;                           // NULL = not wanted
  int64_t dx_row, dweight_row;
  int64_t compute;
};

FD_INLINE fd_tensor* present(const fd_tensor& t) { return t.data == nullptr ? nullptr : const_cast<fd_tensor*>(&t); }
FD_INLINE float* row(const fd_tensor& t, int64_t n) { return f32(t) + n * t.stride[0]; }
FD_INLINE const int32_t* targets_of(const Job& job, int64_t n) { return i32(*job.targets) + n * job.targets->stride[0]; }

Job job_of(const fd_head_forward_args& a) {
  Job job = {};
  job.x = &a.x, job.weight = &a.weight, job.packed = &a.packed, job.targets = &a.targets;
  job.temperature = f32(a.temperature)[0], job.mask = static_cast<const uint8_t*>(a.vocab_mask.data);
  job.compute = a.compute;
  job.logprobs = present(a.logprobs), job.entropy = present(a.entropy), job.lse = present(a.lse);
  return job;
}
Job job_of(const fd_head_backward_args& a) {
  Job job = {};
  job.x = &a.x, job.weight = &a.weight, job.packed = &a.packed, job.targets = &a.targets;
  job.temperature = f32(a.temperature)[0], job.mask = static_cast<const uint8_t*>(a.vocab_mask.data);
  job.compute = a.compute;
  job.dlogprobs = present(a.dlogprobs), job.dentropy = present(a.dentropy), job.dlse = present(a.dlse);
  job.lse_given = f32(a.lse), job.entropy_given = f32(a.entropy);
  job.dx = f32(a.dx), job.dx_row = a.dx.stride[0], job.dweight = f32(a.dweight), job.dweight_row = a.dweight.stride[0];
  return job;
}
Job job_of(const fd_head_forward_backward_args& a) {
  Job job = {};
  job.x = &a.x, job.weight = &a.weight, job.packed = &a.packed, job.targets = &a.targets;
  job.temperature = f32(a.temperature)[0], job.mask = static_cast<const uint8_t*>(a.vocab_mask.data);
  job.compute = a.compute;
  job.logprobs = present(a.logprobs), job.entropy = present(a.entropy), job.lse = present(a.lse);
  job.dlogprobs = present(a.dlogprobs);
  job.dx = f32(a.dx), job.dx_row = a.dx.stride[0], job.dweight = f32(a.dweight), job.dweight_row = a.dweight.stride[0];
  return job;
}

// Of a packed weight, which job_of's caller adds: it has a shape only, and no gradient.
Job job_of(const fd_quantized_head_forward_args& a) {
  Job job = {};
  job.x = &a.x, job.targets = &a.targets;
  job.temperature = f32(a.temperature)[0], job.mask = static_cast<const uint8_t*>(a.vocab_mask.data);
  job.compute = a.compute;
  job.logprobs = present(a.logprobs), job.entropy = present(a.entropy), job.lse = present(a.lse);
  return job;
}
Job job_of(const fd_quantized_head_backward_args& a) {
  Job job = {};
  job.x = &a.x, job.targets = &a.targets;
  job.temperature = f32(a.temperature)[0], job.mask = static_cast<const uint8_t*>(a.vocab_mask.data);
  job.compute = a.compute;
  job.dlogprobs = present(a.dlogprobs), job.dentropy = present(a.dentropy), job.dlse = present(a.dlse);
  job.lse_given = f32(a.lse), job.entropy_given = f32(a.entropy);
  job.dx = f32(a.dx), job.dx_row = a.dx.stride[0];
  return job;
}
Job job_of(const fd_quantized_head_forward_backward_args& a) {
  Job job = {};
  job.x = &a.x, job.targets = &a.targets;
  job.temperature = f32(a.temperature)[0], job.mask = static_cast<const uint8_t*>(a.vocab_mask.data);
  job.compute = a.compute;
  job.logprobs = present(a.logprobs), job.entropy = present(a.entropy), job.lse = present(a.lse);
  job.dlogprobs = present(a.dlogprobs);
  job.dx = f32(a.dx), job.dx_row = a.dx.stride[0];
  return job;
}

// Zeros for the rows without a target; the others' numbers in order, and how many they are.
int64_t active_rows(const Job& job, int32_t* active) {
  const int64_t N = job.x->shape[0], C = job.x->shape[1], K = job.targets->shape[1];
  int64_t count = 0;
  for (int64_t n = 0; n < N; ++n) {
    if (targets_of(job, n)[0] >= 0) {
      active[count++] = static_cast<int32_t>(n);
      continue;
    }
    if (job.logprobs != nullptr) memset(row(*job.logprobs, n), 0, K * sizeof(float));
    if (job.entropy != nullptr) f32(*job.entropy)[n] = 0;
    if (job.lse != nullptr) f32(*job.lse)[n] = 0;
    if (job.dx != nullptr) memset(job.dx + n * job.dx_row, 0, C * sizeof(float));
  }
  return count;
}

FD_INLINE bool counts(const Job& job, int32_t target) {
  return target >= 0 && target < job.weight->shape[0] && (job.mask == nullptr || job.mask[target] != 0);
}

void write_row(const Job& job, int64_t n, const float* z, const RowStats& s) {
  if (job.entropy != nullptr) f32(*job.entropy)[n] = s.entropy;
  if (job.lse != nullptr) f32(*job.lse)[n] = s.lse;
  if (job.logprobs == nullptr) return;
  for (int64_t k = 0; k < job.targets->shape[1]; ++k) {
    const int32_t target = targets_of(job, n)[k];
    row(*job.logprobs, n)[k] = target < 0 ? 0.0f : counts(job, target) ? logprob_of(s, z[target]) : NEG_INF;
  }
}

// The derivative of a row: dz_j = p_j (c0 + c1 (log p_j + entropy)) + the targets' own part, all over T.
struct Slopes {
  float constant, entropy_slope, entropy;
};
Slopes slopes_of(const Job& job, int64_t n, float entropy) {
  float sum = 0;
  for (int64_t k = 0; job.dlogprobs != nullptr && k < job.targets->shape[1]; ++k) {
    if (counts(job, targets_of(job, n)[k])) sum += row(*job.dlogprobs, n)[k];
  }
  return {(job.dlse == nullptr ? 0.0f : f32(*job.dlse)[n]) - sum, job.dentropy == nullptr ? 0.0f : -f32(*job.dentropy)[n],
          entropy};
}
// dz: of the ids from `begin`.
void add_targets(const Job& job, int64_t n, float* dz, int64_t begin, int64_t end) {
  for (int64_t k = 0; job.dlogprobs != nullptr && k < job.targets->shape[1]; ++k) {
    const int32_t target = targets_of(job, n)[k];
    if (target >= begin && target < end && counts(job, target)) dz[target - begin] += row(*job.dlogprobs, n)[k] / job.temperature;
  }
}

// ---- naive -----------------------------------------------------------------------------------------------------

size_t naive_bytes(int64_t N, int64_t V) { return bytes64(N, sizeof(int32_t)) + bytes64(V, sizeof(float)); }

void run_naive(fd_context* ctx, const Job& job) {
  const int64_t C = job.x->shape[1], V = job.weight->shape[0];
  Space space{ctx->workspace};
  int32_t* active = space.take<int32_t>(job.x->shape[0]);
  float* z = space.take<float>(V);
  uint8_t* products = space.take<uint8_t>(0);
  const int64_t count = active_rows(job, active);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = active[i];
    const float* x = row(*job.x, n);
    if (job.quantized != nullptr)
      quantized_naive(ctx, products, *job.quantized, x, C, 1, {z, V, nullptr, nullptr, 0}, job.compute);
    parallel_rows(ctx, V, C, [&](int64_t begin, int64_t end) {
      for (int64_t v = begin; v < end; ++v) {
        float logit = job.quantized != nullptr ? z[v] : 0;
        for (int64_t c = 0; job.quantized == nullptr && c < C; ++c)
          logit = fma1(taken(x[c], job.compute), taken(row(*job.weight, v)[c], job.compute), logit);
        z[v] = counts(job, static_cast<int32_t>(v)) ? logit / job.temperature : NEG_INF;
      }
    });
    double max = NEG_INF, sum = 0, dot = 0;
    for (int64_t v = 0; v < V; ++v) max = z[v] > max ? z[v] : max;
    for (int64_t v = 0; v < V; ++v) {
      if (z[v] == NEG_INF) continue;
      sum += exp(z[v] - max);
      dot += exp(z[v] - max) * (z[v] - max);
    }
    RowStats s = {static_cast<float>(max), static_cast<float>(sum), log(sum), static_cast<float>(max + log(sum)),
                  static_cast<float>(log(sum) - dot / sum)};
    write_row(job, n, z, s);
    if (job.dx == nullptr) continue;
    const double lse = job.lse_given == nullptr ? s.lse : job.lse_given[n];
    const Slopes w = slopes_of(job, n, job.entropy_given == nullptr ? s.entropy : job.entropy_given[n]);
    for (int64_t v = 0; v < V; ++v) {
      const double logp = z[v] - lse;
      z[v] = z[v] == NEG_INF
                 ? 0.0f
                 : static_cast<float>(exp(logp) * (w.constant + w.entropy_slope * (logp + w.entropy)) / job.temperature);
    }
    add_targets(job, n, z, 0, V);
    parallel_rows(ctx, C, V, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        float dx = 0;
        for (int64_t v = 0; v < V; ++v) {
          const float weight = job.quantized != nullptr ? quantized_value(*job.quantized, v, c) : row(*job.weight, v)[c];
          dx = fma1(taken(z[v], job.compute), taken(weight, job.compute), dx);
        }
        job.dx[n * job.dx_row + c] = dx;
      }
    });
    if (job.dweight == nullptr) continue;
    parallel_rows(ctx, V, C, [&](int64_t begin, int64_t end) {
      for (int64_t v = begin; v < end; ++v) {
        float* dweight = job.dweight + v * job.dweight_row;
        for (int64_t c = 0; c < C; ++c) dweight[c] = fma1(taken(z[v], job.compute), taken(x[c], job.compute), dweight[c]);
      }
    });
  }
}

// ---- simd ------------------------------------------------------------------------------------------------------

// dz of the ids [begin, end) of one row; the vectors may reach into what the row is padded with.
void derive(const Job& job, int64_t n, const float* z, float* dz, int64_t begin, int64_t end, float lse, const Slopes& w) {
  for (int64_t j = begin; j < end; j += VL) {
    const vf logp = vmax(vset(-100.0f), vload(z + j) - vset(lse));
    const vf slope = vfma(vset(w.entropy_slope), logp + vset(w.entropy), vset(w.constant));
    vstore(dz + j - begin, vexp(logp) * slope / vset(job.temperature));
  }
  add_targets(job, n, dz, begin, end);
}

// What is known of a row of the chunk once its logits are.
struct RowKnown {
  float lse;
  Slopes slopes;
};

// A block of dz: [rows of a chunk, BLOCK_IDS], or the logits themselves where one block is all of them.
FD_INLINE int64_t block_floats(int64_t N, int64_t V) {
  return logits_row(V) <= BLOCK_IDS ? 0 : min64(N, chunk_rows(V)) * BLOCK_IDS;
}
size_t backward_bytes(int64_t N, int64_t C, int64_t V) {
  return bytes64(N * C, sizeof(float)) + bytes64(block_floats(N, V), sizeof(float)) +
         bytes64(min64(N, chunk_rows(V)), sizeof(RowKnown));
}

size_t simd_bytes(int64_t N, int64_t C, int64_t V, int32_t threads, bool backward) {
  return bytes64(N, sizeof(int32_t)) + bytes64(chunk_floats(N, V), sizeof(float)) + bytes64(N * C, sizeof(float)) +
         (backward ? backward_bytes(N, C, V) : 0) + gemm_workspace(threads) +
         bytes64(matmul_packed_size(V, C, FD_F32), sizeof(float));
}
size_t quantized_bytes(int64_t N, int64_t C, int64_t V, int32_t threads, bool backward) {
  const size_t forward = quantized_workspace(N, V, C, threads), back = backward ? quantized_backward_workspace(V, C, threads) : 0;
  return bytes64(N, sizeof(int32_t)) + bytes64(chunk_floats(N, V), sizeof(float)) + bytes64(N * C, sizeof(float)) +
         (backward ? backward_bytes(N, C, V) : 0) + (forward > back ? forward : back);
}

void run_simd(fd_context* ctx, const Job& job) {
  const int64_t N = job.x->shape[0], C = job.x->shape[1], V = job.weight->shape[0], wide = logits_row(V);
  const bool backward = job.dx != nullptr;
  Space space{ctx->workspace};
  int32_t* active = space.take<int32_t>(N);
  float* z = space.take<float>(chunk_floats(N, V));
  float* x = space.take<float>(N * C);
  float* dx = backward ? space.take<float>(N * C) : nullptr;
  RowKnown* known = backward ? space.take<RowKnown>(min64(N, chunk_rows(V))) : nullptr;
  const int64_t block = block_floats(N, V);
  float* dz = block == 0 ? z : backward ? space.take<float>(block) : nullptr;
  const int64_t dz_row = block == 0 ? wide : BLOCK_IDS;
  uint8_t* blocks = space.take<uint8_t>(job.quantized != nullptr ? 0 : static_cast<int64_t>(gemm_workspace(ctx->threads)));
  const int64_t count = active_rows(job, active);
  if (count == 0) return;
  const float* packed =
      job.quantized != nullptr ? nullptr : packed_weight(ctx, *job.packed, *job.weight, space.take<float>(0), job.compute);
  for (int64_t begin = 0; begin < count; begin += chunk_rows(V)) {
    const int64_t rows = min64(chunk_rows(V), count - begin);
    const int32_t* chunk = active + begin;
    parallel_rows(ctx, rows, C, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) memcpy(x + r * C, row(*job.x, chunk[r]), C * sizeof(float));
    });
    if (job.quantized != nullptr) {
      quantized_product(ctx, blocks, *job.quantized, x, C, rows, {z, wide, nullptr, nullptr, 0}, job.compute, best_int8());
    } else {
      gemm(ctx, blocks, {rows, V, C, x, C, 1, nullptr, 0, 0, packed, z, wide, false, nullptr, nullptr, 0, job.compute});
    }
    parallel_units(ctx, rows, [&](int64_t r, int) {
      const int64_t n = chunk[r];
      const RowStats s = row_stats(z + r * wide, V, job.mask, job.temperature);
      write_row(job, n, z + r * wide, s);
      if (backward)
        known[r] = {job.lse_given == nullptr ? s.lse : job.lse_given[n],
                    slopes_of(job, n, job.entropy_given == nullptr ? s.entropy : job.entropy_given[n])};
    });
    if (!backward) continue;
    for (int64_t v = 0; v < V; v += dz_row) {
      const int64_t ids = min64(dz_row, V - v);
      parallel_rows(ctx, rows, 16 * ids, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; ++r)
          derive(job, chunk[r], z + r * wide, dz + r * dz_row, v, v + ids, known[r].lse, known[r].slopes);
      });
      if (job.quantized != nullptr) {
        quantized_backward(ctx, blocks, job.quantized->rows(v, ids), {dz, dz_row, rows, dx, C, v > 0}, job.compute);
      } else {
        gemm(ctx, blocks,
             {rows, C, ids, dz, dz_row, 1, row(*job.weight, v), job.weight->stride[0], 1, nullptr, dx, C, v > 0, nullptr, nullptr,
              0, job.compute});
      }
      if (job.dweight != nullptr)
        gemm(ctx, blocks,
             {ids, C, rows, dz, 1, dz_row, x, C, 1, nullptr, job.dweight + v * job.dweight_row, job.dweight_row, true, nullptr,
              nullptr, 0, job.compute});
    }
    parallel_rows(ctx, rows, C, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) memcpy(job.dx + chunk[r] * job.dx_row, dx + r * C, C * sizeof(float));
    });
  }
}

// ---- the ops ---------------------------------------------------------------------------------------------------

template <class Args>
void naive(fd_context* ctx, const void* p) {
  run_naive(ctx, job_of(*static_cast<const Args*>(p)));
}
template <class Args>
void simd(fd_context* ctx, const void* p) {
  run_simd(ctx, job_of(*static_cast<const Args*>(p)));
}
template <class Args, void run(fd_context*, const Job&)>
void quantized(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const Args*>(p);
  const Quantized w = {static_cast<const uint8_t*>(a.weight.data), a.vocab, a.x.shape[1], kind_of_type(a.type)};
  const fd_tensor shape = {nullptr, {w.O, w.C, 1, 1}, {w.C, 1, 1, 1}, 2, FD_F32};
  if (w.kind == W_NONE) return;
  Job job = job_of(a);
  job.quantized = &w, job.weight = &shape;
  run(ctx, job);
}
template <class Args>
size_t quantized_naive_workspace(const void* p, int32_t threads) {
  const auto& a = *static_cast<const Args*>(p);
  return naive_bytes(a.x.shape[0], a.vocab) + quantized_workspace(1, a.vocab, a.x.shape[1], threads);
}
template <class Args, bool backward>
size_t quantized_simd_workspace(const void* p, int32_t threads) {
  const auto& a = *static_cast<const Args*>(p);
  return quantized_bytes(a.x.shape[0], a.x.shape[1], a.vocab, threads, backward);
}
template <class Args>
size_t naive_workspace(const void* p, int32_t) {
  const auto& a = *static_cast<const Args*>(p);
  return naive_bytes(a.x.shape[0], a.weight.shape[0]);
}
template <class Args, bool backward>
size_t simd_workspace(const void* p, int32_t threads) {
  const auto& a = *static_cast<const Args*>(p);
  return simd_bytes(a.x.shape[0], a.x.shape[1], a.weight.shape[0], threads, backward);
}

}  // namespace

#define FD_QUANTIZED(OP, BACKWARD)                                                                                  \
  {#OP, "naive", 0, quantized<fd_##OP##_args, run_naive>, quantized_naive_workspace<fd_##OP##_args>},               \
      {#OP, "simd", 10, quantized<fd_##OP##_args, run_simd>, quantized_simd_workspace<fd_##OP##_args, BACKWARD>}
FD_VARIANT_LIST(head, {"head_forward", "naive", 0, naive<fd_head_forward_args>, naive_workspace<fd_head_forward_args>},
                {"head_forward", "simd", 10, simd<fd_head_forward_args>, simd_workspace<fd_head_forward_args, false>},
                {"head_backward", "naive", 0, naive<fd_head_backward_args>, naive_workspace<fd_head_backward_args>},
                {"head_backward", "simd", 10, simd<fd_head_backward_args>, simd_workspace<fd_head_backward_args, true>},
                {"head_forward_backward", "naive", 0, naive<fd_head_forward_backward_args>,
                 naive_workspace<fd_head_forward_backward_args>},
                {"head_forward_backward", "simd", 10, simd<fd_head_forward_backward_args>,
                 simd_workspace<fd_head_forward_backward_args, true>},
                FD_QUANTIZED(quantized_head_forward, false), FD_QUANTIZED(quantized_head_backward, true),
                FD_QUANTIZED(quantized_head_forward_backward, true))
#undef FD_QUANTIZED

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
