// A ggml type's rows into the records of quantized.h: once, when a model is loaded.
// Blocks as of ggml-common.h: Q8_0 {f16 d; i8 q[32]}, Q4_0 {f16 d; u8 q[16]}, Q4_1 {f16 d, m; u8 q[16]}, Q5_0 {f16 d; u32 h; u8
// q[16]}, Q5_1 {f16 d, m; u32 h; u8 q[16]}; Q4_K {f16 d, dmin; u8 s[12]; u8 q[128]} and Q5_K {.. u8 h[32]; u8 q[128]} hold 8
// blocks of 32.
#include "quantized.h"
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {

namespace {

enum {
  GGML_F32 = 0,
  GGML_F16 = 1,
  GGML_Q4_0 = 2,
  GGML_Q4_1 = 3,
  GGML_Q5_0 = 6,
  GGML_Q5_1 = 7,
  GGML_Q8_0 = 8,
  GGML_Q4_K = 12,
  GGML_Q5_K = 13,
  GGML_BF16 = 30
};

struct TypeInfo {
  Kind kind;
  int64_t numbers, bytes;  // of a block in the file
};
TypeInfo info_of(int64_t type) {
  switch (type) {
    case GGML_F32:
      return {W_F32, 1, 4};
    case GGML_F16:
      return {W_F16, 1, 2};
    case GGML_BF16:
      return {W_BF16, 1, 2};
    case GGML_Q8_0:
      return {W_I8, 32, 34};
    case GGML_Q4_0:
      return {W_I4, 32, 18};
    case GGML_Q4_1:
      return {W_I4_MIN, 32, 20};
    case GGML_Q5_0:
      return {W_I8, 32, 22};
    case GGML_Q5_1:
      return {W_I8_MIN, 32, 24};
    case GGML_Q4_K:
      return {W_I4_MIN32, 256, 144};
    case GGML_Q5_K:
      return {W_I8_MIN32, 256, 176};
    default:
      return {W_NONE, 1, 0};
  }
}

// Block b of a row: its quants as bytes [32] or, of four bits, as ggml's 16 bytes; scale and minimum as they are stored in the
// record.
struct Block {
  uint8_t quants[32];
  uint8_t scale[4], minimum[4];
};

// 6-bit scale and minimum of sub-block i of a K type.
FD_INLINE void scale_and_min(const uint8_t* s, int64_t i, int32_t* scale, int32_t* minimum) {
  if (i < 4) {
    *scale = s[i] & 63, *minimum = s[i + 4] & 63;
  } else {
    *scale = (s[i + 4] & 15) | (s[i - 4] >> 6) << 4;
    *minimum = (s[i + 4] >> 4) | (s[i] >> 6) << 4;
  }
}

void read_block(int64_t type, const uint8_t* row, int64_t b, Block* to) {
  const TypeInfo info = info_of(type);
  if (info.numbers == 256) {
    const uint8_t* super = row + b / 8 * info.bytes;
    const int64_t i = b % 8;
    const bool five = type == GGML_Q5_K;
    int32_t scale, minimum;
    scale_and_min(super + 4, i, &scale, &minimum);
    const float d = half_float(super) * static_cast<float>(scale), m = -(half_float(super + 2) * static_cast<float>(minimum));
    memcpy(to->scale, &d, 4);
    memcpy(to->minimum, &m, 4);
    const uint8_t* q = super + (five ? 48 : 16) + i / 2 * 32;  // two sub-blocks share 32 bytes: low halves, high halves
    uint8_t quants[32];
    for (int k = 0; k < 32; ++k) quants[k] = q[k] >> (i % 2 * 4) & 15;
    if (five) {
      for (int k = 0; k < 32; ++k) to->quants[k] = static_cast<uint8_t>(quants[k] | (super[16 + k] >> i & 1) << 4);
    } else {
      for (int k = 0; k < 16; ++k) to->quants[k] = static_cast<uint8_t>(quants[k] | quants[16 + k] << 4);
    }
    return;
  }
  const uint8_t* at = row + b * info.bytes;
  const bool has_min = KIND_INFO[info.kind].has_min;
  memcpy(to->scale, at, 2);
  if (has_min) memcpy(to->minimum, at + 2, 2);
  const uint8_t* q = at + (has_min ? 4 : 2);
  if (type == GGML_Q8_0) {
    for (int k = 0; k < 32; ++k) to->quants[k] = q[k] ^ 0x80;
  } else if (type == GGML_Q4_0 || type == GGML_Q4_1) {
    memcpy(to->quants, q, 16);
  } else {  // Q5_0 counts from -16 and is held from 128 on; Q5_1 from 0
    uint32_t high;
    memcpy(&high, q, 4);
    const int32_t base = type == GGML_Q5_0 ? 128 - 16 : 0;
    for (int k = 0; k < 32; ++k) {
      const int32_t low = k < 16 ? q[4 + k] & 15 : q[4 + k - 16] >> 4;
      to->quants[k] = static_cast<uint8_t>((low | (high >> k & 1) << 4) + base);
    }
  }
}

void pack_strip(int64_t type, const fd_tensor& rows, int64_t C, int64_t s, uint8_t* to) {
  const TypeInfo info = info_of(type);
  const KindInfo& K = KIND_INFO[info.kind];
  const int64_t columns = min64(STRIP, rows.shape[0] - s * STRIP), blocks = ceil_div(C, BLOCK);
  const auto row = [&](int64_t i) { return static_cast<const uint8_t*>(rows.data) + (s * STRIP + i) * rows.stride[0]; };
  for (int64_t b = 0; b < blocks; ++b) {
    uint8_t* record = to + b * K.record;
    memset(record, 0, K.record);
    for (int64_t i = 0; i < columns; ++i) {
      if (!K.integer) {
        const int64_t size = info.bytes, count = min64(BLOCK, C - b * BLOCK);
        const uint8_t* from = row(i) + b * BLOCK * size;
        for (int64_t k = 0; k < count; ++k)
          memcpy(record + (info.kind == W_BF16 ? (k / 2 * STRIP + i) * 4 + k % 2 * 2 : (k * STRIP + i) * size), from + k * size,
                 size);
        continue;
      }
      Block block;
      read_block(type, row(i), b, &block);
      for (int64_t g = 0; g < (K.four ? 4 : 8); ++g) memcpy(record + (g * STRIP + i) * 4, block.quants + 4 * g, 4);
      const int64_t width = K.wide ? 4 : 2;
      memcpy(record + K.quants + i * width, block.scale, width);
      if (K.has_min) memcpy(record + K.quants + (STRIP + i) * width, block.minimum, width);
    }
  }
}

void pack(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_quantized_pack_args*>(p);
  const TypeInfo info = info_of(a.type);
  if (info.kind == W_NONE) return;
  const int64_t C = a.rows.shape[1] / info.bytes * info.numbers;
  const Quantized w = {static_cast<uint8_t*>(a.packed.data), a.rows.shape[0], C, info.kind};
  const int64_t bytes = w.strip_bytes();
  parallel_units(ctx, w.strips(),
                 [&](int64_t s, int) { pack_strip(a.type, a.rows, C, s, const_cast<uint8_t*>(w.data) + s * bytes); });
}

}  // namespace

Kind kind_of_type(int64_t type) { return info_of(type).kind; }

int64_t quantized_size(int64_t O, int64_t C, int64_t type) {
  const TypeInfo info = info_of(type);
  if (info.kind == W_NONE || C % info.numbers != 0 || O < 0 || C < 0) return 0;
  const Quantized w = {nullptr, O, C, info.kind};
  return w.strips() * w.strip_bytes();
}

int64_t quantized_row(int64_t C, int64_t type) {
  const TypeInfo info = info_of(type);
  return info.kind == W_NONE || C < 0 || C % info.numbers != 0 ? 0 : C / info.numbers * info.bytes;
}

FD_VARIANT_LIST(quantized_pack, {"quantized_pack", "naive", 0, pack, nullptr})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
