// Optimizer: the global gradient norm, AdamW, and the elementwise parts of Muon, each over one flat range of numbers.
//   norm = sqrt(sum x^2);  g = grad min(1, max_norm/norm);  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;
//   param -= lr (m/bc1 / (sqrt(v/bc2) + eps) + weight_decay param)
//
// Memory: the norm reads 4 bytes a parameter; AdamW reads 16 and writes 12. Both should be bound by memory; one variant
// each would do; "naive" AdamW is the formula on one number at a time, to be read and compared with.
// How fast: benchmarks/ops.py.
// The norm is summed in double over chunks of 16384 numbers, which are added in order: no dependence on threads.
#include "stream.h"
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

constexpr int64_t NORM_CHUNK = 16384;
size_t global_norm_workspace(const void* p, int32_t) {
  const auto& a = *static_cast<const fd_global_norm_args*>(p);
  return bytes64(ceil_div(a.x.shape[0], NORM_CHUNK), sizeof(double));
}

// In double: squares of float32 are exact there and cannot overflow.
double sum_of_squares(const float* x, int64_t count) {
  double total = 0;
  int64_t i = 0;
#ifdef FREEDIVE_AVX512
  __m512d s[4] = {_mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd()};
  for (; i + 32 <= count; i += 32) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const __m512d y = _mm512_cvtps_pd(_mm256_loadu_ps(x + i + 8 * c));
      s[c] = _mm512_fmadd_pd(y, y, s[c]);
    }
  }
  total = _mm512_reduce_add_pd(_mm512_add_pd(_mm512_add_pd(s[0], s[1]), _mm512_add_pd(s[2], s[3])));
#else
  typedef double vd __attribute__((vector_size(32)));
  typedef float v4 __attribute__((vector_size(16)));
  vd s[4] = {};
  for (; i + 16 <= count; i += 16) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      v4 f;
      memcpy(&f, x + i + 4 * c, sizeof(f));
      const vd y = __builtin_convertvector(f, vd);
      s[c] += y * y;
    }
  }
  const vd sum = (s[0] + s[1]) + (s[2] + s[3]);
  total = (sum[0] + sum[2]) + (sum[1] + sum[3]);
#endif
  for (; i < count; ++i) total += static_cast<double>(x[i]) * x[i];
  return total;
}

void global_norm(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_global_norm_args*>(p);
  const int64_t P = a.x.shape[0], chunks = ceil_div(P, NORM_CHUNK);
  double* partial = reinterpret_cast<double*>(ctx->workspace);
  parallel_units(ctx, chunks, [&](int64_t chunk, int) {
    const float* x = f32(a.x) + chunk * NORM_CHUNK;
    const int64_t count = min64(NORM_CHUNK, P - chunk * NORM_CHUNK);
    partial[chunk] = sum_of_squares(x, count);
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
      const vf step = m_new * vset(1.0f / y.bc1) / (vsqrt(v_new * vset(1.0f / y.bc2)) + vset(y.eps)) + vset(y.weight_decay) * old;
      store(m + i, m_new);
      store(v + i, v_new);
      store(param + i, old - vset(y.lr) * step);
    });
  });
}

// ---- Muon: one pass over memory each ---------------------------------------------------------------------------

bool finite(float x) { return x - x == 0.0f; }

void muon_momentum(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_muon_momentum_args*>(p);
  const float *h = f32(a.hyper), norm = f32(a.norm)[0], max_norm = h[4];
  const bool skip = !finite(norm), nesterov = h[2] != 0;
  const vf b = vset(h[1]), rest = vset(1.0f - h[1]), clip = vset(max_norm > 0 && norm > max_norm ? max_norm / norm : 1.0f);
  parallel_rows(ctx, a.m.shape[0], 1, [&](int64_t begin, int64_t end) {
    const float* grad = f32(a.grad) + begin;
    float *m = f32(a.m) + begin, *out = f32(a.out) + begin;
    for_lanes(end - begin, [&](int64_t i, auto load, auto store) {
      if (skip) return store(out + i, vset(0));
      const vf g = load(grad + i) * clip, m_new = b * load(m + i) + rest * g;
      store(m + i, m_new);
      store(out + i, nesterov ? b * m_new + rest * g : m_new);
    });
  });
}

void muon_update(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_muon_update_args*>(p);
  const float* h = f32(a.hyper);
  if (!finite(f32(a.norm)[0])) return;
  const vf lr = vset(h[0]), decay = vset(h[3]), scale = vset(static_cast<float>(a.scale));
  parallel_rows(ctx, a.param.shape[0], 1, [&](int64_t begin, int64_t end) {
    const float* x = f32(a.x) + begin;
    float* param = f32(a.param) + begin;
    for_lanes(end - begin, [&](int64_t i, auto load, auto store) {
      const vf old = load(param + i);
      store(param + i, old - lr * (scale * load(x + i) + decay * old));
    });
  });
}

void normalize(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_normalize_args*>(p);
  const float norm = f32(a.norm)[0], least = static_cast<float>(a.eps);
  const vf by = vset(1.0f / (norm > least ? norm : least));
  parallel_rows(ctx, a.x.shape[0], 1, [&](int64_t begin, int64_t end) {
    const float* x = f32(a.x) + begin;
    float* out = f32(a.out) + begin;
    for_lanes(end - begin, [&](int64_t i, auto load, auto store) { store(out + i, load(x + i) * by); });
  });
}

void linear_combination(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_linear_combination_args*>(p);
  const vf alpha = vset(static_cast<float>(a.alpha)), beta = vset(static_cast<float>(a.beta));
  const bool two = f32(a.y) != nullptr;
  parallel_rows(ctx, a.x.shape[0], 1, [&](int64_t begin, int64_t end) {
    const float *x = f32(a.x) + begin, *y = two ? f32(a.y) + begin : x;
    float* out = f32(a.out) + begin;
    for_lanes(end - begin, [&](int64_t i, auto load, auto store) {
      store(out + i, two ? vfma(beta, load(y + i), alpha * load(x + i)) : alpha * load(x + i));
    });
  });
}

}  // namespace

FD_VARIANT_LIST(optimizer, {"muon_momentum", "naive", 0, muon_momentum, nullptr},
                {"muon_update", "naive", 0, muon_update, nullptr}, {"normalize", "naive", 0, normalize, nullptr},
                {"linear_combination", "naive", 0, linear_combination, nullptr},
                {"global_norm", "naive", 0, global_norm, global_norm_workspace}, {"adamw", "naive", 0, adamw_naive, nullptr},
                {"adamw", "simd", 10, adamw_simd, nullptr})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
