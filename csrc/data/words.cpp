#include "words.h"

#include <algorithm>
#include <stdexcept>

namespace freedive::data {

namespace {
constexpr size_t LONGEST_PIECE = 1000;  // code points; a longer one stays whole

// Reads one code point of valid UTF-8 at `i` and steps over it.
inline uint32_t next(std::string_view s, size_t& i) {
  const uint8_t c = s[i++];
  if (c < 0x80) return c;
  const int more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
  uint32_t point = c & (0x3f >> more);
  for (int k = 0; k < more && i < s.size(); ++k) point = point << 6 | (uint8_t(s[i++]) & 0x3f);
  return point;
}

inline bool is_digit(uint32_t point) { return point >= '0' && point <= '9'; }
inline bool is_dash(uint32_t point) { return point == '-' || point == U'–' || point == U'—' || point == '~'; }

// What is cut off behind an ASCII digit, with single currency signs
const std::unordered_set<std::string_view> UNITS = {
    "+",    "US$", "C$", "A$",  "km²", "km³", "km/h", "kmh", "km",  "m²",   "m³", "m/s", "mph", "mbar", "mm²",
    "mm³",  "mm",  "mb", "mg",  "m",   "dm²", "dm³",  "dm",  "cm²", "cm³",  "cm", "ha",  "hPa", "Pa",   "µm",
    "µg",   "nm",  "yd", "in",  "ft",  "kg",  "kb",   "g",   "gb",  "t",    "tb", "lb",  "oz",  "MB",   "KB",
    "GB",   "TB",  "T",  "G",   "M",   "K",   "%",    "км²", "км³", "км/ч", "км", "м²",  "м³",  "м/с",  "м",
    "дм²",  "дм³", "дм", "см²", "см³", "см",  "мм²",  "мм³", "мм",  "нм",   "кг", "г",   "мг",  "кПа",  "Па",
    "мбар", "Кб",  "КБ", "кб",  "Мб",  "МБ",  "мб",   "Гб",  "ГБ",  "гб",   "Тб", "ТБ"};
constexpr uint32_t LONGEST_UNIT = 4;  // code points
}  // namespace

void Splitter::learn_page(uint32_t page, const std::vector<uint16_t>& flags, std::vector<std::string> replacements) {
  if (page >= pages_.size() || flags.size() != 256 || replacements.size() != 256)
    throw std::invalid_argument("a page has 256 code points below 0x110000");
  auto p = std::make_unique<Page>();
  std::copy(flags.begin(), flags.end(), p->flags.begin());
  std::move(replacements.begin(), replacements.end(), p->replacements.begin());
  if (page == 0) std::copy(flags.begin(), flags.begin() + 128, ascii_.begin());
  pages_[page] = std::move(p);
}

void Splitter::learn(std::string_view piece, std::vector<uint32_t> lengths) {
  size_t total = 0;
  for (uint32_t n : lengths) total += n;
  if (piece.empty() || total != piece.size()) throw std::invalid_argument("the words of a piece must make up the piece");
  for (size_t i = 0; i < piece.size();)
    if (!page(next(piece, i))) throw std::invalid_argument("the piece has code points of an unknown page");
  decode(piece);
  peel(false);
  auto entry = std::make_unique<Known>(Known{std::string(piece), std::move(lengths), {}});
  for (const Part& part : parts_) entry->peeled.push_back(part.to - part.from);
  if (parts_.size() > 1) {
    beginnings_.insert(std::string(piece.substr(0, parts_[0].to)) + ' ' +
                       std::string(piece.substr(parts_[1].from, entry->peeled[1])));
    maybe_beginning_[sketch(piece.substr(0, parts_[1].to))] = true;
    most_parts_ = std::max(most_parts_, parts_.size());
  }
  longest_ = std::max(longest_, piece.size());
  maybe_[sketch(piece)] = true;
  const std::string_view key = entry->piece;
  table_[key] = std::move(entry);
}

const Splitter::Known* Splitter::known(std::string_view s) const {
  if (s.empty() || s.size() > longest_ || !maybe_[sketch(s)]) return nullptr;
  const auto it = table_.find(s);
  return it == table_.end() ? nullptr : it->second.get();
}

void Splitter::decode(std::string_view piece) {
  piece_ = piece;
  chars_.clear();
  for (size_t i = 0; i < piece.size();) {
    const uint32_t at = static_cast<uint32_t>(i);
    const uint32_t point = next(piece, i);
    const Page* p = page(point);
    chars_.push_back({point, at, point < 128 ? ascii_[point] : p ? p->flags[point & 255] : uint16_t(0)});
  }
  chars_.push_back({0, static_cast<uint32_t>(piece.size()), 0});
}

// How many code points of [from, to) are peeled off in front.
uint32_t Splitter::prefix(uint32_t from, uint32_t to) const {
  if (from >= to) return 0;
  const auto [c, at, flags] = chars_[from];
  if (flags & (LETTER | DIGIT) && c != 'U' && c != 'C' && c != 'A') return 0;
  if (flags & (MARK | ICON | MONEY) || c == U'§' || c == '%' || c == '=' || c == U'—' || c == U'–') return 1;
  if (c == '+') return from + 1 < to && is_digit(chars_[from + 1].point) ? 0 : 1;
  if (c == '.') {
    uint32_t n = 1;
    while (is(from + n, to, '.')) ++n;
    return n > 1 ? n : 0;
  }
  if (c == 'U') return is(from + 1, to, 'S') && is(from + 2, to, '$') ? 3 : 0;
  return (c == 'C' || c == 'A') && is(from + 1, to, '$') ? 2 : 0;
}

// How many are peeled off behind.
uint32_t Splitter::suffix(uint32_t from, uint32_t to) const {
  if (from >= to) return 0;
  const auto [c, at, flags] = chars_[to - 1];
  const uint32_t n = to - from;
  auto before = [&](uint32_t k) -> const Char& { return chars_[to - 1 - k]; };
  for (uint32_t k = std::min(LONGEST_UNIT, n - 1); k > 0; --k) {
    if (!is_digit(before(k).point)) continue;
    if (k == 1 && flags & MONEY) return 1;
    if (UNITS.count(view(to - k, to))) return k;
  }
  if ((c == 's' || c == 'S') && n > 1 && (before(1).point == '\'' || before(1).point == U'’')) return 2;
  if (c == U'…') return n > 1 && before(1).point == U'…' ? 2 : 1;
  if (flags & (MARK | ICON) || c == U'–' || c == U'—') return 1;
  if (c != '.' || n < 2) return 0;
  uint32_t dots = 1;
  while (dots < n && before(dots).point == '.') ++dots;
  if (dots > 1) return dots;
  const auto [b, b_at, b_flags] = before(1);
  if (is_digit(b) || b == '%' || b == U'²' || b == '+' || b == '-' || b == '|' || b_flags & (MARK | LOWER)) return 1;
  if (n > 2 && b_flags & UPPER && before(2).flags & UPPER) return 1;
  const bool degrees = n > 2 && before(2).point == U'°';
  return degrees && (b == 'F' || b == 'f' || b == 'C' || b == 'c' || b == 'K' || b == 'k') ? 1 : 0;
}

// How many code points at `at`, inside of [from, to), are cut out as a word of their own.
uint32_t Splitter::infix(uint32_t from, uint32_t at, uint32_t to) const {
  const uint32_t c = chars_[at].point;
  if (chars_[at].flags & ICON || c == U'…') return 1;
  const Char none{0, 0, 0};
  const Char& left = at > from ? chars_[at - 1] : none;
  auto right = [&](uint32_t k) -> const Char& { return at + k < to ? chars_[at + k] : none; };
  auto letter = [](const Char& x) { return (x.flags & (LOWER | UPPER)) != 0; };
  if (c == '.') {
    uint32_t n = 1;
    while (is(at + n, to, '.')) ++n;
    if (n > 1) return n;
    return left.flags & (LOWER | QUOTE) && right(1).flags & (UPPER | QUOTE) ? 1 : 0;
  }
  if ((c == '+' || c == '-' || c == '*' || c == '^') && is_digit(left.point) &&
      (is_digit(right(1).point) || right(1).point == '-'))
    return 1;
  if (c == ',') return letter(left) && letter(right(1)) ? 1 : 0;
  if (!letter(left) && !is_digit(left.point)) return 0;
  if (c == ':' || c == '<' || c == '>' || c == '=' || c == '/') return letter(right(1)) ? 1 : 0;
  if (!is_dash(c)) return 0;
  if (c == '-' && right(1).point == '-') return right(2).point == '-' && letter(right(3)) ? 3 : letter(right(2)) ? 2 : 0;
  if (c == U'—' && right(1).point == U'—') return letter(right(2)) ? 2 : 0;
  return letter(right(1)) ? 1 : 0;
}

// [scheme://][user@](number.number.number.number | name.name.letters)[:port][/ ? # and anything]
bool Splitter::is_url(uint32_t from, uint32_t to) const {
  if (is_host(from, to)) return true;
  uint32_t i = from;
  while (i < to && (chars_[i].flags & WORD || is(i, to, '+') || is(i, to, '-') || is(i, to, '.'))) ++i;
  if (i >= from + 2 && is(i, to, ':') && is(i + 1, to, '/') && is(i + 2, to, '/') && is_host(i + 3, to)) return true;
  for (i = from + 1; i < to; ++i)
    if (chars_[i].point == '@' && is_host(i + 1, to)) return true;
  return false;
}

bool Splitter::is_host(uint32_t from, uint32_t to) const {
  auto tail = [&](uint32_t i) { return is(i, to, '/') || is(i, to, '?') || is(i, to, '#'); };
  uint32_t end = from;
  while (end < to && !tail(end) && chars_[end].point != ':') ++end;
  if (end < to && chars_[end].point == ':') {
    uint32_t i = end + 1;
    while (i < to && chars_[i].flags & DIGIT) ++i;
    if (i - end < 3 || i - end > 6 || !(i == to || tail(i))) return false;
  }
  auto inner = [&](uint32_t i) {
    const uint32_t c = chars_[i].point;
    return is_digit(c) || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= 0xa1 && c <= 0xffff);
  };
  bool numbers = true, names = true;
  uint32_t fields = 0, start = from;
  for (uint32_t i = from; i <= end; ++i) {
    if (i < end && chars_[i].point != '.') continue;
    const uint32_t n = i - start;
    bool digits = n >= 1 && n <= 3;
    for (uint32_t k = start; digits && k < i; ++k) digits = chars_[k].flags & DIGIT;
    numbers = numbers && digits;
    bool name = false;
    if (i < end) {
      name = n >= 1 && n <= 64 && inner(start) && inner(i - 1);
      for (uint32_t k = start; name && k < i; ++k) name = inner(k) || chars_[k].point == '_' || chars_[k].point == '-';
    } else {
      name = n >= 2 && n <= 63;
      for (uint32_t k = start; name && k < i; ++k) name = chars_[k].flags & LOWER;
    }
    names = names && name;
    if (!numbers && !names) return false;
    ++fields;
    start = i + 1;
  }
  return (numbers && fields == 4) || (names && fields >= 2);
}

// Fills parts_ with the parts of the decoded piece.
void Splitter::peel(bool look_up) {
  parts_.clear();
  back_.clear();
  uint32_t from = 0, to = static_cast<uint32_t>(chars_.size() - 1);
  auto part = [&](uint32_t a, uint32_t b) { return Part{chars_[a].at, chars_[b].at}; };
  auto find = [&](uint32_t a, uint32_t b) { return look_up && a < b ? known(view(a, b)) : nullptr; };
  while (from < to && !find(from, to)) {
    const uint32_t before = prefix(from, to);
    if (before && find(from + before, to)) {
      parts_.push_back(part(from, from + before));
      from += before;
      break;
    }
    const uint32_t after = suffix(from + before, to);
    if (after && find(from, to - after)) {
      back_.push_back(part(to - after, to));
      to -= after;
      break;
    }
    if (!before && !after) break;
    if (before) parts_.push_back(part(from, from + before));
    from += before;
    if (after) back_.push_back(part(to - after, to));
    to -= after;
  }
  if (const Known* entry = find(from, to)) {
    uint32_t at = chars_[from].at;
    for (uint32_t n : entry->lengths) parts_.push_back({at, at + n}), at += n;
  } else if (from < to && is_url(from, to)) {
    parts_.push_back(part(from, to));
  } else if (from < to) {
    uint32_t start = from;
    for (uint32_t i = from; i < to;) {
      const uint32_t n = infix(from, i, to);
      if (n && i > from) {
        if (i > start) parts_.push_back(part(start, i));
        parts_.push_back(part(i, i + n));
        start = i + n;
      }
      i += n ? n : 1;
    }
    if (start < to) parts_.push_back(part(start, to));
  }
  parts_.insert(parts_.end(), back_.rbegin(), back_.rend());
}

// Puts parts that together are a contraction or an emoticon together again, the longest first, of equals the first.
void Splitter::join(std::vector<Part>& parts) const {
  auto between = [&](size_t i, size_t j) { return piece_.substr(parts[i].from, parts[j].to - parts[i].from); };
  bool begins = false;
  for (size_t i = 0; i + 1 < parts.size() && !begins; ++i) {
    const auto both = between(i, i + 1);
    begins = both.size() <= longest_ && maybe_beginning_[sketch(both)] &&
             beginnings_.count(std::string(between(i, i)) + ' ' + std::string(between(i + 1, i + 1)));
  }
  if (!begins) return;
  struct Span {
    size_t start, count;
    const Known* entry;
  };
  std::vector<Span> spans;
  for (size_t i = 0; i < parts.size(); ++i) {
    for (size_t n = 2; n <= most_parts_ && i + n <= parts.size(); ++n) {
      const Known* entry = known(between(i, i + n - 1));
      if (!entry || entry->peeled.size() != n) continue;
      bool same = true;
      for (size_t k = 0; k < n; ++k) same = same && entry->peeled[k] == parts[i + k].to - parts[i + k].from;
      if (same) spans.push_back({i, n, entry});
    }
  }
  std::stable_sort(spans.begin(), spans.end(), [](const Span& x, const Span& y) { return x.count > y.count; });
  std::vector<const Known*> at(parts.size(), nullptr);
  std::vector<bool> taken(parts.size(), false);
  std::vector<size_t> count(parts.size(), 1);
  for (const Span& span : spans) {
    if (std::any_of(taken.begin() + span.start, taken.begin() + span.start + span.count, [](bool t) { return t; })) continue;
    std::fill(taken.begin() + span.start, taken.begin() + span.start + span.count, true);
    at[span.start] = span.entry, count[span.start] = span.count;
  }
  std::vector<Part> out;
  for (size_t i = 0; i < parts.size(); i += count[i]) {
    if (!at[i]) {
      out.push_back(parts[i]);
      continue;
    }
    uint32_t from = parts[i].from;
    for (uint32_t n : at[i]->lengths) out.push_back({from, from + n}), from += n;
  }
  parts = std::move(out);
}

void Splitter::add_piece(Words& out, std::string_view piece, bool letters) {
  auto word = [&](std::string_view w) {
    if (!out.text.empty()) out.text += ' ';
    out.starts.push_back(out.text.size());
    out.text.append(w);
    out.ends.push_back(out.text.size());
  };
  if (letters && !maybe_[sketch(piece)]) return word(piece);
  if (const Known* entry = known(piece)) {
    size_t at = 0;
    for (uint32_t n : entry->lengths) word(piece.substr(at, n)), at += n;
    return;
  }
  if (letters) return word(piece);
  decode(piece);
  if (chars_.size() > LONGEST_PIECE + 1) return word(piece);
  peel(true);
  if (parts_.size() > 1) join(parts_);
  for (const Part& part : parts_) word(piece.substr(part.from, part.to - part.from));
}

Words Splitter::split(std::string_view s, bool simplify) {
  if (s.size() >= UINT32_MAX / 2) throw std::invalid_argument("a text of 2 GB or more");
  Words out;
  out.text.reserve(s.size() + s.size() / 8);
  std::vector<bool> missing;
  auto flags_at = [&](uint32_t point, const Page*& p) -> uint16_t {
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
      const uint16_t f = uint8_t(s[i]) < 128 ? ascii_[uint8_t(s[i++])] : flags_at(next(s, i), p);
      if (f & SPACE) {
        if (at > start) add_piece(out, s.substr(start, at - start), letters);
        start = i;
        letters = true;
      } else if (!(f & LETTER)) {
        letters = false;
      }
    }
    if (s.size() > start) add_piece(out, s.substr(start), letters);
    return out;
  }
  // Numbers become 0, punctuation a space, then every character its replacement.
  std::string buffer;  // the piece at hand
  bool letters = true;
  auto finish = [&] {
    if (!buffer.empty()) add_piece(out, buffer, letters);
    buffer.clear();
    letters = true;
  };
  auto put = [&](uint32_t point, size_t from, size_t to) {
    const uint16_t f = flags_at(point, p);
    if (f & (SPACE | BLANKED)) return finish();
    if (f & REORDERED) out.needs_reference = true;
    if (!(f & MAPPED)) {
      letters = letters && (f & LETTER);
      buffer.append(s.substr(from, to - from));
      return;
    }
    const std::string& text = p->replacements[point & 255];
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
      const uint16_t f = flags_at(next(s, j), p);
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

WordCounts Splitter::count(const Words& words, const std::vector<std::string>& wanted) const {
  WordCounts out;
  out.all = words.size();
  std::vector<bool> found(wanted.size(), false);
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string_view word = words.word(i);
    uint64_t characters = 0;
    uint16_t first = 0, any = 0;
    for (size_t at = 0; at < word.size(); ++characters) {
      const uint32_t point = next(word, at);
      const Page* p = point < 128 ? nullptr : page(point);
      const uint16_t flags = point < 128 ? ascii_[point] : p ? p->flags[point & 255] : uint16_t(0);
      if (!characters) first = flags;
      any |= flags;
    }
    if (any & (LOWER | UPPER)) ++out.alphabetic;
    if (characters > 1 || (first & WORD && word != "_")) ++out.real, out.real_characters += characters;
    for (size_t k = 0; k < wanted.size(); ++k) found[k] = found[k] || wanted[k] == word;
  }
  out.wanted = std::count(found.begin(), found.end(), true);
  return out;
}

}  // namespace freedive::data
