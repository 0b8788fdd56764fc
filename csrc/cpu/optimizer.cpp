// Optimizer: the global gradient norm and AdamW over one flat range of parameters.
//   norm = sqrt(sum x^2);  g = grad min(1, max_norm/norm);  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;
//   param -= lr (m/bc1 / (sqrt(v/bc2) + eps) + weight_decay param)
//
// Memory: the norm reads 4 bytes a parameter; AdamW reads 16 and writes 12. Both should be bound by memory; one variant
// each would do; "naive" AdamW is the formula on one number at a time, to be read and compared with.
// How fast: benchmarks/ops.py.
// The norm is summed in double over chunks of 16384 numbers, which are added in order: no dependence on threads.
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

constexpr int64_t NORM_CHUNK = 16384;
typedef double vd __attribute__((vector_size(32)));
typedef float vquarter __attribute__((vector_size(16)));

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
    vd part[VL / 4] = {};
    for_lanes(count, [&](int64_t i, auto load, auto) {
      float y[VL];
      vstore(y, load(x + i));
#pragma GCC unroll 4
      for (int q = 0; q < VL / 4; ++q) {
        vquarter f;
        memcpy(&f, y + 4 * q, sizeof(f));
        const vd a = __builtin_convertvector(f, vd);
        part[q] += a * a;
      }
    });
    vd sum = part[0];
    for (int q = 1; q < VL / 4; ++q) sum += part[q];
    partial[chunk] = (sum[0] + sum[2]) + (sum[1] + sum[3]);
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
    const float* grad = f32(a.grad) + begin;
    float *param = f32(a.param) + begin, *m = f32(a.m) + begin, *v = f32(a.v) + begin;
    for_lanes(end - begin, [&](int64_t i, auto load, auto store) {
      const vf g = load(grad + i) * vset(y.clip), old = load(param + i);
      const vf m_new = vset(y.beta1) * load(m + i) + vset(1.0f - y.beta1) * g;
      const vf v_new = vset(y.beta2) * load(v + i) + vset(1.0f - y.beta2) * g * g;
      const vf step = m_new / vset(y.bc1) / (vsqrt(v_new / vset(y.bc2)) + vset(y.eps)) + vset(y.weight_decay) * old;
      store(m + i, m_new);
      store(v + i, v_new);
      store(param + i, old - vset(y.lr) * step);
    });
  });
}

}  // namespace

FD_VARIANT_LIST(optimizer, {"global_norm", "naive", 0, global_norm, global_norm_workspace},
                {"adamw", "naive", 0, adamw_naive, nullptr}, {"adamw", "simd", 10, adamw_simd, nullptr})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
