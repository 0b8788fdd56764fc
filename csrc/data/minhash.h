// MinHash signatures of word 5-grams (Broder 1997), with the numbers of datatrove's formula bit for bit, and the clustering of
// documents that share a bucket.
//
//   h = first 8 bytes, little-endian, of SHA-1 over five words with single spaces
//   signature[j] = min over h of ((h a_j + b_j) mod 2^64) mod (2^61 - 1)
#pragma once
#include <cstdint>
#include <vector>

#include "words.h"

namespace freedive::data {

constexpr int GRAM = 5;
constexpr uint64_t MERSENNE = (1ull << 61) - 1;
constexpr uint64_t NO_SIGNATURE = ~0ull;  // in place of the first hash of a document with fewer than five words

uint64_t sha1_64(const void* data, size_t bytes);
// out[n]; false if there are fewer than five words.
bool signature(const Words& words, const uint64_t* a, const uint64_t* b, int n, uint64_t* out);

// Which documents stay, keep[n], when documents with an equal bucket are one cluster: the root of a union by size, visiting each
// bucket's documents in the order (hashes, number), so datatrove's choice. signatures [n, buckets, hashes]. At most `memory`
// bytes are used beside 8 n for the sets: a bucket that needs more is taken in several ranges of its first hash.
struct Clusters {
  std::vector<uint8_t> keep;
  std::vector<uint32_t> root;  // of each document; itself if it is alone
};
Clusters cluster(const uint64_t* signatures, uint64_t n, int buckets, int hashes, uint64_t memory, int agreement);

}  // namespace freedive::data
