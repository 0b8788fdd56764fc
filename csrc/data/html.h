// What is asked of a page's raw bytes before a parser sees them.
#pragma once
#include <cstddef>
#include <string_view>

namespace freedive::data {

// Deepest nesting of elements whose end tag is not optional; an estimate, since browsers repair what is not closed.
size_t html_depth(std::string_view html);

}  // namespace freedive::data
