// Rotary position embedding, half-rotation form: the pair (x[i], x[i+R]) turns by the angle of position p and frequency i.
//   out[i] = x[i] cos - x[i+R] sin;  out[i+R] = x[i+R] cos + x[i] sin, R = D/2.  inverse turns back (sin -> -sin).
//
// Memory: reads and writes every element once; the cos and sin rows of a position stay in L1 for its H heads.
// One variant: pairs in lanes, bound by memory; large outputs go past the cache (stream.h).
#include "stream.h"
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

void rope(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_rope_args*>(p);
  const int64_t N = a.x.shape[0], H = a.x.shape[1], D = a.x.shape[2], R = D / 2;
  const float sign = a.inverse != 0 ? -1.0f : 1.0f;
  const bool stream = should_stream(a.out) && R % 16 == 0;
  parallel_rows(ctx, N, H * D, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* cosine = f32(a.cos) + i32(a.positions)[n] * a.cos.stride[0];
      const float* sine = f32(a.sin) + i32(a.positions)[n] * a.sin.stride[0];
      for (int64_t h = 0; h < H; ++h) {
        const float* x = f32(a.x) + n * a.x.stride[0] + h * a.x.stride[1];
        float* out = f32(a.out) + n * a.out.stride[0] + h * a.out.stride[1];
        for_lanes_to(stream, R, [&](int64_t i, auto load, auto store) {
          const vf c = load(cosine + i), s = load(sine + i) * vset(sign), low = load(x + i), high = load(x + R + i);
          store(out + i, low * c - high * s);
          store(out + R + i, high * c + low * s);
        });
      }
    }
    stream_end(stream);
  });
}

}  // namespace

FD_VARIANT_LIST(rope, {"rope", "naive", 0, rope, nullptr})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
