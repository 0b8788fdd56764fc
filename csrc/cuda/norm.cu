// norm.cu: rmsnorm and layernorm, forward and backward.
//
// One warp per row: lane l sums elements l, l + 32, ... in order and in double, then a butterfly, so a sum depends on the row's length only.
// Forward reads D floats (from memory once, again from cache), writes D + 1 (D + 2). Gradients of the weights are a second kernel: a
// thread per column walks down the rows in order, which reads everything once more; it runs first, since dx may overwrite dout.
#include "launch.cuh"

namespace freedive::cuda {
namespace {

__global__ void rmsnorm_forward_kernel(fd_tensor out, fd_tensor rstd, fd_tensor x, fd_tensor weight, double eps) {
  const int64_t H = x.shape[1], D = x.shape[2], i = global_warp();
  if (i >= x.shape[0] * H) return;  // whole warps leave together
  const float* from = row(x, i / H, i % H);
  float* to = row(out, i / H, i % H);
  double sum = 0.0;
  for (int64_t d = lane_id(); d < D; d += WARP) sum = fma(static_cast<double>(from[d]), static_cast<double>(from[d]), sum);
  const float r = static_cast<float>(1.0 / sqrt(warp_sum(sum) / static_cast<double>(D) + eps));
  for (int64_t d = lane_id(); d < D; d += WARP) to[d] = from[d] * r * flat(weight)[d];
  if (lane_id() == 0) row(rstd, i / H)[i % H] = r;
}

__global__ void rmsnorm_backward_kernel(fd_tensor dx, fd_tensor dout, fd_tensor x, fd_tensor weight, fd_tensor rstd, int64_t accumulate) {
  const int64_t H = x.shape[1], D = x.shape[2], i = global_warp();
  if (i >= x.shape[0] * H) return;
  const float *in = row(x, i / H, i % H), *d_out = row(dout, i / H, i % H), *w = flat(weight);
  float* to = row(dx, i / H, i % H);
  double sum = 0.0;
  for (int64_t d = lane_id(); d < D; d += WARP) sum = fma(static_cast<double>(d_out[d] * w[d]), static_cast<double>(in[d]), sum);
  const float r = row(rstd, i / H)[i % H];
  const float pull = static_cast<float>(warp_sum(sum) / static_cast<double>(D)) * r * r;
  for (int64_t d = lane_id(); d < D; d += WARP) {
    const float g = r * (d_out[d] * w[d] - in[d] * pull);
    to[d] = accumulate != 0 ? to[d] + g : g;
  }
}

__global__ void rmsnorm_weight_kernel(fd_tensor dweight, fd_tensor dout, fd_tensor x, fd_tensor rstd) {
  const int64_t N = x.shape[0], H = x.shape[1], d = global_thread();
  if (d >= x.shape[2]) return;
  double sum = 0.0;
  for (int64_t n = 0; n < N; ++n)
    for (int64_t h = 0; h < H; ++h) sum += static_cast<double>(row(dout, n, h)[d] * row(x, n, h)[d] * row(rstd, n)[h]);
  flat(dweight)[d] += static_cast<float>(sum);
}

__global__ void layernorm_forward_kernel(fd_tensor out, fd_tensor mean, fd_tensor rstd, fd_tensor x, fd_tensor weight, fd_tensor bias, double eps) {
  const int64_t C = x.shape[1], n = global_warp();
  if (n >= x.shape[0]) return;
  const float* from = row(x, n);
  float* to = row(out, n);
  double sum = 0.0, squares = 0.0;
  for (int64_t c = lane_id(); c < C; c += WARP) sum += static_cast<double>(from[c]);
  const double mu = warp_sum(sum) / static_cast<double>(C);
  for (int64_t c = lane_id(); c < C; c += WARP) {
    const double d = static_cast<double>(from[c]) - mu;
    squares = fma(d, d, squares);
  }
  const float m = static_cast<float>(mu), r = static_cast<float>(1.0 / sqrt(warp_sum(squares) / static_cast<double>(C) + eps));
  for (int64_t c = lane_id(); c < C; c += WARP)
    to[c] = fmaf((from[c] - m) * r, flat(weight)[c], bias.data != nullptr ? flat(bias)[c] : 0.0f);
  if (lane_id() == 0) flat(mean)[n] = m, flat(rstd)[n] = r;
}

__global__ void layernorm_backward_kernel(fd_tensor dx, fd_tensor dout, fd_tensor x, fd_tensor weight, fd_tensor mean, fd_tensor rstd, int64_t accumulate) {
  const int64_t C = x.shape[1], n = global_warp();
  if (n >= x.shape[0]) return;
  const float *in = row(x, n), *d_out = row(dout, n), *w = flat(weight), m = flat(mean)[n], r = flat(rstd)[n];
  float* to = row(dx, n);
  double sum = 0.0, along = 0.0;
  for (int64_t c = lane_id(); c < C; c += WARP) {
    const double g = static_cast<double>(d_out[c] * w[c]);
    sum += g;
    along = fma(g, static_cast<double>((in[c] - m) * r), along);
  }
  const float mean_g = static_cast<float>(warp_sum(sum) / static_cast<double>(C));
  const float mean_along = static_cast<float>(warp_sum(along) / static_cast<double>(C));
  for (int64_t c = lane_id(); c < C; c += WARP) {
    const float g = r * (d_out[c] * w[c] - mean_g - (in[c] - m) * r * mean_along);
    to[c] = accumulate != 0 ? to[c] + g : g;
  }
}

__global__ void layernorm_weight_kernel(fd_tensor dweight, fd_tensor dbias, fd_tensor dout, fd_tensor x, fd_tensor mean, fd_tensor rstd) {
  const int64_t N = x.shape[0], c = global_thread();
  if (c >= x.shape[1]) return;
  double weights = 0.0, biases = 0.0;
  for (int64_t n = 0; n < N; ++n) {
    const float d = row(dout, n)[c];
    weights += static_cast<double>(d * (row(x, n)[c] - flat(mean)[n]) * flat(rstd)[n]);
    biases += static_cast<double>(d);
  }
  flat(dweight)[c] += static_cast<float>(weights);
  if (dbias.data != nullptr) flat(dbias)[c] += static_cast<float>(biases);
}

void rmsnorm_forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_rmsnorm_forward_args*>(arguments);
  launch_warps(ctx, "rmsnorm_forward", a.x.shape[0] * a.x.shape[1], rmsnorm_forward_kernel, a.out, a.rstd, a.x, a.weight, a.eps);
}
void rmsnorm_backward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_rmsnorm_backward_args*>(arguments);
  launch(ctx, "rmsnorm_backward", blocks_for(a.x.shape[2], WARP), WARP, rmsnorm_weight_kernel, a.dweight, a.dout, a.x, a.rstd);
  launch_warps(ctx, "rmsnorm_backward", a.x.shape[0] * a.x.shape[1], rmsnorm_backward_kernel, a.dx, a.dout, a.x, a.weight, a.rstd, a.accumulate);
}
void layernorm_forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_layernorm_forward_args*>(arguments);
  launch_warps(ctx, "layernorm_forward", a.x.shape[0], layernorm_forward_kernel, a.out, a.mean, a.rstd, a.x, a.weight, a.bias, a.eps);
}
void layernorm_backward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_layernorm_backward_args*>(arguments);
  launch(ctx, "layernorm_backward", blocks_for(a.x.shape[1], WARP), WARP, layernorm_weight_kernel, a.dweight, a.dbias, a.dout, a.x, a.mean, a.rstd);
  launch_warps(ctx, "layernorm_backward", a.x.shape[0], layernorm_backward_kernel, a.dx, a.dout, a.x, a.weight, a.mean, a.rstd, a.accumulate);
}

}  // namespace

FD_VARIANT_LIST(norm, {"rmsnorm_forward", "naive", 0, rmsnorm_forward, nullptr}, {"rmsnorm_backward", "naive", 0, rmsnorm_backward, nullptr},
                {"layernorm_forward", "naive", 0, layernorm_forward, nullptr}, {"layernorm_backward", "naive", 0, layernorm_backward, nullptr})

}  // namespace freedive::cuda
