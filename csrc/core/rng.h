// Counter-based random numbers: a pure function of (seed, stream, counter), so nothing depends on threads, batch order
// or how often a run was interrupted. Philox4x32-10 (Salmon et al., SC'11).
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define FD_EVERYWHERE __host__ __device__
#else
#define FD_EVERYWHERE
#endif

namespace freedive {

// Which use of the random numbers; one seed serves all of them. Further uses take further values.
enum Stream : uint32_t { STREAM_SAMPLE = 2 };

struct Philox {
  uint32_t v[4];
};

FD_EVERYWHERE static inline Philox philox(uint64_t seed, uint32_t stream, uint64_t counter) {
  uint32_t c[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), stream, 0};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    uint64_t p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
    uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, n2 = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1;
    c[1] = static_cast<uint32_t>(p1);
    c[3] = static_cast<uint32_t>(p0);
    c[0] = n0;
    c[2] = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c[0], c[1], c[2], c[3]}};
}

// In [0, 1), 24 bits.
FD_EVERYWHERE static inline float uniform(uint64_t seed, uint32_t stream, uint64_t counter) {
  return static_cast<float>(philox(seed, stream, counter).v[0] >> 8) * (1.0f / 16777216.0f);
}

}  // namespace freedive
