// emulator.h: a machine that runs CUDA kernels on the processor, so that every one of them is executed and checked without a GPU.
//
// Every CUDA thread is a fiber, all of them on one thread of the system; blocks run one after another, those of a cluster
// together, each with its own shared memory. A thread runs until it waits: at a barrier, in a warp's collective, or at its end.
// Which runs next is the schedule's choice, and the schedules are the test: what a kernel may not rely on (the order of warps,
// when a copy arrives) is drawn anew. See README.md.
//
// This file is what include/cuda_runtime.h and csrc/cuda/ptx.cuh are made of; kernels include those, never this.
#pragma once
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Last parameters of everything a thread can wait in: messages name the line of the kernel.
#define EMU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

struct CUtensorMap;

namespace emu {

struct Thread {
  uint3 index, block;
  unsigned linear, lane, warp, rank;  // through all of its cluster; rank: of its block in it
};
extern Thread* current;  // null outside of kernels
extern dim3 block_dim, grid_dim;

// Ends the launch, which throws std::runtime_error with block, thread and this message. Outside of kernels it throws at once.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- waiting -----------------------------------------------------------------------------------------------------
enum class Vote { NONE, COUNT, ALL, ANY };
// bar.sync id, threads (0: every thread of the block that has not ended). Returns the vote of the predicates.
int barrier(int id, int threads, Vote vote, int predicate, const char* file, int line);
// barrier.cluster.arrive and .wait in one: all threads of all blocks of the cluster.
void cluster_barrier(const char* file, int line);
// The lanes of `mask` bring one argument each; the last to come runs the operation for all of them, indexed by lane. Lanes whose
// kind or line differ have diverged, which is an error. A shuffle orders no memory (nor does CUDA's); __syncwarp does.
using Operation = void (*)(void** arguments, unsigned mask);
void collective(unsigned mask, int kind, void* argument, Operation operation, bool orders_memory, const char* file, int line);
// Each lane of the mask gets the 4 or 8 bytes of one of them.
void shuffle_bytes(unsigned mask, const void* value, void* got, int bytes, unsigned from, const char* file, int line);
unsigned ballot(unsigned mask, int predicate, const char* file, int line);

// ---- shared memory: an arena with addresses of 32 bits, filled with NaN for every block -------------------------------
void* shared_array(const void* key, size_t bytes, size_t alignment);
void* dynamic_shared();
uint32_t shared_address(const void* pointer);            // fails for memory that is not shared
void* shared_pointer(uint32_t address, size_t bytes);
void copy_bytes(void* to, const void* from, size_t bytes);  // what an instruction does, not the thread: sanitizers are told apart
void note_read(const void* p, size_t bytes);
void note_write(void* p, size_t bytes);

// ---- asynchronous copies: done at once, or at the last moment the program allows, or drawn -----------------------------
void copy_async(void* to, const void* from, int bytes, int source_bytes, const char* file, int line);
void copy_commit();
void copy_wait(int newest_groups_not_waited_for);

// ---- tensor cores (csrc/cuda/ptx.cuh says what they do) ----------------------------------------------------------------
void ldmatrix(uint32_t* registers, int matrices, bool transposed, const void* row, const char* file, int line);
void mma_m16n8k16_bf16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, const char* file, int line);

// ---- Hopper (csrc/cuda/ptx_sm90.cuh says what they do): mbarriers, TMA, wgmma ---------------------------------------------
void mbarrier_init(uint64_t* barrier, int count);
void mbarrier_arrive(uint64_t* barrier, int expected_bytes, const char* file, int line);
void mbarrier_arrive_at(uint64_t* barrier, unsigned rank, const char* file, int line);  // of another block of the cluster
void mbarrier_wait(uint64_t* barrier, int parity, const char* file, int line);
void fence_mbarrier_init();
void fence_proxy_async();
void tma_load_2d(void* to, const CUtensorMap* map, uint64_t* barrier, int x, int y, const char* file, int line);
// To the same place of every block of the mask, whose mbarriers it tells.
void tma_load_2d_multicast(void* to, const CUtensorMap* map, uint64_t* barrier, int x, int y, unsigned blocks, const char* file,
                           int line);
void tma_store_2d(const CUtensorMap* map, const void* from, int x, int y, const char* file, int line);
void bulk_commit();
void bulk_wait(int newest_groups_not_waited_for, const char* file, int line);
void wgmma(float* d, int n, uint64_t a, uint64_t b, bool a_by_k, bool b_by_k, bool add, const char* file, int line);
// A from registers, four of each lane.
void wgmma_rs(float* d, int n, const uint32_t* a, uint64_t b, bool b_by_k, bool add, const char* file, int line);
void wgmma_fence(const char* file, int line);
void wgmma_commit(const char* file, int line);
void wgmma_wait(int newest_groups_not_waited_for, const char* file, int line);
void set_registers(int count, const char* file, int line);

// ---- device memory ---------------------------------------------------------------------------------------------------
void* allocate(size_t bytes);  // of exactly that size, filled with NaN; null when there is none
void release(void* memory);
void require_device_memory(const void* pointer, int argument);  // fails for a pointer that allocate never gave

// ---- launching -------------------------------------------------------------------------------------------------------
enum class Schedule { SEQUENTIAL, RANDOM, PRIORITY };
enum class Async { LATE, EARLY, RANDOM };
struct Options {
  Schedule schedule = Schedule::SEQUENTIAL;
  Async async = Async::LATE;
  uint64_t seed = 1;
};
// FREEDIVE_EMU_SCHEDULE = sequential, random, priority; FREEDIVE_EMU_ASYNC = late, early, random; FREEDIVE_EMU_SEED = a number.
Options options_from_environment();

struct Launch {
  dim3 grid, block;
  size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks
};
void run(const Launch& launch, const void* kernel, void (*body)(void*), void* argument);
void allow_shared(const void* kernel, size_t bytes);  // cudaFuncAttributeMaxDynamicSharedMemorySize

template <class T>
void visit_pointers(T* pointer, int argument) {
  if (pointer != nullptr) require_device_memory(pointer, argument);
}
template <class T>
std::enable_if_t<std::is_arithmetic<T>::value> visit_pointers(const T&, int) {}
// The parts of an argument that have pointers: what a struct's own visit_pointers calls.
template <class... Parts>
void visit_parts(int argument, const Parts&... parts) {
  (visit_pointers(parts, argument), ...);
}

template <class... Parameters, class... Arguments>
void launch(const Launch& geometry, void (*kernel)(Parameters...), Arguments&&... arguments) {
  std::tuple<std::decay_t<Parameters>...> held(static_cast<Parameters>(arguments)...);
  int index = 0;
  std::apply([&](const auto&... argument) { (visit_pointers(argument, index++), ...); }, held);
  auto body = [&] { std::apply(kernel, held); };
  run(geometry, reinterpret_cast<const void*>(kernel), [](void* p) { (*static_cast<decltype(body)*>(p))(); },
      &body);
}

}  // namespace emu
