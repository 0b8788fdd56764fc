// memory.h: what the scheduler and the memories tell each other.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emu {

constexpr size_t DEFAULT_SHARED = 48 << 10, MOST_SHARED = 227 << 10;

constexpr int WARP = 32, MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / WARP;
constexpr unsigned MOST_RANKS = 8;            // blocks of a cluster
constexpr uint32_t WINDOW = 512 << 10;        // block r of a cluster has the addresses of shared memory from r WINDOW on

void begin_launch_memory(size_t dynamic_shared_bytes, size_t threads, unsigned ranks);
void begin_block_memory();
void end_block_memory();              // fails when something was written behind a shared array
void check_allocations();              // the same of device memory
void finish_copies(unsigned thread);  // of a thread that ends
void adopt(void* memory, size_t bytes);  // memory of streams.cpp becomes the device's, with 64 bytes behind it
void disown(void* memory);
bool is_device_memory(const void* pointer, size_t bytes);
bool copies_are_early();              // drawn for each, or as the options say

// The same place in the shared memory of block `rank` of the cluster, whose threads must live.
uint32_t address_in(uint32_t address, unsigned rank, const char* file, int line);
// What TMA and wgmma see of shared memory: what they wrote themselves, and what others wrote before a fence.proxy.async.
char* async_view(uint32_t address, size_t bytes);
void update_async_view();  // of this thread's block

// ---- hopper.cpp -----------------------------------------------------------------------------------------------------------
void begin_block_hopper(int threads, int threads_of_block);
void end_block_hopper();
void finish_hopper(unsigned thread);  // of a thread that ends
// One pending TMA load more is carried out: by chance, or because nobody can run else. False: there was none.
bool advance_loads(bool must);

// ---- emulator.cpp, waiting.cpp ---------------------------------------------------------------------------------------------
void wait_on(const void* what, const char* in, const char* file, int line);  // until somebody wakes it
void wake(const void* what);
bool lives(unsigned rank);  // a thread of that block of the cluster
uint64_t draw();
bool loads_are_drawn();  // in random order and at random moments
void enter_engine(int engine);  // what follows is done by a unit of the hardware, not by the thread (for ThreadSanitizer)
void leave_engine();

}  // namespace emu
