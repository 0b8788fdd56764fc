// peak.cpp: the limit of this processor for products in float32 and in bfloat16, for "percent of peak": independent chains of
// multiply-adds on registers, no memory. 12 chains hide the latency of two units (4 to 6 cycles each); of NEON's units some have
// four. Every thread runs the same loop.
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

constexpr int CHAINS = VL == 4 ? 24 : 12;

struct Work {
  int64_t iterations;
};

template <bool HALF>
void chains(void* user, int) {
  const int64_t n = static_cast<Work*>(user)->iterations;
  vf a[CHAINS];
  for (int i = 0; i < CHAINS; ++i) a[i] = vset(0.1f * static_cast<float>(i + 1));
  vf x = vset(0.999f), y = vset(0.001f);
  for (int64_t k = 0; k < n; ++k) {
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; ++i) a[i] = HALF ? bf16_dot(x, y, a[i]) : vfma(a[i], x, y);
  }
  vf s = a[0];
  for (int i = 1; i < CHAINS; ++i) s = s + a[i];
  const float sum = hsum(s);
  asm volatile("" : : "m"(sum));  // the chains must be computed, for nobody to read
}

}  // namespace

double peak_run(fd_context* ctx, int64_t iterations, int64_t compute) {
  Work w{iterations};
  const bool half = compute == FD_BF16;
  const auto run = half ? chains<true> : chains<false>;
  if (ctx->pool)
    ctx->pool->run_on_all(run, &w);
  else
    run(&w, 0);
  return (half ? 4.0 : 2.0) * VL * CHAINS * static_cast<double>(iterations) * ctx->threads;
}

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
