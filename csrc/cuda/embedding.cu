// embedding.cu: out[n] = wte[tokens[n]] (+ wpe[positions[n]]), and its gradient.
//
// Forward reads C floats (2C with wpe) and an id, writes C floats per token. Backward reads C and adds to C (2C) per token.
//
// naive: forward a thread per element; backward a thread per column, which takes N steps of reading, adding and writing back:
// only C threads, each of which waits for memory twice a token.
// vector, forward: a thread to four columns, loads and stores of 128 bits; the same bits and bytes.
// sorted, backward: ids are sorted with their places (sort.cuh: about 70 bytes a token), then blocks walk through the places of
// one id each, in order, with the sum in registers: the same chain and bits as naive. Reads C floats a token, and reads and
// writes C for every different id, where naive moves 3 C for each token; and as many blocks as there are ids. What stays serial
// is the commonest id: its rows are added one after another, loads running eight ahead.
//
// bigram_ids: a thread to a token; 12 bytes each and a search for its sequence.
#include "../core/bigram.h"
#include "launch.cuh"
#include "sequences.cuh"
#include "sort.cuh"
#include "vector.cuh"

namespace freedive::cuda {
namespace {

// One thread per element; neighbours read neighbours.
__global__ void forward_kernel(fd_tensor out, fd_tensor tokens, fd_tensor positions, fd_tensor wte, fd_tensor wpe) {
  const int64_t N = out.shape[0], C = out.shape[1], i = global_thread();
  if (i >= N * C) return;
  const int64_t n = i / C, c = i % C;
  float x = row(wte, flat<int32_t>(tokens)[n])[c];
  if (wpe.data != nullptr) x += row(wpe, flat<int32_t>(positions)[n])[c];
  row(out, n)[c] = x;
}

void forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_embedding_forward_args*>(arguments);
  launch_threads(ctx, "embedding_forward", a.out.shape[0] * a.out.shape[1], forward_kernel, a.out, a.tokens, a.positions, a.wte,
                 a.wpe);
}

// One thread per column walks through the tokens: rows that several tokens share are added to in the tokens' order, and no two
// threads write one address.
__global__ void backward_kernel(fd_tensor dtable, fd_tensor dout, fd_tensor ids) {
  const int64_t N = dout.shape[0], C = dout.shape[1], c = global_thread();
  if (c >= C) return;
  for (int64_t n = 0; n < N; ++n) row(dtable, flat<int32_t>(ids)[n])[c] += row(dout, n)[c];
}

void backward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_embedding_backward_args*>(arguments);
  launch(ctx, "embedding_backward", blocks_for(a.dout.shape[1], WARP), WARP, backward_kernel, a.dwte, a.dout, a.tokens);
  if (a.dwpe.data != nullptr)
    launch(ctx, "embedding_backward", blocks_for(a.dout.shape[1], WARP), WARP, backward_kernel, a.dwpe, a.dout, a.positions);
}

// ---- vector ----------------------------------------------------------------------------------------------------------------
__global__ void forward_vector_kernel(fd_tensor out, fd_tensor tokens, fd_tensor positions, fd_tensor wte, fd_tensor wpe,
                                      unsigned blocks_of_row) {
  const RowPiece p = row_piece(out.shape[1], blocks_of_row);
  Four x = load4(row(wte, flat<int32_t>(tokens)[p.n]) + p.at, p.left);
  if (wpe.data != nullptr)
    x = map4([](float a, float b) { return a + b; }, x, load4(row(wpe, flat<int32_t>(positions)[p.n]) + p.at, p.left));
  store4(row(out, p.n) + p.at, x, p.left);
}

void forward_vector(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_embedding_forward_args*>(arguments);
  if (a.out.shape[1] == 0) return;
  const RowLaunch by(a.out.shape[1]);
  launch(ctx, "embedding_forward", a.out.shape[0] * by.blocks, by.threads, forward_vector_kernel, a.out, a.tokens, a.positions,
         a.wte, a.wpe, by.blocks);
}

// Blocks that begin where an id begins in the sorted list add its rows; the others have nothing to do.
__global__ void segment_kernel(fd_tensor dtable, fd_tensor dout, const Sortable* sorted, unsigned blocks_of_row) {
  constexpr int AHEAD = 8;
  const RowPiece p = row_piece(dout.shape[1], blocks_of_row);
  const int64_t N = dout.shape[0];
  const int32_t id = sorted[p.n].key;
  if (p.n > 0 && sorted[p.n - 1].key == id) return;
  float* to = row(dtable, id) + p.at;
  Four sum = load4(to, p.left);
  for (int64_t j = p.n; j < N && sorted[j].key == id; j += AHEAD) {
    Four next[AHEAD];
    bool here[AHEAD];
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      here[u] = j + u < N && sorted[j + u].key == id;
      next[u] = here[u] ? load4(row(dout, sorted[j + u].place) + p.at, p.left) : Four{};
    }
#pragma unroll
    for (int u = 0; u < AHEAD; ++u)
      if (here[u]) sum = map4([](float a, float b) { return a + b; }, sum, next[u]);
  }
  store4(to, sum, p.left);
}

void add_rows(fd_context* ctx, const fd_tensor& dtable, const fd_tensor& dout, const fd_tensor& ids) {
  const Sortable* sorted =
      sort_ids(ctx, "embedding_backward", static_cast<const int32_t*>(ids.data), dout.shape[0], dtable.shape[0], ctx->workspace);
  const RowLaunch by(dout.shape[1]);
  launch(ctx, "embedding_backward", dout.shape[0] * by.blocks, by.threads, segment_kernel, dtable, dout, sorted, by.blocks);
}

size_t sorted_workspace(const void* arguments, int32_t) {
  const auto& a = *static_cast<const fd_embedding_backward_args*>(arguments);
  return sort_bytes(a.dout.shape[0]);
}

void backward_sorted(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_embedding_backward_args*>(arguments);
  if (a.dout.shape[0] == 0 || a.dout.shape[1] == 0) return;
  add_rows(ctx, a.dwte, a.dout, a.tokens);
  if (a.dwpe.data != nullptr) add_rows(ctx, a.dwpe, a.dout, a.positions);
}

// ---- pairs -----------------------------------------------------------------------------------------------------------------
// The id at a position of sequence s.
__device__ inline int32_t& seen(const fd_bigram_ids_args& a, int64_t s, int64_t position) {
  return row<int32_t>(a.seen, row<int32_t>(a.block_table, s)[position / FD_KV_BLOCK])[position % FD_KV_BLOCK];
}

__global__ void note_ids_kernel(fd_bigram_ids_args a) {
  const int64_t n = global_thread();
  if (n >= a.tokens.shape[0]) return;
  const int64_t s = sequence_of(a.cu_seqlens, n);
  if (s < 0) return;
  seen(a, s, flat<int32_t>(a.past_lens)[s] + n - flat<int32_t>(a.cu_seqlens)[s]) = flat<int32_t>(a.tokens)[n];
}

__global__ void bigram_kernel(fd_bigram_ids_args a) {
  const int64_t n = global_thread();
  if (n >= a.tokens.shape[0]) return;
  const auto *tokens = flat<int32_t>(a.tokens), *cu = flat<int32_t>(a.cu_seqlens);
  const int64_t s = sequence_of(a.cu_seqlens, n);
  if (s < 0) return void(flat<int32_t>(a.pairs)[n] = 0);
  int32_t before = -1;
  if (n > cu[s])
    before = tokens[n - 1];
  else if (a.prefixes.data != nullptr && row<int32_t>(a.prefixes, s)[1] > 0)
    before = tokens[cu[row<int32_t>(a.prefixes, s)[0]] + row<int32_t>(a.prefixes, s)[1] - 1];
  else if (a.seen.data != nullptr && flat<int32_t>(a.past_lens)[s] > 0)
    before = seen(a, s, flat<int32_t>(a.past_lens)[s] - 1);
  flat<int32_t>(a.pairs)[n] = bigram_row(before, tokens[n], a.rows);
}

// Ids are noted by a launch of its own: a block may be one that another sequence fills now.
void bigram_ids(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_bigram_ids_args*>(arguments);
  if (a.seen.data != nullptr) launch_threads(ctx, "bigram_ids", a.tokens.shape[0], note_ids_kernel, a);
  launch_threads(ctx, "bigram_ids", a.tokens.shape[0], bigram_kernel, a);
}

}  // namespace

FD_VARIANT_LIST(embedding, {"bigram_ids", "naive", 0, bigram_ids, nullptr},
                {"embedding_forward", "naive", 0, forward, nullptr},
                {"embedding_forward", "vector", 1, forward_vector, nullptr},
                {"embedding_backward", "naive", 0, backward, nullptr},
                {"embedding_backward", "sorted", 1, backward_sorted, sorted_workspace})

}  // namespace freedive::cuda
