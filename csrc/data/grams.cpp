#include "grams.h"

#include <algorithm>

namespace freedive::data {

namespace {
constexpr uint64_t P = (1ull << 61) - 1, BASE = 0x1a2f8e6b3c94d705;

inline uint64_t reduce(uint64_t x) {
  const uint64_t y = (x & P) + (x >> 61);
  return y >= P ? y - P : y;
}

inline uint64_t mulmod(uint64_t a, uint64_t b) {
  const unsigned __int128 x = static_cast<unsigned __int128>(a) * b;
  return reduce((static_cast<uint64_t>(x) & P) + static_cast<uint64_t>(x >> 61));
}

uint64_t hash(std::string_view word) {
  uint64_t h = 0xcbf29ce484222325;  // FNV-1a, then the finalizer of splitmix64
  for (const char c : word) h = (h ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9;
  h = (h ^ h >> 27) * 0x94d049bb133111eb;
  return reduce(h ^ h >> 31);
}
}  // namespace

std::vector<uint64_t> grams(const Words& words, size_t n) {
  std::vector<uint64_t> hashes(words.size()), out;
  if (n == 0 || words.size() < n) return out;
  for (size_t i = 0; i < words.size(); ++i) hashes[i] = hash(words.word(i));
  uint64_t leaving = 1;  // BASE^n: the weight of the word that drops out, after the shift
  for (size_t i = 0; i < n; ++i) leaving = mulmod(leaving, BASE);
  out.reserve(words.size() - n + 1);
  uint64_t gram = 0;
  for (size_t i = 0; i < words.size(); ++i) {
    gram = reduce(mulmod(gram, BASE) + hashes[i]);
    if (i >= n) gram = reduce(gram + P - mulmod(hashes[i - n], leaving));
    if (i + 1 >= n) out.push_back(gram);
  }
  return out;
}

std::vector<std::pair<uint32_t, uint32_t>> find_grams(const Words& words, size_t n, const uint64_t* keys, size_t count,
                                                      const uint8_t* maybe, uint64_t mask) {
  std::vector<std::pair<uint32_t, uint32_t>> out;
  const std::vector<uint64_t> all = grams(words, n);
  for (size_t i = 0; i < all.size(); ++i) {
    if (!maybe[all[i] & mask]) continue;
    const uint64_t* at = std::lower_bound(keys, keys + count, all[i]);
    if (at != keys + count && *at == all[i]) out.emplace_back(static_cast<uint32_t>(i), static_cast<uint32_t>(at - keys));
  }
  return out;
}

}  // namespace freedive::data
