// The same on vpdpbusd, for processors of an AVX-512 tier that have VNNI (Cascade Lake, Ice Lake and all that have bfloat16). Not
// a tier of its own: it changes no bit, so nothing but speed depends on it, and the other files need not be compiled once more.
// has_vnni() decides.
#ifdef FREEDIVE_AVX512
#pragma GCC target("avx512vnni")
#define FREEDIVE_VNNI
#include "int8_tile.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {

void int8_strips_vnni(const Quantized& w, const Int8Rows& x, int64_t s0, int64_t s1, const Target& t) {
  int8_strips_of(w, x, s0, s1, t);
}

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
#endif
