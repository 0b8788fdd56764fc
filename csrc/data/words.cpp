#include "words.h"

#include <algorithm>
#include <stdexcept>

namespace freedive::data {

namespace {
constexpr size_t TABLE_LIMIT = 1 << 18;  // pieces; then the table starts anew, so that memory stays bounded

// Reads one code point of valid UTF-8 at `i` and steps over it.
inline uint32_t next(std::string_view s, size_t& i) {
  const uint8_t c = s[i++];
  if (c < 0x80) return c;
  const int more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
  uint32_t point = c & (0x3f >> more);
  for (int k = 0; k < more && i < s.size(); ++k) point = point << 6 | (uint8_t(s[i++]) & 0x3f);
  return point;
}
}  // namespace

void Splitter::learn_page(uint32_t page, const uint8_t* flags, std::vector<std::string> replacements) {
  if (page >= pages_.size() || replacements.size() != 256)
    throw std::invalid_argument("a page has 256 code points below 0x110000");
  auto p = std::make_unique<Page>();
  std::copy(flags, flags + 256, p->flags.begin());
  std::move(replacements.begin(), replacements.end(), p->replacements.begin());
  if (page == 0) std::copy(flags, flags + 128, ascii_.begin());
  pages_[page] = std::move(p);
}

void Splitter::learn(std::string_view piece, std::vector<uint32_t> lengths, bool keep) {
  size_t total = 0;
  for (uint32_t n : lengths) total += n;
  if (piece.empty() || total != piece.size()) throw std::invalid_argument("the words of a piece must make up the piece");
  if (table_.size() >= TABLE_LIMIT) {
    for (auto it = table_.begin(); it != table_.end();) it = it->second->keep ? std::next(it) : table_.erase(it);
  }
  auto entry = std::make_unique<Entry>(Entry{std::string(piece), std::move(lengths), keep});
  const std::string_view key = entry->piece;
  table_[key] = std::move(entry);
  if (keep) kept_[sketch(piece)] = true;
}

void Splitter::add_piece(Words& out, std::string_view piece, bool letters, std::unordered_map<std::string_view, char>& asked) {
  auto word = [&](std::string_view w) {
    if (!out.text.empty()) out.text += ' ';
    out.starts.push_back(out.text.size());
    out.text.append(w);
    out.ends.push_back(out.text.size());
  };
  if (letters && !kept_[sketch(piece)]) return word(piece);
  auto it = table_.find(piece);
  if (it == table_.end()) {
    if (letters) return word(piece);
    if (asked.emplace(piece, 0).second) out.unknown.emplace_back(piece);
    return;
  }
  size_t at = 0;
  for (uint32_t n : it->second->lengths) {
    word(piece.substr(at, n));
    at += n;
  }
}

Words Splitter::split(std::string_view s, bool simplify) {
  if (s.size() >= UINT32_MAX / 2) throw std::invalid_argument("a text of 2 GB or more");
  Words out;
  out.text.reserve(s.size() + s.size() / 8);
  std::unordered_map<std::string_view, char> asked;
  std::vector<bool> missing;
  auto flags_at = [&](uint32_t point, const Page*& p) -> uint8_t {
    p = page(point);
    if (p) return p->flags[point & 255];
    const uint32_t number = std::min<uint32_t>(point >> 8, 4351);
    if (missing.empty()) missing.resize(4352);
    if (!missing[number]) {
      missing[number] = true;
      out.missing_pages.push_back(number);
    }
    return LETTER;
  };
  const Page* p = nullptr;
  if (!simplify) {
    size_t start = 0;
    bool letters = true;
    for (size_t i = 0; i < s.size();) {
      const size_t at = i;
      const uint8_t f = uint8_t(s[i]) < 128 ? ascii_[uint8_t(s[i++])] : flags_at(next(s, i), p);
      if (f & SPACE) {
        if (at > start) add_piece(out, s.substr(start, at - start), letters, asked);
        start = i;
        letters = true;
      } else if (!(f & LETTER)) {
        letters = false;
      }
    }
    if (s.size() > start) add_piece(out, s.substr(start), letters, asked);
    return out;
  }
  // Numbers become 0, punctuation a space, then every character its replacement. Pieces are built in `buffer`, which must not
  // move while `asked` points into it.
  std::string buffer;
  buffer.reserve(3 * s.size() + 16);
  size_t start = 0;
  bool letters = true;
  auto finish = [&] {
    if (buffer.size() > start) add_piece(out, std::string_view(buffer).substr(start), letters, asked);
    start = buffer.size();
    letters = true;
  };
  auto put = [&](uint32_t point, size_t from, size_t to) {
    const uint8_t f = flags_at(point, p);
    if (f & (SPACE | PUNCT)) return finish();
    if (f & REORDERED) out.needs_reference = true;
    if (!(f & MAPPED)) {
      letters = letters && (f & LETTER);
      buffer.append(s.substr(from, to - from));
      return;
    }
    const std::string& text = p->replacements[point & 255];
    if (buffer.size() + text.size() > buffer.capacity()) throw std::length_error("replacements are longer than expected");
    for (size_t k = 0; k < text.size();) {
      const Page* q = nullptr;
      letters = (flags_at(next(text, k), q) & LETTER) && letters;
    }
    buffer += text;
  };
  for (size_t i = 0; i < s.size();) {
    const size_t at = i;
    while (i < s.size() && uint8_t(s[i]) < 128 && (ascii_[uint8_t(s[i])] & LETTER)) ++i;  // most of a text: nothing to replace
    if (i > at) {
      buffer.append(s.substr(at, i - at));
      continue;
    }
    const uint32_t point = next(s, i);
    if (!(flags_at(point, p) & DIGIT)) {
      put(point, at, i);
      continue;
    }
    bool fraction = false;  // at most one, so 1.2.3 is two numbers
    while (i < s.size()) {
      size_t j = i;
      const uint8_t f = flags_at(next(s, j), p);
      if (f & DIGIT) {
        i = j;
      } else if (!fraction && (f & DECIMAL) && j < s.size()) {
        size_t k = j;
        if (!(flags_at(next(s, k), p) & DIGIT)) break;
        fraction = true;
        i = k;
      } else {
        break;
      }
    }
    letters = false;
    buffer += '0';
  }
  finish();
  return out;
}

}  // namespace freedive::data
