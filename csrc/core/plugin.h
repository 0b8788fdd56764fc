// Devices that are not linked in: a plugin beside the package's own module, opened when its device is first asked for. So nothing
// of CUDA is needed to import the package, and a build without CUDA lacks a file and nothing else.
#pragma once
#include <cstdint>
#include <string>

#include "../ops.h"
#include "context.h"

namespace freedive {

// What a plugin and the package's own module must both have been compiled with: the ops and their schemas, and the sizes of what
// is handed over. A plugin left from another build would be called with arguments it does not know.
constexpr uint64_t plugin_layout() {
#define FD_LINE(op, schema) #op " " schema "\n"
  constexpr char ops[] = FD_OPS(FD_LINE);
#undef FD_LINE
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (char c : ops) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  for (uint64_t size : {sizeof(fd_tensor), sizeof(fd_context), sizeof(fd_variant), sizeof(fd_device_table)})
    hash = (hash ^ size) * 0x100000001b3u;
  return hash;
}

// "cuda" is _cuda.so, "cuda-emu" is _cuda_emu.so. Null when there is none, and in *why a sentence.
const fd_device_table* plugin_device(const std::string& name, std::string* why);

}  // namespace freedive
