// fibers.h: stacks and the switch between them. The switch is written by hand: 9 ns, where swapcontext asks the system each time
// (277 ns).
#pragma once
#include <cstddef>

namespace emu {

struct Fiber {
  void* stack_pointer = nullptr;
  char* base = nullptr;  // of its memory; a page that must not be touched lies below
  size_t size = 0, colour = 0;
  void* asan = nullptr;
  bool used = false;  // since it was forgotten
};

extern Fiber host_fiber;

Fiber* new_fiber();                                 // kept for ever
void prepare(Fiber* fiber, void (*entry)());        // so that the next switch to it begins there
void forget(Fiber* fiber);                          // what ThreadSanitizer remembers of its stack
void switch_to(Fiber* from, Fiber* to, bool ends);  // ends: nobody comes back to `from`
void switched();                                    // what entry() must call first

}  // namespace emu
