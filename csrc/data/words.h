// Text to words by the rules of spaCy's blank English pipeline: cut at white space, peel punctuation in front and behind, cut at
// what separates letters inside. Contractions and emoticons, and what a code point is (256 of them at a time), the caller says;
// so the Unicode version is the caller's.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace freedive::data {

enum CodePointFlag : uint16_t {
  SPACE = 1,
  DIGIT = 2,       // decimal digits of any script
  BLANKED = 4,     // becomes a space when simplifying
  DECIMAL = 8,     // joins two runs of digits into one number
  LETTER = 16,     // letters and marks; a piece of these only is one word, unless it is a contraction
  MAPPED = 32,     // replaced when simplifying
  REORDERED = 64,  // replacing it needs context: `needs_reference`
  LOWER = 128,     // letters that are not upper or title case
  UPPER = 256,     // letters that are not lower case; letters without case are both
  ICON = 512,      // symbols of category So
  MARK = 1024,     // punctuation and quotes that are peeled one by one
  QUOTE = 2048,    // those that are quotes
  MONEY = 4096,    // currency signs
  WORD = 8192      // letters, numbers and "_"
};

// The words of one text: one after the other in `text`, with one space between them.
struct Words {
  std::string text;
  std::vector<uint32_t> starts, ends;  // bytes
  std::vector<uint32_t> missing_pages;
  bool needs_reference = false;
  size_t size() const { return starts.size(); }
  std::string_view word(size_t i) const { return {text.data() + starts[i], ends[i] - starts[i]}; }
};

// What Gopher's quality rules ask of the words of a text (2112.11446, appendix A.1.1).
struct WordCounts {
  uint64_t all = 0;
  uint64_t real = 0, real_characters = 0;  // without single signs; code points
  uint64_t alphabetic = 0;                 // with a letter
  uint64_t wanted = 0;                     // different ones of a list that occur
};

class Splitter {
 public:
  void learn_page(uint32_t page, const std::vector<uint16_t>& flags, std::vector<std::string> replacements);
  // A contraction, abbreviation or emoticon and its words' lengths in bytes; the pages of its code points must be known.
  void learn(std::string_view piece, std::vector<uint32_t> lengths);
  Words split(std::string_view utf8, bool simplify);
  WordCounts count(const Words& words, const std::vector<std::string>& wanted) const;  // of words without missing pages

 private:
  struct Page {
    std::array<uint16_t, 256> flags;
    std::array<std::string, 256> replacements;  // UTF-8
  };
  struct Known {
    std::string piece;
    std::vector<uint32_t> lengths;  // bytes of its words
    std::vector<uint32_t> peeled;   // bytes of what it would be peeled into if it were not known
  };
  struct Char {
    uint32_t point;
    uint32_t at;  // byte
    uint16_t flags;
  };
  struct Part {
    uint32_t from, to;  // bytes of the piece
  };
  std::array<std::unique_ptr<Page>, 4352> pages_;
  std::array<uint16_t, 128> ascii_{};                                   // flags of page 0
  std::unordered_map<std::string_view, std::unique_ptr<Known>> table_;  // keys point into the values
  std::unordered_set<std::string> beginnings_;                          // the first two parts of those of several parts
  std::array<bool, 4096> maybe_{}, maybe_beginning_{};                  // by `sketch`: may it be in there?
  size_t longest_ = 0, most_parts_ = 0;                                 // bytes, parts
  // The piece at hand: its code points, and its parts in front of the middle, of the middle, and behind it (the last first)
  std::string_view piece_;
  std::vector<Char> chars_;
  std::vector<Part> parts_, back_;

  static size_t sketch(std::string_view s) {
    return (uint8_t(s.front()) * 67u + uint8_t(s.back()) * 31u + s.size() * 257u) & 4095;
  }
  const Page* page(uint32_t code_point) const { return code_point < 0x110000 ? pages_[code_point >> 8].get() : nullptr; }
  const Known* known(std::string_view s) const;
  std::string_view view(uint32_t from, uint32_t to) const {  // code points
    return piece_.substr(chars_[from].at, chars_[to].at - chars_[from].at);
  }
  bool is(uint32_t i, uint32_t end, char c) const { return i < end && chars_[i].point == uint32_t(uint8_t(c)); }
  void add_piece(Words& out, std::string_view piece, bool letters);
  void decode(std::string_view piece);
  void peel(bool look_up);
  void join(std::vector<Part>& parts) const;
  uint32_t prefix(uint32_t from, uint32_t to) const;
  uint32_t suffix(uint32_t from, uint32_t to) const;
  uint32_t infix(uint32_t from, uint32_t at, uint32_t to) const;
  bool is_url(uint32_t from, uint32_t to) const;
  bool is_host(uint32_t from, uint32_t to) const;
};

}  // namespace freedive::data
