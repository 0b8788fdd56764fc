#include "buffer.h"

#include <sys/mman.h>

#include <new>
#include <stdexcept>
#include <string>
#include <utility>

namespace freedive {

namespace {

struct OutOfMemory : std::bad_alloc {  // Python's MemoryError, with these words
  explicit OutOfMemory(std::string w) : words(std::move(w)) {}
  const char* what() const noexcept override { return words.c_str(); }
  std::string words;
};

}  // namespace

// Anonymous mappings: zero-filled, and pages nobody touched cost nothing, so capacity may exceed what a run uses.
Buffer::Buffer(size_t bytes, bool huge_pages, const fd_device_table* device, Kind kind) : size_(bytes) {
  if (bytes == 0) return;
  if (device != nullptr && device->allocate != nullptr) {
    data_ = kind == SHARED ? device->allocate(bytes)
            : kind == HOST ? device->allocate_host(bytes)
                           : device->allocate_private(bytes);
    release_ = kind == HOST ? device->release_host : device->release;
    if (data_ != nullptr) return;
    const std::string lacks =
        std::string(device->name) + ": no " + std::to_string(bytes) + " bytes of " + (kind == HOST ? "pinned memory" : "memory");
    if (const char* why = device->refusal()) throw std::runtime_error(lacks + ": " + why);
    throw OutOfMemory(lacks + " left");
  }
  data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data_ == MAP_FAILED) data_ = nullptr, throw OutOfMemory("no " + std::to_string(bytes) + " bytes of memory left");
#ifdef MADV_HUGEPAGE
  if (bytes >= (size_t{4} << 20)) madvise(data_, bytes, huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
}
Buffer::~Buffer() {
  if (data_ == nullptr || borrowed_) return;
  if (release_ != nullptr)
    release_(data_);
  else
    munmap(data_, size_);
}
Buffer::Buffer(Buffer&& o) noexcept
    : data_(std::exchange(o.data_, nullptr)),
      size_(std::exchange(o.size_, 0)),
      borrowed_(o.borrowed_),
      release_(std::exchange(o.release_, nullptr)) {}
Buffer& Buffer::operator=(Buffer&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  std::swap(borrowed_, o.borrowed_);
  std::swap(release_, o.release_);
  return *this;
}

}  // namespace freedive
