#include "ngrams.h"

#include <algorithm>
#include <cstring>
#include <string>

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
  const size_t n = words.size();
  hashes_.reserve(n), powers_.reserve(n), lengths_.reserve(n), starts_.reserve(n + 1);
  std::string joined;
  joined.reserve(words.text.size() + BEGINNING);
  std::vector<uint64_t> powers{1};  // of the base
  for (size_t i = 0; i < n; ++i) {
    const std::string_view word = words.word(i);
    uint64_t hash = 0;
    uint32_t length = 0;
    for (const char c : word) {
      hash = addmod(mulmod(hash, BASE), static_cast<uint8_t>(c) + 1);
      length += (c & 0xc0) != 0x80;
    }
    while (powers.size() <= word.size()) powers.push_back(mulmod(powers.back(), BASE));
    hashes_.push_back(hash), powers_.push_back(powers[word.size()]), lengths_.push_back(length);
    starts_.push_back(static_cast<uint32_t>(joined.size()));
    joined += word;
  }
  starts_.push_back(static_cast<uint32_t>(joined.size()));
  joined.append(BEGINNING, '\0');

  // First and later occurrences alike: counted first, then looked up
  std::vector<uint64_t> keys(n);
  auto again = [&keys, n](size_t count) {
    Table table(count);
    for (size_t i = 0; i < count; ++i) table.add(keys[i]);
    std::vector<bool> out(n, false);
    for (size_t i = 0; i < count; ++i) out[i] = table.count(keys[i]) > 1;
    return out;
  };
  for (size_t i = 0; i + 1 < n; ++i) keys[i] = gram(i, 2, true);
  pair_again_ = again(n ? n - 1 : 0);
  for (size_t i = 0; i < n; ++i) {
    uint64_t bytes[2];
    std::memcpy(bytes, joined.data() + starts_[i], BEGINNING);
    keys[i] = (bytes[0] * 0x9e3779b97f4a7c15ull ^ bytes[1]) * 0xd6e8feb86659fd93ull >> 3;
  }
  beginning_again_ = again(n);
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
  std::vector<uint32_t> places;  // of grams that may occur again
  size_t run = 0;                // pairs from here on that do
  for (size_t i = size; i-- > 0;) {
    run = pair_again_[i] ? run + 1 : 0;
    if (run + 1 >= width && i + width <= size) places.push_back(static_cast<uint32_t>(i));
  }
  Table table(places.size());
  std::vector<uint64_t> grams(places.size());
  uint32_t most = 1;
  for (size_t k = places.size(); k-- > 0;) most = std::max(most, table.add(grams[k] = gram(places[k], n, true)) + 1);
  size_t first = 0;
  for (size_t k = 0; most > 1 && k < places.size(); ++k)
    if (table.count(grams[k]) == most) first = places[k];
  uint64_t characters = width - 1;
  for (size_t k = 0; k < width; ++k) characters += lengths_[first + k];
  return characters * most;
}

uint64_t Repetition::repeated(int n) const {
  const size_t size = hashes_.size(), width = n;
  auto maybe = [&](size_t i) { return beginning_again_[i] || starts_[i + width] - starts_[i] < BEGINNING; };
  size_t count = 0;
  for (size_t i = 0; i + width <= size; ++i) count += maybe(i);
  Table table(count);
  uint64_t characters = 0;
  for (size_t i = 0; i + width <= size;) {
    if (maybe(i) && table.add(gram(i, n, false))) {
      for (size_t k = 0; k < width; ++k) characters += lengths_[i + k];
      i += width;
    } else {
      ++i;
    }
  }
  return characters;
}

}  // namespace freedive::data
