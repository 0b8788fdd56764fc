// The file format and the arithmetic are fastText's (version 12). Quantised rows are unfolded when the file is read: 60,000 rows
// of 16 floats are 4 MB, and a row is then one line of cache instead of eight look-ups. Sums run in fastText's order.
#include "language.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace freedive::data {
namespace {

constexpr int32_t kMagic = 793712314, kVersion = 12, kSupervised = 3, kHierarchical = 1, kSoftmax = 3;
constexpr int kCentroids = 256;
constexpr std::string_view kEnd = "</s>", kLabel = "__label__";

uint32_t fnv(std::string_view s) {  // fastText's, with its sign extension
  uint32_t h = 2166136261u;
  for (char c : s) h = (h ^ static_cast<uint32_t>(static_cast<int8_t>(c))) * 16777619u;
  return h;
}

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r') || c == '\0'; }

class Reader {
 public:
  explicit Reader(std::string_view data) : data_(data) {}
  template <class T>
  T take() {
    T value;
    std::memcpy(&value, bytes(sizeof(T)), sizeof(T));
    return value;
  }
  const char* bytes(uint64_t count) {
    if (count > data_.size() - at_) throw std::runtime_error("the file is cut off");
    const char* p = data_.data() + at_;
    at_ += count;
    return p;
  }
  template <class T>
  std::vector<T> list(int64_t count) {
    if (count < 0 || static_cast<uint64_t>(count) > data_.size() / sizeof(T)) throw std::runtime_error("the file is damaged");
    std::vector<T> out(count);
    if (count) std::memcpy(out.data(), bytes(count * sizeof(T)), count * sizeof(T));
    return out;
  }
  std::string word() {
    const auto end = data_.find('\0', at_);
    if (end == std::string_view::npos) throw std::runtime_error("the file is cut off");
    std::string out(data_.substr(at_, end - at_));
    at_ = end + 1;
    return out;
  }

 private:
  std::string_view data_;
  uint64_t at_ = 0;
};

// Product quantiser: a vector is `nsubq` parts, each one of 256 centroids.
struct Quantiser {
  int32_t dim, nsubq, dsub, lastdsub;
  std::vector<float> centroids;
  explicit Quantiser(Reader& in) {
    dim = in.take<int32_t>(), nsubq = in.take<int32_t>(), dsub = in.take<int32_t>(), lastdsub = in.take<int32_t>();
    if (dim < 1 || dim > 4096 || nsubq < 1 || dsub < 1 || lastdsub < 1 || lastdsub > dsub || (nsubq - 1) * dsub + lastdsub != dim)
      throw std::runtime_error("the file is damaged");
    centroids = in.list<float>(static_cast<int64_t>(dim) * kCentroids);
  }
  const float* centroid(int part, uint8_t code) const {
    if (part == nsubq - 1)
      return &centroids[static_cast<size_t>(part) * kCentroids * dsub + static_cast<size_t>(code) * lastdsub];
    return &centroids[(static_cast<size_t>(part) * kCentroids + code) * dsub];
  }
};

std::vector<float> quantised(Reader& in, int64_t& rows, int64_t& dim) {
  const bool with_norm = in.take<uint8_t>();
  rows = in.take<int64_t>(), dim = in.take<int64_t>();
  const auto codes = in.list<uint8_t>(in.take<int32_t>());
  const Quantiser q(in);
  if (q.dim != dim || rows < 0 || static_cast<uint64_t>(rows) * q.nsubq != codes.size())
    throw std::runtime_error("the file is damaged");
  std::vector<uint8_t> norms;
  std::vector<float> norm_of(kCentroids, 1.0f);
  if (with_norm) {
    norms = in.list<uint8_t>(rows);
    norm_of = Quantiser(in).centroids;
  }
  std::vector<float> out(rows * dim);
  for (int64_t r = 0; r < rows; ++r) {
    const float norm = with_norm ? norm_of[norms[r]] : 1.0f;
    for (int part = 0; part < q.nsubq; ++part) {
      const float* c = q.centroid(part, codes[r * q.nsubq + part]);
      const int n = part == q.nsubq - 1 ? q.lastdsub : q.dsub;
      for (int k = 0; k < n; ++k) out[r * dim + part * q.dsub + k] = norm * c[k];
    }
  }
  return out;
}

std::vector<float> dense(Reader& in, int64_t& rows, int64_t& dim) {
  rows = in.take<int64_t>(), dim = in.take<int64_t>();
  if (rows < 0 || dim < 1 || dim > 4096 || rows > (int64_t{1} << 40)) throw std::runtime_error("the file is damaged");
  return in.list<float>(rows * dim);
}

float log_of(float x) { return std::log(x + 1e-5); }

}  // namespace

LanguageModel::LanguageModel(std::string_view file) {
  Reader in(file);
  if (in.take<int32_t>() != kMagic) throw std::runtime_error("it is no fastText model");
  if (in.take<int32_t>() != kVersion) throw std::runtime_error("it is a fastText model of another version than 12");
  dim_ = in.take<int32_t>();
  for (int i = 0; i < 4; ++i) in.take<int32_t>();  // window, epochs, least count, negatives
  const int32_t word_ngrams = in.take<int32_t>(), loss = in.take<int32_t>(), kind = in.take<int32_t>();
  bucket_ = in.take<int32_t>(), minn_ = in.take<int32_t>(), maxn_ = in.take<int32_t>();
  in.take<int32_t>(), in.take<double>();  // learning rate's update rate, sampling threshold
  if (kind != kSupervised || word_ngrams > 1 || (loss != kHierarchical && loss != kSoftmax) || bucket_ < 1 || dim_ < 1 ||
      dim_ > 4096)
    throw std::runtime_error("it is a fastText model of a kind that is not read here");
  hierarchical_ = loss == kHierarchical;

  const int32_t size = in.take<int32_t>();
  nwords_ = in.take<int32_t>();
  const int32_t nlabels = in.take<int32_t>();
  in.take<int64_t>();
  prune_ = in.take<int64_t>();
  if (nwords_ < 0 || nlabels < 1 || size != int64_t{nwords_} + nlabels || static_cast<uint64_t>(size) > file.size() ||
      prune_ > static_cast<int64_t>(file.size()))
    throw std::runtime_error("the file is damaged");
  std::vector<int64_t> counts;
  for (int32_t i = 0; i < size; ++i) {
    entries_.push_back(in.word());
    const int64_t count = in.take<int64_t>();
    if ((in.take<int8_t>() == 1) != (i >= nwords_)) throw std::runtime_error("the file is damaged");
    if (i < nwords_) continue;
    counts.push_back(count);
    labels_.push_back(entries_.back().rfind(kLabel, 0) == 0 ? entries_.back().substr(kLabel.size()) : entries_.back());
  }
  size_t room = 16;
  while (room < 2 * entries_.size()) room *= 2;
  table_.assign(room, -1);
  for (int32_t i = 0; i < size; ++i) {
    size_t at = fnv(entries_[i]) & (room - 1);
    while (table_[at] >= 0) at = (at + 1) & (room - 1);
    table_[at] = i;
  }
  room = 16;
  while (static_cast<int64_t>(room) < 2 * prune_) room *= 2;
  buckets_.assign(room, {-1, 0});
  if (prune_ >= 0) kept_.assign(bucket_, false);
  for (int64_t i = 0; i < prune_; ++i) {
    const int32_t from = in.take<int32_t>(), to = in.take<int32_t>();
    if (from < 0 || from >= bucket_) throw std::runtime_error("the file is damaged");
    kept_[from] = true;
    size_t at = (static_cast<uint32_t>(from) * 2654435761u >> 7) & (room - 1);
    while (buckets_[at].first >= 0) at = (at + 1) & (room - 1);
    buckets_[at] = {from, to};
  }

  int64_t rows = 0, dim = 0, out_rows = 0, out_dim = 0;
  input_ = in.take<uint8_t>() ? quantised(in, rows, dim) : dense(in, rows, dim);
  output_ = in.take<uint8_t>() ? quantised(in, out_rows, out_dim) : dense(in, out_rows, out_dim);
  const int64_t wanted = nwords_ + (prune_ >= 0 ? prune_ : bucket_);
  if (dim != dim_ || out_dim != dim_ || rows < wanted || out_rows < nlabels) throw std::runtime_error("the file is damaged");
  for (const auto& [from, to] : buckets_)
    if (from >= 0 && (to < 0 || to >= rows - nwords_)) throw std::runtime_error("the file is damaged");

  met_.resize(SLOTS);
  if (!hierarchical_) return;
  // Huffman tree over the label counts, which fall from first to last
  std::vector<int64_t> weight(2 * nlabels - 1, int64_t(1e15));
  std::copy(counts.begin(), counts.end(), weight.begin());
  int leaf = nlabels - 1, node = nlabels;
  for (int i = nlabels; i < 2 * nlabels - 1; ++i) {
    int pair[2];
    for (int& p : pair) p = leaf >= 0 && weight[leaf] < weight[node] ? leaf-- : node++;
    children_.push_back({pair[0], pair[1]});
    weight[i] = weight[pair[0]] + weight[pair[1]];
  }
}

int32_t LanguageModel::find(std::string_view word, uint32_t hash) const {
  for (size_t at = hash & (table_.size() - 1);; at = (at + 1) & (table_.size() - 1)) {
    const int32_t i = table_[at];
    if (i < 0 || entries_[i] == word) return i;
  }
}

int32_t LanguageModel::pruned(uint32_t bucket) const {
  if (prune_ < 0) return static_cast<int32_t>(bucket);
  if (!kept_[bucket]) return -1;
  for (size_t at = (bucket * 2654435761u >> 7) & (buckets_.size() - 1);; at = (at + 1) & (buckets_.size() - 1)) {
    if (buckets_[at].first == static_cast<int32_t>(bucket)) return buckets_[at].second;
    if (buckets_[at].first < 0) return -1;
  }
}

void LanguageModel::add_ngrams(std::string_view bounded, std::vector<int32_t>& rows) const {
  const size_t n = bounded.size();
  for (size_t i = 0; i < n; ++i) {
    if ((bounded[i] & 0xC0) == 0x80) continue;
    uint32_t h = 2166136261u;
    size_t j = i;
    for (int length = 1; j < n && length <= maxn_; ++length) {
      do h = (h ^ static_cast<uint32_t>(static_cast<int8_t>(bounded[j++]))) * 16777619u;
      while (j < n && (bounded[j] & 0xC0) == 0x80);
      if (length < minn_ || (length == 1 && (i == 0 || j == n))) continue;
      const int32_t row = pruned(h % static_cast<uint32_t>(bucket_));
      if (row >= 0) rows.push_back(nwords_ + row);
    }
  }
}

void LanguageModel::add_word(std::string_view word, std::vector<int32_t>& rows) {
  const uint32_t hash = fnv(word);
  if (word.size() > LONGEST) return add_new_word(word, hash, rows);
  Met& met = met_[(hash * 2654435761u >> 13) & (SLOTS - 1)];
  if (met.word != word) {
    met.word = word;
    met.rows.clear();
    add_new_word(word, hash, met.rows);
  }
  rows.insert(rows.end(), met.rows.begin(), met.rows.end());
}

void LanguageModel::add_new_word(std::string_view word, uint32_t hash, std::vector<int32_t>& rows) const {
  const int32_t id = find(word, hash);
  if (id >= nwords_ || (id < 0 && word.substr(0, kLabel.size()) == kLabel)) return;  // a label is no word
  if (id >= 0) rows.push_back(id);
  if (word == kEnd || maxn_ <= 0) return;
  thread_local std::string bounded;
  bounded.assign(1, '<').append(word).push_back('>');
  add_ngrams(bounded, rows);
}

std::pair<std::string, float> LanguageModel::best(std::string_view text) {
  std::vector<int32_t> rows;
  rows.reserve(4 * text.size());
  size_t at = 0;
  bool ended = false;
  while (at < text.size() && !ended) {
    while (at < text.size() && is_space(text[at])) ++at;
    const size_t start = at;
    while (at < text.size() && !is_space(text[at])) ++at;
    if (at == start) break;
    const auto word = text.substr(start, at - start);
    add_word(word, rows);
    ended = word == kEnd;
  }
  if (!ended) add_word(kEnd, rows);  // the end of the line is a word too
  if (rows.empty()) return {"", 0.0f};

  std::vector<float> hidden(dim_, 0.0f);
  if (dim_ == 16) {  // lid.176's: the sums stay in registers
    std::array<float, 16> sum{};
    for (int32_t row : rows) {
      const float* r = &input_[static_cast<size_t>(row) * 16];
      for (int k = 0; k < 16; ++k) sum[k] += r[k];
    }
    std::copy(sum.begin(), sum.end(), hidden.begin());
  } else {
    for (int32_t row : rows) {
      const float* r = &input_[static_cast<size_t>(row) * dim_];
      for (int k = 0; k < dim_; ++k) hidden[k] += r[k];
    }
  }
  const float scale = static_cast<float>(1.0 / rows.size());
  for (float& x : hidden) x *= scale;

  float most = -INFINITY;
  int leaf = 0;
  if (hierarchical_) {
    descend(2 * labels() - 2, 0.0f, hidden.data(), most, leaf);
  } else {
    std::vector<float> p(labels());
    float top = -INFINITY, sum = 0;
    for (int i = 0; i < labels(); ++i) {
      p[i] = 0;
      for (int k = 0; k < dim_; ++k) p[i] += output_[static_cast<size_t>(i) * dim_ + k] * hidden[k];
      top = std::max(top, p[i]);
    }
    for (float& x : p) sum += x = std::exp(x - top);
    for (int i = 0; i < labels(); ++i)
      if (const float s = log_of(p[i] / sum); s > most) most = s, leaf = i;
  }
  return {labels_[leaf], std::exp(most)};
}

void LanguageModel::descend(int node, float score, const float* hidden, float& most, int& leaf) const {
  if (score < log_of(0.0f) || score < most) return;
  const int inner = node - labels();
  if (inner < 0) {
    most = score, leaf = node;
    return;
  }
  const float* row = &output_[static_cast<size_t>(inner) * dim_];
  float f = 0;
  for (int k = 0; k < dim_; ++k) f += row[k] * hidden[k];
  f = 1.0f / (1.0f + std::exp(-f));
  descend(children_[inner].first, score + log_of(1.0f - f), hidden, most, leaf);
  descend(children_[inner].second, score + log_of(f), hidden, most, leaf);
}

}  // namespace freedive::data
