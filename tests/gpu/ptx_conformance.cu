// One small kernel for each function of csrc/cuda/ptx.cuh and each intrinsic that kernels use: nvcc compiles this file for a GPU,
// the C++ compiler for the emulator, and tests/gpu/test_ptx.py gives both the same bytes and compares what comes back, with each
// other and with NumPy. So the emulator's reading of the PTX ISA is tested against hardware wherever there is some.
//
// A wrapper is added here as a kernel, a line in CASES and a test in test_ptx.py; test_every_wrapper_has_a_case fails without.
#include <cuda_fp16.h>

#include <cstring>

#include "../../csrc/cuda/launch.cuh"
#include "../../csrc/cuda/ptx.cuh"
#include "../../csrc/cuda/ptx_sm90.cuh"
#include "../cpp/launch_errors.h"

namespace freedive::cuda {

namespace {

// What a case is given and what it writes; sizes in bytes, a multiple of 16.
struct Case {
  const char* name;
  int64_t in, out;
  void (*run)(const uint8_t* in, uint8_t* out);
};

template <class T>
__device__ const T* as(const uint8_t* p) {
  return reinterpret_cast<const T*>(p);
}
template <class T>
__device__ T* as(uint8_t* p) {
  return reinterpret_cast<T*>(p);
}

// ---- shuffles and votes: in u32[32], u64[32]; out u32[12][32], u64[3][32] --------------------------------------------
__global__ void shuffles(const uint8_t* in, uint8_t* out) {
  const int lane = lane_id();
  const unsigned v = as<unsigned>(in)[lane];
  unsigned* o = as<unsigned>(out) + lane;
  o[0 * WARP] = __shfl_sync(ALL_LANES, v, (lane * 7 + 3) % WARP);
  o[1 * WARP] = __shfl_sync(ALL_LANES, v, 5, 8);
  o[2 * WARP] = __shfl_xor_sync(ALL_LANES, v, 1);
  o[3 * WARP] = __shfl_xor_sync(ALL_LANES, v, 16);
  o[4 * WARP] = __shfl_xor_sync(ALL_LANES, v, 3, 8);
  o[5 * WARP] = __shfl_down_sync(ALL_LANES, v, 3);
  o[6 * WARP] = __shfl_down_sync(ALL_LANES, v, 3, 16);
  o[7 * WARP] = __shfl_up_sync(ALL_LANES, v, 5);
  o[8 * WARP] = __shfl_up_sync(ALL_LANES, v, 2, 4);
  o[9 * WARP] = __ballot_sync(ALL_LANES, v & 1);
  o[10 * WARP] = static_cast<unsigned>(__any_sync(ALL_LANES, (v & 0xFF) == 7) != 0);
  o[11 * WARP] = static_cast<unsigned>(__all_sync(ALL_LANES, (v & 0xFF) != 7) != 0);
  const unsigned long long w = as<unsigned long long>(in + 4 * WARP)[lane];
  auto* o8 = as<unsigned long long>(out + 12 * 4 * WARP) + lane;
  o8[0 * WARP] = __shfl_xor_sync(ALL_LANES, w, 8);
  o8[1 * WARP] = __shfl_sync(ALL_LANES, w, 31 - lane);
  double d;
  memcpy(&d, &w, 8);
  d = __shfl_down_sync(ALL_LANES, d, 2);
  memcpy(o8 + 2 * WARP, &d, 8);
}

// ---- barriers that vote: in i32[96], out i32[3][96] ------------------------------------------------------------------
constexpr int VOTERS = 96;
__global__ void barriers(const uint8_t* in, uint8_t* out) {
  const int t = static_cast<int>(threadIdx.x), p = as<int>(in)[t];
  int* o = as<int>(out) + t;
  o[0 * VOTERS] = __syncthreads_count(p);
  o[1 * VOTERS] = __syncthreads_and(p) != 0;
  o[2 * VOTERS] = __syncthreads_or(p) != 0;
}

// ---- cp.async: thread t copies t % 17 bytes of 16 to where thread 63 - t reads; in, out 64 x 16 bytes ------------------
constexpr int COPIERS = 64;
__global__ void cp_async(const uint8_t* in, uint8_t* out) {
  FD_SHARED(uint4, tile, [COPIERS]);
  const int t = static_cast<int>(threadIdx.x);
  ptx::cp_async_16(&tile[COPIERS - 1 - t], in + 16 * t, t % 17);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();
  as<uint4>(out)[t] = tile[t];
}

// Three groups in flight, waited for one by one; a thread reads what it copied itself. in, out 3 x 32 x 16 bytes
__global__ void cp_async_groups(const uint8_t* in, uint8_t* out) {
  FD_SHARED(uint4, ring, [3 * WARP]);
  const int t = lane_id();
  for (int g = 0; g < 3; ++g) {
    ptx::cp_async_16(&ring[g * WARP + t], in + 16 * (g * WARP + t));
    ptx::cp_async_commit();
  }
  ptx::cp_async_wait<2>();
  as<uint4>(out)[t] = ring[t];
  ptx::cp_async_wait<1>();
  as<uint4>(out)[WARP + t] = ring[WARP + t];
  ptx::cp_async_wait<0>();
  as<uint4>(out)[2 * WARP + t] = ring[2 * WARP + t];
}

// ---- ldmatrix: in u16[32][8], row r of which lies at place 5 r % 32 of shared memory, 16 bytes apart; out u32[4][32] ----
template <bool TRANSPOSED>
__global__ void ldmatrix(const uint8_t* in, uint8_t* out) {
  FD_SHARED(uint4, rows, [WARP]);
  const int lane = lane_id();
  rows[5 * lane % WARP] = as<uint4>(in)[lane];
  __syncthreads();
  uint32_t r[4];
  if (TRANSPOSED)
    ptx::ldmatrix_x4_trans(r, &rows[5 * lane % WARP]);
  else
    ptx::ldmatrix_x4(r, &rows[5 * lane % WARP]);
  for (int j = 0; j < 4; ++j) as<uint32_t>(out)[j * WARP + lane] = r[j];
}

// ---- mma: each block one product; in of a block: a u32[32][4], b u32[32][2], c f32[32][4]; out f32[32][4] ----------------
constexpr int PRODUCTS = 48;
__global__ void mma_bf16(const uint8_t* in, uint8_t* out) {
  const int lane = lane_id();
  const auto* words = as<uint32_t>(in) + blockIdx.x * 10 * WARP;
  uint32_t a[4];
  float d[4];
  for (int i = 0; i < 4; ++i) a[i] = words[4 * lane + i];
  const uint32_t b0 = words[4 * WARP + 2 * lane], b1 = words[4 * WARP + 2 * lane + 1];
  for (int i = 0; i < 4; ++i) d[i] = __uint_as_float(words[6 * WARP + 4 * lane + i]);
  ptx::mma_bf16(d, a, b0, b1);
  for (int i = 0; i < 4; ++i) as<float>(out)[(blockIdx.x * WARP + lane) * 4 + i] = d[i];
}

// ---- numbers: in f32[3][NUMBERS]; conversions out u32[4][NUMBERS], arithmetic f32[8][NUMBERS], functions f32[4][NUMBERS] ---
constexpr int NUMBERS = 1 << 16;
__global__ void conversions(const uint8_t* in, uint8_t* out) {
  const int i = static_cast<int>(global_thread());
  auto* o = as<uint32_t>(out) + i;
  const float x = as<float>(in)[i];
  o[0] = __bfloat16_as_ushort(__float2bfloat16_rn(x));
  o[NUMBERS] = __float_as_uint(__bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(i))));
  o[2 * NUMBERS] = __float_as_uint(__half2float(__ushort_as_half(static_cast<unsigned short>(i))));
  o[3 * NUMBERS] = ptx::bf16_pair(x, as<float>(in)[NUMBERS + i]);
}
__global__ void arithmetic(const uint8_t* in, uint8_t* out) {
  const int i = static_cast<int>(global_thread());
  const float x = as<float>(in)[i], y = as<float>(in)[NUMBERS + i], z = as<float>(in)[2 * NUMBERS + i];
  float* o = as<float>(out) + i;
  o[0 * NUMBERS] = fmaf(x, y, z);
  o[1 * NUMBERS] = x * y + z;  // two roundings: -fmad=false
  o[2 * NUMBERS] = x / y;
  o[3 * NUMBERS] = sqrtf(fabsf(x));
  o[4 * NUMBERS] = rintf(x);
  o[5 * NUMBERS] = fmaxf(x, y);
  o[6 * NUMBERS] = static_cast<float>(static_cast<double>(x) * static_cast<double>(y) + static_cast<double>(z));
  o[7 * NUMBERS] = 1.0f / sqrtf(fabsf(x));
}
__global__ void functions(const uint8_t* in, uint8_t* out) {
  const int i = static_cast<int>(global_thread());
  const float x = as<float>(in)[i];
  float* o = as<float>(out) + i;
  o[0 * NUMBERS] = expf(x);
  o[1 * NUMBERS] = logf(fabsf(x));
  o[2 * NUMBERS] = tanhf(x);
  o[3 * NUMBERS] = ptx::exp2_approx(x);
}

// ---- TMA: in u16[40][72], a tensor of 40 x 70; out: a box of 64 x 64 of it from column 24, row -5 on, as it lies in shared
// memory, and u16[64][72], a tensor of 60 x 70 into which the box is stored from column 8, row 3 on
// ------------------------------------------------------
constexpr int TMA_ROW = 72, TMA_COLUMNS = 70, BOX = 64, BOX_BYTES = BOX * BOX * 2;
__global__ void tma(uint8_t* out, const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to) {
#if FD_SM90_CODE
  FD_DYNAMIC_SHARED(unsigned, box);
  FD_SHARED(uint64_t, full, [1]);
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) ptx::mbarrier_init(full, 1), ptx::fence_mbarrier_init();
  __syncthreads();
  if (t == 0) ptx::mbarrier_arrive_expect(full, BOX_BYTES), ptx::tma_load_2d(box, &from, full, 24, -5);
  ptx::mbarrier_wait(full, 0);
  for (int i = t; i < BOX_BYTES / 4; i += WARP) as<unsigned>(out)[i] = box[i];
  for (int i = t; i < BOX_BYTES / 4; i += WARP) box[i] = ~box[i];  // written by threads: TMA sees it after the fence
  ptx::fence_proxy_async();
  __syncthreads();
  if (t == 0) ptx::tma_store_2d(&to, box, 8, 3), ptx::bulk_commit(), ptx::bulk_wait_read<0>();
#else
  __trap();
#endif
}

// ---- clusters: in u16[64][64]; each of two blocks loads half of its rows for both, and frees the other from a wait. out of a
// block: the tile as it lies in shared memory, then its rank 64 times ----------------------------------------------------------
constexpr int CLUSTER_OUT = BOX_BYTES + 64 * 4;
__global__ void cluster(uint8_t* out, const __grid_constant__ CUtensorMap from) {
#if FD_SM90_CODE
  FD_DYNAMIC_SHARED(unsigned, tile);
  FD_SHARED(uint64_t, barriers, [2]);  // full, met
  const int t = static_cast<int>(threadIdx.x);
  const uint32_t rank = ptx::cluster_rank();
  if (t == 0) ptx::mbarrier_init(&barriers[0], 1), ptx::mbarrier_init(&barriers[1], 2), ptx::fence_mbarrier_init();
  ptx::cluster_sync();
  if (t == 0) {
    ptx::mbarrier_arrive_expect(&barriers[0], BOX_BYTES);
    ptx::tma_load_2d_multicast(tile + rank * BOX_BYTES / 8, &from, &barriers[0], 0, static_cast<int>(rank) * BOX / 2, 3);
  }
  if (t < 2) ptx::mbarrier_arrive_at(&barriers[1], static_cast<uint32_t>(t));
  ptx::mbarrier_wait(&barriers[0], 0);
  ptx::mbarrier_wait(&barriers[1], 0);
  auto* mine = as<unsigned>(out + rank * CLUSTER_OUT);
  for (int i = t; i < BOX_BYTES / 4; i += WARP) mine[i] = tile[i];
  for (int i = t; i < 64; i += WARP) mine[BOX_BYTES / 4 + i] = rank;
  ptx::cluster_sync();
#else
  __trap();
#endif
}

// ---- a store of float32: in f32[64][32], out f32[70][36], a tensor of 67 x 35, into which it goes from column 4, row 5 on ----
constexpr int STORE_ROWS = 70, STORE_ROW = 36;
__global__ void store_f32(const uint8_t* in, const __grid_constant__ CUtensorMap to) {
#if FD_SM90_CODE
  FD_DYNAMIC_SHARED(float, box);
  const int t = static_cast<int>(threadIdx.x);
  for (int i = t; i < 64 * 32; i += WARP) {
    const int r = i / 32, c = i % 32;
    box[r * 32 + (c / 4 ^ r % 8) * 4 + c % 4] = as<float>(in)[i];
  }
  ptx::fence_proxy_async();
  __syncthreads();
  if (t == 0) ptx::tma_store_2d(&to, box, 4, 5), ptx::bulk_commit(), ptx::bulk_wait_read<0>();
#else
  __trap();
#endif
}

// ---- wgmma: in a u16[64][64] (or across k: its transpose), b u16[N][64] (or its transpose); out f32[128][N / 2], by thread and
// register. Loaded by another warpgroup; the sum over 64 k begins from nothing, whatever was in the registers, and is made twice
// -----------------
template <int N, bool A_BY_K, bool B_BY_K>
__global__ void wgmma(uint8_t* out, const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b) {
#if FD_SM90_CODE
  FD_DYNAMIC_SHARED(uint8_t, tiles);
  FD_SHARED(uint64_t, barriers, [2]);  // full, empty
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) ptx::mbarrier_init(&barriers[0], 1), ptx::mbarrier_init(&barriers[1], 4), ptx::fence_mbarrier_init();
  __syncthreads();
  if (t >= 128) {
    ptx::fewer_registers<40>();
    if (t != 128) return;
    for (int round = 0; round < 2; ++round) {
      ptx::mbarrier_wait(&barriers[1], (round + 1) % 2);
      ptx::mbarrier_arrive_expect(&barriers[0], (64 + N) * 128);
      ptx::tma_load_2d(tiles, &a, &barriers[0], 0, 0);
      if (B_BY_K)
        ptx::tma_load_2d(tiles + BOX_BYTES, &b, &barriers[0], 0, 0);
      else
        for (int i = 0; i < N; i += 64) ptx::tma_load_2d(tiles + (1 + i / 64) * BOX_BYTES, &b, &barriers[0], i, 0);
    }
    return;
  }
  ptx::more_registers<216>();
  float d[N / 2];
  for (float& x : d) x = 1e30f;
  const uint32_t at = ptx::shared_address(tiles), bt = at + BOX_BYTES;
  for (int round = 0; round < 2; ++round) {
    ptx::mbarrier_wait(&barriers[0], round);
    ptx::hold(d);
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t k = 0; k < 64; k += 16)
      ptx::wgmma_bf16<A_BY_K, B_BY_K>(
          d, A_BY_K ? ptx::wgmma_operand(at + 2 * k, 16, 1024) : ptx::wgmma_operand(at + 128 * k, BOX_BYTES, 1024),
          B_BY_K ? ptx::wgmma_operand(bt + 2 * k, 16, 1024) : ptx::wgmma_operand(bt + 128 * k, BOX_BYTES, 1024),
          k > 0 || round > 0);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    ptx::hold(d);
    ptx::barrier_sync(1, 128);
    if (t % WARP == 0) ptx::mbarrier_arrive(&barriers[1]);
  }
#pragma unroll
  for (int i = 0; i < N / 2; ++i) as<float>(out)[t * (N / 2) + i] = d[i];
#else
  __trap();
#endif
}

// ---- wgmma with a in registers: in a u16[64][64], b u16[N][64] (or its transpose); out f32[128][N / 2]. The sum over 64 k is asked
// for twice, a group each, and the registers of a are zeros after the first wait ----------------------------------------------------
template <int N, bool B_BY_K>
__global__ void wgmma_rs(const uint8_t* in, uint8_t* out, const __grid_constant__ CUtensorMap b) {
#if FD_SM90_CODE
  FD_DYNAMIC_SHARED(uint8_t, tile);
  FD_SHARED(uint64_t, full, [1]);
  const int t = static_cast<int>(threadIdx.x), first = t / WARP * 16 + t % WARP / 4;
  if (t == 0) ptx::mbarrier_init(full, 1), ptx::fence_mbarrier_init();
  __syncthreads();
  if (t == 0) {
    ptx::mbarrier_arrive_expect(full, N * 128);
    if (B_BY_K)
      ptx::tma_load_2d(tile, &b, full, 0, 0);
    else
      for (int i = 0; i < N; i += 64) ptx::tma_load_2d(tile + i / 64 * BOX_BYTES, &b, full, i, 0);
  }
  uint32_t a[4][4];
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) a[k][i] = as<uint32_t>(in)[((first + i % 2 * 8) * 64 + 16 * k + i / 2 * 8 + t % 4 * 2) / 2];
  float d[N / 2];
  for (float& x : d) x = 1e30f;
  const uint32_t at = ptx::shared_address(tile);
  ptx::mbarrier_wait(full, 0);
#pragma unroll
  for (int round = 0; round < 3; ++round) {
    if (round != 1) ptx::hold(d);  // in the second, products are under way
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t k = 0; k < 64; k += 16)
      ptx::wgmma_bf16_rs<B_BY_K>(
          d, a[k / 16], B_BY_K ? ptx::wgmma_operand(at + 2 * k, 16, 1024) : ptx::wgmma_operand(at + 128 * k, BOX_BYTES, 1024),
          k > 0 || round > 0);
    ptx::wgmma_commit();
    if (round == 0) continue;
    ptx::wgmma_wait<0>();
    ptx::hold(d);
#pragma unroll
    for (int i = 0; i < 16; ++i) a[i / 4][i % 4] = 0;
  }
#pragma unroll
  for (int i = 0; i < N / 2; ++i) as<float>(out)[t * (N / 2) + i] = d[i];
#else
  __trap();
#endif
}

bool no_sm90(const char* name) {
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (major != 9) record_error(nullptr, name, "needs compute capability 9.0");
  return major != 9;
}
bool mapped(CUtensorMap* map, const void* data, int64_t rows, int64_t columns, int64_t row, int box_rows) {
  const bool ok = ptx::tensor_map_2d(map, static_cast<const uint16_t*>(data), rows, columns, row, box_rows, 64);
  if (!ok) record_error(nullptr, "tensor_map_2d", "the driver refuses it");
  return ok;
}
fd_context context{nullptr, nullptr, nullptr, 0, 1};
void run_tma(const uint8_t* in, uint8_t* out) {
  CUtensorMap from, to;
  if (no_sm90("tma") || !mapped(&from, in, 40, TMA_COLUMNS, TMA_ROW, BOX) ||
      !mapped(&to, out + BOX_BYTES, 60, TMA_COLUMNS, TMA_ROW, BOX))
    return;
  launch_shared(&context, "tma", 1, WARP, BOX_BYTES, tma, out, from, to);
}
void run_cluster(const uint8_t* in, uint8_t* out) {
  CUtensorMap from;
  if (no_sm90("cluster") || !mapped(&from, in, BOX, BOX, BOX, BOX / 2)) return;
  launch_cluster<2>(&context, "cluster", 2, WARP, BOX_BYTES, cluster, out, from);
}
void run_store_f32(const uint8_t* in, uint8_t* out) {
  CUtensorMap to;
  if (no_sm90("store_f32")) return;
  if (!ptx::tensor_map_2d(&to, reinterpret_cast<const float*>(out), STORE_ROWS - 3, STORE_ROW - 1, STORE_ROW, 64, 32))
    return record_error(nullptr, "tensor_map_2d", "the driver refuses it");
  launch_shared(&context, "store_f32", 1, WARP, 64 * 128, store_f32, in, to);
}
template <int N, bool A_BY_K, bool B_BY_K>
void run_wgmma(const uint8_t* in, uint8_t* out) {
  CUtensorMap a, b;
  const uint8_t* second = in + BOX_BYTES;
  if (no_sm90("wgmma") || !mapped(&a, in, 64, 64, 64, 64) ||
      !(B_BY_K ? mapped(&b, second, N, 64, 64, N) : mapped(&b, second, 64, N, N, 64)))
    return;
  launch_shared(&context, "wgmma", 1, 256, (64 + N) * 128, wgmma<N, A_BY_K, B_BY_K>, out, a, b);
}
template <int N, bool B_BY_K>
void run_wgmma_rs(const uint8_t* in, uint8_t* out) {
  CUtensorMap b;
  const uint8_t* second = in + BOX_BYTES;
  if (no_sm90("wgmma_rs") || !(B_BY_K ? mapped(&b, second, N, 64, 64, N) : mapped(&b, second, 64, N, N, 64))) return;
  launch_shared(&context, "wgmma_rs", 1, 128, N * 128, wgmma_rs<N, B_BY_K>, in, out, b);
}

#define CASE(name, in, out, blocks, threads, ...) \
  {name, in, out, [](const uint8_t* i, uint8_t* o) { launch(&context, name, blocks, threads, __VA_ARGS__, i, o); }}
const Case CASES[] = {
    CASE("shuffles", 12 * WARP, 72 * WARP, 1, WARP, shuffles),
    CASE("barriers", 4 * VOTERS, 12 * VOTERS, 1, VOTERS, barriers),
    CASE("cp_async", 16 * COPIERS, 16 * COPIERS, 1, COPIERS, cp_async),
    CASE("cp_async_groups", 48 * WARP, 48 * WARP, 1, WARP, cp_async_groups),
    CASE("ldmatrix_x4", 16 * WARP, 16 * WARP, 1, WARP, ldmatrix<false>),
    CASE("ldmatrix_x4_trans", 16 * WARP, 16 * WARP, 1, WARP, ldmatrix<true>),
    CASE("mma_bf16", PRODUCTS * 40 * WARP, PRODUCTS * 16 * WARP, PRODUCTS, WARP, mma_bf16),
    CASE("conversions", 12 * NUMBERS, 16 * NUMBERS, NUMBERS / THREADS, THREADS, conversions),
    CASE("arithmetic", 12 * NUMBERS, 32 * NUMBERS, NUMBERS / THREADS, THREADS, arithmetic),
    {"tma", 2 * 40 * TMA_ROW, BOX_BYTES + 2 * 64 * TMA_ROW, run_tma},
    {"cluster", BOX_BYTES, 2 * CLUSTER_OUT, run_cluster},
    {"store_f32", 64 * 128, STORE_ROWS * STORE_ROW * 4, run_store_f32},
    {"wgmma_64", (64 + 64) * 128, 128 * 4 * 32, run_wgmma<64, true, true>},
    {"wgmma_128", (64 + 128) * 128, 128 * 4 * 64, run_wgmma<128, true, false>},
    {"wgmma_256", (64 + 256) * 128, 128 * 4 * 128, run_wgmma<256, false, true>},
    {"wgmma_rs_64", (64 + 64) * 128, 128 * 4 * 32, run_wgmma_rs<64, true>},
    {"wgmma_rs_128", (64 + 128) * 128, 128 * 4 * 64, run_wgmma_rs<128, false>},
    CASE("functions", 12 * NUMBERS, 16 * NUMBERS, NUMBERS / THREADS, THREADS, functions),
};

const char* run(const Case& c, const void* in, void* out) {
  uint8_t *device_in = nullptr, *device_out = nullptr;
  told.clear();
  auto check = [](cudaError_t e) {
    if (e != cudaSuccess) record_error(nullptr, "the runtime", cudaGetErrorString(e));
  };
  check(cudaMallocManaged(reinterpret_cast<void**>(&device_in), static_cast<size_t>(c.in), cudaMemAttachGlobal));
  check(cudaMallocManaged(reinterpret_cast<void**>(&device_out), static_cast<size_t>(c.out), cudaMemAttachGlobal));
  if (told.empty()) {
    std::memcpy(device_in, in, static_cast<size_t>(c.in));
    std::memset(device_out, 0xFF, static_cast<size_t>(c.out));
    c.run(device_in, device_out);
    check(cudaStreamSynchronize(nullptr));
    if (told.empty()) std::memcpy(out, device_out, static_cast<size_t>(c.out));
  }
  cudaFree(device_in);
  cudaFree(device_out);
  return told.empty() ? nullptr : told.c_str();
}

// A launch that every GPU refuses, of an op with tensors: what is told of it?
__global__ void unused(fd_gelu_forward_args, int) {}
const char* refused() {
  float* memory = nullptr;
  cudaMallocManaged(reinterpret_cast<void**>(&memory), 60, cudaMemAttachGlobal);
  auto tensor = [&](void* data) {
    fd_tensor t{};
    t.data = data, t.dtype = FD_F32, t.ndim = 2, t.shape[0] = 3, t.shape[1] = 5, t.stride[0] = 5, t.stride[1] = 1;
    return t;
  };
  told.clear();
  launch(&context, "gelu_forward", 7, 2000, unused, fd_gelu_forward_args{tensor(memory), tensor(memory)}, 4);
  cudaFree(memory);
  return told.c_str();
}

}  // namespace
}  // namespace freedive::cuda

#define EXPORT extern "C" __attribute__((visibility("default")))

// Name and sizes of case i; false behind the last.
EXPORT bool ptx_case(int i, const char** name, int64_t* in, int64_t* out) {
  using namespace freedive::cuda;
  if (i < 0 || i >= static_cast<int>(sizeof(CASES) / sizeof(CASES[0]))) return false;
  *name = CASES[i].name, *in = CASES[i].in, *out = CASES[i].out;
  return true;
}
EXPORT const char* ptx_refused() { return freedive::cuda::refused(); }
// Null, or what went wrong.
EXPORT const char* ptx_run(int i, const void* in, void* out) { return freedive::cuda::run(freedive::cuda::CASES[i], in, out); }
