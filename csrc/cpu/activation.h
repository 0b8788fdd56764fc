// activation.h: gelu and SwiGLU of one number and of a vector of them, for the ops that are these alone (activation.cpp) and the
// products that end with them (matmul_activation.cpp): the same bits from both.
#pragma once
#include "simd.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

constexpr float SQRT_2_OVER_PI = 0.7978845608028654f, CUBIC = 0.044715f;

// ---- one number, with libm in double ---------------------------------------------------------------------------

FD_INLINE float gelu_one(double x) {
  return static_cast<float>(0.5 * x * (1.0 + tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))));
}
FD_INLINE float swiglu_one(double gate, float up) { return static_cast<float>(gate / (1.0 + exp(-gate)) * up); }

// ---- lanes, with a polynomial exp ------------------------------------------------------------------------------

// 1 / (1 + 2^-z). Relative error about 2e-7; 0 and 1 at the far ends; NaN stays NaN.
#ifdef FREEDIVE_AVX512
FD_INLINE vf sigmoid2(vf z) {
  const __m512 y =
      _mm512_min_ps(_mm512_set1_ps(200), _mm512_max_ps(_mm512_set1_ps(-200), reinterpret_cast<__m512>(-z)));  // NaN passes
  const __m512 n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(y, n);
  __m512 e = _mm512_set1_ps(1.5403530393e-4f);  // 2^f on [-1/2, 1/2]: the series of exp(f ln 2)
  e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(1.3333558146e-3f));
  e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(9.6181291076e-3f));
  e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(5.5504108665e-2f));
  e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(2.4022650696e-1f));
  e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(6.9314718056e-1f));
  e = _mm512_scalef_ps(_mm512_fmadd_ps(e, f, _mm512_set1_ps(1.0f)), n);
  return reinterpret_cast<vf>(_mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_add_ps(_mm512_set1_ps(1.0f), e)));
}
#else
FD_INLINE vf sigmoid2(vf z) { return vset(1.0f) / (vset(1.0f) + vexp(z * vset(-0.6931471805599453f))); }
#endif
constexpr float LOG2_E = 1.4426950408889634f;
FD_INLINE vf sigmoid(vf x) { return sigmoid2(x * vset(LOG2_E)); }
// gelu(x) = x sigmoid(2u); 2u / ln 2 in three operations
FD_INLINE vf gelu_sigmoid(vf x, vf xx) {
  return sigmoid2(x * vfma(vset(2.0f * LOG2_E * SQRT_2_OVER_PI * CUBIC), xx, vset(2.0f * LOG2_E * SQRT_2_OVER_PI)));
}
FD_INLINE vf gelu_lanes(vf x) { return x * gelu_sigmoid(x, x * x); }
FD_INLINE vf swiglu_lanes(vf gate, vf up) { return gate / (vset(1.0f) + vexp(-gate)) * up; }

}  // namespace
}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
