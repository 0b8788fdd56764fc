// tier.h: what the files of one tier show each other: the list of variants of each family.
#pragma once
#include "simd.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {

struct VariantList {
  const fd_variant* variants;
  int n;
};
VariantList embedding_variants();
VariantList norm_variants();
VariantList rope_variants();
VariantList activation_variants();
VariantList cast_variants();
VariantList matmul_variants();
VariantList matmul_activation_variants();
VariantList attention_variants();
VariantList attention_backward_variants();
VariantList head_variants();
VariantList sampling_variants();
VariantList decoding_variants();
VariantList quantized_variants();
VariantList quantized_pack_variants();
VariantList vnni_variants();  // none where the processor lacks it
VariantList optimizer_variants();

double peak_run(fd_context* ctx, int64_t iterations, int64_t compute);
const fd_device_table* device_table();

#define FD_VARIANT_LIST(family, ...)                                 \
  VariantList family##_variants() {                                  \
    static const fd_variant list[] = {__VA_ARGS__};                  \
    return {list, static_cast<int>(sizeof(list) / sizeof(list[0]))}; \
  }

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
