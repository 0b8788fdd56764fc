// Context: what an op is given besides its arguments: threads to run on and scratch memory. Knows nothing above it.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../ops.h"

namespace freedive {
class ThreadPool;
}

struct fd_context {
  freedive::ThreadPool* pool;  // CPU devices
  void* stream;                // CUDA devices
  uint8_t* workspace;          // 64-byte aligned
  size_t workspace_bytes;
  int32_t threads;
};
