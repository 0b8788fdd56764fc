// tier.cpp: the device table of one ISA tier.
//
// For the build: every csrc/cpu/*.cpp except device.cpp is compiled once per tier, as an object library, with
//   baseline:  -O3 -ffp-contract=off -DFREEDIVE_TIER_NAMESPACE=tier_baseline
//   avx2:      -O3 -ffp-contract=off -DFREEDIVE_TIER_NAMESPACE=tier_avx2 -mavx2 -mfma -DFREEDIVE_AVX2
//   avx512, avx512_bf16, neon, neon_bf16: as CMakeLists.txt says
// device.cpp is compiled once, without ISA flags (-DFREEDIVE_HAS_X86_TIERS or _ARM_TIERS when the objects of these are linked
// in). No -ffast-math, ever: the determinism rules of ops.h rest on IEEE arithmetic. Run dev/check_weak_symbols.py on the
// directory of a tier's objects.
#include "tier.h"

#include "matmul.h"
#include "quantized.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

constexpr int CAPACITY = 128;
fd_variant all_variants[CAPACITY];
fd_device_table table;

#ifdef FREEDIVE_BF16
constexpr int32_t FAST_BF16 = 1;
#else
constexpr int32_t FAST_BF16 = 0;
#endif

void append(VariantList list) {
  for (int i = 0; i < list.n && table.n_variants < CAPACITY; ++i) all_variants[table.n_variants++] = list.variants[i];
}

const fd_device_table* assemble() {
  table.name = "cpu";
  table.tier = FREEDIVE_TIER_NAME;
  table.variants = all_variants;
  table.n_variants = 0;
  append(embedding_variants());
  append(norm_variants());
  append(rope_variants());
  append(activation_variants());
  append(cast_variants());
  append(matmul_variants());
  append(matmul_activation_variants());
  append(attention_variants());
  append(attention_backward_variants());
  append(head_variants());
  append(sampling_variants());
  append(decoding_variants());
  append(quantized_variants());
  append(quantized_pack_variants());
  append(vnni_variants());
  append(optimizer_variants());
  table.matmul_packed_size = matmul_packed_size;
  table.quantized_size = quantized_size;
  table.quantized_row = quantized_row;
  table.peak_run = peak_run;
  table.fast_bf16 = FAST_BF16;
  return &table;
}

}  // namespace

const fd_device_table* device_table() {
  static const fd_device_table* const assembled = assemble();
  return assembled;
}

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
