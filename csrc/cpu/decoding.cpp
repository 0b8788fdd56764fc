// decode_advance: what was sampled is told, and the sequences that go on become the next step's rows, at the front of the batch.
//
// Memory: some 100 bytes a sequence. In order, in place: a row moves to where one as early or earlier lay, which has been read.
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

template <class T>
T* numbers(const fd_tensor& t) {
  return static_cast<T*>(t.data);
}

void decode_advance(fd_context*, const void* p) {
  const auto& a = *static_cast<const fd_decode_advance_args*>(p);
  const int64_t S = a.past_lens.shape[0], N = a.tokens.shape[0], J = a.stop_ids.data == nullptr ? 0 : a.stop_ids.shape[1];
  int32_t *cu_seqlens = numbers<int32_t>(a.cu_seqlens), *tokens = numbers<int32_t>(a.tokens), *positions = numbers<int32_t>(a.positions);
  int32_t n = 0, rows = 0;  // of this step and the next, so far
  for (int64_t s = 0; s < S; ++s) {
    const int32_t end = cu_seqlens[s + 1];
    numbers<int32_t>(a.out_tokens)[s] = -1, numbers<float>(a.out_logprobs)[s] = 0.0f;
    if (end > n) {
      const int32_t t = numbers<int32_t>(a.sampled)[n], past = ++numbers<int32_t>(a.past_lens)[s];
      int32_t& remaining = numbers<int32_t>(a.remaining)[s];
      numbers<int32_t>(a.out_tokens)[s] = t, numbers<float>(a.out_logprobs)[s] = numbers<float>(a.logprobs)[n];
      --remaining;
      for (int64_t j = 0; j < J; ++j)
        if (numbers<int32_t>(a.stop_ids)[s * a.stop_ids.stride[0] + j] == t) remaining = 0;
      if (remaining > 0) {
        tokens[rows] = t, positions[rows] = past;
        numbers<float>(a.temperature)[rows] = numbers<float>(a.temperature)[n];
        numbers<int32_t>(a.top_k)[rows] = numbers<int32_t>(a.top_k)[n];
        numbers<float>(a.top_p)[rows] = numbers<float>(a.top_p)[n];
        numbers<float>(a.min_p)[rows] = numbers<float>(a.min_p)[n];
        numbers<uint64_t>(a.seeds)[rows] = numbers<uint64_t>(a.seeds)[n];
        numbers<uint64_t>(a.counters)[rows] = numbers<uint64_t>(a.counters)[n] + 1;
        ++rows;
      }
    }
    n = end, cu_seqlens[s + 1] = rows;
  }
  for (int64_t i = rows; i < N; ++i) tokens[i] = positions[i] = 0;
}

}  // namespace

FD_VARIANT_LIST(decoding, {"decode_advance", "naive", 0, decode_advance, nullptr})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
