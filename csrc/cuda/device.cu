// device.cu: the CUDA device: its table of ops, its memory, and the plugin's symbols. The package opens the plugin on
// first use (csrc/core/plugin.h), so that nothing of CUDA is needed to import it.
#include "device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
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

// What a stream was given since it was last waited for as a whole. An error is told to who waits for that stream, or for a mark
// in it, and to nobody else.
struct Given {
  std::vector<const char*> ops;  // each once, to be named when a wait fails
  std::string error;             // the first
};
std::map<const void*, std::shared_ptr<Given>> given_to;  // by stream; the null stream has the ops that are called by themselves
std::mutex given_in_use;
thread_local std::string told_error;  // to whoever waits, until that thread waits again

std::shared_ptr<Given>& given_since(const void* stream) {
  std::shared_ptr<Given>& found = given_to[stream];
  if (!found) found = std::make_shared<Given>();
  return found;
}

thread_local cudaError_t refused = cudaSuccess;  // what became of the thread's last allocation

void* taken(cudaError_t e, void* memory) {
  refused = e;
  if (e == cudaSuccess) return memory;
  cudaGetLastError();  // told by the null pointer, and not once more by the next kernel
  return nullptr;
}

void release(void* memory) {
  cudaPointerAttributes of;
  const bool hosts = cudaPointerGetAttributes(&of, memory) == cudaSuccess && of.type == cudaMemoryTypeHost;
  if (!hosts) cudaGetLastError();  // of a pointer that it does not know, and not once more of the next kernel
  hosts ? cudaFreeHost(memory) : cudaFree(memory);
}

// By the device, of managed memory too: pages begin where kernels use them.
void* cleared(cudaError_t e, void* memory, size_t bytes) {
  if (e != cudaSuccess) return taken(e, nullptr);
  e = cudaMemsetAsync(memory, 0, bytes, nullptr);
  if (e == cudaSuccess) e = cudaStreamSynchronize(nullptr);
  if (e != cudaSuccess) release(memory);
  return taken(e, memory);
}

// Whether the host may touch managed memory while kernels run, of whatever decoder. Under WSL it may not: it would end with a fault.
bool concurrent_managed_access() {
  static const bool is_so = [] {
    int device = 0, value = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&value, cudaDevAttrConcurrentManagedAccess, device) == cudaSuccess && value != 0;
  }();
  return is_so;
}

// Memory that kernels and the host both see: parameters, gradients and moments, which Python reads and writes as arrays. What the
// host reads is of use after synchronize() only. Where managed memory does not bear the host beside kernels it is the host's,
// pinned, which kernels read over the bus: slower, and safe.
void* allocate(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t e = concurrent_managed_access() ? cudaMallocManaged(&memory, bytes, cudaMemAttachGlobal)
                                                    : cudaHostAlloc(&memory, bytes, cudaHostAllocMapped);
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
  return taken(e, memory);
}

const char* refusal() {
  return refused == cudaSuccess || refused == cudaErrorMemoryAllocation ? nullptr : cudaGetErrorString(refused);
}

void release_host(void* memory) { cudaFreeHost(memory); }

// ---- streams and marks -------------------------------------------------------------------------------------------------
cudaStream_t stream_of(const fd_context* ctx) { return static_cast<cudaStream_t>(ctx->stream); }

void check(const void* stream, cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  record_error(stream, what, cudaGetErrorString(e));
  cudaGetLastError();  // told, and not once more by the next kernel
}

void* open_stream() {
  cudaStream_t stream = nullptr;
  check(nullptr, cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");  // else it is the null stream
  return stream;
}
void close_stream(void* stream) {
  cudaStreamSynchronize(static_cast<cudaStream_t>(stream));
  cudaStreamDestroy(static_cast<cudaStream_t>(stream));
  std::lock_guard<std::mutex> lock(given_in_use);
  given_to.erase(stream);
}
void copy(fd_context* ctx, void* to, const void* from, size_t bytes) {
  const cudaError_t e = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(ctx));
  if (e != cudaSuccess) check(ctx->stream, e, ("a copy of " + std::to_string(bytes) + " bytes").c_str());
}
void clear(fd_context* ctx, void* memory, size_t bytes) {
  const cudaError_t e = cudaMemsetAsync(memory, 0, bytes, stream_of(ctx));
  if (e != cudaSuccess) check(ctx->stream, e, ("clearing " + std::to_string(bytes) + " bytes").c_str());
}

// An event, and what the stream that it was last recorded in had been given.
struct Mark {
  cudaEvent_t event = nullptr;
  cudaError_t made;
  const void* stream = nullptr;
  std::shared_ptr<Given> given;
};
void* open(unsigned flags) {
  auto* mark = new Mark;
  mark->made = cudaEventCreateWithFlags(&mark->event, flags);
  if (mark->made != cudaSuccess) cudaGetLastError();  // told to who uses it
  return mark;
}
void* open_mark() { return open(cudaEventDisableTiming); }
void* open_clock() { return open(cudaEventDefault); }
void close_mark(void* mark) {
  auto* m = static_cast<Mark*>(mark);
  if (m->made == cudaSuccess) cudaEventDestroy(m->event);
  delete m;
}
void mark(fd_context* ctx, void* mark) {
  auto* m = static_cast<Mark*>(mark);
  check(ctx->stream, m->made == cudaSuccess ? cudaEventRecord(m->event, stream_of(ctx)) : m->made, "recording an event");
  std::lock_guard<std::mutex> lock(given_in_use);
  m->stream = ctx->stream, m->given = given_since(ctx->stream);
}
void follow(fd_context* ctx, void* mark) {
  check(ctx->stream, cudaStreamWaitEvent(stream_of(ctx), static_cast<Mark*>(mark)->event, 0), "waiting for an event");
}
double seconds_between(void* from, void* to) {
  const auto *begin = static_cast<Mark*>(from), *end = static_cast<Mark*>(to);
  float milliseconds = 0.0f;
  check(end->stream, cudaEventElapsedTime(&milliseconds, begin->event, end->event), "reading a clock");
  return 1e-3 * static_cast<double>(milliseconds);
}

// What a wait found: the first error. Kernels run later than they are launched: of an error that shows here all that is known is
// which were under way.
const char* told(cudaError_t e, Given& given) {
  if (e != cudaSuccess && given.error.empty()) {
    given.error = std::string(cudaGetErrorString(e)) + (given.ops.empty() ? ", of a copy or another stream" : ", in one of:");
    for (size_t i = 0; i < given.ops.size(); ++i) given.error += std::string(i == 0 ? " " : ", ") + given.ops[i];
    given.error += "; FREEDIVE_CUDA_SYNC=1 waits after each and names it";
  }
  if (given.error.empty()) return nullptr;
  told_error = given.error;
  return told_error.c_str();
}

const char* synchronize(fd_context* ctx) {
  const cudaError_t e = cudaStreamSynchronize(stream_of(ctx));
  std::lock_guard<std::mutex> lock(given_in_use);
  const std::shared_ptr<Given> all = std::exchange(given_since(ctx->stream), nullptr);  // marks in it still have it
  return told(e, *all);
}
const char* reach(void* mark) {
  auto* m = static_cast<Mark*>(mark);
  if (!m->given) return nullptr;  // in no stream yet
  const cudaError_t e = cudaEventSynchronize(m->event);
  std::lock_guard<std::mutex> lock(given_in_use);
  return told(e, *m->given);
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
  const void* stream = nullptr;  // that is captured
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
  capturing->stream = ctx->stream;
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
  for (const char* op : g->ops) note_launch(ctx->stream, op);
  check(ctx->stream, cudaGraphLaunch(g->launchable, stream_of(ctx)), "launching a graph");
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

void record_error(const void* stream, const char* op, const char* what) {
  if (capturing != nullptr && capturing->stream == stream) return void(capturing->failed = true);
  std::lock_guard<std::mutex> lock(given_in_use);
  std::string& error = given_since(stream)->error;
  if (error.empty()) error = std::string(op) + ": " + what;
}

void note_launch(const void* stream, const char* op) {
  const auto add = [&](std::vector<const char*>& ops) {
    if (std::find(ops.begin(), ops.end(), op) == ops.end()) ops.push_back(op);
  };
  if (capturing != nullptr && capturing->stream == stream) return add(capturing->ops);
  std::lock_guard<std::mutex> lock(given_in_use);
  add(given_since(stream)->ops);
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
