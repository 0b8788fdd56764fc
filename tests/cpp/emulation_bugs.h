// emulation_bugs.h: what the planted bugs are written with: memory of the device, and the list they are entered in.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "../../csrc/cuda/launch.cuh"
#include "../../csrc/cuda/ptx.cuh"

namespace freedive::cuda {

template <class T>
struct Device {
  T* data = nullptr;
  size_t size;
  explicit Device(size_t n) : size(n) { cudaMallocManaged(reinterpret_cast<void**>(&data), n * sizeof(T)); }
  Device(size_t n, const std::function<T(size_t)>& value) : Device(n) {
    for (size_t i = 0; i < n; ++i) data[i] = value(i);
  }
  ~Device() { cudaFree(data); }
  bool is(const std::function<double(size_t)>& want, double tolerance = 1e-4) const {
    for (size_t i = 0; i < size; ++i) {
      const double got = static_cast<double>(data[i]), w = want(i);
      if (!(std::fabs(got - w) <= tolerance * (1 + std::fabs(w)))) return false;
    }
    return true;
  }
};

inline float sample(size_t i) { return static_cast<float>((i * 2654435761u >> 7) % 97) / 16.0f - 3.0f; }
inline uint16_t bf16(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
inline double rounded(float x) { return static_cast<double>(__bfloat162float(__float2bfloat16_rn(x))); }

struct Case {
  const char* name;
  bool (*correct)();
  bool (*bug)();
};
#define FD_CASE(name) {#name, name<false>, name<true>}
std::vector<Case> sm90_cases();  // emulation_bugs_sm90.cpp
std::vector<Case> attention_cases();  // emulation_bugs_attention.cpp
std::vector<Case> graph_cases();  // emulation_bugs_graphs.cpp

}  // namespace freedive::cuda
