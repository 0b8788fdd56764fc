// The emulator on trial: small kernels with a bug each, as it happens to people who write CUDA. Without the bug a kernel must
// pass on every schedule; with it the emulator, or a sanitizer around it, must notice. Kernels are written as those of csrc/cuda
// are, with its launch.cuh.
//
//   emulation_bugs list                  the names
//   emulation_bugs NAME correct|bug      every schedule, every time of arrival; prints who noticed what, and then exits with 1
//
// dev/emulation_bugs.sh runs all of them plain, with AddressSanitizer and UBSan, and with ThreadSanitizer.
#include "emulation_bugs.h"

#include "launch_errors.h"

namespace freedive::cuda {

namespace {

// ---- memory --------------------------------------------------------------------------------------------------------
template <bool BUG>
__global__ void doubled(float* out, const float* x, int n) {
  const int i = static_cast<int>(global_thread());
  if (!BUG && i >= n) return;  // BUG: no guard; the last block is larger than what is left
  if (BUG && i >= n + 3) return;
  out[i] = 2.0f * x[i < n ? i : 0];
}
template <bool BUG>
bool out_of_bounds() {
  Device<float> x(300, sample), out(300);
  launch_threads(nullptr, "doubled", 300, doubled<BUG>, out.data, x.data, 300);
  return out.is([](size_t i) { return 2.0 * sample(i); });
}

template <bool BUG>
__global__ void reversed(float* out, const float* x) {
  FD_SHARED(float, tile, [BUG ? THREADS - 1 : THREADS]);  // BUG: an element too few
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[THREADS - 1 - threadIdx.x];
}
template <bool BUG>
bool shared_array_too_small() {
  Device<float> x(THREADS, sample), out(THREADS);
  launch(nullptr, "reversed", 1, THREADS, reversed<BUG>, out.data, x.data);
  return out.is([](size_t i) { return sample(THREADS - 1 - i); });
}

template <bool BUG>
__global__ void copied_by_fours(float* out, const float* x) {
  const int i = static_cast<int>(threadIdx.x) * 4 + (BUG ? 1 : 0);  // BUG: 16 bytes from an address that is not a multiple of 16
  const float4 v = *reinterpret_cast<const float4*>(x + i);
  out[threadIdx.x] = v.x + v.y + v.z + v.w;
}
template <bool BUG>
bool misaligned_load() {
  Device<float> x(4 * WARP + 4, sample), out(WARP);
  launch(nullptr, "copied_by_fours", 1, WARP, copied_by_fours<BUG>, out.data, x.data);
  return out.is([](size_t i) { return sample(4 * i) + sample(4 * i + 1) + sample(4 * i + 2) + sample(4 * i + 3); });
}

template <bool BUG>
__global__ void histogram(float* out, const int* ids, int n) {
  FD_SHARED(float, counts, [WARP]);
  if (!BUG && threadIdx.x < WARP) counts[threadIdx.x] = 0.0f;  // BUG: shared memory is taken to begin as 0
  __syncthreads();
  if (threadIdx.x < WARP)
    for (int i = 0; i < n; ++i)
      if (ids[i] == static_cast<int>(threadIdx.x)) counts[threadIdx.x] += 1.0f;
  __syncthreads();
  if (threadIdx.x < WARP) out[threadIdx.x] = counts[threadIdx.x];
}
template <bool BUG>
bool uninitialised_shared() {
  Device<int> ids(64, [](size_t i) { return static_cast<int>(i % WARP); });
  Device<float> out(WARP);
  launch(nullptr, "histogram", 1, 64, histogram<BUG>, out.data, ids.data, 64);
  return out.is([](size_t) { return 2.0; });
}

template <bool BUG>
bool host_pointer() {
  std::vector<float> host(300, 1.0f);
  Device<float> x(300, sample), out(300);
  // BUG: memory that a GPU cannot see
  launch_threads(nullptr, "doubled", 300, doubled<false>, out.data, BUG ? host.data() : x.data, 300);
  return BUG || out.is([](size_t i) { return 2.0 * sample(i); });
}

template <bool BUG>
bool workspace_read_before_it_is_written() {
  Device<float> x(300, sample), partial(300), out(300);
  // BUG: the first of two kernels is forgotten
  if (!BUG) launch_threads(nullptr, "doubled", 300, doubled<false>, partial.data, x.data, 300);
  launch_threads(nullptr, "doubled", 300, doubled<false>, out.data, partial.data, 300);
  return out.is([](size_t i) { return 4.0 * sample(i); });
}

// ---- barriers ------------------------------------------------------------------------------------------------------
template <bool BUG>
__global__ void neighbours(float* out, const float* x) {
  FD_SHARED(float, tile, [THREADS]);
  tile[threadIdx.x] = x[threadIdx.x];
  if (!BUG) __syncthreads();  // BUG: read before others have written
  out[threadIdx.x] = tile[(threadIdx.x + 100) % THREADS];
}
template <bool BUG>
bool no_barrier_after_writing() {
  Device<float> x(THREADS, sample), out(THREADS);
  launch(nullptr, "neighbours", 1, THREADS, neighbours<BUG>, out.data, x.data);
  return out.is([](size_t i) { return sample((i + 100) % THREADS); });
}

template <bool BUG>
__global__ void sum_of_tiles(float* out, const float* x, int tiles) {
  FD_SHARED(float, tile, [THREADS]);
  float sum = 0.0f;
  for (int t = 0; t < tiles; ++t) {
    tile[threadIdx.x] = x[t * THREADS + threadIdx.x];
    __syncthreads();
    for (int i = 0; i < 8; ++i) sum += tile[(threadIdx.x + 37 * i) % THREADS];
    if (!BUG) __syncthreads();  // BUG: a fast warp writes the next tile over what a slow one still reads
  }
  out[threadIdx.x] = sum;
}
template <bool BUG>
bool no_barrier_before_overwriting() {
  Device<float> x(5 * THREADS, sample), out(THREADS);
  launch(nullptr, "sum_of_tiles", 1, THREADS, sum_of_tiles<BUG>, out.data, x.data, 5);
  return out.is([](size_t thread) {
    double sum = 0;
    for (size_t t = 0; t < 5; ++t)
      for (size_t i = 0; i < 8; ++i) sum += sample(t * THREADS + (thread + 37 * i) % THREADS);
    return sum;
  });
}

template <bool BUG>
__global__ void halves(float* out, const float* x) {
  FD_SHARED(float, tile, [THREADS]);
  tile[threadIdx.x] = x[threadIdx.x];
  if (BUG) {
    if (threadIdx.x < 100)
      __syncthreads();  // BUG: two barriers where every thread must come to one
    else
      __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = tile[THREADS - 1 - threadIdx.x];
}
template <bool BUG>
bool divergent_barrier() {
  Device<float> x(THREADS, sample), out(THREADS);
  launch(nullptr, "halves", 1, THREADS, halves<BUG>, out.data, x.data);
  return out.is([](size_t i) { return sample(THREADS - 1 - i); });
}

template <bool BUG>
__global__ void lane_exchange(float* out, const float* x) {
  FD_SHARED(float, tile, [WARP]);
  tile[lane_id()] = x[lane_id()];
  if (!BUG) __syncwarp();  // BUG: "a warp runs in lockstep"
  out[lane_id()] = tile[(lane_id() + 5) % WARP];
}
template <bool BUG>
bool no_syncwarp() {
  Device<float> x(WARP, sample), out(WARP);
  launch(nullptr, "lane_exchange", 1, WARP, lane_exchange<BUG>, out.data, x.data);
  return out.is([](size_t i) { return sample((i + 5) % WARP); });
}

template <bool BUG>
__global__ void waits(float* out, const float* x) {
  float v = x[threadIdx.x];
  if (BUG && lane_id() == 3) __syncthreads();  // BUG: a lane waits for the block, its warp waits for the lane
  v = warp_sum(v);
  if (!BUG || lane_id() != 3) __syncthreads();
  out[threadIdx.x] = v;
}
template <bool BUG>
bool deadlock() {
  Device<float> x(WARP, [](size_t) { return 1.0f; }), out(WARP);
  launch(nullptr, "waits", 1, WARP, waits<BUG>, out.data, x.data);
  return out.is([](size_t) { return 32.0; });
}

// ---- collectives of a warp --------------------------------------------------------------------------------------------
template <bool BUG>
__global__ void half_sum(float* out, const float* x) {
  float v = lane_id() < 16 ? x[lane_id()] : 0.0f;
  if (BUG) {
    if (lane_id() < 16) v = warp_sum(v);  // BUG: a full mask where half of the lanes do not come
  } else {
    v = warp_sum(v);
  }
  if (lane_id() == 0) out[0] = v;
}
template <bool BUG>
bool full_mask_in_a_branch() {
  Device<float> x(WARP, [](size_t) { return 1.0f; }), out(1);
  launch(nullptr, "half_sum", 1, WARP, half_sum<BUG>, out.data, x.data);
  return out.is([](size_t) { return 16.0; });
}

template <bool BUG>
__global__ void guarded_sum(float* out, const float* x, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (BUG && i >= n) return;  // BUG: lanes leave that the sum below waits for
  const float v = warp_sum(i < n ? x[i] : 0.0f);
  if (i == 0) out[0] = v;
}
template <bool BUG>
bool lanes_that_left() {
  Device<float> x(20, [](size_t) { return 1.0f; }), out(1);
  launch(nullptr, "guarded_sum", 1, WARP, guarded_sum<BUG>, out.data, x.data, 20);
  return out.is([](size_t) { return 20.0; });
}

template <bool BUG>
__global__ void from_lane(float* out, const float* x) {
  const unsigned mask = __ballot_sync(ALL_LANES, lane_id() < 16);
  float v = x[lane_id()];
  if (lane_id() < 16) v = __shfl_sync(mask, v, BUG ? 20 : 7);  // BUG: lane 20 is not in the mask
  out[lane_id()] = v;
}
template <bool BUG>
bool shuffle_outside_of_its_mask() {
  Device<float> x(WARP, sample), out(WARP);
  launch(nullptr, "from_lane", 1, WARP, from_lane<BUG>, out.data, x.data);
  return out.is([](size_t i) { return sample(i < 16 ? 7 : i); });
}

template <bool BUG>
__global__ void butterfly(float* out, const float* x) {
  float v = x[lane_id()];
  for (int step = BUG ? WARP / 4 : WARP / 2; step > 0; step /= 2)
    v += __shfl_xor_sync(ALL_LANES, v, step);  // BUG: a step too few
  if (lane_id() == 0) out[0] = v;
}
template <bool BUG>
bool short_reduction() {
  Device<float> x(WARP, [](size_t i) { return static_cast<float>(i); }), out(1);
  launch(nullptr, "butterfly", 1, WARP, butterfly<BUG>, out.data, x.data);
  return out.is([](size_t) { return 496.0; });
}

// ---- blocks and launches ----------------------------------------------------------------------------------------------
template <bool BUG>
__global__ void block_totals(float* out, const float* x) {
  float* mine = BUG ? out : out + blockIdx.x;  // BUG: blocks add to one address, without order
  if (threadIdx.x == 0) {
    float sum = BUG ? *mine : 0.0f;
    for (int i = 0; i < 64; ++i) sum += x[blockIdx.x * 64 + static_cast<unsigned>(i)];
    *mine = sum;
  }
}
template <bool BUG>
bool blocks_race() {
  Device<float> x(256, [](size_t) { return 1.0f; }), out(4, [](size_t) { return 0.0f; });
  launch(nullptr, "block_totals", 4, 64, block_totals<BUG>, out.data, x.data);
  // An emulator that runs block after block gets it "right".
  return BUG ? out.data[0] == 256.0f : out.is([](size_t) { return 64.0; });
}

template <bool BUG>
bool block_too_large() {
  Device<float> x(2048, sample), out(2048);
  // BUG: no GPU has such blocks
  launch(nullptr, "doubled", BUG ? 1 : 2, BUG ? 2048 : 1024, doubled<false>, out.data, x.data, 2048);
  return BUG || out.is([](size_t i) { return 2.0 * sample(i); });
}

__global__ void most_shared(float* out) {
  FD_SHARED(float, tile, [12 * 1024]);
  tile[threadIdx.x] = 1.0f;
  out[threadIdx.x] = tile[threadIdx.x];
}
__global__ void too_much_shared(float* out) {
  FD_SHARED(float, tile, [12 * 1024 + 1]);
  tile[threadIdx.x] = 1.0f;
  out[threadIdx.x] = tile[threadIdx.x];
}
template <bool BUG>
bool more_than_48_kilobytes() {
  Device<float> out(WARP);
  launch(nullptr, "most_shared", 1, WARP, BUG ? too_much_shared : most_shared, out.data);  // BUG: nvcc refuses it, too
  return BUG || out.is([](size_t) { return 1.0; });
}

// ---- asynchronous copies ------------------------------------------------------------------------------------------------
// A pipeline of two stages over five tiles. KIND: 0 correct, 1 waits for a group too few, 2 forgets to commit, 3 no barrier
// before the stage is filled again, 4 a source that is not aligned.
template <int KIND>
__global__ void pipelined(float* out, const float* x, int tiles) {
  constexpr int ROW = 4 * WARP;
  FD_SHARED(float, stage, [2][4 * WARP]);
  const int t = static_cast<int>(threadIdx.x);
  const auto fetch = [&](int tile) {
    if (tile < tiles) ptx::cp_async_16(&stage[tile % 2][4 * t], x + tile * ROW + 4 * t + (KIND == 4 ? 1 : 0));
    if (KIND != 2) ptx::cp_async_commit();
  };
  float sum = 0.0f;
  fetch(0);
  for (int tile = 0; tile < tiles; ++tile) {
    fetch(tile + 1);
    ptx::cp_async_wait<KIND == 1 ? 2 : 1>();
    __syncwarp();
    for (int i = 0; i < 4; ++i) sum += stage[tile % 2][(4 * t + 33 * i + 5) % ROW];
    if (KIND != 3) __syncwarp();
  }
  out[t] = sum;
}
template <int KIND>
bool pipeline() {
  constexpr size_t ROW = 4 * WARP;
  Device<float> x(6 * ROW, sample), out(WARP);
  launch(nullptr, "pipelined", 1, WARP, pipelined<KIND>, out.data, x.data, 5);
  return out.is([](size_t t) {
    double sum = 0;
    for (size_t tile = 0; tile < 5; ++tile)
      for (size_t i = 0; i < 4; ++i) sum += sample(tile * ROW + (4 * t + 33 * i + 5) % ROW);
    return sum;
  });
}

// ---- tensor cores -------------------------------------------------------------------------------------------------------
// One product of 16 x 16 by 8 x 16 (transposed). BUG: the two halves of B along k are exchanged, as when lanes give ldmatrix the
// wrong rows.
template <bool BUG>
__global__ void one_product(float* out, const uint16_t* a, const uint16_t* b) {
  FD_SHARED(uint16_t, sa, [16][16]);
  FD_SHARED(uint16_t, sb, [16][16]);
  const int lane = lane_id();
  for (int i = lane; i < 256; i += WARP) sa[i / 16][i % 16] = a[i], sb[i / 16][i % 16] = b[i];
  __syncwarp();
  uint32_t fa[4], fb[4];
  ptx::ldmatrix_x4(fa, &sa[lane % 16][lane / 16 * 8]);
  if (BUG)
    ptx::ldmatrix_x4(fb, &sb[lane % 16][lane / 16 * 8]);
  else
    ptx::ldmatrix_x4(fb, &sb[lane % 8 + lane / 16 * 8][lane / 8 % 2 * 8]);
  for (int half = 0; half < 2; ++half) {
    float d[4] = {};
    ptx::mma_bf16(d, fa, fb[2 * half], fb[2 * half + 1]);
    for (int e = 0; e < 4; ++e) out[(lane / 4 + e / 2 * 8) * 16 + half * 8 + lane % 4 * 2 + e % 2] = d[e];
  }
}
// B by ldmatrix of its transpose: the same numbers stored [k][n].
template <bool BUG>
__global__ void one_product_transposed(float* out, const uint16_t* a, const uint16_t* bt) {
  FD_SHARED(uint16_t, sa, [16][16]);
  FD_SHARED(uint16_t, sb, [16][16]);
  const int lane = lane_id();
  for (int i = lane; i < 256; i += WARP) sa[i / 16][i % 16] = a[i], sb[i / 16][i % 16] = bt[i];
  __syncwarp();
  uint32_t fa[4], fb[4];
  ptx::ldmatrix_x4(fa, &sa[lane % 16][lane / 16 * 8]);
  if (BUG)
    ptx::ldmatrix_x4(fb, &sb[lane % 16][lane / 16 * 8]);  // BUG: not transposed
  else
    ptx::ldmatrix_x4_trans(fb, &sb[lane % 16][lane / 16 * 8]);
  for (int half = 0; half < 2; ++half) {
    float d[4] = {};
    ptx::mma_bf16(d, fa, fb[2 * half], fb[2 * half + 1]);
    for (int e = 0; e < 4; ++e) out[(lane / 4 + e / 2 * 8) * 16 + half * 8 + lane % 4 * 2 + e % 2] = d[e];
  }
}
template <bool BUG, bool TRANSPOSED>
bool tensor_core() {
  const auto A = [](size_t i, size_t k) { return sample(16 * i + k); };
  const auto B = [](size_t n, size_t k) { return sample(300 + 16 * n + k); };
  Device<uint16_t> a(256, [&](size_t i) { return bf16(A(i / 16, i % 16)); });
  Device<uint16_t> b(256, [&](size_t i) { return bf16(TRANSPOSED ? B(i % 16, i / 16) : B(i / 16, i % 16)); });
  Device<float> out(256);
  launch(nullptr, "one_product", 1, WARP, TRANSPOSED ? one_product_transposed<BUG> : one_product<BUG>, out.data, a.data, b.data);
  return out.is([&](size_t i) {
    double sum = 0;
    for (size_t k = 0; k < 16; ++k) sum += rounded(A(i / 16, k)) * rounded(B(i % 16, k));
    return sum;
  });
}

const std::vector<Case> GENERAL = {
    FD_CASE(out_of_bounds),
    FD_CASE(shared_array_too_small),
    FD_CASE(misaligned_load),
    FD_CASE(uninitialised_shared),
    FD_CASE(host_pointer),
    FD_CASE(workspace_read_before_it_is_written),
    FD_CASE(no_barrier_after_writing),
    FD_CASE(no_barrier_before_overwriting),
    FD_CASE(divergent_barrier),
    FD_CASE(no_syncwarp),
    FD_CASE(deadlock),
    FD_CASE(full_mask_in_a_branch),
    FD_CASE(lanes_that_left),
    FD_CASE(shuffle_outside_of_its_mask),
    FD_CASE(short_reduction),
    FD_CASE(blocks_race),
    FD_CASE(block_too_large),
    FD_CASE(more_than_48_kilobytes),
    {"copy_waits_for_too_few", pipeline<0>, pipeline<1>},
    {"copy_never_committed", pipeline<0>, pipeline<2>},
    {"stage_filled_while_it_is_read", pipeline<0>, pipeline<3>},
    {"copy_misaligned", pipeline<0>, pipeline<4>},
    {"fragment_rows_exchanged", tensor_core<false, false>, tensor_core<true, false>},
    {"fragment_not_transposed", tensor_core<false, true>, tensor_core<true, true>},
};

}  // namespace

int main_of(int argc, char** argv) {
  std::vector<Case> CASES;
  for (const std::vector<Case>& file : {GENERAL, sm90_cases(), attention_cases(), graph_cases()}) {
    if (file.empty()) return std::fprintf(stderr, "a file has no planted bugs\n"), 2;
    CASES.insert(CASES.end(), file.begin(), file.end());
  }
  if (argc == 2 && std::strcmp(argv[1], "list") == 0) {
    for (const Case& c : CASES) std::printf("%s\n", c.name);
    return 0;
  }
  const Case* found = nullptr;
  for (const Case& c : CASES)
    if (argc == 3 && std::strcmp(argv[1], c.name) == 0) found = &c;
  if (found == nullptr || (std::strcmp(argv[2], "bug") != 0 && std::strcmp(argv[2], "correct") != 0)) {
    std::fprintf(stderr, "emulation_bugs list | NAME correct|bug\n");
    return 2;
  }
  const bool bug = std::strcmp(argv[2], "bug") == 0;
  const std::pair<const char*, const char*> schedules[] = {{"sequential", "1"}, {"random", "1"},   {"random", "2"},
                                                           {"random", "3"},     {"priority", "1"}, {"priority", "2"},
                                                           {"priority", "3"}};
  int noticed = 0;
  for (const auto& [schedule, seed] : schedules) {
    for (const char* async : {"late", "early", "random"}) {
      setenv("FREEDIVE_EMU_SCHEDULE", schedule, 1);
      setenv("FREEDIVE_EMU_SEED", seed, 1);
      setenv("FREEDIVE_EMU_ASYNC", async, 1);
      told.clear();
      const bool right = (bug ? found->bug : found->correct)();
      if (right && told.empty()) continue;
      if (noticed++ == 0)
        std::printf("%s %s, copies %s: %s\n", schedule, seed, async, told.empty() ? "wrong numbers" : told.c_str());
    }
  }
  if (noticed > 0) std::printf("noticed on %d of 21 runs\n", noticed);
  return noticed > 0;
}

}  // namespace freedive::cuda

int main(int argc, char** argv) { return freedive::cuda::main_of(argc, argv); }
