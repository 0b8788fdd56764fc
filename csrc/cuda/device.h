// device.h: what the files of the CUDA device show each other: the list of variants of each family, and how errors are told.
#pragma once
#include "../ops.h"

namespace freedive::cuda {

struct VariantList {
  const fd_variant* variants;
  int n;
};
VariantList embedding_variants();
VariantList norm_variants();
VariantList rope_variants();
VariantList activation_variants();
VariantList matmul_variants();
VariantList attention_variants();
VariantList attention_backward_variants();
VariantList kv_cache_variants();
VariantList head_variants();
VariantList sampling_variants();
VariantList decoding_variants();
VariantList quantized_variants();
VariantList optimizer_variants();

// Words of 32 bits of a packed weight [O, C]: 0 in float32.
int64_t matmul_packed_size(int64_t O, int64_t C, int64_t compute);
// Bytes of a packed weight and of a row of the file; 0 of what is not held packed. See ops.h.
int64_t quantized_size(int64_t O, int64_t C, int64_t type);
int64_t quantized_row(int64_t C, int64_t type);

// The first error of a stream since it was last waited for is kept, for who waits for it.
void record_error(const void* stream, const char* op, const char* what);
void note_launch(const void* stream, const char* op);  // to be named when a later wait fails
bool wait_after_each();  // FREEDIVE_CUDA_SYNC: every launch is waited for, so that an error names its kernel

#define FD_VARIANT_LIST(family, ...)                                  \
  VariantList family##_variants() {                                   \
    static const fd_variant list[] = {__VA_ARGS__};                   \
    return {list, static_cast<int>(sizeof(list) / sizeof(list[0]))};  \
  }

}  // namespace freedive::cuda
