// device.cu: the CUDA device: its table of ops, its memory, and the one symbol of the plugin. The package opens the plugin on first use
// (csrc/core/plugin.h), so that nothing of CUDA is needed to import it.
#include "device.h"

#include <cstring>
#include <mutex>
#include <string>

#include "launch.cuh"

namespace freedive::cuda {
namespace {

constexpr int CAPACITY = 128;
fd_variant all_variants[CAPACITY];
fd_device_table table;
std::string first_error, told_error;
std::mutex error_in_use;

// Memory that kernels and the host both see: parameters, batches and outputs are read and written by Python without copies of our own. The host
// may touch it after synchronize() only.
void* allocate(size_t bytes) {
  void* memory = nullptr;
  if (cudaMallocManaged(&memory, bytes, cudaMemAttachGlobal) != cudaSuccess) {
    cudaGetLastError();  // told by the null pointer, and not once more by the next kernel
    return nullptr;
  }
  std::memset(memory, 0, bytes);
  return memory;
}

void release(void* memory) { cudaFree(memory); }

const char* synchronize(fd_context* ctx) {
  const cudaError_t e = cudaStreamSynchronize(static_cast<cudaStream_t>(ctx->stream));
  if (e != cudaSuccess) record_error("a kernel", cudaGetErrorString(e));
  std::lock_guard<std::mutex> lock(error_in_use);
  if (first_error.empty()) return nullptr;
  told_error.swap(first_error);
  first_error.clear();
  return told_error.c_str();
}

double peak_run(fd_context*, int64_t, int64_t) { return 0.0; }

void append(VariantList list) {
  for (int i = 0; i < list.n && table.n_variants < CAPACITY; ++i) all_variants[table.n_variants++] = list.variants[i];
}

const fd_device_table* assemble() {
#ifdef FREEDIVE_CUDA_EMULATION
  table.name = "cuda-emu", table.tier = "emulation", table.fast_bf16 = 0;  // as slow as float32
#else
  table.name = "cuda", table.tier = "sm_80", table.fast_bf16 = 1;  // tensor cores: matmul_sm80.cu
#endif
  table.variants = all_variants;
  table.n_variants = 0;
  append(embedding_variants());
  append(norm_variants());
  append(rope_variants());
  append(activation_variants());
  append(matmul_variants());
  append(attention_variants());
  append(attention_backward_variants());
  append(head_variants());
  append(sampling_variants());
  append(quantized_variants());
  append(optimizer_variants());
  table.matmul_packed_size = matmul_packed_size;
  table.quantized_size = quantized_size;
  table.quantized_row = quantized_row;
  table.peak_run = peak_run;
  table.allocate = allocate;
  table.release = release;
  table.synchronize = synchronize;
  return &table;
}

}  // namespace

void record_error(const char* op, const char* what) {
  std::lock_guard<std::mutex> lock(error_in_use);
  if (first_error.empty()) first_error = std::string(op) + ": " + what;
}

}  // namespace freedive::cuda

// The device, or null and a sentence that says why there is none.
extern "C" __attribute__((visibility("default"))) const fd_device_table* freedive_device(const char** why) {
  static const fd_device_table* const device = freedive::cuda::assemble();
  int count = 0;
  const cudaError_t e = cudaGetDeviceCount(&count);
  *why = nullptr;
  if (e != cudaSuccess) *why = cudaGetErrorString(e);
  if (e == cudaSuccess && count == 0) *why = "there is no CUDA GPU";
  return *why == nullptr ? device : nullptr;
}
