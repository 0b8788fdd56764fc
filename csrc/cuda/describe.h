// describe.h: the arguments of a launch in words, for errors: "x [5,7] weight [3,7] (C = 7)". Runs when something has gone wrong,
// never else.
#pragma once
#include <string>

#include "../ops.h"

namespace freedive::cuda {

// The families' own structs: of a product its sizes, of a head the vocabulary. Scalars and pointers say nothing.
template <class T>
auto describe_sizes(std::string& out, const T& p, int) -> decltype(p.rows + p.columns + p.depth, void()) {
  out += " [" + std::to_string(p.rows) + "," + std::to_string(p.depth) + "] x [" + std::to_string(p.depth) + "," +
         std::to_string(p.columns) + "]";
}
template <class T>
auto describe_sizes(std::string& out, const T& p, int) -> decltype(p.V + p.temperature.ndim, void()) {
  out += " V = " + std::to_string(p.V);
}
template <class T>
void describe_sizes(std::string&, const T&, long) {}

template <class T>
void describe(std::string& out, const T& argument) {
  describe_sizes(out, argument, 0);
}

// Names and places of tensors from the op's schema in ops.h.
inline void describe_tensors(std::string& out, const char* schema, const fd_tensor* tensors) {
  for (const char* p = schema; *p != 0;) {
    const char* end = p;
    bool tensor = false;
    while (*end != 0 && *end != ' ') tensor |= *end++ == '[';
    if (tensor) {
      const fd_tensor& t = *tensors++;
      if (t.data != nullptr) {
        out += " ";
        for (const char* c = p; *c != ':'; ++c) out += *c;
        for (int i = 0; i < t.ndim; ++i) out += (i == 0 ? " [" : ",") + std::to_string(t.shape[i]);
        out += "]";
      }
    }
    p = *end == 0 ? end : end + 1;
  }
}

#define FD_DESCRIBE(op, schema)                                            \
  inline void describe(std::string& out, const fd_##op##_args& a) {        \
    describe_tensors(out, schema, reinterpret_cast<const fd_tensor*>(&a)); \
  }
FD_OPS(FD_DESCRIBE)
#undef FD_DESCRIBE

}  // namespace freedive::cuda
