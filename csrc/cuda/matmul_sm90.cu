// matmul_sm90.cu: the products of matmul.cuh with what only compute capability 9.0a has: TMA, mbarriers and wgmma.
//
// A tile is 128 x N elements, computed by three warpgroups of a block. One thread of the first is the producer: it has TMA copy
// boxes of a and b, 64 deep and swizzled by 128 bytes, into a ring of stages. The other two multiply, 64 rows each, by wgmma
// m64nNk16 straight from shared memory, accumulators in registers. full[s]: the bytes of stage s have come; empty[s]: all eight
// warps are done with it.
//
// The ladder, each rung a template parameter on top of those before (published steps on an H100, kernels.md's ladder of 4096^3:
// 610 TFLOP/s for the first, 660 persistent, 734 with clusters, 758 with stores by TMA; ours are not measured):
//   plain        a block a tile.
//   persistent   as many blocks as multiprocessors, each with every so manieth tile: the producer fills stages of the next tile
//                while the consumers store the last.
//   multicast    two blocks of a cluster compute tiles one below the other, with the same b: each loads half of it for both. Of
//                the L2 cache that is a third less. A stage is free when the consumers of both blocks are done with it.
//   stored       sums go to shared memory, 32 columns at a time, and from there by TMA, while the next ones are converted; where
//                rows of out are whole 16 bytes, else as before. (stmatrix, which others use here, moves 16-bit numbers; ours
//                have 32.)
//
// Where gelu or SwiGLU follows, lanes make out of their sums and store it, and the last rung is the one before it. Of SwiGLU half
// of a tile's b are rows of the gate and half of up, a box each: of a cluster each block sends one. So a lane has both sums of a
// column.
//
// Both layouts an operand can have are boxes of 128-byte rows, [rows][64 k] or [64 k][64 rows]; the descriptor and one bit of the
// instruction tell wgmma which. Outside of a tensor TMA writes 0. Operands are rounded as for sm80, and an element's sum is one
// chain over k = 0, 16, .. again; a GPU may add within a wgmma in another order than within an mma.sync, so a device uses one of
// the two for all its products.
#include "matmul_rounded.cuh"
#include "ptx_sm90.cuh"

namespace freedive::cuda {
namespace {

constexpr int M = 128, K = 64, GROUP_THREADS = 128, CONSUMERS = 2, BLOCK_THREADS = GROUP_THREADS * (1 + CONSUMERS);
template <int N_, bool PERSISTENT_, int CLUSTER_, bool STORED_>
struct Plan {
  static constexpr int N = N_, CLUSTER = CLUSTER_;
  static constexpr bool PERSISTENT = PERSISTENT_, STORED = STORED_;
  static constexpr int STAGES = N == 256 ? 4 : 6, A_BYTES = M * K * 2, B_BYTES = N * K * 2, STAGE = A_BYTES + B_BYTES;
  static constexpr int RING = STAGES * STAGE;
  static constexpr int BOX_COLUMNS = 32, BOX_BYTES = 64 * BOX_COLUMNS * 4, BOXES = STORED ? 2 : 0;  // of sums, each consumer
  static constexpr size_t SHARED = size_t{RING} + size_t{CONSUMERS} * BOXES * BOX_BYTES;
};

// Boxes of `rows` rows of an operand and 64 k, from (row, k) on, to this block, or (BLOCKS > 1) to all of its cluster.
template <bool BY_K, int BLOCKS>
__device__ __forceinline__ void load(unsigned char* to, const CUtensorMap* map, uint64_t* full, int rows, int row, int k) {
  constexpr int BOX = 64 * K * 2;
  constexpr unsigned ALL = (1u << BLOCKS) - 1;
  const auto box = [&](unsigned char* at, int x, int y) {
    if (BLOCKS > 1)
      ptx::tma_load_2d_multicast(at, map, full, x, y, ALL);
    else
      ptx::tma_load_2d(at, map, full, x, y);
  };
  if (BY_K)
    box(to, k, row);
  else
    for (int i = 0; i < rows; i += 64) box(to + i / 64 * BOX, row + i, k);
}
// The 16 k from `k` on of rows `row` and following, a multiple of 64.
template <bool BY_K>
__device__ __forceinline__ uint64_t operand_at(uint32_t tile, int row, int k) {
  constexpr uint32_t BOX = 64 * K * 2;  // bytes of 64 rows across k
  const auto r = static_cast<uint32_t>(row), d = static_cast<uint32_t>(k);
  return BY_K ? ptx::wgmma_operand(tile + r * 128 + d * 2, 16, 1024)
              : ptx::wgmma_operand(tile + r / 64 * BOX + d * 128, BOX, 1024);
}

// Tiles in the order in which clusters take them: CLUSTER tiles one below the other are one.
template <class P, int SUMS>
struct Tiles {
  static constexpr int ACROSS = P::N / SUMS;  // columns of out
  const RoundedProduct& p;
  unsigned n, next, by;
  int rank;
  __device__ Tiles(const RoundedProduct& product, int rank_) : p(product), rank(rank_) {
    n = static_cast<unsigned>((p.rows + M * P::CLUSTER - 1) / (M * P::CLUSTER) * ((p.columns / SUMS + ACROSS - 1) / ACROSS));
    next = blockIdx.x / P::CLUSTER, by = gridDim.x / P::CLUSTER;
  }
  __device__ bool take(int64_t& i0, int64_t& j0) {
    if (next >= n) return false;
    place_of_tile(next, p.rows, p.columns / SUMS, M * P::CLUSTER, ACROSS, i0, j0);
    i0 += rank * M;
    next = P::PERSISTENT ? next + by : n;
    return true;
  }
};

template <class P, bool A_BY_K, bool B_BY_K, Epilogue E>
__global__ void __launch_bounds__(BLOCK_THREADS, 1)
    wgmma_kernel(const __grid_constant__ RoundedProduct p, const __grid_constant__ CUtensorMap a,
                 const __grid_constant__ CUtensorMap b, const __grid_constant__ CUtensorMap out) {
#if FD_SM90_CODE
  FD_DYNAMIC_SHARED(unsigned char, stages);
  FD_SHARED(uint64_t, full, [P::STAGES]);
  FD_SHARED(uint64_t, empty, [P::STAGES]);
  constexpr int SUMS = SUMS_OF<E>, COLUMNS = P::N / 8 / SUMS;  // of out, eights
  static_assert(E == Epilogue::SUM || (B_BY_K && !P::STORED), "an activation's columns are rows of a weight");
  const int thread = static_cast<int>(threadIdx.x), steps = static_cast<int>((p.depth + K - 1) / K);
  const int rank = P::CLUSTER > 1 ? static_cast<int>(ptx::cluster_rank()) : 0;
  if (thread == 0) {
#pragma unroll
    for (int s = 0; s < P::STAGES; ++s)
      ptx::mbarrier_init(&full[s], 1), ptx::mbarrier_init(&empty[s], P::CLUSTER * CONSUMERS * GROUP_THREADS / WARP);
    ptx::fence_mbarrier_init();
  }
  if (P::CLUSTER > 1)
    ptx::cluster_sync();  // nobody sends to a block whose barriers are not there
  else
    __syncthreads();
  Tiles<P, SUMS> tiles(p, rank);
  int64_t i0, j0;

  if (thread < GROUP_THREADS) {
    ptx::fewer_registers<40>();
    int s = 0, round = 0;
    while (thread == 0 && tiles.take(i0, j0))
      for (int step = 0; step < steps; ++step) {
        unsigned char* const stage = stages + s * P::STAGE;
        ptx::mbarrier_wait(&empty[s], (round + 1) % 2);  // first round: nobody has used it, and the phase before counts as ended
        ptx::mbarrier_arrive_expect(&full[s], P::STAGE);  // of whoever sends it
        load<A_BY_K, 1>(stage, &a, &full[s], M, static_cast<int>(i0), step * K);
        constexpr int OWN = P::N / P::CLUSTER;  // rows of b that this block loads for all of its cluster
        unsigned char* const to = stage + P::A_BYTES;
        if constexpr (SUMS == 1) {
          load<B_BY_K, P::CLUSTER>(to + rank * OWN * K * 2, &b, &full[s], OWN, static_cast<int>(j0) + rank * OWN, step * K);
        } else {  // half of them the gate's, then as many of up: each block of a cluster one of these, or both
          constexpr int HALF = P::N / 2;
#pragma unroll
          for (int half = rank; half < 2; half += P::CLUSTER)
            load<true, P::CLUSTER>(to + half * HALF * K * 2, &b, &full[s], HALF,
                                   static_cast<int>(j0 + half * (p.columns / 2)), step * K);
        }
        if (++s == P::STAGES) s = 0, ++round;
      }
  } else {
    ptx::more_registers<232>();
    const int consumer = thread / GROUP_THREADS - 1, lane = lane_id(), warp = thread / WARP % (GROUP_THREADS / WARP);
    unsigned char* const boxes = stages + P::RING + consumer * P::BOXES * P::BOX_BYTES;
    int s = 0, round = 0;
    while (tiles.take(i0, j0)) {
      const int64_t lane_i = i0 + consumer * 64 + warp * 16 + lane / 4, lane_j = j0 + lane % 4 * 2;
      const int rows_left = clipped(p.rows - lane_i), columns_left = clipped(p.columns / SUMS - lane_j);
      float sum[P::N / 2] = {};
      if (E == Epilogue::SUM && p.add) {
        const float* from = p.out + lane_i * p.out_row + lane_j;
#pragma unroll
        for (int half = 0; half < 2; ++half, from += 8 * p.out_row)
#pragma unroll
          for (int n = 0; n < P::N / 8; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e)
              if (8 * half < rows_left && 8 * n + e < columns_left) sum[4 * n + 2 * half + e] = from[8 * n + e];
      }
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        const uint32_t stage = ptx::shared_address(stages) + static_cast<uint32_t>(s * P::STAGE);
        ptx::mbarrier_wait(&full[s], round % 2);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < K; k += 16)
          ptx::wgmma_bf16<A_BY_K, B_BY_K>(sum, operand_at<A_BY_K>(stage, consumer * 64, k),
                                          operand_at<B_BY_K>(stage + P::A_BYTES, 0, k), true);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();  // the other consumer keeps the tensor cores busy meanwhile
        if (P::CLUSTER == 1 && lane == 0) ptx::mbarrier_arrive(&empty[s]);
        if (P::CLUSTER > 1 && lane < P::CLUSTER) ptx::mbarrier_arrive_at(&empty[s], static_cast<unsigned>(lane));
        if (++s == P::STAGES) s = 0, ++round;
      }
      ptx::hold(sum);
      if (P::STORED) {
#pragma unroll
        for (int n = 0; n < P::N / 8; n += 4) {  // four of eight columns fill a box
          unsigned char* const box = boxes + n / 4 % 2 * P::BOX_BYTES;
          if (thread % GROUP_THREADS == 0) ptx::bulk_wait_read<1>();  // the box before the last has been read
          ptx::barrier_sync(1 + consumer, GROUP_THREADS);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int row = warp * 16 + lane / 4 + 8 * half;
#pragma unroll
            for (int q = 0; q < 4; ++q) {
              float x = sum[4 * (n + q) + 2 * half], y = sum[4 * (n + q) + 2 * half + 1];
              if (8 * half < rows_left && 8 * (n + q) < columns_left)
                add_last(p, lane_i + 8 * half, lane_j + 8 * (n + q), x, y);
              const int piece = (2 * q + lane % 4 / 2) ^ row % 8;
              *reinterpret_cast<float2*>(box + row * 128 + piece * 16 + lane % 2 * 8) = make_float2(x, y);
            }
          }
          ptx::fence_proxy_async();
          ptx::barrier_sync(1 + consumer, GROUP_THREADS);
          if (thread % GROUP_THREADS == 0) {  // outside of out nothing is stored
            ptx::tma_store_2d(&out, box, static_cast<int>(j0) + 8 * n, static_cast<int>(i0) + consumer * 64);
            ptx::bulk_commit();
          }
        }
      } else {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (8 * half >= rows_left) continue;
#pragma unroll
          for (int n = 0; n < COLUMNS; ++n)
            if (8 * n < columns_left) {
              const int x = 4 * n + 2 * half, up = x + (SUMS - 1) * 4 * COLUMNS;
              finish_two<E>(p, lane_i + 8 * half, lane_j + 8 * n, sum[x], sum[x + 1], sum[up], sum[up + 1]);
            }
        }
      }
    }
    if (P::STORED && thread % GROUP_THREADS == 0) ptx::bulk_wait_read<0>();
  }
  if (P::CLUSTER > 1) ptx::cluster_sync();  // the other block may still send to this one, or free its stages
#else
  __trap();  // code for another GPU: nobody launches it
#endif
}

bool map_of(CUtensorMap* map, const uint16_t* data, int64_t row, int64_t rows, int64_t depth, bool by_k, int box_rows) {
  return by_k ? ptx::tensor_map_2d(map, data, rows, row, row, box_rows, K)
              : ptx::tensor_map_2d(map, data, depth, row, row, K, 64);
}

template <class P, Epilogue E>
void launch_wgmma(fd_context* ctx, const char* op, const RoundedProduct& p, int multiprocessors) {
  CUtensorMap a, b, out{};
  constexpr int B_ROWS = E == Epilogue::SWIGLU ? P::N / 2 : P::N / P::CLUSTER;  // of a box
  const bool mapped = map_of(&a, p.a, p.a_row, p.rows, p.depth, p.a_by_k, M) &&
                      map_of(&b, p.b, p.b_row, p.columns, p.depth, p.b_by_k, B_ROWS) &&
                      (!P::STORED || ptx::tensor_map_2d(&out, p.out, p.rows, p.columns, p.out_row, 64, P::BOX_COLUMNS));
  if (!mapped) return record_error(ctx->stream, op, "the driver makes no tensor map of its operands");
  auto kernel = wgmma_kernel<P, true, true, E>;
  if constexpr (E == Epilogue::SUM) {
    if (p.a_by_k && !p.b_by_k) kernel = wgmma_kernel<P, true, false, E>;
    if (!p.a_by_k) kernel = wgmma_kernel<P, false, false, E>;
  }
  int64_t clusters = blocks_for(p.rows, M * P::CLUSTER) * blocks_for(p.columns, P::N);
  if (P::PERSISTENT && clusters > multiprocessors / P::CLUSTER) clusters = multiprocessors / P::CLUSTER;
  launch_cluster<P::CLUSTER>(ctx, op, clusters * P::CLUSTER, BLOCK_THREADS, P::SHARED, kernel, p, a, b, out);
}

template <int N, Epilogue E>
void launch_rung(fd_context* ctx, const char* op, const RoundedProduct& p, Sm90 rung, int multiprocessors) {
  if (rung == Sm90::PLAIN) return launch_wgmma<Plan<N, false, 1, false>, E>(ctx, op, p, multiprocessors);
  if (rung == Sm90::PERSISTENT) return launch_wgmma<Plan<N, true, 1, false>, E>(ctx, op, p, multiprocessors);
  if constexpr (E == Epilogue::SUM) {
    // a store by TMA begins at addresses of 16 bytes
    const bool whole = reinterpret_cast<uintptr_t>(p.out) % 16 == 0 && p.out_row % 4 == 0;
    if (rung == Sm90::STORED && whole) return launch_wgmma<Plan<N, true, 2, true>, E>(ctx, op, p, multiprocessors);
  }
  launch_wgmma<Plan<N, true, 2, false>, E>(ctx, op, p, multiprocessors);
}
template <int N>
void launch_rung(fd_context* ctx, const char* op, const RoundedProduct& p, Sm90 rung, int multiprocessors) {
  switch (p.epilogue) {
    case Epilogue::SUM:
      return launch_rung<N, Epilogue::SUM>(ctx, op, p, rung, multiprocessors);
    case Epilogue::GELU:
      return launch_rung<N, Epilogue::GELU>(ctx, op, p, rung, multiprocessors);
    case Epilogue::SWIGLU:
      return launch_rung<N, Epilogue::SWIGLU>(ctx, op, p, rung, multiprocessors);
  }
}

}  // namespace

void multiply_sm90(fd_context* ctx, const char* op, const Product& p, Split split, const void* packed_b, uint8_t* workspace,
                   Sm90 rung) {
  if (p.rows == 0 || p.columns == 0) return;
  const int multiprocessors = ptx::multiprocessors_of_sm90();
  if (p.depth == 0 || multiprocessors < 2) return multiply_sm80(ctx, op, p, split, packed_b, workspace);
  const RoundedProduct r = round_operands(ctx, op, p, packed_b, workspace);
  if (blocks_for(p.rows, M) * blocks_for(p.columns, 256) >= multiprocessors || (p.columns > 128 && p.columns % 256 > 128))
    launch_rung<256>(ctx, op, r, rung, multiprocessors);
  else
    launch_rung<128>(ctx, op, r, rung, multiprocessors);
}

}  // namespace freedive::cuda
