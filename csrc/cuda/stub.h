// The CUDA stub's device table. Compiled when FREEDIVE_CUDA_STUB is ON; linked into nothing.
#pragma once
#include "../core/context.h"
#include "../ops.h"

namespace freedive {

// Three ops of ops.h on a GPU; every other op is absent.
const fd_device_table* cuda_stub_device();

}  // namespace freedive
