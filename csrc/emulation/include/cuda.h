// What the host side of csrc/cuda/ptx_sm90.cuh uses of <cuda.h>: the description of a tensor that TMA copies parts of. The real
// one is opaque.
#pragma once
#include <cstdint>

#include "../emulator.h"

using CUresult = int;
enum : CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_FLOAT32 = 7, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE = 0 };
enum CUtensorMapSwizzle {
  CU_TENSOR_MAP_SWIZZLE_NONE = 0,
  CU_TENSOR_MAP_SWIZZLE_32B = 1,
  CU_TENSOR_MAP_SWIZZLE_64B = 2,
  CU_TENSOR_MAP_SWIZZLE_128B = 3
};
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_NONE = 0, CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0 };

struct alignas(64) CUtensorMap {
  const char* base;
  uint64_t columns, rows, row_bytes;
  uint32_t box_columns, box_rows, element_bytes, swizzle;
  uint64_t unused[10];
};
static_assert(sizeof(CUtensorMap) == 128, "as on a GPU");

inline void visit_pointers(const CUtensorMap& map, int argument) {
  if (map.base != nullptr) emu::require_device_memory(map.base, argument);
}

// Refuses what the driver refuses: bases and rows that are not aligned to 16 bytes, boxes too large, an inner dimension wider
// than its swizzle.
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base,
                                const cuuint64_t* dimensions, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* element_strides, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill);
