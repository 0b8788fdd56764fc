// What merging by rank leaves of each token of a byte-pair vocabulary, the check that a list of merges says the same
// (tokenizer/imported.py).
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

namespace freedive::data {

// tokens: in the order of their ranks, all single bytes they are made of among them. out[i]: 0 for a token of one byte; else
// merge token i's bytes, always the pair of lowest rank, leftmost first, with ranks below i only; if two parts are left, the
// length of the first; if more, -1.
std::vector<int32_t> first_parts(const std::vector<std::string_view>& tokens);

}  // namespace freedive::data
