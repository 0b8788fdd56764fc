// Packed integer weights times rows of int8, on the instructions every processor of the tier has: see int8_tile.h.
#include "int8_tile.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {

void int8_strips_simd(const Quantized& w, const Int8Rows& x, int64_t s0, int64_t s1, const Target& t) {
  int8_strips_of(w, x, s0, s1, t);
}

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
