#include "ngrams.h"

namespace freedive::data {

namespace {
constexpr uint64_t P = (1ull << 61) - 1, BASE = 0x0b5297a4d1ce4e5b;

inline uint64_t mulmod(uint64_t a, uint64_t b) {
  const unsigned __int128 x = static_cast<unsigned __int128>(a) * b;
  const uint64_t y = (static_cast<uint64_t>(x) & P) + static_cast<uint64_t>(x >> 61);
  return y >= P ? y - P : y;
}
inline uint64_t addmod(uint64_t a, uint64_t b) { return a + b >= P ? a + b - P : a + b; }

// Open addressing; keys are hashes below 2^61, so all ones means empty.
class Table {
 public:
  explicit Table(size_t n) {
    size_t size = 16;
    while (size < 2 * n) size *= 2;
    keys_.assign(size, ~0ull);
    counts_.assign(size, 0);
  }
  uint32_t add(uint64_t key) {  // how often the key was there before
    size_t i = (key * 0x9e3779b97f4a7c15ull >> 20) & (keys_.size() - 1);
    while (keys_[i] != key && keys_[i] != ~0ull) i = (i + 1) & (keys_.size() - 1);
    keys_[i] = key;
    return counts_[i]++;
  }
  uint32_t count(uint64_t key) const {
    size_t i = (key * 0x9e3779b97f4a7c15ull >> 20) & (keys_.size() - 1);
    while (keys_[i] != key && keys_[i] != ~0ull) i = (i + 1) & (keys_.size() - 1);
    return counts_[i];
  }

 private:
  std::vector<uint64_t> keys_;
  std::vector<uint32_t> counts_;
};
}  // namespace

Repetition::Repetition(const Words& words) {
  for (size_t i = 0; i < words.size(); ++i) {
    uint64_t hash = 0, power = 1;
    uint32_t length = 0;
    for (const char c : words.word(i)) {
      hash = addmod(mulmod(hash, BASE), static_cast<uint8_t>(c) + 1);
      power = mulmod(power, BASE);
      length += (c & 0xc0) != 0x80;
    }
    hashes_.push_back(hash), powers_.push_back(power), lengths_.push_back(length);
  }
}

uint64_t Repetition::gram(size_t i, int n, bool spaces) const {
  uint64_t h = hashes_[i];
  for (int k = 1; k < n; ++k) {
    if (spaces) h = addmod(mulmod(h, BASE), ' ' + 1);
    h = addmod(mulmod(h, powers_[i + k]), hashes_[i + k]);
  }
  return h;
}

uint64_t Repetition::top(int n) const {
  const size_t size = hashes_.size(), width = n;
  if (size < width) return 0;
  Table table(size);
  std::vector<uint64_t> grams(size - width + 1);
  uint32_t most = 0;
  for (size_t i = 0; i < grams.size(); ++i) {
    const uint32_t before = table.add(grams[i] = gram(i, n, true));
    most = before + 1 > most ? before + 1 : most;
  }
  size_t first = 0;
  while (table.count(grams[first]) != most) ++first;
  uint64_t characters = width - 1;
  for (size_t k = 0; k < width; ++k) characters += lengths_[first + k];
  return characters * most;
}

uint64_t Repetition::repeated(int n) const {
  const size_t size = hashes_.size(), width = n;
  Table table(size);
  uint64_t characters = 0;
  for (size_t i = 0; i + width <= size;) {
    if (table.add(gram(i, n, false))) {
      for (size_t k = 0; k < width; ++k) characters += lengths_[i + k];
      i += width;
    } else {
      ++i;
    }
  }
  return characters;
}

}  // namespace freedive::data
