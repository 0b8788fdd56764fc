// Which row of a table of pairs a token and the one before it have: a hash, so pairs may share a row. The same on every device, and in
// freedive/reference/ops.py.
#pragma once
#include <cstdint>

#include "rng.h"

namespace freedive {

// Row 0 is that of a token with nothing before it (before == -1).
FD_EVERYWHERE static inline int32_t bigram_row(int32_t before, int32_t token, int64_t rows) {
  if (before < 0) return 0;
  uint32_t h = static_cast<uint32_t>(before) * 0x9E3779B1u ^ static_cast<uint32_t>(token) * 0x85EBCA77u;
  h ^= h >> 15;
  h *= 0x2C1B3C6Du;
  h ^= h >> 12;
  return 1 + static_cast<int32_t>(h % static_cast<uint32_t>(rows - 1));
}

}  // namespace freedive
