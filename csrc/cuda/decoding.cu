// decoding.cu: what was sampled is told, and the sequences that go on become the next step's rows, at the front of the batch.
//
// Some 100 bytes a sequence: what counts is that nobody waits for the host. One block, a thread to a sequence, as many at a time
// as there are threads; a row moves to where one as early or earlier lay, all of which have been read when any is written.
#include "launch.cuh"

namespace freedive::cuda {
namespace {

__global__ void advance_kernel(fd_decode_advance_args a) {
  FD_SHARED(int, going, [WARPS]);
  FD_SHARED(int32_t, boundary, [1]);
  const int64_t S = a.past_lens.shape[0], N = a.tokens.shape[0], J = a.stop_ids.data == nullptr ? 0 : a.stop_ids.shape[1];
  auto* const cu = flat<int32_t>(a.cu_seqlens);
  int32_t rows = 0, begin = 0;  // the next step's so far; this step's row of the first sequence at hand
  for (int64_t first = 0; first < S; first += THREADS) {
    const int64_t s = first + threadIdx.x;
    const int32_t end = s < S ? cu[s + 1] : 0, n = s == first ? begin : s < S ? cu[s] : 0;
    const bool runs = end > n;
    int32_t t = -1, past = 0, left = 0, top_k = 0;
    float logprob = 0.0f, temperature = 0.0f, top_p = 0.0f, min_p = 0.0f;
    uint64_t seed = 0, counter = 0;
    if (runs) {
      t = flat<int32_t>(a.sampled)[n], logprob = flat(a.logprobs)[n];
      past = flat<int32_t>(a.past_lens)[s] + 1, left = flat<int32_t>(a.remaining)[s] - 1;
      for (int64_t j = 0; j < J; ++j)
        if (row<int32_t>(a.stop_ids, s)[j] == t) left = 0;
      temperature = flat(a.temperature)[n], top_p = flat(a.top_p)[n], min_p = flat(a.min_p)[n], top_k = flat<int32_t>(a.top_k)[n];
      seed = flat<uint64_t>(a.seeds)[n], counter = flat<uint64_t>(a.counters)[n];
    }
    const bool goes = left > 0;
    const unsigned warp = __ballot_sync(ALL_LANES, goes);
    if (lane_id() == 0) going[warp_of_block()] = __popc(warp);
    if (threadIdx.x == THREADS - 1) boundary[0] = end;
    __syncthreads();
    int before = __popc(warp & ((1u << lane_id()) - 1)), all = 0;
    for (int w = 0; w < WARPS; ++w) {
      if (w < warp_of_block()) before += going[w];
      all += going[w];
    }
    if (s < S) {
      flat<int32_t>(a.out_tokens)[s] = t, flat(a.out_logprobs)[s] = logprob;
      cu[s + 1] = rows + before + (goes ? 1 : 0);
    }
    if (runs) flat<int32_t>(a.past_lens)[s] = past, flat<int32_t>(a.remaining)[s] = left;
    if (goes) {
      const int to = rows + before;
      flat<int32_t>(a.tokens)[to] = t, flat<int32_t>(a.positions)[to] = past;
      flat(a.temperature)[to] = temperature, flat(a.top_p)[to] = top_p, flat(a.min_p)[to] = min_p;
      flat<int32_t>(a.top_k)[to] = top_k, flat<uint64_t>(a.seeds)[to] = seed, flat<uint64_t>(a.counters)[to] = counter + 1;
    }
    rows += all, begin = boundary[0];
    __syncthreads();
  }
  for (int64_t i = rows + threadIdx.x; i < N; i += THREADS) flat<int32_t>(a.tokens)[i] = flat<int32_t>(a.positions)[i] = 0;
}

void decode_advance(fd_context* ctx, const void* arguments) {
  launch(ctx, "decode_advance", 1, THREADS, advance_kernel, *static_cast<const fd_decode_advance_args*>(arguments));
}

}  // namespace

FD_VARIANT_LIST(decoding, {"decode_advance", "naive", 0, decode_advance, nullptr})

}  // namespace freedive::cuda
