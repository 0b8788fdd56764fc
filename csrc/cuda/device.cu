// device.cu: the CUDA device: its table of ops, its memory, and the plugin's symbols. The package opens the plugin on
// first use (csrc/core/plugin.h), so that nothing of CUDA is needed to import it.
#include "device.h"

#include <cstdlib>
#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "../core/plugin.h"
#include "launch.cuh"

namespace freedive::cuda {
namespace {

std::vector<fd_variant> all_variants;
fd_device_table table;
std::string first_error;
thread_local std::string told_error;  // to whoever waits, until that thread waits again
std::mutex error_in_use;
std::vector<const char*> launched;  // ops since a stream was last waited for, each once

thread_local cudaError_t refused = cudaSuccess;  // what became of the thread's last allocation

void* given(cudaError_t e, void* memory) {
  refused = e;
  if (e == cudaSuccess) return memory;
  cudaGetLastError();  // told by the null pointer, and not once more by the next kernel
  return nullptr;
}

// By the device, of managed memory too: pages begin where kernels use them, and the host touches none while another decoder's
// kernels run, which GPUs without concurrent managed access (under WSL) do not bear.
void* cleared(cudaError_t e, void* memory, size_t bytes) {
  if (e != cudaSuccess) return given(e, nullptr);
  e = cudaMemsetAsync(memory, 0, bytes, nullptr);
  if (e == cudaSuccess) e = cudaStreamSynchronize(nullptr);
  if (e != cudaSuccess) cudaFree(memory);
  return given(e, memory);
}

// Memory that kernels and the host both see: parameters, gradients and moments, which Python reads and writes as arrays. The host
// may touch it after synchronize() only.
void* allocate(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t e = cudaMallocManaged(&memory, bytes, cudaMemAttachGlobal);
  return cleared(e, memory, bytes);
}

// All the rest: it never moves, and no page of it is ever looked for.
void* allocate_private(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t e = cudaMalloc(&memory, bytes);
  return cleared(e, memory, bytes);
}

size_t free_memory() {
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) == cudaSuccess) return free;
  cudaGetLastError();
  return 0;
}

void* allocate_host(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t e = cudaMallocHost(&memory, bytes);
  return given(e, memory);
}

const char* refusal() {
  return refused == cudaSuccess || refused == cudaErrorMemoryAllocation ? nullptr : cudaGetErrorString(refused);
}

void release(void* memory) { cudaFree(memory); }
void release_host(void* memory) { cudaFreeHost(memory); }

// ---- streams and marks -------------------------------------------------------------------------------------------------
cudaStream_t stream_of(const fd_context* ctx) { return static_cast<cudaStream_t>(ctx->stream); }

void check(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  record_error(what, cudaGetErrorString(e));
  cudaGetLastError();  // told, and not once more by the next kernel
}

void* open_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  return stream;
}
void close_stream(void* stream) {
  cudaStreamSynchronize(static_cast<cudaStream_t>(stream));
  cudaStreamDestroy(static_cast<cudaStream_t>(stream));
}
void copy(fd_context* ctx, void* to, const void* from, size_t bytes) {
  const cudaError_t e = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(ctx));
  if (e != cudaSuccess) check(e, ("a copy of " + std::to_string(bytes) + " bytes").c_str());
}
void clear(fd_context* ctx, void* memory, size_t bytes) {
  const cudaError_t e = cudaMemsetAsync(memory, 0, bytes, stream_of(ctx));
  if (e != cudaSuccess) check(e, ("clearing " + std::to_string(bytes) + " bytes").c_str());
}
void* open_mark() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
  return event;
}
void close_mark(void* mark) { cudaEventDestroy(static_cast<cudaEvent_t>(mark)); }
void mark(fd_context* ctx, void* mark) {
  check(cudaEventRecord(static_cast<cudaEvent_t>(mark), stream_of(ctx)), "recording an event");
}
void follow(fd_context* ctx, void* mark) {
  check(cudaStreamWaitEvent(stream_of(ctx), static_cast<cudaEvent_t>(mark), 0), "waiting for an event");
}

// What a wait found: the first error, which is left to be told again unless it is `taken`. Kernels run later than they are
// launched: of an error that shows here all that is known is which were under way.
const char* told(cudaError_t e, bool taken) {
  std::lock_guard<std::mutex> lock(error_in_use);
  if (e != cudaSuccess && first_error.empty()) {
    first_error = std::string(cudaGetErrorString(e)) + ", in one of:";
    for (size_t i = 0; i < launched.size(); ++i) first_error += std::string(i == 0 ? " " : ", ") + launched[i];
    first_error += "; FREEDIVE_CUDA_SYNC=1 waits after each and names it";
  }
  if (first_error.empty()) return nullptr;
  told_error = first_error;
  if (taken) first_error.clear();
  return told_error.c_str();
}

const char* synchronize(fd_context* ctx) {
  const char* error = told(cudaStreamSynchronize(stream_of(ctx)), true);
  std::lock_guard<std::mutex> lock(error_in_use);
  launched.clear();
  return error;
}
const char* reach(void* mark) { return told(cudaEventSynchronize(static_cast<cudaEvent_t>(mark)), false); }

void* open_clock() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDefault), "an event");
  return event;
}
double seconds_between(void* from, void* to) {
  float milliseconds = 0.0f;
  check(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(from), static_cast<cudaEvent_t>(to)), "reading a clock");
  return 1e-3 * static_cast<double>(milliseconds);
}

// ---- graphs ------------------------------------------------------------------------------------------------------------
bool is_set(const char* variable, const char* off) {
  const char* value = std::getenv(variable);
  return value != nullptr && *value != 0 && std::strcmp(value, off) != 0;
}
bool graphs_wanted() {
  return !wait_after_each() && (std::getenv("FREEDIVE_CUDA_GRAPHS") == nullptr || is_set("FREEDIVE_CUDA_GRAPHS", "0"));
}

struct Graph {
  cudaGraphExec_t launchable = nullptr;
  std::vector<const char*> ops;  // each once, to be named when a later wait fails
  bool failed = false;
};
// Of the thread that captures: one stream at a time. What other threads do meanwhile is no part of it and may be anything.
thread_local Graph* capturing = nullptr;

int32_t begin_graph(fd_context* ctx) {
  if (!graphs_wanted()) return 0;
  if (cudaStreamBeginCapture(stream_of(ctx), cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  capturing = new Graph;
  return 1;
}

void* end_graph(fd_context* ctx) {
  Graph* const made = std::exchange(capturing, nullptr);
  cudaGraph_t graph = nullptr;
  cudaError_t e = cudaStreamEndCapture(stream_of(ctx), &graph);
  if (e == cudaSuccess) e = cudaGraphInstantiate(&made->launchable, graph, 0);
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (e == cudaSuccess && !made->failed) return made;
  // Nothing has been done: it is done without a graph, and an error that is not capture's own shows again there.
  cudaGetLastError();
  if (made->launchable != nullptr) cudaGraphExecDestroy(made->launchable);
  delete made;
  return nullptr;
}

void run_graph(fd_context* ctx, void* graph) {
  auto* g = static_cast<Graph*>(graph);
  for (const char* op : g->ops) note_launch(op);
  check(cudaGraphLaunch(g->launchable, stream_of(ctx)), "launching a graph");
}

void close_graph(void* graph) {  // one under way ends first
  auto* g = static_cast<Graph*>(graph);
  cudaGraphExecDestroy(g->launchable);
  delete g;
}

double peak_run(fd_context*, int64_t, int64_t) { return 0.0; }

void append(VariantList list) { all_variants.insert(all_variants.end(), list.variants, list.variants + list.n); }

const fd_device_table* assemble() {
#ifdef FREEDIVE_CUDA_EMULATION
  table.name = "cuda-emu", table.tier = "emulation", table.fast_bf16 = 0;  // as slow as float32
#else
  table.name = "cuda", table.tier = "sm_80", table.fast_bf16 = 1;  // tensor cores: matmul_sm80.cu
#endif
  append(embedding_variants());
  append(norm_variants());
  append(rope_variants());
  append(activation_variants());
  append(matmul_variants());
  append(attention_variants());
  append(attention_backward_variants());
  append(kv_cache_variants());
  append(head_variants());
  append(sampling_variants());
  append(decoding_variants());
  append(quantized_variants());
  append(optimizer_variants());
  table.variants = all_variants.data(), table.n_variants = static_cast<int32_t>(all_variants.size());
  table.matmul_packed_size = matmul_packed_size;
  table.quantized_size = quantized_size;
  table.quantized_row = quantized_row;
  table.peak_run = peak_run;
  table.allocate = allocate;
  table.release = release;
  table.synchronize = synchronize;
  table.allocate_private = allocate_private, table.free_memory = free_memory;
  table.allocate_host = allocate_host, table.release_host = release_host, table.refusal = refusal;
  table.open_stream = open_stream, table.close_stream = close_stream;
  table.copy = copy, table.clear = clear;
  table.begin_graph = begin_graph, table.end_graph = end_graph;
  table.run_graph = run_graph, table.close_graph = close_graph;
  table.open_mark = open_mark, table.close_mark = close_mark, table.mark = mark, table.follow = follow, table.reach = reach;
  table.open_clock = open_clock, table.seconds_between = seconds_between;
  return &table;
}

#ifndef FREEDIVE_CUDA_EMULATION
__global__ void probe_kernel() {}

// What the runtime calls an insufficient driver is none at all, too.
const char* driver_told(cudaError_t e) {
  static std::string told;
  int driver = 0, runtime = 0;
  if (e != cudaErrorInsufficientDriver || cudaDriverGetVersion(&driver) != cudaSuccess) return cudaGetErrorString(e);
  if (driver == 0) return "there is no NVIDIA driver";
  cudaRuntimeGetVersion(&runtime);
  const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
  told = "the NVIDIA driver is too old: it is for CUDA " + version(driver) + ", and this build for " + version(runtime);
  return told.c_str();
}

// Null, or why no kernel would run on the GPU that is there: else the first op would tell of a missing image only.
const char* misfit() {
  static std::string told;
  cudaFuncAttributes attributes;
  const cudaError_t e = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (e == cudaSuccess) return nullptr;
  cudaGetLastError();
  if (e != cudaErrorNoKernelImageForDevice && e != cudaErrorUnsupportedPtxVersion && e != cudaErrorInvalidDeviceFunction)
    return cudaGetErrorString(e);
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  const std::string is = std::to_string(major) + "." + std::to_string(minor);
  told = "this GPU has compute capability " + is + ", and " +
         (major < 8 ? std::string("8.0 is the least") : "this build has no code for it: build with FREEDIVE_CUDA_RELEASE=ON");
  return told.c_str();
}
#endif

}  // namespace

void record_error(const char* op, const char* what) {
  if (capturing != nullptr) return void(capturing->failed = true);
  std::lock_guard<std::mutex> lock(error_in_use);
  if (first_error.empty()) first_error = std::string(op) + ": " + what;
}

void note_launch(const char* op) {
  const auto add = [&](std::vector<const char*>& ops) {
    if (std::find(ops.begin(), ops.end(), op) == ops.end()) ops.push_back(op);
  };
  if (capturing != nullptr) return add(capturing->ops);
  std::lock_guard<std::mutex> lock(error_in_use);
  add(launched);
}

bool wait_after_each() {
  static const bool wanted = [] {
    return is_set("FREEDIVE_CUDA_SYNC", "0");
  }();
  return wanted;
}

}  // namespace freedive::cuda

// The device, or null and a sentence that says why there is none.
extern "C" __attribute__((visibility("default"))) const fd_device_table* freedive_device(const char** why) {
  static const fd_device_table* const device = freedive::cuda::assemble();
  int count = 0;
  const cudaError_t e = cudaGetDeviceCount(&count);
  *why = nullptr;
  if (e == cudaSuccess && count == 0) *why = "there is no CUDA GPU";
#ifndef FREEDIVE_CUDA_EMULATION
  if (e != cudaSuccess) *why = freedive::cuda::driver_told(e);
  if (*why == nullptr) *why = freedive::cuda::misfit();
#endif
  return *why == nullptr ? device : nullptr;
}

extern "C" __attribute__((visibility("default"))) uint64_t freedive_plugin_layout() { return freedive::plugin_layout(); }
