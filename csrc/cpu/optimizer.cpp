// Optimizer: the global gradient norm and AdamW over one flat range of parameters.
//   norm = sqrt(sum x^2);  g = grad min(1, max_norm/norm);  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;
//   param -= lr (m/bc1 / (sqrt(v/bc2) + eps) + weight_decay param)
//
// Memory: the norm reads 4 bytes a parameter; AdamW reads 16 and writes 12. Both are bound by memory, so one variant
// each is fast enough; "naive" AdamW is the formula on one number at a time, to be read and compared with.
// The norm is summed in double over chunks of 16384 numbers, which are added in order: no dependence on threads.
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

constexpr int64_t NORM_CHUNK = 16384;
typedef double vd __attribute__((vector_size(64)));

size_t global_norm_workspace(const void* p, int32_t) {
  const auto& a = *static_cast<const fd_global_norm_args*>(p);
  return bytes64(ceil_div(a.x.shape[0], NORM_CHUNK), sizeof(double));
}

void global_norm(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_global_norm_args*>(p);
  const int64_t P = a.x.shape[0], chunks = ceil_div(P, NORM_CHUNK);
  double* partial = reinterpret_cast<double*>(ctx->workspace);
  parallel_units(ctx, chunks, [&](int64_t chunk, int) {
    const float* x = f32(a.x) + chunk * NORM_CHUNK;
    const int64_t count = min64(NORM_CHUNK, P - chunk * NORM_CHUNK);
    vd sum = {0, 0, 0, 0, 0, 0, 0, 0};
    for (int64_t i = 0; i < count; i += VL) {
      const vd y = __builtin_convertvector(i + VL <= count ? vload(x + i) : vload_n(x + i, count - i), vd);
      sum += y * y;
    }
    partial[chunk] = ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
  });
  double total = 0;
  for (int64_t i = 0; i < chunks; ++i) total += partial[i];
  f32(a.out)[0] = static_cast<float>(sqrt(total));
}

struct Hyper {
  float lr, beta1, beta2, eps, weight_decay, bc1, bc2, clip;
  bool skip;
};

Hyper read_hyper(const fd_adamw_args& a) {
  const float *h = f32(a.hyper), norm = f32(a.norm)[0], max_norm = h[5];
  Hyper y = {h[0], h[1], h[2], h[3], h[4], h[6], h[7], 1.0f, !(norm - norm == 0.0f)};  // inf - inf and NaN are not 0
  if (max_norm > 0 && norm > max_norm) y.clip = max_norm / norm;
  return y;
}

void adamw_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_adamw_args*>(p);
  const Hyper y = read_hyper(a);
  if (y.skip) return;
  float *param = f32(a.param), *m = f32(a.m), *v = f32(a.v);
  parallel_rows(ctx, a.param.shape[0], 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float g = f32(a.grad)[i] * y.clip;
      m[i] = y.beta1 * m[i] + (1.0f - y.beta1) * g;
      v[i] = y.beta2 * v[i] + (1.0f - y.beta2) * g * g;
      param[i] -= y.lr * (m[i] / y.bc1 / (sqrtf(v[i] / y.bc2) + y.eps) + y.weight_decay * param[i]);
    }
  });
}

void adamw_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_adamw_args*>(p);
  const Hyper y = read_hyper(a);
  if (y.skip) return;
  parallel_rows(ctx, a.param.shape[0], 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += VL) {
      const int64_t lanes = min64(VL, end - i);
      const vf g = vload_n(f32(a.grad) + i, lanes) * vset(y.clip);
      const vf m = vset(y.beta1) * vload_n(f32(a.m) + i, lanes) + vset(1.0f - y.beta1) * g;
      const vf v = vset(y.beta2) * vload_n(f32(a.v) + i, lanes) + vset(1.0f - y.beta2) * g * g;
      const vf param = vload_n(f32(a.param) + i, lanes);
      const vf step = m / vset(y.bc1) / (vsqrt(v / vset(y.bc2)) + vset(y.eps)) + vset(y.weight_decay) * param;
      vstore_n(f32(a.m) + i, m, lanes);
      vstore_n(f32(a.v) + i, v, lanes);
      vstore_n(f32(a.param) + i, param - vset(y.lr) * step, lanes);
    }
  });
}

}  // namespace

FD_VARIANT_LIST(optimizer, {"global_norm", "naive", 0, global_norm, global_norm_workspace},
                {"adamw", "naive", 0, adamw_naive, nullptr}, {"adamw", "simd", 10, adamw_simd, nullptr})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
