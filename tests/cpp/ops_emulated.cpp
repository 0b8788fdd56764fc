// Every op of ops.h, every variant of csrc/cuda, on the emulated device, with random shapes and strides, in a program of its
// own: for ThreadSanitizer (dev/emulation.sh thread), which sees races between CUDA threads and between blocks that no schedule
// of the emulator would turn into a wrong number. Each op is called with small sizes, all variants, and those for tensor
// cores (sm..) once with sizes beyond every tile and pipeline. What comes out is not looked at: tests/ops does that. First, how
// the device tells of errors.
//
//   ops_emulated [rounds, default 2] [seed, default 1] [part of an op's name]
#include <chrono>
#include <cstdio>
#include <thread>

#include "op_calls.h"

#include "../../csrc/cuda/launch.cuh"  // last: its words (__noinline__) are the standard headers' too

using namespace freedive;

extern "C" const fd_device_table* freedive_device(const char** why);

namespace {

constexpr Limits DEEP = {400, 400, 20000, 260, FD_BF16};  // sm80 holds 4 stages of 32 k, sm90 3 to 6 of 64

// Memory that kernels and the host both see; as long as the tensor, and a zone behind it is the emulator's.
struct Shared {
  const fd_device_table* device;
  uint8_t* data;
  Shared(const fd_device_table* d, size_t n) : device(d), data(static_cast<uint8_t*>(d->allocate(n > 0 ? n : 1))) {}
  Shared(Shared&& o) noexcept : device(o.device), data(o.data) { o.data = nullptr; }
  ~Shared() {
    if (data != nullptr) device->release(data);
  }
};

// What the device tells of an error, or nothing.
std::string run(const Call& call, const fd_variant& variant) {
  std::vector<uint64_t> arguments = call.arguments;
  std::vector<Shared> memory;
  memory.reserve(call.memory.size());
  size_t at = 0, i = 0;
  for (const Field& f : call.schema.fields) {
    if (!f.tensor) {
      ++at;
      continue;
    }
    fd_tensor t;
    std::memcpy(&t, &arguments[at], sizeof t);
    const std::vector<uint8_t>& bytes = call.memory[i++];
    memory.emplace_back(call.device, bytes.size());
    if (t.data != nullptr) {
      std::memcpy(memory.back().data, bytes.data(), bytes.size());
      t.data = memory.back().data;
    }
    std::memcpy(&arguments[at], &t, sizeof t);
    at += sizeof t / 8;
  }
  const size_t bytes = variant.workspace == nullptr ? 0 : variant.workspace(arguments.data(), 1);
  const Shared workspace(call.device, bytes);
  if (bytes > 0) std::memset(workspace.data, 0xFF, bytes);
  fd_context context{nullptr, nullptr, workspace.data, bytes, 1};
  variant.run(&context, arguments.data());
  const char* error = call.device->synchronize(&context);
  return error == nullptr ? "" : error;
}

__global__ void nothing() {}

// Who waits for a mark is told of an error in its stream, and who waits for all of the stream is, once. Other streams are not
// told: a trainer and a checkpoint's writer have one each. A mark still tells when the stream has been waited for.
bool an_error_is_its_streams(const fd_device_table* device) {
  fd_context trainer{nullptr, device->open_stream(), nullptr, 0, 1}, writer{nullptr, device->open_stream(), nullptr, 0, 1};
  void *mark = device->open_mark(), *copied = device->open_mark();
  const auto fail = [](fd_context& context, const char* op) {  // not a grid of 0 blocks
    cuda::launch(&context, op, int64_t{1} << 32, cuda::WARP, nothing);
  };
  const auto told = [](const char* error) { return std::string(error == nullptr ? "" : error); };
  const auto reached = [&](void* m) {
    std::string error;
    std::thread([&] { error = told(device->reach(m)); }).join();
    return error;
  };
  bool right = reached(mark).empty();  // in no stream yet
  const auto expect = [&](const std::string& error, const char* op) {
    right = right && (op == nullptr ? error.empty() : error.find(std::string(op) + ", 4294967296 blocks") == 0);
  };
  fail(trainer, "trained");
  device->mark(&trainer, mark), device->mark(&writer, copied);
  expect(reached(copied), nullptr);
  expect(told(device->synchronize(&writer)), nullptr);
  expect(reached(mark), "trained");
  expect(told(device->synchronize(&trainer)), "trained");
  expect(told(device->synchronize(&trainer)), nullptr);
  fail(writer, "copied"), fail(writer, "after it");
  device->mark(&writer, copied);
  expect(told(device->synchronize(&trainer)), nullptr);
  device->synchronize(&writer);  // the next snapshot begins
  device->mark(&writer, mark);
  expect(reached(copied), "copied");
  expect(reached(mark), nullptr);
  device->close_mark(mark), device->close_mark(copied);
  device->close_stream(trainer.stream), device->close_stream(writer.stream);
  return right;
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 2;
  Random random{std::mt19937_64(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1)};
  const char* why = nullptr;
  const fd_device_table* device = freedive_device(&why);
  if (device == nullptr) return std::printf("%s\n", why), 1;
  int64_t calls = 0, wrong = 0;
  if (!an_error_is_its_streams(device)) ++wrong, std::printf("an error is not told as it should be\n");
  for (const OpSchema& schema : op_schemas()) {
    if (argc > 3 && schema.name.find(argv[3]) == std::string::npos) continue;
    const auto began = std::chrono::steady_clock::now();
    const int64_t before = calls;
    for (int round = 0; round <= rounds; ++round) {
      const bool deep = round == rounds;
      Call call(schema, device, random, deep ? DEEP : SMALL);
      for (int i = 0; i < device->n_variants; ++i) {
        const fd_variant& variant = device->variants[i];
        if (schema.name != variant.op || (deep && std::strncmp(variant.name, "sm", 2) != 0)) continue;
        const std::string error = run(call, variant);
        ++calls;
        if (error.empty()) continue;
        ++wrong;
        std::printf("%s %s, round %d: %s\n", variant.op, variant.name, round, error.c_str());
      }
    }
    std::printf("%s: %lld calls, %.1f s\n", schema.name.c_str(), static_cast<long long>(calls - before),
                std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
    std::fflush(stdout);
  }
  std::printf("%lld calls, %lld failed\n", static_cast<long long>(calls), static_cast<long long>(wrong));
  return wrong > 0 || calls == 0;
}
