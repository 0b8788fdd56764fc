#include "html.h"

#include <algorithm>
#include <cstring>

namespace freedive::data {

namespace {
constexpr std::string_view NESTING[] = {"div", "span", "section", "article", "main", "a",    "b",         "i",     "u",
                                        "s",   "em",   "strong",  "small",   "big",  "font", "center",    "table", "ul",
                                        "ol",  "dl",   "form",    "code",    "pre",  "nav",  "blockquote"};
constexpr size_t LONGEST = 10;  // letters of a name

inline bool in_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_'; }
}  // namespace

size_t html_depth(std::string_view html) {
  size_t depth = 0, deepest = 0;
  const char *at = html.data(), *const end = at + html.size();
  while (at < end && (at = static_cast<const char*>(std::memchr(at, '<', end - at)))) {
    ++at;
    const bool closes = at < end && *at == '/';
    at += closes;
    char name[LONGEST];
    size_t n = 0;
    const char* p = at;
    for (; p < end && in_name(*p) && n < LONGEST; ++p) name[n++] = *p | ((*p >= 'A' && *p <= 'Z') ? 0x20 : 0);
    if (p < end && in_name(*p)) continue;  // longer than all of them
    if (std::find(std::begin(NESTING), std::end(NESTING), std::string_view(name, n)) == std::end(NESTING)) continue;
    if (closes) {
      depth -= depth > 0;
    } else {
      deepest = std::max(deepest, ++depth);
    }
  }
  return deepest;
}

}  // namespace freedive::data
