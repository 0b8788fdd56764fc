// Planted bugs of a pipeline of two products, as attention_sm90.cu has it: see emulation_bugs.cpp. The first's sums, rounded, are
// the second's operand in registers; the next tile's first product is asked for before this tile's second. Each KIND is a mistake
// people make with it.
#include "../../csrc/cuda/ptx_sm90.cuh"
#include "emulation_bugs.h"

namespace freedive::cuda {
namespace {

enum Kind {
  CORRECT,
  SCORES_NOT_WAITED,    // read while they are written
  OTHER_WAITED,         // wait<1> where the product that is waited for was asked for last
  VALUES_NOT_WAITED,    // the operand's registers are written while the product before reads them
  WEIGHTS_NOT_FENCED,   // the operand's registers were written, and wgmma is not told
  WRONG_PHASE,          // of full, from the ring's second round on
  FREED_WITH_SCORES,    // a stage is freed when its first half has been read
  NO_EMPTY_WAIT,        // the producer overwrites stages that are still read
  HALF_ANNOUNCED,       // the bytes of keys alone
  ROWS_FOR_COLUMNS,     // the operand's second and third register exchanged
  LAST_NOT_WAITED,      // the last product of the loop
  FREED_FOR_OTHERS,     // a warp that only looks on: one lane frees a stage that the others still wait for
};

constexpr int TILE = 64, RING = 2, TILES = 5, TILE_BYTES = TILE * TILE * 2, CONSUMER_THREADS = 128, ONLOOKER = 128, PRODUCER = 160;

// out [64 x 64] = sum over tiles t of rounded(q k_t^T) v_t, q [64 x 64]; k and v [5 x 64 x 64], keys along and values across.
template <int KIND>
__global__ void two_products(float* out, const uint16_t* q, const __grid_constant__ CUtensorMap k,
                             const __grid_constant__ CUtensorMap v) {
  FD_DYNAMIC_SHARED(unsigned char, stages);
  FD_SHARED(uint64_t, full, [RING]);
  FD_SHARED(uint64_t, empty, [RING]);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % WARP, row = thread / WARP * 16 + lane / 4;
  if (thread == 0) {
    for (int s = 0; s < RING; ++s) ptx::mbarrier_init(&full[s], 1), ptx::mbarrier_init(&empty[s], CONSUMER_THREADS / WARP + 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (thread >= ONLOOKER && thread < PRODUCER) {
    for (int tile = 0; (KIND == FREED_FOR_OTHERS || lane == 0) && tile < TILES; ++tile) {
      ptx::mbarrier_wait(&full[tile % RING], tile / RING % 2);
      if (lane == 0) ptx::mbarrier_arrive(&empty[tile % RING]);
    }
    return;
  }
  if (thread >= PRODUCER) {
    for (int tile = 0; thread == PRODUCER && tile < TILES; ++tile) {
      const int s = tile % RING;
      unsigned char* const stage = stages + s * 2 * TILE_BYTES;
      if (KIND != NO_EMPTY_WAIT) ptx::mbarrier_wait(&empty[s], (tile / RING + 1) % 2);
      ptx::mbarrier_arrive_expect(&full[s], (KIND == HALF_ANNOUNCED ? 1 : 2) * TILE_BYTES);
      ptx::tma_load_2d(stage, &k, &full[s], 0, tile * TILE);
      ptx::tma_load_2d(stage + TILE_BYTES, &v, &full[s], 0, tile * TILE);
    }
    return;
  }
  uint32_t operand[4][4], weights[4][4];
  for (int c = 0; c < 4; ++c)
    for (int i = 0; i < 4; ++i) {
      const uint16_t* x = q + (row + i % 2 * 8) * TILE + 16 * c + i / 2 * 8 + lane % 4 * 2;
      operand[c][i] = x[0] | static_cast<uint32_t>(x[1]) << 16;
    }
  float scores[TILE / 2], sums[TILE / 2] = {};
  const auto stage_of = [&](int tile) { return ptx::shared_address(stages) + static_cast<uint32_t>(tile % RING * 2 * TILE_BYTES); };
  const auto ask_for_scores = [&](int tile) {
    for (uint32_t c = 0; c < 4; ++c)
      ptx::wgmma_bf16_rs<true>(scores, operand[c], ptx::wgmma_operand(stage_of(tile) + c * 32, 16, 1024), c > 0);
    ptx::wgmma_commit();
  };
  const auto ask_for_values = [&](int tile) {
    for (uint32_t c = 0; c < 4; ++c)
      ptx::wgmma_bf16_rs<false>(sums, weights[c], ptx::wgmma_operand(stage_of(tile) + TILE_BYTES + c * 2048, TILE_BYTES, 1024), true);
    ptx::wgmma_commit();
  };
  const auto free_stage = [&](int tile) {
    if (lane == 0) ptx::mbarrier_arrive(&empty[tile % RING]);
  };
  for (int tile = 0; tile <= TILES; ++tile) {
    if (tile < TILES) ptx::mbarrier_wait(&full[tile % RING], (tile / RING + (KIND == WRONG_PHASE && tile >= RING)) % 2);
    if (KIND != WEIGHTS_NOT_FENCED || tile == 0) ptx::wgmma_fence();
    if (KIND == OTHER_WAITED && tile > 0) ask_for_values(tile - 1);
    if (tile < TILES) ask_for_scores(tile);
    if (KIND != OTHER_WAITED && tile > 0) ask_for_values(tile - 1);
    if (KIND == LAST_NOT_WAITED && tile == TILES) break;
    float seen[TILE / 2] = {};
    if (tile < TILES) {
      if (KIND != SCORES_NOT_WAITED && tile > 0) ptx::wgmma_wait<1>();
      if (tile == 0) ptx::wgmma_wait<0>();
      for (int e = 0; e < TILE / 2; ++e) seen[e] = scores[e];
      if (KIND == FREED_WITH_SCORES) free_stage(tile);
    }
    if (KIND != VALUES_NOT_WAITED || tile == TILES) ptx::wgmma_wait<0>();
    if (KIND != FREED_WITH_SCORES && tile > 0) free_stage(tile - 1);
    for (int i = 0; i < 16; ++i) {
      const int place = KIND == ROWS_FOR_COLUMNS && i % 4 % 3 != 0 ? 3 - i % 4 : i % 4;
      weights[i / 4][place] = ptx::bf16_pair(seen[2 * i], seen[2 * i + 1]);
    }
    if (KIND == VALUES_NOT_WAITED) ptx::wgmma_wait<0>();
  }
  for (int e = 0; e < TILE / 2; ++e) out[(row + e / 2 % 2 * 8) * TILE + e / 4 * 8 + lane % 4 * 2 + e % 2] = sums[e];
}

template <int KIND>
bool two_products_are_right() {
  const auto value = [](size_t i) { return sample(i) / 16.0f; };
  const auto K = [&](size_t t, size_t j, size_t d) { return rounded(value(5000 + (t * TILE + j) * TILE + d)); };
  const auto V = [&](size_t t, size_t j, size_t d) { return rounded(value(90000 + (t * TILE + j) * TILE + d)); };
  Device<uint16_t> q(TILE * TILE, [&](size_t i) { return bf16(value(i)); });
  Device<uint16_t> k(TILES * TILE * TILE, [&](size_t i) { return bf16(value(5000 + i)); });
  Device<uint16_t> v(TILES * TILE * TILE, [&](size_t i) { return bf16(value(90000 + i)); });
  Device<float> out(TILE * TILE, [](size_t) { return 0.0f; });
  CUtensorMap km, vm;
  if (!ptx::tensor_map_2d(&km, k.data, TILES * TILE, TILE, TILE, TILE, TILE) ||
      !ptx::tensor_map_2d(&vm, v.data, TILES * TILE, TILE, TILE, TILE, TILE))
    return false;
  launch_shared(nullptr, "two_products", 1, PRODUCER + WARP, RING * 2 * TILE_BYTES, two_products<KIND>, out.data, q.data, km, vm);
  for (size_t i = 0; i < TILE; ++i) {
    double want[TILE] = {};
    for (size_t t = 0; t < TILES; ++t)
      for (size_t j = 0; j < TILE; ++j) {
        double score = 0;
        for (size_t d = 0; d < TILE; ++d) score += rounded(value(i * TILE + d)) * K(t, j, d);
        for (size_t d = 0; d < TILE; ++d) want[d] += rounded(static_cast<float>(score)) * V(t, j, d);
      }
    for (size_t d = 0; d < TILE; ++d)
      if (!(std::fabs(out.data[i * TILE + d] - want[d]) <= 1e-2 * (1 + std::fabs(want[d])))) return false;
  }
  return true;
}

template <int KIND>
Case of_products(const char* name) {
  return {name, two_products_are_right<CORRECT>, two_products_are_right<KIND>};
}

}  // namespace

std::vector<Case> attention_cases() {
  return {of_products<SCORES_NOT_WAITED>("scores_read_before_wait"),
          of_products<OTHER_WAITED>("wait_for_the_other_product"),
          of_products<VALUES_NOT_WAITED>("weights_written_while_read"),
          of_products<WEIGHTS_NOT_FENCED>("weights_not_fenced"),
          of_products<WRONG_PHASE>("stage_wrong_phase_in_second_round"),
          of_products<FREED_WITH_SCORES>("stage_freed_before_its_values"),
          of_products<NO_EMPTY_WAIT>("stages_never_waited_for"),
          of_products<HALF_ANNOUNCED>("bytes_of_keys_alone_announced"),
          of_products<ROWS_FOR_COLUMNS>("operand_registers_exchanged"),
          of_products<LAST_NOT_WAITED>("last_values_not_waited_for"),
          of_products<FREED_FOR_OTHERS>("stage_freed_for_lanes_that_wait")};
}

}  // namespace freedive::cuda
