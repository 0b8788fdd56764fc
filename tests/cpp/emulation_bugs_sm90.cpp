// Planted bugs of Hopper's asynchronous machinery: see emulation_bugs.cpp. One kernel with a ring of tiles (TMA, mbarriers,
// wgmma) and one that stores by TMA; each KIND is a mistake people make with them.
#include "../../csrc/cuda/ptx_sm90.cuh"
#include "emulation_bugs.h"

namespace freedive::cuda {
namespace {

enum Kind {
  CORRECT,
  NO_EXPECT,             // the producer arrives and announces no bytes: the phase ends before the tile is there
  TOO_MANY_BYTES,        // announces more than come
  WRONG_PARITY,          // the consumers wait for the phase before
  NO_EMPTY_WAIT,         // the producer overwrites tiles that are still read
  FREED_TOO_EARLY,       // the consumers free a tile that their wgmma still reads
  NO_INIT_FENCE,         // TMA may not see the mbarrier
  NO_WGMMA_FENCE,        // registers and wgmma are not in order
  READ_BEFORE_WAIT,      // accumulators are read while they are written
  NO_SWIZZLE,            // consumers read the tile as if its pieces lay in order
  WRONG_STRIDE,          // the descriptor's groups of 8 rows
  NOT_TRANSPOSED,        // across k, read as if along k
  MISALIGNED_TILE,       // TMA with 128-byte swizzle wants 1024 bytes
  ODD_REGISTERS,         // setmaxnreg goes by eights
  ONE_WARP_SHORT,        // a warp of the group does one wgmma less
};

constexpr int TILE = 64, RING = 2, TILE_BYTES = TILE * TILE * 2;
constexpr int PRODUCER_THREADS = 128, CONSUMER_THREADS = 128;

// out [64 x 64] = a [64 x K] b^T, b [64 x K] (along k) or given as [K x 64] (across k). More tiles than the ring has, and a
// ragged last one.
template <int KIND, bool B_BY_K>
__global__ void ring(float* out, const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, int depth) {
  FD_DYNAMIC_SHARED(unsigned char, shared);
  FD_SHARED(uint64_t, full, [RING]);
  FD_SHARED(uint64_t, empty, [RING]);
  unsigned char* const tiles = shared + (KIND == MISALIGNED_TILE ? 512 : 0);
  const int steps = (depth + TILE - 1) / TILE, thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int s = 0; s < RING; ++s) ptx::mbarrier_init(&full[s], 1), ptx::mbarrier_init(&empty[s], CONSUMER_THREADS / WARP);
    if (KIND != NO_INIT_FENCE) ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (thread >= CONSUMER_THREADS) {
    ptx::fewer_registers<40>();
    if (thread != CONSUMER_THREADS) return;
    for (int step = 0; step < steps; ++step) {
      const int s = step % RING, round = step / RING;
      unsigned char* const tile = tiles + s * 2 * TILE_BYTES;
      if (KIND != NO_EMPTY_WAIT) ptx::mbarrier_wait(&empty[s], (round + 1) % 2);
      if (KIND == NO_EXPECT)
        ptx::mbarrier_arrive(&full[s]);
      else
        ptx::mbarrier_arrive_expect(&full[s], 2 * TILE_BYTES + (KIND == TOO_MANY_BYTES ? 128 : 0));
      ptx::tma_load_2d(tile, &a, &full[s], step * TILE, 0);
      ptx::tma_load_2d(tile + TILE_BYTES, &b, &full[s], B_BY_K ? step * TILE : 0, B_BY_K ? 0 : step * TILE);
    }
    return;
  }
  ptx::more_registers<KIND == ODD_REGISTERS ? 228 : 232>();
  float d[TILE / 2] = {};
  for (int step = 0; step < steps; ++step) {
    const int s = step % RING, round = step / RING;
    const uint32_t tile = ptx::shared_address(tiles + s * 2 * TILE_BYTES);
    ptx::mbarrier_wait(&full[s], KIND == WRONG_PARITY ? (round + 1) % 2 : round % 2);
    if (KIND == NO_SWIZZLE) {  // by hand, from where the pieces would lie in order
      const auto* at = reinterpret_cast<const uint16_t*>(tiles + s * 2 * TILE_BYTES);
      const auto* bt = at + TILE * TILE;
      const int lane = thread % WARP, row = thread / WARP * 16 + lane / 4;
      for (int e = 0; e < TILE / 2; ++e)
        for (int k = 0; k < TILE; ++k)
          d[e] += __bfloat162float(__ushort_as_bfloat16(at[(row + e / 2 % 2 * 8) * TILE + k])) *
                  __bfloat162float(__ushort_as_bfloat16(bt[(e / 4 * 8 + lane % 4 * 2 + e % 2) * TILE + k]));
    } else {
      if (KIND != NO_WGMMA_FENCE) ptx::wgmma_fence();
      const int last = KIND == ONE_WARP_SHORT && thread / WARP == 2 && step + 1 == steps ? TILE - 16 : TILE;
      for (int k = 0; k < last; k += 16) {
        const uint64_t da = ptx::wgmma_operand(tile + static_cast<uint32_t>(k) * 2, 16, KIND == WRONG_STRIDE ? 512 : 1024);
        const uint64_t db = B_BY_K || KIND == NOT_TRANSPOSED
                                ? ptx::wgmma_operand(tile + TILE_BYTES + static_cast<uint32_t>(k) * 2, 16, 1024)
                                : ptx::wgmma_operand(tile + TILE_BYTES + static_cast<uint32_t>(k) * 128, TILE_BYTES, 1024);
        ptx::wgmma_bf16<true, B_BY_K || KIND == NOT_TRANSPOSED>(d, da, db, true);
      }
      ptx::wgmma_commit();
      if (KIND == READ_BEFORE_WAIT && step + 1 == steps)
        for (float& x : d) out[TILE * TILE] += x;
      if (KIND != FREED_TOO_EARLY) ptx::wgmma_wait<0>();
    }
    if (thread % WARP == 0) ptx::mbarrier_arrive(&empty[s]);
  }
  if (KIND == FREED_TOO_EARLY) ptx::wgmma_wait<0>();
  const int lane = thread % WARP, row = thread / WARP * 16 + lane / 4;
  for (int e = 0; e < TILE / 2; ++e) out[(row + e / 2 % 2 * 8) * TILE + e / 4 * 8 + lane % 4 * 2 + e % 2] = d[e];
  if (KIND == READ_BEFORE_WAIT) out[row * TILE] += out[TILE * TILE] - out[TILE * TILE];  // NaN if it was
}

template <int KIND, bool B_BY_K = true>
bool ring_is_right() {
  constexpr int K = 5 * TILE - 20, ROW = 304;  // rows of whole 16 bytes
  const auto A = [](size_t i, size_t k) { return sample(ROW * i + k); };
  const auto B = [](size_t j, size_t k) { return sample(40000 + ROW * j + k); };
  Device<uint16_t> a(TILE * ROW, [&](size_t i) { return bf16(A(i / ROW, i % ROW)); });
  Device<uint16_t> b(TILE * ROW, [&](size_t i) { return bf16(B_BY_K ? B(i / ROW, i % ROW) : B(i % TILE, i / TILE)); });
  Device<float> out(TILE * TILE + 1, [](size_t) { return 0.0f; });
  CUtensorMap ma, mb;
  if (!ptx::tensor_map_2d(&ma, a.data, TILE, K, ROW, TILE, TILE)) return false;
  if (!(B_BY_K ? ptx::tensor_map_2d(&mb, b.data, TILE, K, ROW, TILE, TILE)
               : ptx::tensor_map_2d(&mb, b.data, K, TILE, TILE, TILE, TILE)))
    return false;
  launch_shared(nullptr, "ring", 1, PRODUCER_THREADS + CONSUMER_THREADS, RING * 2 * TILE_BYTES + 1024, ring<KIND, B_BY_K>,
                out.data, ma, mb, K);
  for (size_t i = 0; i < TILE; ++i)
    for (size_t j = 0; j < TILE; ++j) {
      double sum = 0;
      for (size_t k = 0; k < K; ++k) sum += rounded(A(i, k)) * rounded(B(j, k));
      if (!(std::fabs(out.data[i * TILE + j] - sum) <= 1e-4 * (1 + std::fabs(sum)))) return false;
    }
  return true;
}

// ---- TMA stores -----------------------------------------------------------------------------------------------------------
enum StoreKind { STORED, NO_PROXY_FENCE, NOT_WAITED, OVERWRITTEN, PLAIN_ORDER };

// Two tiles one after the other through the same shared memory: out = 2 x, rows and columns ragged.
template <int KIND>
__global__ void doubled_by_tiles(const __grid_constant__ CUtensorMap out, const uint16_t* x, int rows, int columns, int tiles) {
  FD_DYNAMIC_SHARED(uint16_t, tile);
  const int thread = static_cast<int>(threadIdx.x);
  for (int t = 0; t < tiles; ++t) {
    if (t > 0 && thread == 0 && KIND != OVERWRITTEN) ptx::bulk_wait_read<0>();
    __syncthreads();
    for (int i = thread; i < TILE * TILE; i += THREADS) {
      const int r = i / TILE, c = i % TILE, column = t * TILE + c;
      const float v = r < rows && column < columns ? __bfloat162float(__ushort_as_bfloat16(x[r * columns + column])) : 0.0f;
      const int piece = KIND == PLAIN_ORDER ? c / 8 : c / 8 ^ r % 8;
      tile[r * TILE + piece * 8 + c % 8] = __bfloat16_as_ushort(__float2bfloat16_rn(2.0f * v));
    }
    if (KIND != NO_PROXY_FENCE) ptx::fence_proxy_async();
    __syncthreads();
    if (thread == 0) ptx::tma_store_2d(&out, tile, t * TILE, 0), ptx::bulk_commit();
  }
  if (thread == 0 && KIND != NOT_WAITED) ptx::bulk_wait_read<0>();
}
template <int KIND>
bool stores_are_right() {
  constexpr int ROWS = 50, COLUMNS = 150, ROW = 152;
  Device<uint16_t> x(ROWS * COLUMNS, [](size_t i) { return bf16(sample(i)); }),
      out(ROWS * ROW, [](size_t) { return bf16(-1.0f); });
  CUtensorMap map;
  if (!ptx::tensor_map_2d(&map, out.data, ROWS, COLUMNS, ROW, TILE, TILE)) return false;
  launch_shared(nullptr, "doubled_by_tiles", 1, THREADS, TILE_BYTES, doubled_by_tiles<KIND>, map, x.data, ROWS, COLUMNS, 3);
  for (size_t i = 0; i < ROWS * ROW; ++i) {
    const size_t r = i / ROW, c = i % ROW;
    if (out.data[i] != (c < COLUMNS ? bf16(static_cast<float>(2 * rounded(sample(r * COLUMNS + c)))) : bf16(-1.0f))) return false;
  }
  return true;
}

// ---- clusters ---------------------------------------------------------------------------------------------------------------
enum ClusterKind {
  SHARED,
  NOT_MET,         // a block sends to another whose mbarriers may not be there
  LEFT_EARLY,      // a block ends while the other still sends to it or frees its stages
  FREED_AT_HOME,   // the consumer frees a stage in its own block alone: the other one overwrites it
  HALF_ANNOUNCED,  // of the bytes that both blocks send
  SENT_HOME,       // multicast to oneself
  RING_RESTARTED,  // stages and phases begin anew with each tile of a persistent block
};

// Two blocks, which load half of every tile for both. sums[t][block] = tiles (t, 0), (t, 1), .. of x added, by place in memory.
constexpr int CLUSTER_TILES = 3, CLUSTER_STEPS = 3, TILE_NUMBERS = TILE * TILE;
template <int KIND>
__global__ void tiles_of_a_cluster(float* sums, const __grid_constant__ CUtensorMap x) {
  FD_DYNAMIC_SHARED(uint16_t, stages);
  FD_SHARED(uint64_t, full, [RING]);
  FD_SHARED(uint64_t, empty, [RING]);
  const uint32_t rank = ptx::cluster_rank();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % WARP;
  if (thread == 0) {
    for (int s = 0; s < RING; ++s) ptx::mbarrier_init(&full[s], 1), ptx::mbarrier_init(&empty[s], KIND == FREED_AT_HOME ? 1 : 2);
    ptx::fence_mbarrier_init();
  }
  if (KIND == NOT_MET)
    __syncthreads();
  else
    ptx::cluster_sync();
  int s = 0, round = 0;
  for (int t = 0; t < CLUSTER_TILES; ++t) {
    if (KIND == RING_RESTARTED) s = round = 0;
    float sum[TILE_NUMBERS / WARP] = {};
    for (int step = 0; step < CLUSTER_STEPS; ++step) {
      uint16_t* const stage = stages + s * TILE_NUMBERS;
      if (thread == 0) {
        ptx::mbarrier_wait(&empty[s], (round + 1) % 2);
        ptx::mbarrier_arrive_expect(&full[s], KIND == HALF_ANNOUNCED ? TILE_BYTES / 2 : TILE_BYTES);
        ptx::tma_load_2d_multicast(stage + rank * TILE_NUMBERS / 2, &x, &full[s], 0,
                                   (t * CLUSTER_STEPS + step) * TILE + static_cast<int>(rank) * TILE / 2,
                                   KIND == SENT_HOME ? 1u << rank : 3u);
      } else if (thread >= WARP) {
        ptx::mbarrier_wait(&full[s], round % 2);
        for (int i = 0; i < TILE_NUMBERS / WARP; ++i)
          sum[i] += __bfloat162float(__ushort_as_bfloat16(stage[i * WARP + lane]));
        __syncwarp();
        if (KIND == FREED_AT_HOME) {
          if (lane == 0) ptx::mbarrier_arrive(&empty[s]);
        } else if (lane < 2) {
          ptx::mbarrier_arrive_at(&empty[s], static_cast<uint32_t>(lane));
        }
      }
      if (++s == RING) s = 0, ++round;
    }
    if (thread >= WARP)
      for (int i = 0; i < TILE_NUMBERS / WARP; ++i)
        sums[(t * 2 + static_cast<int>(rank)) * TILE_NUMBERS + i * WARP + lane] = sum[i];
  }
  if (KIND != LEFT_EARLY) ptx::cluster_sync();
}
template <int KIND>
bool cluster_is_right() {
  Device<uint16_t> x(CLUSTER_TILES * CLUSTER_STEPS * TILE_NUMBERS, [](size_t i) { return bf16(sample(i)); });
  Device<float> sums(CLUSTER_TILES * 2 * TILE_NUMBERS, [](size_t) { return 0.0f; });
  CUtensorMap map;
  if (!ptx::tensor_map_2d(&map, x.data, CLUSTER_TILES * CLUSTER_STEPS * TILE, TILE, TILE, TILE / 2, TILE)) return false;
  launch_cluster<2>(nullptr, "tiles_of_a_cluster", 2, 2 * WARP, RING * TILE_BYTES, tiles_of_a_cluster<KIND>, sums.data, map);
  return sums.is([](size_t i) {
    const size_t t = i / (2 * TILE_NUMBERS), r = i % TILE_NUMBERS / TILE, c = i % TILE;
    double sum = 0;
    for (size_t step = 0; step < CLUSTER_STEPS; ++step)
      sum += rounded(sample(((t * CLUSTER_STEPS + step) * TILE + r) * TILE + (c / 8 ^ r % 8) * 8 + c % 8));
    return sum;
  });
}

// ---- the map on the host ----------------------------------------------------------------------------------------------------
template <bool BUG>
bool tensor_map_of_odd_rows() {
  Device<uint16_t> x(64 * 64);
  CUtensorMap map;
  return ptx::tensor_map_2d(&map, x.data, 60, 60, BUG ? 60 : 64, 64, 64);  // BUG: rows that do not begin at multiples of 16 bytes
}

template <int KIND, bool B_BY_K = true>
Case of_ring(const char* name) {
  return {name, ring_is_right<CORRECT, B_BY_K>, ring_is_right<KIND, B_BY_K>};
}
template <int KIND>
Case of_cluster(const char* name) {
  return {name, cluster_is_right<SHARED>, cluster_is_right<KIND>};
}
template <int KIND>
Case of_stores(const char* name) {
  return {name, stores_are_right<STORED>, stores_are_right<KIND>};
}

}  // namespace

std::vector<Case> sm90_cases() {
  return {of_ring<NO_EXPECT>("tma_bytes_not_announced"),
          of_ring<TOO_MANY_BYTES>("tma_too_many_bytes_announced"),
          of_ring<WRONG_PARITY>("mbarrier_wrong_parity"),
          of_ring<NO_EMPTY_WAIT>("mbarrier_never_waited_for"),
          of_ring<NO_INIT_FENCE>("mbarrier_init_not_fenced"),
          of_ring<FREED_TOO_EARLY>("stage_freed_while_wgmma_reads"),
          of_ring<NO_WGMMA_FENCE>("wgmma_not_fenced"),
          of_ring<READ_BEFORE_WAIT>("accumulators_read_before_wait"),
          of_ring<NO_SWIZZLE>("tile_read_without_its_swizzle"),
          of_ring<WRONG_STRIDE>("descriptor_wrong_stride"),
          of_ring<NOT_TRANSPOSED, false>("descriptor_not_transposed"),
          of_ring<MISALIGNED_TILE>("tma_tile_misaligned"),
          of_ring<ODD_REGISTERS>("setmaxnreg_not_by_eights"),
          of_ring<ONE_WARP_SHORT>("wgmma_of_three_warps"),
          of_stores<NO_PROXY_FENCE>("tma_store_not_fenced"),
          of_stores<NOT_WAITED>("tma_store_not_waited_for"),
          of_stores<OVERWRITTEN>("tma_store_overwritten"),
          of_stores<PLAIN_ORDER>("tma_store_in_plain_order"),
          of_cluster<NOT_MET>("cluster_not_met"),
          of_cluster<LEFT_EARLY>("cluster_left_early"),
          of_cluster<FREED_AT_HOME>("stage_freed_in_one_block"),
          of_cluster<HALF_ANNOUNCED>("multicast_half_announced"),
          of_cluster<SENT_HOME>("multicast_to_oneself"),
          of_cluster<RING_RESTARTED>("ring_restarted_with_each_tile"),
          FD_CASE(tensor_map_of_odd_rows)};
}

}  // namespace freedive::cuda
