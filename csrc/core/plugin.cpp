#include "plugin.h"

#include <dlfcn.h>
#include <unistd.h>

#include <map>
#include <mutex>

namespace freedive {

namespace {

struct Opened {
  const fd_device_table* device = nullptr;
  std::string why;
};

Opened open_plugin(const std::string& file) {
  Dl_info here;
  if (dladdr(reinterpret_cast<const void*>(&plugin_device), &here) == 0) return {nullptr, "the package's own file is not found"};
  std::string path = here.dli_fname;
  path = path.substr(0, path.rfind('/') + 1) + file;
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* error = dlerror();
    return {nullptr, access(path.c_str(), F_OK) == 0 && error != nullptr ? error : "this build has no " + file};
  }
  auto* enter = reinterpret_cast<const fd_device_table* (*)(const char**)>(dlsym(library, "freedive_device"));
  if (enter == nullptr) return {nullptr, file + " is no device of this package"};
  auto* layout = reinterpret_cast<uint64_t (*)()>(dlsym(library, "freedive_plugin_layout"));
  if (layout == nullptr || layout() != plugin_layout())
    return {nullptr, file + " was built from other sources than this package: build both again"};
  const char* why = nullptr;
  const fd_device_table* device = enter(&why);
  return {device, device == nullptr && why != nullptr ? why : ""};
}

}  // namespace

const fd_device_table* plugin_device(const std::string& name, std::string* why) {
  static std::map<std::string, Opened> opened;
  static std::mutex in_use;
  std::lock_guard<std::mutex> lock(in_use);
  auto found = opened.find(name);
  if (found == opened.end()) {
    const std::string file = name == "cuda" ? "_cuda.so" : name == "cuda-emu" ? "_cuda_emu.so" : "";
    found = opened.emplace(name, file.empty() ? Opened{nullptr, "there is no such device"} : open_plugin(file)).first;
  }
  *why = found->second.why;
  return found->second.device;
}

}  // namespace freedive
