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

}  // namespace freedive
