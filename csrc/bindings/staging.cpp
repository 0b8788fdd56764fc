// staging.cpp: see staging.h.
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
    if (data != nullptr) return;
    const char* why = d->refusal();
    throw std::runtime_error(std::string(d->name) + ": no " + std::to_string(bytes) + " bytes of memory" +
                             (why == nullptr ? " left" : std::string(": ") + why));
  }
  Memory(Memory&& o) noexcept : device(o.device), data(o.data) { o.data = nullptr; }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    if (data != nullptr) device->release(data);
  }
};

template <class F>
void each_tensor(const OpSchema& schema, std::vector<uint8_t>& args, F&& f) {
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
}

}  // namespace

std::vector<HostPiece> host_pieces(const OpSchema& schema, const std::vector<uint8_t>& args) {
  std::vector<HostPiece> all;
  std::vector<uint8_t> same = args;
  each_tensor(schema, same, [&](const Field& field, const fd_tensor& t) {
    auto* begin = static_cast<uint8_t*>(t.data);
    all.push_back({begin, begin + extent(t), field.written});
  });
  std::sort(all.begin(), all.end(), [](const HostPiece& a, const HostPiece& b) { return a.begin < b.begin; });
  std::vector<HostPiece> merged;
  for (const HostPiece& r : all) {
    if (!merged.empty() && (r.begin < merged.back().end || r.begin == merged.back().begin)) {
      merged.back().end = std::max(merged.back().end, r.end);
      merged.back().written |= r.written;
    } else {
      merged.push_back(r);
    }
  }
  return merged;
}

std::vector<uint8_t> args_over(const OpSchema& schema, std::vector<uint8_t> args, const std::vector<HostPiece>& pieces,
                               const std::vector<uint8_t*>& copies) {
  each_tensor(schema, args, [&](const Field&, fd_tensor& t) {
    auto* begin = static_cast<uint8_t*>(t.data);
    const auto after =
        std::upper_bound(pieces.begin(), pieces.end(), begin, [](const uint8_t* p, const HostPiece& r) { return p < r.begin; });
    const size_t i = static_cast<size_t>(after - pieces.begin()) - 1;
    t.data = copies[i] + (begin - pieces[i].begin);
  });
  return args;
}

void run_staged(const fd_device_table* device, const fd_variant& variant, const OpSchema& schema, std::vector<uint8_t> args,
                size_t workspace_bytes) {
  const std::vector<HostPiece> pieces = host_pieces(schema, args);
  std::vector<Memory> copies;
  std::vector<uint8_t*> places;
  copies.reserve(pieces.size());
  for (const HostPiece& r : pieces) {
    copies.emplace_back(device, r.bytes());
    std::memcpy(copies.back().data, r.begin, r.bytes());
    places.push_back(copies.back().data);
  }
  args = args_over(schema, std::move(args), pieces, places);
  const Memory workspace(device, workspace_bytes);
  std::memset(workspace.data, 0xFF, workspace_bytes);  // NaN: nobody may read what it did not write
  fd_context ctx{nullptr, nullptr, workspace.data, workspace_bytes, 1};
  variant.run(&ctx, args.data());
  if (const char* error = device->synchronize(&ctx)) throw std::runtime_error(error);
  for (size_t i = 0; i < pieces.size(); ++i)
    if (pieces[i].written) std::memcpy(pieces[i].begin, copies[i].data, pieces[i].bytes());
}

}  // namespace freedive
