// Text to words: cuts at white space, keeps pieces of letters as they are, and looks the others up in a table which the caller
// fills with the pieces that the table did not know. What a code point is, the caller says too, 256 code points at a time; so the
// rules and the Unicode version are the caller's, and this file is only fast.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace freedive::data {

enum CodePointFlag : uint8_t {
  SPACE = 1,
  DIGIT = 2,      // decimal digits of any script
  PUNCT = 4,      // becomes a space when simplifying
  DECIMAL = 8,    // joins two runs of digits into one number
  LETTER = 16,    // a piece of letters only is one word, unless it was learned otherwise
  MAPPED = 32,    // replaced when simplifying
  REORDERED = 64  // replacing it needs context: `needs_reference`
};

// The words of one text: one after the other in `text`, with one space between them.
struct Words {
  std::string text;
  std::vector<uint32_t> starts, ends;  // bytes
  std::vector<uint32_t> missing_pages;
  std::vector<std::string> unknown;  // pieces to be learned, each once
  bool needs_reference = false;
  size_t size() const { return starts.size(); }
  std::string_view word(size_t i) const { return {text.data() + starts[i], ends[i] - starts[i]}; }
};

class Splitter {
 public:
  void learn_page(uint32_t page, const uint8_t* flags, std::vector<std::string> replacements);
  void learn(std::string_view piece, std::vector<uint32_t> lengths, bool keep);  // lengths in bytes; kept ones survive forget()
  Words split(std::string_view utf8, bool simplify);

 private:
  struct Page {
    std::array<uint8_t, 256> flags;
    std::array<std::string, 256> replacements;  // UTF-8
  };
  struct Hash {
    size_t operator()(std::string_view s) const { return std::hash<std::string_view>()(s); }
  };
  std::array<std::unique_ptr<Page>, 4352> pages_;
  // Keys point into the strings beside the lengths.
  struct Entry {
    std::string piece;
    std::vector<uint32_t> lengths;
    bool keep;
  };
  std::unordered_map<std::string_view, std::unique_ptr<Entry>, Hash> table_;
  std::array<bool, 4096> kept_{};     // by `sketch`: may a piece of letters be one that was learned to keep?
  std::array<uint8_t, 128> ascii_{};  // flags of page 0
  static size_t sketch(std::string_view s) {
    return (uint8_t(s.front()) * 67u + uint8_t(s.back()) * 31u + s.size() * 257u) & 4095;
  }
  const Page* page(uint32_t code_point) const { return code_point < 0x110000 ? pages_[code_point >> 8].get() : nullptr; }
  void add_piece(Words& out, std::string_view piece, bool letters, std::unordered_map<std::string_view, char>& asked);
};

}  // namespace freedive::data
