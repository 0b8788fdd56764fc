// fastText's supervised classifier (Joulin et al., 1607.01759, 1612.03651), reading only: the language model lid.176.
// One prediction is a sum of rows for the words and their character n-grams, and a walk down a tree of labels.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace freedive::data {

class LanguageModel {
 public:
  // The bytes of a .ftz or .bin file; std::runtime_error if they are none, or of a kind that is not read here.
  explicit LanguageModel(std::string_view file);
  // Not for two threads at once. (label without "__label__", probability) of the best label; text in UTF-8, one line. ("", 0) if
  // nothing in it is known.
  std::pair<std::string, float> best(std::string_view text);
  int labels() const { return static_cast<int>(labels_.size()); }
  const std::vector<std::string>& names() const { return labels_; }  // without "__label__"

 private:
  // The rows of words that were met before: most words of a text. A word's slot is its hash's; the last one to come stays.
  struct Met {
    std::string word;
    std::vector<int32_t> rows;
  };
  static constexpr size_t SLOTS = 1 << 14, LONGEST = 32;  // bytes of a word that is remembered
  std::vector<Met> met_;
  void add_word(std::string_view word, std::vector<int32_t>& rows);
  void add_new_word(std::string_view word, uint32_t hash, std::vector<int32_t>& rows) const;
  void add_ngrams(std::string_view bounded, std::vector<int32_t>& rows) const;
  int32_t find(std::string_view word, uint32_t hash) const;  // row of a known word, nwords.. for labels, or -1
  int32_t pruned(uint32_t bucket) const;                     // row of a bucket, or -1
  void descend(int node, float score, const float* hidden, float& most, int& leaf) const;

  int dim_ = 0, minn_ = 0, maxn_ = 0, bucket_ = 0, nwords_ = 0;
  bool hierarchical_ = false;
  int64_t prune_ = -1;
  std::vector<std::string> entries_, labels_;
  std::vector<int32_t> table_;                         // open addressing: word -> entry
  std::vector<std::pair<int32_t, int32_t>> buckets_;   // open addressing: bucket -> row after the words; key -1 is free
  std::vector<bool> kept_;                             // is the bucket in there? A quarter of a MB, where that is more than one
  std::vector<float> input_, output_;                  // [rows, dim], [labels, dim]
  std::vector<std::pair<int32_t, int32_t>> children_;  // of the inner nodes, numbered from labels() on
};

}  // namespace freedive::data
