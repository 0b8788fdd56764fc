#include "minhash.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

#if defined(__x86_64__) && defined(__GNUC__)
#define FREEDIVE_X86 1
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace freedive::data {

namespace {

// ---- SHA-1 (FIPS 180-4)

inline uint32_t rotate(uint32_t x, int n) { return x << n | x >> (32 - n); }

void sha1_block_plain(uint32_t state[5], const uint8_t* data) {
  uint32_t w[80];
  for (int i = 0; i < 16; ++i) {
    std::memcpy(&w[i], data + 4 * i, 4);
    w[i] = __builtin_bswap32(w[i]);
  }
  for (int i = 16; i < 80; ++i) w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
  uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
  auto rounds = [&](int from, uint32_t k, auto f) {
    for (int i = from; i < from + 20; ++i) {
      const uint32_t t = rotate(a, 5) + f() + e + k + w[i];
      e = d, d = c, c = rotate(b, 30), b = a, a = t;
    }
  };
  rounds(0, 0x5a827999, [&] { return d ^ (b & (c ^ d)); });
  rounds(20, 0x6ed9eba1, [&] { return b ^ c ^ d; });
  rounds(40, 0x8f1bbcdc, [&] { return (b & c) | (d & (b | c)); });
  rounds(60, 0xca62c1d6, [&] { return b ^ c ^ d; });
  state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
}

#ifdef FREEDIVE_X86
// The CPU's own SHA-1 instructions, four rounds at a time.
template <int K>
__attribute__((target("sha,sse4.1"), always_inline)) inline void four_rounds(__m128i& abcd, __m128i& e_in, __m128i& saved,
                                                                             __m128i w) {
  const __m128i e = _mm_sha1nexte_epu32(e_in, w);
  e_in = saved = abcd;
  abcd = _mm_sha1rnds4_epu32(abcd, e, K);
}

__attribute__((target("sha,sse4.1"))) void sha1_block_sha(uint32_t state[5], const uint8_t* data) {
  const __m128i swap = _mm_set_epi64x(0x0001020304050607ll, 0x08090a0b0c0d0e0fll);
  __m128i abcd = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(state)), 0x1b);
  const __m128i first = abcd, e0 = _mm_set_epi32(static_cast<int>(state[4]), 0, 0, 0);
  __m128i w[20];
  for (int i = 0; i < 4; ++i) w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data) + i), swap);
  for (int i = 4; i < 20; ++i)
    w[i] = _mm_sha1msg2_epu32(_mm_xor_si128(_mm_sha1msg1_epu32(w[i - 4], w[i - 3]), w[i - 2]), w[i - 1]);
  __m128i previous = abcd, saved;
  abcd = _mm_sha1rnds4_epu32(abcd, _mm_add_epi32(e0, w[0]), 0);
  for (int i = 1; i < 5; ++i) four_rounds<0>(abcd, previous, saved, w[i]);
  for (int i = 5; i < 10; ++i) four_rounds<1>(abcd, previous, saved, w[i]);
  for (int i = 10; i < 15; ++i) four_rounds<2>(abcd, previous, saved, w[i]);
  for (int i = 15; i < 20; ++i) four_rounds<3>(abcd, previous, saved, w[i]);
  const __m128i e = _mm_sha1nexte_epu32(previous, e0);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_shuffle_epi32(_mm_add_epi32(abcd, first), 0x1b));
  state[4] = static_cast<uint32_t>(_mm_extract_epi32(e, 3));
}

bool has_sha() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1) && __builtin_cpu_supports("sse4.1");
}
#endif

using Block = void (*)(uint32_t*, const uint8_t*);
Block sha1_block() {
#ifdef FREEDIVE_X86
  if (has_sha()) return sha1_block_sha;
#endif
  return sha1_block_plain;
}

// ---- minima over all permutations

// mins[j] = min(mins[j], ((h a_j + b_j) mod 2^64) mod (2^61 - 1)); every value is below 2^61.
void minima_plain(const uint64_t* h, size_t count, const uint64_t* a, const uint64_t* b, int n, uint64_t* mins) {
  for (int j = 0; j < n; ++j) {
    uint64_t least = mins[j];
    for (size_t i = 0; i < count; ++i) {
      const uint64_t x = h[i] * a[j] + b[j];
      uint64_t y = (x & MERSENNE) + (x >> 61);
      y = y >= MERSENNE ? y - MERSENNE : y;
      least = y < least ? y : least;
    }
    mins[j] = least;
  }
}

#ifdef FREEDIVE_X86
__attribute__((target("avx2"), always_inline)) inline __m256i smaller(__m256i x, __m256i x_high, __m256i a, __m256i a_high,
                                                                      __m256i b, __m256i least) {
  const __m256i prime = _mm256_set1_epi64x(static_cast<long long>(MERSENNE)), last = _mm256_set1_epi64x(MERSENNE - 1);
  const __m256i cross = _mm256_add_epi64(_mm256_mul_epu32(a, x_high), _mm256_mul_epu32(a_high, x));
  const __m256i product = _mm256_add_epi64(_mm256_mul_epu32(a, x), _mm256_slli_epi64(cross, 32));  // modulo 2^64
  const __m256i sum = _mm256_add_epi64(product, b);
  __m256i y = _mm256_add_epi64(_mm256_and_si256(sum, prime), _mm256_srli_epi64(sum, 61));
  y = _mm256_sub_epi64(y, _mm256_and_si256(_mm256_cmpgt_epi64(y, last), prime));
  return _mm256_blendv_epi8(least, y, _mm256_cmpgt_epi64(least, y));
}

// Four permutations in a lane each, two such groups at once; one h at a time, so nothing has to be reduced at the end.
__attribute__((target("avx2"))) void minima_avx2(const uint64_t* h, size_t count, const uint64_t* a, const uint64_t* b, int n,
                                                 uint64_t* mins) {
  auto load = [](const uint64_t* p)
                  __attribute__((target("avx2"))) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); };
  int j = 0;
  for (; j + 8 <= n; j += 8) {
    const __m256i a0 = load(a + j), a1 = load(a + j + 4), b0 = load(b + j), b1 = load(b + j + 4);
    const __m256i high0 = _mm256_srli_epi64(a0, 32), high1 = _mm256_srli_epi64(a1, 32);
    __m256i min0 = load(mins + j), min1 = load(mins + j + 4);
    for (size_t i = 0; i < count; ++i) {
      const __m256i x = _mm256_set1_epi64x(static_cast<long long>(h[i])), x_high = _mm256_srli_epi64(x, 32);
      min0 = smaller(x, x_high, a0, high0, b0, min0);
      min1 = smaller(x, x_high, a1, high1, b1, min1);
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(mins + j), min0);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(mins + j + 4), min1);
  }
  if (j < n) minima_plain(h, count, a + j, b + j, n - j, mins + j);
}
#endif

using Minima = void (*)(const uint64_t*, size_t, const uint64_t*, const uint64_t*, int, uint64_t*);
Minima minima() {
#ifdef FREEDIVE_X86
  if (__builtin_cpu_supports("avx2")) return minima_avx2;
#endif
  return minima_plain;
}

}  // namespace

uint64_t sha1_64(const void* data, size_t bytes) {
  static const Block block = sha1_block();
  uint32_t state[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
  const uint8_t* p = static_cast<const uint8_t*>(data);
  size_t left = bytes;
  for (; left >= 64; left -= 64, p += 64) block(state, p);
  uint8_t tail[128] = {0};
  std::memcpy(tail, p, left);
  tail[left] = 0x80;
  const size_t end = left < 56 ? 64 : 128;
  const uint64_t bits = __builtin_bswap64(static_cast<uint64_t>(bytes) * 8);
  std::memcpy(tail + end - 8, &bits, 8);
  block(state, tail);
  if (end == 128) block(state, tail + 64);
  return static_cast<uint64_t>(__builtin_bswap32(state[1])) << 32 | __builtin_bswap32(state[0]);
}

bool signature(const Words& words, const uint64_t* a, const uint64_t* b, int n, uint64_t* out) {
  static const Minima minimum = minima();
  if (words.size() < GRAM) return false;
  std::fill(out, out + n, MERSENNE);  // above every value
  uint64_t h[512];                    // stays in the first-level cache
  size_t held = 0;
  for (size_t i = 0; i + GRAM <= words.size(); ++i) {
    const uint32_t from = words.starts[i];
    h[held++] = sha1_64(words.text.data() + from, words.ends[i + GRAM - 1] - from);
    if (held == 512) {
      minimum(h, held, a, b, n, out);
      held = 0;
    }
  }
  minimum(h, held, a, b, n, out);
  return true;
}

Clusters cluster(const uint64_t* signatures, uint64_t n, int buckets, int hashes, uint64_t memory, int agreement) {
  if (n >= UINT32_MAX) throw std::invalid_argument("more than 2^32 - 2 documents");
  struct Item {
    uint64_t first;
    uint32_t index;
  };
  std::vector<uint32_t> parent(n), size(n, 1);
  std::iota(parent.begin(), parent.end(), 0);
  auto find = [&](uint32_t x) {
    while (parent[x] != x) x = parent[x] = parent[parent[x]];
    return x;
  };
  const uint64_t width = static_cast<uint64_t>(buckets) * hashes;
  auto alike = [&](uint32_t i, uint32_t j) {
    int equal = 0;
    for (uint64_t k = 0; k < width; ++k) equal += signatures[i * width + k] == signatures[j * width + k];
    return equal >= agreement;
  };
  const uint64_t most = std::max<uint64_t>(memory / sizeof(Item), 1024);
  std::vector<Item> items;
  for (int bucket = 0; bucket < buckets; ++bucket) {
    auto row = [&](uint32_t i) { return signatures + i * width + static_cast<uint64_t>(bucket) * hashes; };
    // Ranges of the first hash that hold at most about `most` documents, from a sample of it.
    std::vector<uint64_t> limits;
    if (n > most) {
      std::vector<uint64_t> sample;
      const uint64_t step = std::max<uint64_t>(1, n / 65536), parts = 2 * (n / most + 1);
      for (uint64_t i = 0; i < n; i += step) sample.push_back(*row(i));
      std::sort(sample.begin(), sample.end());
      for (uint64_t k = 1; k < parts; ++k) limits.push_back(sample[k * sample.size() / parts]);
      limits.erase(std::unique(limits.begin(), limits.end()), limits.end());
    }
    limits.push_back(NO_SIGNATURE);
    uint64_t low = 0;
    for (const uint64_t high : limits) {
      items.clear();
      for (uint64_t i = 0; i < n; ++i) {
        const uint64_t first = *row(i);
        if (first >= low && first < high) items.push_back({first, static_cast<uint32_t>(i)});
      }
      low = high;
      std::sort(items.begin(), items.end(), [&](const Item& x, const Item& y) {
        if (x.first != y.first) return x.first < y.first;
        const uint64_t *p = row(x.index), *q = row(y.index);
        for (int k = 1; k < hashes; ++k)
          if (p[k] != q[k]) return p[k] < q[k];
        return x.index < y.index;
      });
      for (size_t k = 1; k < items.size(); ++k) {
        const uint32_t j = items[k].index;
        auto same = [&](size_t i) {
          return items[i].first == items[k].first && std::memcmp(row(items[i].index), row(j), 8 * hashes) == 0;
        };
        if (!same(k - 1)) continue;
        size_t other = k - 1;
        // With a lower limit on the agreement, the one before may not be alike enough and an earlier one may: a few are tried.
        for (int tries = 0; agreement > 0 && !alike(items[other].index, j);) {
          if (++tries == 16 || other == 0 || !same(other - 1)) {
            other = k;
            break;
          }
          --other;
        }
        if (other == k) continue;
        uint32_t x = find(items[other].index), y = find(j);
        if (x == y) continue;
        if (size[x] < size[y]) std::swap(x, y);
        parent[y] = x;
        size[x] += size[y];
      }
    }
  }
  Clusters out{std::vector<uint8_t>(n), std::vector<uint32_t>(n)};
  for (uint64_t i = 0; i < n; ++i) {
    out.root[i] = find(static_cast<uint32_t>(i));
    out.keep[i] = out.root[i] == i;
  }
  return out;
}

}  // namespace freedive::data
