// Devices that are not linked in: a plugin beside the package's own module, opened when its device is first asked for. So nothing
// of CUDA is needed to import the package, and a build without CUDA lacks a file and nothing else.
#pragma once
#include <string>

#include "../ops.h"

namespace freedive {

// "cuda" is _cuda.so, "cuda-emu" is _cuda_emu.so. Null when there is none, and in *why a sentence.
const fd_device_table* plugin_device(const std::string& name, std::string* why);

}  // namespace freedive
