#include "merges.h"

#include <unordered_map>

namespace freedive::data {

std::vector<int32_t> first_parts(const std::vector<std::string_view>& tokens) {
  const auto none = static_cast<int32_t>(tokens.size());
  std::unordered_map<std::string_view, int32_t> ranks;
  ranks.reserve(2 * tokens.size());
  for (int32_t i = 0; i < none; ++i) ranks.emplace(tokens[i], i);
  std::vector<int32_t> out(tokens.size(), 0), pair;
  std::vector<size_t> begin;  // where each part begins, and where the last ends
  for (int32_t i = 0; i < none; ++i) {
    const std::string_view token = tokens[i];
    if (token.size() < 2) continue;
    const auto rank = [&](size_t part) {  // of this part and the next as one, if it is below i
      const auto found = ranks.find(token.substr(begin[part], begin[part + 2] - begin[part]));
      return found == ranks.end() || found->second >= i ? none : found->second;
    };
    begin.resize(token.size() + 1);
    for (size_t k = 0; k <= token.size(); ++k) begin[k] = k;
    pair.resize(token.size() - 1);
    for (size_t k = 0; k < pair.size(); ++k) pair[k] = rank(k);
    while (!pair.empty()) {
      size_t best = 0;
      for (size_t k = 1; k < pair.size(); ++k)
        if (pair[k] < pair[best]) best = k;
      if (pair[best] == none) break;
      begin.erase(begin.begin() + static_cast<std::ptrdiff_t>(best) + 1);
      pair.erase(pair.begin() + static_cast<std::ptrdiff_t>(best));
      if (best > 0) pair[best - 1] = rank(best - 1);
      if (best < pair.size()) pair[best] = rank(best);
    }
    out[i] = pair.size() == 1 ? static_cast<int32_t>(begin[1]) : -1;
  }
  return out;
}

}  // namespace freedive::data
