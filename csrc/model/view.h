// Making tensor views from pointers and sizes.
#pragma once
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../ops.h"

namespace freedive {

template <class T>
constexpr int32_t dtype_of() {
  if (std::is_same<T, float>::value) return FD_F32;
  if (std::is_same<T, int32_t>::value) return FD_I32;
  if (std::is_same<T, int64_t>::value) return FD_I64;
  if (std::is_same<T, uint16_t>::value) return FD_BF16;
  if (std::is_same<T, uint64_t>::value) return FD_U64;
  return FD_U8;
}

inline fd_tensor absent() { return fd_tensor{nullptr, {0, 0, 0, 0}, {0, 0, 0, 0}, 0, FD_F32}; }

// Contiguous, one to four dimensions.
template <class T, class... Sizes>
fd_tensor view(const T* data, Sizes... sizes) {
  const int64_t shape[] = {static_cast<int64_t>(sizes)...};
  constexpr int ndim = sizeof...(sizes);
  fd_tensor t{const_cast<T*>(data), {1, 1, 1, 1}, {1, 1, 1, 1}, ndim, dtype_of<T>()};
  int64_t stride = 1;
  for (int i = ndim - 1; i >= 0; --i) t.shape[i] = shape[i], t.stride[i] = stride, stride *= shape[i];
  return t;
}

// `width` columns of a tensor [N, columns], from the `first` on.
inline fd_tensor columns(fd_tensor t, int64_t first, int64_t width) {
  t.data = static_cast<uint8_t*>(t.data) + first * (t.dtype == FD_BF16 ? 2 : 4);
  t.shape[1] = width;
  return t;
}

// [N, heads, D] inside rows of `row` floats.
inline fd_tensor heads(const float* data, int64_t N, int64_t H, int64_t D, int64_t row) {
  fd_tensor t = view(data, N, H, D);
  t.stride[0] = row;
  return t;
}

// [N, width] inside rows of `row` floats.
inline fd_tensor columns(const float* data, int64_t N, int64_t width, int64_t row) {
  fd_tensor t = view(data, N, width);
  t.stride[0] = row;
  return t;
}

inline double attention_scale(int64_t head_dim) { return 1.0 / std::sqrt(static_cast<double>(head_dim)); }

}  // namespace freedive
