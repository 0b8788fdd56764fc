// attention_backward.cu: with P the probabilities of the forward pass, P_ij = exp(scale q_i.k_j - lse_i), and
// delta_i = sum_d dout_i out_i,
//
//   dS_ij = P_ij (dout_i.v_j - delta_i)
//   dq_i = scale sum_j dS_ij k_j,   dk_j = scale sum_i dS_ij q_i,   dv_j = sum_i P_ij dout_i
//
// Two kernels and no atomics: a warp per query and head walks the keys and makes dq; a warp per key and group walks the queries
// of all its heads and makes dk and dv. P is computed in both: twice the products, for a fixed order of every sum. Blocks of 32
// as in the forward pass: a lane to a key (a query), the two weights through shared memory, then a lane to a dimension.
// attention_backward_sm80.cu does the same by tiles on tensor cores.
#include "attention.cuh"
#include "sequences.cuh"

namespace freedive::cuda {
namespace {

// Of numbers from a_at and b_at on.
template <bool BF16>
__device__ float dot(const fd_tensor& a, int64_t a_at, const fd_tensor& b, int64_t b_at, int64_t D) {
  float sum = 0.0f;
  for (int64_t d = 0; d < D; ++d) sum = fmaf(operand<BF16>(number(a, a_at + d)), operand<BF16>(number(b, b_at + d)), sum);
  return sum;
}

// dout as dP takes it: then dS of a row with one key is 0.
template <bool BF16>
__global__ void delta_kernel(float* delta, fd_tensor dout, fd_tensor out) {
  const int64_t H = out.shape[1], i = global_thread();
  if (i >= out.shape[0] * H) return;
  const float* a = row(dout, i / H, i % H);
  const int64_t b = row_at(out, i / H, i % H);
  float sum = 0.0f;
  for (int64_t d = 0; d < out.shape[2]; ++d) sum = fmaf(operand<BF16>(a[d]), number(out, b + d), sum);
  delta[i] = sum;
}

// P and dS of query n and key j of head h, group g.
template <bool BF16>
__device__ void weights_of(const fd_attention_backward_args& a, const float* delta, int64_t n, int64_t h, int64_t j, int64_t g,
                           float* p, float* ds) {
  const int64_t D = a.q.shape[2];
  const float score = dot<BF16>(a.q, row_at(a.q, n, h), a.k, row_at(a.k, j, g), D) * static_cast<float>(a.scale);
  *p = expf(score - row(a.lse, n)[h]);
  *ds = *p * (dot<BF16>(a.dout, row_at(a.dout, n, h), a.v, row_at(a.v, j, g), D) - delta[n * a.q.shape[1] + h]);
}

template <bool BF16>
__global__ void query_kernel(fd_attention_backward_args a, const float* delta) {
  FD_SHARED(float, ds, [WARPS][WARP]);
  const int64_t H = a.q.shape[1], D = a.q.shape[2], n = global_warp() / H, h = global_warp() % H, g = h / (H / a.k.shape[1]);
  if (n >= a.q.shape[0]) return;
  const int64_t s = sequence_of(a.cu_seqlens, n);
  const int lane = lane_id();
  float *dq = row(a.dq, n, h), *mine = ds[warp_of_block()];
  for (int64_t d = lane; d < D; d += WARP) dq[d] = 0.0f;
  if (s < 0) return;
  for (int64_t first = flat<int32_t>(a.cu_seqlens)[s]; first <= n; first += WARP) {
    const int here = n + 1 - first < WARP ? static_cast<int>(n + 1 - first) : WARP;
    if (lane < here) {
      float p;
      weights_of<BF16>(a, delta, n, h, first + lane, g, &p, &mine[lane]);
    }
    __syncwarp();
    for (int64_t d = lane; d < D; d += WARP) {
      float x = dq[d];
      for (int i = 0; i < here; ++i) x = fmaf(operand<BF16>(mine[i]), operand<BF16>(number(a.k, row_at(a.k, first + i, g) + d)), x);
      dq[d] = x;
    }
    __syncwarp();
  }
  for (int64_t d = lane; d < D; d += WARP) dq[d] *= static_cast<float>(a.scale);
}

template <bool BF16>
__global__ void key_kernel(fd_attention_backward_args a, const float* delta) {
  FD_SHARED(float, p, [WARPS][WARP]);
  FD_SHARED(float, ds, [WARPS][WARP]);
  const int64_t G = a.k.shape[1], D = a.k.shape[2], j = global_warp() / G, g = global_warp() % G, heads = a.q.shape[1] / G;
  if (j >= a.k.shape[0]) return;
  const int64_t s = sequence_of(a.cu_seqlens, j);
  const int lane = lane_id(), warp = warp_of_block();
  float *dk = row(a.dk, j, g), *dv = row(a.dv, j, g);
  for (int64_t d = lane; d < D; d += WARP) dk[d] = dv[d] = 0.0f;
  if (s < 0) return;
  const int64_t end = flat<int32_t>(a.cu_seqlens)[s + 1];
  for (int64_t h = g * heads; h < (g + 1) * heads; ++h) {
    for (int64_t first = j; first < end; first += WARP) {
      const int here = end - first < WARP ? static_cast<int>(end - first) : WARP;
      if (lane < here) weights_of<BF16>(a, delta, first + lane, h, j, g, &p[warp][lane], &ds[warp][lane]);
      __syncwarp();
      for (int64_t d = lane; d < D; d += WARP) {
        float x = dk[d], y = dv[d];
        for (int i = 0; i < here; ++i) {
          x = fmaf(operand<BF16>(ds[warp][i]), operand<BF16>(number(a.q, row_at(a.q, first + i, h) + d)), x);
          y = fmaf(operand<BF16>(p[warp][i]), operand<BF16>(row(a.dout, first + i, h)[d]), y);
        }
        dk[d] = x, dv[d] = y;
      }
      __syncwarp();
    }
  }
  for (int64_t d = lane; d < D; d += WARP) dk[d] *= static_cast<float>(a.scale);
}

size_t workspace(const void* arguments, int32_t) {
  const auto& a = *static_cast<const fd_attention_backward_args*>(arguments);
  return static_cast<size_t>(a.q.shape[0] * a.q.shape[1]) * sizeof(float);
}

void backward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_attention_backward_args*>(arguments);
  const int64_t rows = a.q.shape[0] * a.q.shape[1];
  const char* op = "attention_backward";
  launch_threads(ctx, op, rows, a.compute == FD_BF16 ? delta_kernel<true> : delta_kernel<false>, scratch(ctx), a.dout, a.out);
  launch_warps(ctx, op, rows, a.compute == FD_BF16 ? query_kernel<true> : query_kernel<false>, a, scratch(ctx));
  launch_warps(ctx, op, a.k.shape[0] * a.k.shape[1], a.compute == FD_BF16 ? key_kernel<true> : key_kernel<false>, a,
               scratch(ctx));
}

// On tensor cores, which multiply bfloat16; heads of other lengths and float32 stay with naive.
void backward_sm80(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_attention_backward_args*>(arguments);
  attention_sm80_takes(a.q.shape[2], a.compute) ? attention_backward_sm80(ctx, a) : backward(ctx, arguments);
}
size_t backward_sm80_workspace(const void* arguments, int32_t threads) {  // for either `compute`: a model asks once
  const auto& a = *static_cast<const fd_attention_backward_args*>(arguments);
  return attention_sm80_takes(a.q.shape[2], FD_BF16) ? attention_backward_sm80_workspace(a) : workspace(arguments, threads);
}

}  // namespace

FD_VARIANT_LIST(attention_backward, {"attention_backward", "naive", 0, backward, workspace},
                {"attention_backward", "sm80", 1, backward_sm80, backward_sm80_workspace})

}  // namespace freedive::cuda
