// device.cpp: picks the tier. Compiled once, without ISA flags: it runs before anything is known about the processor.
#include "device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifdef FREEDIVE_HAS_ARM_TIERS
#include <sys/auxv.h>
#endif

namespace freedive {

namespace tier_baseline {
const fd_device_table* device_table();
}
#ifdef FREEDIVE_HAS_X86_TIERS
namespace tier_avx2 {
const fd_device_table* device_table();
}
namespace tier_avx512 {
const fd_device_table* device_table();
}
namespace tier_avx512_bf16 {
const fd_device_table* device_table();
}
#endif
#ifdef FREEDIVE_HAS_ARM_TIERS
namespace tier_neon {
const fd_device_table* device_table();
}
namespace tier_neon_bf16 {
const fd_device_table* device_table();
}
#endif

namespace {

char error_text[256];

struct Tier {
  const char* name;
  bool runs;  // on this processor (and the system saves its registers: __builtin_cpu_supports asks XGETBV)
  const fd_device_table* (*table)();
};

// From the plainest to the best.
std::vector<Tier> tiers() {
  std::vector<Tier> all = {{"baseline", true, tier_baseline::device_table}};
#ifdef FREEDIVE_HAS_X86_TIERS
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  all.push_back({"avx2", avx2, tier_avx2::device_table});
  all.push_back({"avx512", avx512, tier_avx512::device_table});
  all.push_back({"avx512_bf16", avx512 && __builtin_cpu_supports("avx512bf16"), tier_avx512_bf16::device_table});
#endif
#ifdef FREEDIVE_HAS_ARM_TIERS
  constexpr unsigned long ASIMD = 1 << 1, BF16 = 1 << 14;  // HWCAP_ASIMD, HWCAP2_BF16: older headers lack the second
  const bool neon = (getauxval(AT_HWCAP) & ASIMD) != 0;
  all.push_back({"neon", neon, tier_neon::device_table});
  all.push_back({"neon_bf16", neon && (getauxval(AT_HWCAP2) & BF16) != 0, tier_neon_bf16::device_table});
#endif
  return all;
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
  std::vector<const char*> names;
  for (const Tier& t : tiers())
    if (t.runs) names.push_back(t.name);
  return names;
}

const fd_device_table* cpu_tier(const char* name) {
  for (const Tier& t : tiers())
    if (t.runs && std::strcmp(name, t.name) == 0) return t.table();
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
