// attention.h: what the attention files share: where the sequences of a flat batch lie, and how a block of keys is read.
#pragma once
#include "kernel.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

constexpr int64_t KEYS = FD_KV_BLOCK;

// A piece of one sequence: `rows` query rows starting at row `first` of the batch; `offset` is the position of that
// row in its sequence's new rows.
struct Piece {
  int32_t sequence, first, rows, offset;
};

// Cuts every sequence into pieces of at most `length` rows, from its start. At most N/length + S of them.
FD_INLINE int64_t cut_sequences(const int32_t* cu_seqlens, int64_t S, int64_t length, Piece* pieces) {
  int64_t count = 0;
  for (int64_t s = 0; s < S; ++s) {
    for (int64_t at = cu_seqlens[s]; at < cu_seqlens[s + 1]; at += length) {
      const int64_t rows = min64(length, cu_seqlens[s + 1] - at);
      pieces[count++] = {static_cast<int32_t>(s), static_cast<int32_t>(at), static_cast<int32_t>(rows),
                         static_cast<int32_t>(at - cu_seqlens[s])};
    }
  }
  return count;
}
FD_INLINE int64_t max_pieces(int64_t N, int64_t S, int64_t length) { return N / length + S; }

FD_INLINE float* row_of(const fd_tensor& t, int64_t n, int64_t h) { return f32(t) + n * t.stride[0] + h * t.stride[1]; }

// Rows of a [N,H,D] or [N,H] tensor that belong to no sequence: zero.
FD_INLINE void zero_tail(const fd_tensor& t, int64_t used) {
  const int64_t width = t.ndim == 3 ? t.shape[2] : 1;
  for (int64_t n = used; n < t.shape[0]; ++n) {
    for (int64_t h = 0; h < t.shape[1]; ++h) memset(row_of(t, n, h), 0, width * sizeof(float));
  }
}

// rows x D at `from` becomes D x 32 at `to`, zeros beyond the rows.
FD_INLINE void transpose_keys(float* to, const float* from, int64_t from_row, int64_t rows, int64_t D) {
  int64_t d = 0;
  for (; rows == KEYS && d + VL <= D; d += VL) {
    for (int64_t j = 0; j < KEYS; j += VL) turn_square(to + d * KEYS + j, KEYS, from + j * from_row + d, from_row);
  }
  for (; d < D; ++d) {
    for (int64_t j = 0; j < rows; ++j) to[d * KEYS + j] = from[j * from_row + d];
    for (int64_t j = rows; j < KEYS; ++j) to[d * KEYS + j] = 0.0f;
  }
}

}  // namespace
}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
