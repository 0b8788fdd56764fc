// matmul_sm90.cu: the products of matmul.cuh with what only compute capability 9.0a has: TMA, mbarriers and wgmma.
//
// A block computes 128 x N elements with three warpgroups. One thread of the first is the producer: it has TMA copy boxes of a
// and b, 64 deep and swizzled by 128 bytes, into a ring of stages. The other two multiply, 64 rows each, by wgmma m64nNk16
// straight from shared memory, accumulators in registers. full[s]: the bytes of stage s have come; empty[s]: all eight warps are
// done with it.
//
// Both layouts an operand can have are boxes of 128-byte rows, [rows][64 k] or [64 k][64 rows]; the descriptor and one bit of the
// instruction tell wgmma which. Outside of a tensor TMA writes 0. Operands are rounded as for sm80, and an element's sum is one
// chain over k = 0, 16, .. again; a GPU may add within a wgmma in another order than within an mma.sync, so a device uses one of
// the two for all its products.
#include "matmul_rounded.cuh"
#include "ptx_sm90.cuh"

namespace freedive::cuda {
namespace {

constexpr int M = 128, K = 64, GROUP_THREADS = 128, CONSUMERS = 2;
template <int N>
struct Ring {
  static constexpr int STAGES = N == 256 ? 4 : 6, A_BYTES = M * K * 2, B_BYTES = N * K * 2, STAGE = A_BYTES + B_BYTES;
  static constexpr size_t SHARED = size_t{STAGES} * STAGE;
};

// Boxes of `rows` rows of an operand and 64 k, from (row, k) on.
template <bool BY_K>
__device__ __forceinline__ void load(unsigned char* to, const CUtensorMap* map, uint64_t* full, int rows, int row, int k) {
  constexpr int BOX = 64 * K * 2;
  if (BY_K)
    ptx::tma_load_2d(to, map, full, k, row);
  else
    for (int i = 0; i < rows; i += 64) ptx::tma_load_2d(to + i / 64 * BOX, map, full, row + i, k);
}
// The 16 k from `k` on of rows `row` and following, a multiple of 64.
template <bool BY_K>
__device__ __forceinline__ uint64_t operand_at(uint32_t tile, int row, int k) {
  constexpr uint32_t BOX = 64 * K * 2;  // bytes of 64 rows across k
  const auto r = static_cast<uint32_t>(row), d = static_cast<uint32_t>(k);
  return BY_K ? ptx::wgmma_operand(tile + r * 128 + d * 2, 16, 1024)
              : ptx::wgmma_operand(tile + r / 64 * BOX + d * 128, BOX, 1024);
}

template <int N, bool A_BY_K, bool B_BY_K>
__global__ void __launch_bounds__(GROUP_THREADS * (1 + CONSUMERS), 1)
    wgmma_kernel(const __grid_constant__ RoundedProduct p, const __grid_constant__ CUtensorMap a,
                 const __grid_constant__ CUtensorMap b) {
#if FD_SM90_CODE
  using R = Ring<N>;
  FD_DYNAMIC_SHARED(unsigned char, stages);
  FD_SHARED(uint64_t, full, [R::STAGES]);
  FD_SHARED(uint64_t, empty, [R::STAGES]);
  const int thread = static_cast<int>(threadIdx.x), steps = static_cast<int>((p.depth + K - 1) / K);
  int64_t i0, j0;
  tile_of_block(p.rows, p.columns, M, N, i0, j0);
  if (thread == 0) {
#pragma unroll
    for (int s = 0; s < R::STAGES; ++s)
      ptx::mbarrier_init(&full[s], 1), ptx::mbarrier_init(&empty[s], CONSUMERS * GROUP_THREADS / WARP);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();

  if (thread < GROUP_THREADS) {
    ptx::fewer_registers<40>();
    if (thread != 0) return;
    for (int step = 0; step < steps; ++step) {
      const int s = step % R::STAGES, round = step / R::STAGES;
      unsigned char* const stage = stages + s * R::STAGE;
      ptx::mbarrier_wait(&empty[s], (round + 1) % 2);  // in the first round nobody has used it: the phase before counts as ended
      ptx::mbarrier_arrive_expect(&full[s], R::STAGE);
      load<A_BY_K>(stage, &a, &full[s], M, static_cast<int>(i0), step * K);
      load<B_BY_K>(stage + R::A_BYTES, &b, &full[s], N, static_cast<int>(j0), step * K);
    }
    return;
  }

  ptx::more_registers<232>();
  const int consumer = thread / GROUP_THREADS - 1, lane = lane_id(), warp = thread / WARP % (GROUP_THREADS / WARP);
  const int64_t lane_i = i0 + consumer * 64 + warp * 16 + lane / 4, lane_j = j0 + lane % 4 * 2;
  const int rows_left = clipped(p.rows - lane_i), columns_left = clipped(p.columns - lane_j);
  float sum[N / 2] = {};
  if (p.add) {
    const float* from = p.out + lane_i * p.out_row + lane_j;
#pragma unroll
    for (int half = 0; half < 2; ++half, from += 8 * p.out_row)
#pragma unroll
      for (int n = 0; n < N / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (8 * half < rows_left && 8 * n + e < columns_left) sum[4 * n + 2 * half + e] = from[8 * n + e];
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const int s = step % R::STAGES;
    const uint32_t stage = ptx::shared_address(stages) + static_cast<uint32_t>(s * R::STAGE);
    ptx::mbarrier_wait(&full[s], step / R::STAGES % 2);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < K; k += 16)
      ptx::wgmma_bf16<A_BY_K, B_BY_K>(sum, operand_at<A_BY_K>(stage, consumer * 64, k),
                                      operand_at<B_BY_K>(stage + R::A_BYTES, 0, k), true);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();  // the other consumer keeps the tensor cores busy meanwhile
    if (lane == 0) ptx::mbarrier_arrive(&empty[s]);
  }
  ptx::hold(sum);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (8 * half >= rows_left) continue;
#pragma unroll
    for (int n = 0; n < N / 8; ++n)
      if (8 * n < columns_left) finish(p, lane_i + 8 * half, lane_j + 8 * n, sum[4 * n + 2 * half], sum[4 * n + 2 * half + 1]);
  }
#else
  __trap();  // code for another GPU: nobody launches it
#endif
}

bool map_of(CUtensorMap* map, const uint16_t* data, int64_t row, int64_t rows, int64_t depth, bool by_k, int box_rows) {
  return by_k ? ptx::tensor_map_2d(map, data, rows, row, row, box_rows, K)
              : ptx::tensor_map_2d(map, data, depth, row, row, K, 64);
}

template <int N>
void launch_wgmma(fd_context* ctx, const char* op, const RoundedProduct& p) {
  CUtensorMap a, b;
  if (!map_of(&a, p.a, p.a_row, p.rows, p.depth, p.a_by_k, M) || !map_of(&b, p.b, p.b_row, p.columns, p.depth, p.b_by_k, N))
    return record_error(op, "the driver makes no tensor map of its operands");
  const auto kernel =
      p.a_by_k ? (p.b_by_k ? wgmma_kernel<N, true, true> : wgmma_kernel<N, true, false>) : wgmma_kernel<N, false, false>;
  launch_shared(ctx, op, blocks_for(p.rows, M) * blocks_for(p.columns, N), GROUP_THREADS * (1 + CONSUMERS), Ring<N>::SHARED,
                kernel, p, a, b);
}

bool has_sm90() {
  static const bool has = [] {
    int device = 0, major = 0, minor = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
           cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess && major == 9 && minor == 0;
  }();
  return has;
}

}  // namespace

void multiply_sm90(fd_context* ctx, const char* op, const Product& p, const void* packed_b, uint8_t* workspace) {
  if (p.rows == 0 || p.columns == 0) return;
  if (p.depth == 0 || !has_sm90()) return multiply_sm80(ctx, op, p, packed_b, workspace);
  const RoundedProduct r = round_operands(ctx, op, p, packed_b, workspace);
  constexpr int64_t WAVE = 132;  // multiprocessors of an H100
  if (blocks_for(p.rows, M) * blocks_for(p.columns, 256) >= WAVE || (p.columns > 128 && p.columns % 256 > 128))
    launch_wgmma<256>(ctx, op, r);
  else
    launch_wgmma<128>(ctx, op, r);
}

}  // namespace freedive::cuda
