// sort.cu: a stable radix sort of ids, 8 bits a pass from the lowest: ceil(bits / 8) passes, two for vocabularies from 257 to
// 65,536 ids.
//
// A pass is three kernels. A block takes TILE neighbours; each of its warps a stretch of them, 32 at a time.
//   count    how many of the tile have which digit: counts[digit][tile]. Lanes with one digit find each other by eight ballots,
//            and the first of them adds how many they are to its warp's histogram. No atomics.
//   scan     counts become where the first of that digit and tile goes: all smaller digits, and this digit in earlier tiles,
//            come before.
//   scatter  counts once more, and puts each pair behind its equals from earlier warps, rounds and lanes: the order of places
//            is kept.
// 8 bytes an id read twice and written once each pass, and 1 KB of counts for 1,024 ids.
#include "sort.cuh"

#include <cstdint>

namespace freedive::cuda {
namespace {

constexpr int DIGITS = 256, ROUNDS = 4, TILE = THREADS * ROUNDS;
static_assert(DIGITS == THREADS, "a thread to a digit");

// What a pass reads: pairs, or in the first pass ids, whose places are where they stand.
struct Source {
  const int32_t* ids;
  const Sortable* pairs;
  int64_t n;
  int shift;
  __device__ Sortable at(int64_t i) const { return pairs != nullptr ? pairs[i] : Sortable{ids[i], static_cast<int32_t>(i)}; }
  __device__ int digit(int32_t key) const { return static_cast<int>(static_cast<unsigned>(key) >> shift & (DIGITS - 1)); }
};
#ifdef FREEDIVE_CUDA_EMULATION
void visit_pointers(const Source& s, int argument) { emu::visit_parts(argument, s.ids, s.pairs); }
#endif

// The lanes of the warp that hold this digit; 0 of a lane that holds none.
__device__ unsigned lanes_with(int digit, bool here) {
  unsigned same = __ballot_sync(ALL_LANES, here);
#pragma unroll
  for (int bit = 0; bit < 8; ++bit) {
    const unsigned set = __ballot_sync(ALL_LANES, digit >> bit & 1);
    same &= digit >> bit & 1 ? set : ~set;
  }
  return here ? same : 0u;
}

// Adds the warp's stretch of a tile to its histogram, and tells visit(round, pair, digit, how many equals came before it in this
// warp).
template <class Visit>
__device__ void walk(const Source& from, int* histogram, const Visit& visit) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * TILE + warp_of_block() * (WARP * ROUNDS);
#pragma unroll
  for (int k = 0; k < ROUNDS; ++k) {
    const int64_t i = begin + k * WARP + lane_id();
    const bool here = i < from.n;
    const Sortable pair = here ? from.at(i) : Sortable{0, 0};
    const int digit = from.digit(pair.key);
    const unsigned same = lanes_with(digit, here), before = same & ((1u << lane_id()) - 1u);
    const int earlier = here ? histogram[digit] : 0;
    if (here) visit(k, pair, digit, earlier + __popc(before));
    __syncwarp();
    if (here && before == 0) histogram[digit] = earlier + __popc(same);
    __syncwarp();
  }
}

__device__ void clear(int (&histograms)[WARPS][DIGITS]) {
  for (int w = 0; w < WARPS; ++w) histograms[w][threadIdx.x] = 0;
  __syncthreads();
}

__global__ void count_kernel(Source from, int* counts) {
  FD_SHARED(int, histograms, [WARPS][DIGITS]);
  clear(histograms);
  walk(from, histograms[warp_of_block()], [](int, const Sortable&, int, int) {});
  __syncthreads();
  int total = 0;
  for (int w = 0; w < WARPS; ++w) total += histograms[w][threadIdx.x];
  counts[static_cast<int64_t>(threadIdx.x) * gridDim.x + blockIdx.x] = total;
}

// The sum of x over the threads before this one; shared: WARPS numbers.
__device__ int sum_before(int x, int* shared) {
  int sum = warp_sum_up_to(x);
  if (lane_id() == WARP - 1) shared[warp_of_block()] = sum;
  __syncthreads();
  for (int w = 0; w < warp_of_block(); ++w) sum += shared[w];
  return sum - x;
}

// One block; a thread to the counts of one digit, which follow each other.
__global__ void scan_kernel(int* counts, int64_t tiles) {
  FD_SHARED(int, shared, [WARPS]);
  int* mine = counts + threadIdx.x * tiles;
  int total = 0;
#pragma unroll 8
  for (int64_t t = 0; t < tiles; ++t) total += mine[t];
  int at = sum_before(total, shared);
#pragma unroll 8
  for (int64_t t = 0; t < tiles; ++t) {
    const int count = mine[t];
    mine[t] = at;
    at += count;
  }
}

__global__ void scatter_kernel(Source from, const int* starts, Sortable* to) {
  FD_SHARED(int, histograms, [WARPS][DIGITS]);
  clear(histograms);
  Sortable pairs[ROUNDS];
  int digits[ROUNDS], ranks[ROUNDS];
#pragma unroll
  for (int k = 0; k < ROUNDS; ++k) digits[k] = -1;
  walk(from, histograms[warp_of_block()],
       [&](int k, const Sortable& pair, int digit, int rank) { pairs[k] = pair, digits[k] = digit, ranks[k] = rank; });
  __syncthreads();
  // each warp's count becomes where its first of that digit goes
  int at = starts[static_cast<int64_t>(threadIdx.x) * gridDim.x + blockIdx.x];
  for (int w = 0; w < WARPS; ++w) {
    const int count = histograms[w][threadIdx.x];
    histograms[w][threadIdx.x] = at;
    at += count;
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < ROUNDS; ++k)
    if (digits[k] >= 0) to[histograms[warp_of_block()][digits[k]] + ranks[k]] = pairs[k];
}

int64_t list_bytes(int64_t n) { return blocks_for(n * static_cast<int64_t>(sizeof(Sortable)), 64) * 64; }

}  // namespace

size_t sort_bytes(int64_t n) {
  return static_cast<size_t>(2 * list_bytes(n) + blocks_for(n, TILE) * DIGITS * static_cast<int64_t>(sizeof(int)));
}

const Sortable* sort_ids(fd_context* ctx, const char* op, const int32_t* ids, int64_t n, int64_t limit, void* workspace) {
  auto* bytes = static_cast<uint8_t*>(workspace);
  Sortable* lists[2] = {reinterpret_cast<Sortable*>(bytes), reinterpret_cast<Sortable*>(bytes + list_bytes(n))};
  int* counts = reinterpret_cast<int*>(bytes + 2 * list_bytes(n));
  const int64_t tiles = blocks_for(n, TILE);
  Source from{ids, nullptr, n, 0};
  for (int into = 0;; into = 1 - into) {
    launch(ctx, op, tiles, THREADS, count_kernel, from, counts);
    launch(ctx, op, 1, THREADS, scan_kernel, counts, tiles);
    launch(ctx, op, tiles, THREADS, scatter_kernel, from, counts, lists[into]);
    from = {nullptr, lists[into], n, from.shift + 8};
    if (from.shift >= 32 || limit >> from.shift == 0) return lists[into];
  }
}

}  // namespace freedive::cuda
