// Hashes of the n-grams of a text's words: what decontamination looks up and the n-gram model's features are made of.
#pragma once
#include <utility>
#include <vector>

#include "words.h"

namespace freedive::data {

// out[i] is a hash below 2^61 of the words i to i + n - 1: sum of h(word) B^(place from the end) mod 2^61 - 1, rolled on from
// gram to gram, h being FNV-1a with a finalizer. Two different n-grams share one with probability about n / 2^61. Empty if there
// are fewer than n words. The values are part of the format of stored models: they never change.
std::vector<uint64_t> grams(const Words& words, size_t n);

// (place among the text's n-grams, place among the keys) of every n-gram that is a key; of equal keys, the first. keys[count] are
// sorted; maybe[mask + 1], a power of 2, is not 0 where a key has these low bits: most n-grams end there.
std::vector<std::pair<uint32_t, uint32_t>> find_grams(const Words& words, size_t n, const uint64_t* keys, size_t count,
                                                      const uint8_t* maybe, uint64_t mask);

}  // namespace freedive::data
