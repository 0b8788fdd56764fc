// buffer.h: memory of the decoder, of whatever device.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../ops.h"

namespace freedive {

// Zero-filled, 64-byte aligned memory. Of a device with memory of its own: PRIVATE to the kernels, SHARED with the host
// (parameters, gradients, moments: Python's arrays), or the HOST's, for copies (not zero). Elsewhere page-lazy memory of the
// process.
class Buffer {
 public:
  enum Kind { PRIVATE, SHARED, HOST };
  Buffer() = default;
  explicit Buffer(size_t bytes, bool huge_pages = true, const fd_device_table* device = nullptr, Kind kind = PRIVATE);
  Buffer(void* part, size_t bytes) : data_(part), size_(bytes), borrowed_(true) {}  // of another buffer
  ~Buffer();
  Buffer(Buffer&& o) noexcept;
  Buffer& operator=(Buffer&& o) noexcept;
  float* floats() const { return static_cast<float*>(data_); }
  uint8_t* bytes() const { return static_cast<uint8_t*>(data_); }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
  bool borrowed_ = false;
  void (*release_)(void*) = nullptr;  // the device's
};

}  // namespace freedive
