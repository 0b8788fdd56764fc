// device.h: the CPU as a device: which instruction-set tier runs here, and the table of its ops.
#pragma once
#include <vector>

#include "../ops.h"

namespace freedive {

// The best tier this processor has, or the one FREEDIVE_CPU_ISA names. NULL if that one is unknown or cannot run
// here; cpu_device_error() then says why.
const fd_device_table* cpu_device();
const char* cpu_device_error();

// Tiers built in and runnable here, best last; cpu_tier(name) is NULL for any other name.
std::vector<const char*> cpu_tiers();
const fd_device_table* cpu_tier(const char* name);

}  // namespace freedive
