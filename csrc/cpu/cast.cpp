// cast: numbers to bfloat16, to nearest with ties to even, and back to float32, which is exact. 6 bytes an element; what is written
// is read soon, or (activations kept for the backward pass) goes past the cache (stream.h).
//
// naive: one by one. simd: lanes; rounding is one instruction with AVX-512 BF16, five of integers elsewhere.
#include "stream.h"
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

// row(out, x, stream) for every row
template <class Row>
void for_rows(fd_context* ctx, const fd_cast_args& a, const Row& row) {
  const bool stream = should_stream(a.out);
  with_numbers(a.out, [&](auto* out) {
    with_numbers(a.x, [&](auto* x) {
      parallel_rows(ctx, a.x.shape[0], a.x.shape[1], [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) row(out + n * a.out.stride[0], x + n * a.x.stride[0], stream);
        stream_end(stream);
      });
    });
  });
}

void cast_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_cast_args*>(p);
  for_rows(ctx, a, [&](auto* out, const auto* x, bool) {
    for (int64_t f = 0; f < a.x.shape[1]; ++f) store_one(out + f, value_of(x[f]));
  });
}

void cast_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_cast_args*>(p);
  for_rows(ctx, a, [&](auto* out, const auto* x, bool stream) {
    for_lanes_to(stream, a.x.shape[1], [&](int64_t f, auto load, auto store) { store(out + f, load(x + f)); });
  });
}

}  // namespace

FD_VARIANT_LIST(cast, {"cast", "naive", 0, cast_naive, nullptr}, {"cast", "simd", 10, cast_simd, nullptr})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
