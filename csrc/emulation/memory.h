// memory.h: what the scheduler and the memories tell each other.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emu {

constexpr size_t DEFAULT_SHARED = 48 << 10, MOST_SHARED = 227 << 10;

void begin_launch_memory(size_t dynamic_shared_bytes, size_t threads);
void begin_block_memory();
void end_block_memory();              // fails when something was written behind a shared array
void check_allocations();              // the same of device memory
void finish_copies(unsigned thread);  // of a thread that ends
bool copies_are_early();              // drawn for each, or as the options say

}  // namespace emu
