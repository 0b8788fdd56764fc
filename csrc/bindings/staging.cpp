// staging.cpp: see staging.h. Arrays may be slices of one buffer, or one array given twice (out may be x): ranges of host memory
// that overlap go to one piece of device memory, so what is one place there is one place here.
#include "staging.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "../core/context.h"

namespace freedive {

namespace {

int64_t element_bytes(int32_t dtype) {
  switch (dtype) {
    case FD_I64:
    case FD_U64:
      return 8;
    case FD_BF16:
      return 2;
    case FD_U8:
    case FD_I8:
      return 1;
    default:
      return 4;
  }
}

// From the first element to behind the last.
size_t extent(const fd_tensor& t) {
  int64_t last = 0;
  for (int i = 0; i < t.ndim; ++i) {
    if (t.shape[i] == 0) return 0;
    last += (t.shape[i] - 1) * t.stride[i];
  }
  return static_cast<size_t>((last + 1) * element_bytes(t.dtype));
}

struct Memory {
  const fd_device_table* device;
  uint8_t* data;
  Memory(const fd_device_table* d, size_t bytes) : device(d), data(static_cast<uint8_t*>(d->allocate(bytes > 0 ? bytes : 1))) {
    if (data == nullptr)
      throw std::runtime_error(std::string(d->name) + ": no " + std::to_string(bytes) + " bytes of memory left");
  }
  Memory(Memory&& o) noexcept : device(o.device), data(o.data) { o.data = nullptr; }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    if (data != nullptr) device->release(data);
  }
};

struct Range {
  uint8_t *begin, *end;
  bool written;
};

}  // namespace

void run_staged(const fd_device_table* device, const fd_variant& variant, const OpSchema& schema, std::vector<uint8_t> args,
                size_t workspace_bytes) {
  std::vector<Range> ranges;
  auto each_tensor = [&](auto&& f) {
    size_t at = 0;
    for (const Field& field : schema.fields) {
      if (field.tensor) {
        fd_tensor t;
        std::memcpy(&t, &args[at], sizeof t);
        if (t.data != nullptr) f(field, t);
        std::memcpy(&args[at], &t, sizeof t);
      }
      at += field.tensor ? sizeof(fd_tensor) : 8;
    }
  };
  each_tensor([&](const Field& field, const fd_tensor& t) {
    auto* begin = static_cast<uint8_t*>(t.data);
    ranges.push_back({begin, begin + extent(t), field.written});
  });
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  std::vector<Range> merged;
  for (const Range& r : ranges) {
    if (!merged.empty() && (r.begin < merged.back().end || r.begin == merged.back().begin)) {
      merged.back().end = std::max(merged.back().end, r.end);
      merged.back().written |= r.written;
    } else {
      merged.push_back(r);
    }
  }
  std::vector<Memory> copies;
  copies.reserve(merged.size());
  for (const Range& r : merged) {
    copies.emplace_back(device, static_cast<size_t>(r.end - r.begin));
    std::memcpy(copies.back().data, r.begin, static_cast<size_t>(r.end - r.begin));
  }
  each_tensor([&](const Field&, fd_tensor& t) {
    auto* begin = static_cast<uint8_t*>(t.data);
    const auto after =
        std::upper_bound(merged.begin(), merged.end(), begin, [](const uint8_t* p, const Range& r) { return p < r.begin; });
    const size_t i = static_cast<size_t>(after - merged.begin()) - 1;
    t.data = copies[i].data + (begin - merged[i].begin);
  });
  const Memory workspace(device, workspace_bytes);
  std::memset(workspace.data, 0xFF, workspace_bytes);  // NaN: nobody may read what it did not write
  fd_context ctx{nullptr, nullptr, workspace.data, workspace_bytes, 1};
  variant.run(&ctx, args.data());
  if (const char* error = device->synchronize(&ctx)) throw std::runtime_error(error);
  for (size_t i = 0; i < merged.size(); ++i)
    if (merged[i].written) std::memcpy(merged[i].begin, copies[i].data, static_cast<size_t>(merged[i].end - merged[i].begin));
}

}  // namespace freedive
