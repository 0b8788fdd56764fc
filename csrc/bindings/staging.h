// An op called from Python on a device with memory of its own: NumPy arrays are copied there and back.
#pragma once
#include <vector>

#include "../ops.h"
#include "schema.h"

namespace freedive {

// args: the op's argument struct over host memory. Throws RuntimeError when memory is short or the device tells of an error;
// arrays are then as they were.
void run_staged(const fd_device_table* device, const fd_variant& variant, const OpSchema& schema, std::vector<uint8_t> args,
                size_t workspace_bytes);

// The pieces of host memory that an op's tensors lie in. Arrays may be slices of one buffer, or one array given twice (out may be
// x): what overlaps is one piece, so what is one place there is one place on the device.
struct HostPiece {
  uint8_t *begin, *end;
  bool written;
  size_t bytes() const { return static_cast<size_t>(end - begin); }
};
std::vector<HostPiece> host_pieces(const OpSchema& schema, const std::vector<uint8_t>& args);
// The argument struct over `copies`, one for each piece.
std::vector<uint8_t> args_over(const OpSchema& schema, std::vector<uint8_t> args, const std::vector<HostPiece>& pieces,
                               const std::vector<uint8_t*>& copies);

}  // namespace freedive
