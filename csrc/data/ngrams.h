// Repeated n-grams of words, as Gopher's rules count them (2112.11446, appendix A.1.1).
#pragma once
#include <vector>

#include "words.h"

namespace freedive::data {

// Two grams count as equal when their text is equal, decided by a 61-bit polynomial hash of its bytes. Most grams of a text occur
// once, so only those are hashed and counted whose beginning occurs again: two words (top), or 16 bytes without spaces
// (repeated).
class Repetition {
 public:
  explicit Repetition(const Words& words);
  uint64_t top(int n) const;  // characters, spaces included, of the most frequent n-gram (the earliest of equals) times its count
  uint64_t repeated(
      int n) const;  // characters, without spaces, of n-grams seen before; a repeated one is stepped over as a whole

 private:
  static constexpr uint32_t BEGINNING = 16;  // bytes
  std::vector<uint64_t> hashes_, powers_;    // of each word, and the base to the number of its bytes
  std::vector<uint32_t> lengths_;            // in code points
  std::vector<uint32_t> starts_;             // of each word in the text without spaces, and its end
  std::vector<bool> pair_again_;             // do this word and the next occur together elsewhere?
  std::vector<bool> beginning_again_;        // do the bytes from here on?
  uint64_t gram(size_t i, int n, bool spaces) const;
};

}  // namespace freedive::data
