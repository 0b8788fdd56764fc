// device.cpp: picks the tier. Compiled once, without ISA flags: it runs before anything is known about the processor.
#include "device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace freedive {

namespace tier_baseline {
const fd_device_table* device_table();
}
#ifdef FREEDIVE_HAS_AVX2
namespace tier_avx2 {
const fd_device_table* device_table();
}
#endif

namespace {

char error_text[256];

bool runs_avx2() {
#ifdef FREEDIVE_HAS_AVX2
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

const fd_device_table* choose() {
  const char* wanted = std::getenv("FREEDIVE_CPU_ISA");
  if (wanted == nullptr || *wanted == 0) return cpu_tier(cpu_tiers().back());
  const fd_device_table* table = cpu_tier(wanted);
  if (table == nullptr) {
    int at = std::snprintf(error_text, sizeof(error_text),
                           "FREEDIVE_CPU_ISA=%.40s cannot run here; this build and processor have:", wanted);
    for (const char* name : cpu_tiers()) {
      if (at > 0 && at < static_cast<int>(sizeof(error_text)))
        at += std::snprintf(error_text + at, sizeof(error_text) - at, " %s", name);
    }
  }
  return table;
}

}  // namespace

std::vector<const char*> cpu_tiers() {
  std::vector<const char*> tiers = {"baseline"};
  if (runs_avx2()) tiers.push_back("avx2");
  return tiers;
}

const fd_device_table* cpu_tier(const char* name) {
  if (std::strcmp(name, "baseline") == 0) return tier_baseline::device_table();
#ifdef FREEDIVE_HAS_AVX2
  if (std::strcmp(name, "avx2") == 0 && runs_avx2()) return tier_avx2::device_table();
#endif
  return nullptr;
}

const fd_device_table* cpu_device() {
  static const fd_device_table* const chosen = choose();
  return chosen;
}

const char* cpu_device_error() {
  cpu_device();
  return error_text;
}

}  // namespace freedive
