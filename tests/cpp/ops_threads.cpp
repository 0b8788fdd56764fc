// Every op of ops.h, every variant, every tier, on random shapes and strides: the results of four threads must be those of one,
// bit for bit. Built with a sanitizer (dev/sanitize.sh) it also finds data races, reads and writes outside tensors or outside the
// workspace a variant asked for, and undefined arithmetic.
//
//   ops_threads [rounds, default 30] [seed, default 1]
#include <cstdio>

#include "../../csrc/core/dispatch.h"
#include "../../csrc/core/thread_pool.h"
#include "../../csrc/cpu/device.h"
#include "op_calls.h"

using namespace freedive;

namespace {

// Runs on the call's own memory and returns it; the memory is put back as it was.
std::vector<std::vector<uint8_t>> run(Call& call, const fd_variant& variant, ThreadPool& pool) {
  const auto before = call.memory;
  const int32_t threads = pool.size();
  const size_t bytes = variant.workspace == nullptr ? 0 : variant.workspace(call.arguments.data(), threads);
  std::unique_ptr<uint8_t, decltype(&std::free)> workspace(
      static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64)), &std::free);
  fd_context context{&pool, nullptr, workspace.get(), bytes, threads};
  variant.run(&context, call.arguments.data());
  std::vector<std::vector<uint8_t>> after(before.size());
  for (size_t i = 0; i < before.size(); ++i) {  // copied in place: the struct points there
    after[i] = call.memory[i];
    if (!before[i].empty()) std::memcpy(call.memory[i].data(), before[i].data(), before[i].size());
  }
  return after;
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 30;
  Random random{std::mt19937_64(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1)};
  ThreadPool one(1), four(4);
  int64_t calls = 0, differences = 0;
  for (const char* tier : cpu_tiers()) {
    const fd_device_table* device = cpu_tier(tier);
    for (const OpSchema& schema : op_schemas()) {
      for (int round = 0; round < rounds; ++round) {
        const bool large = round % 6 == 5;
        Call call(schema, device, random, large ? LARGE : SMALL);
        for (int i = 0; i < device->n_variants; ++i) {
          const fd_variant& variant = device->variants[i];
          if (schema.name != variant.op) continue;
          if (large && find_variant(device, variant.op) != &variant) continue;  // the slow ones see small sizes only
          const auto alone = run(call, variant, one), together = run(call, variant, four);
          ++calls;
          if (alone != together) {
            ++differences;
            std::printf("%s %s %s, round %d: four threads differ from one\n", tier, variant.op, variant.name, round);
          }
        }
      }
    }
  }
  std::printf("%lld calls with one and with four threads, %lld differ\n", static_cast<long long>(calls),
              static_cast<long long>(differences));
  return differences == 0 ? 0 : 1;
}
