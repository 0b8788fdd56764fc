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

namespace freedive {

// Bump allocation from the workspace, reset by constructing a new one. Aligned to 64 bytes.
struct Scratch {
  uint8_t* at;
  explicit Scratch(fd_context* ctx) : at(ctx->workspace) {}
  template <class T>
  T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(at);
    at += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return p;
  }
};

}  // namespace freedive
