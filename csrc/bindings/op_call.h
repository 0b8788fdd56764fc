// A call of an op by name that has been checked against the schema of ops.h: what is left is to run it.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "../ops.h"
#include "schema.h"

namespace freedive {

struct CheckedCall {
  const OpSchema* schema;
  const fd_device_table* device;
  const fd_variant* variant;
  std::vector<uint8_t> args;  // the op's argument struct, over the arrays' own memory
  size_t workspace_bytes;
  int threads;
};

// Throws ValueError for what does not fit the op, RuntimeError for a device that is not there. variant: a name, or None for the
// fastest.
CheckedCall check_call(const std::string& name, const pybind11::object& variant, int threads, const pybind11::dict& arguments,
                       const std::string& device);

extern std::mutex shared_pools_in_use;  // held while an op runs on shared_pool(threads)

void bind_resident(pybind11::module_& m);  // resident.cpp

}  // namespace freedive
