// scheduler.h: what the two halves of the scheduler show each other: who runs (emulator.cpp) and what is waited in (waiting.cpp).
#pragma once
#include "emulator.h"
#include "fibers.h"
#include "memory.h"

namespace emu {

enum class State { NEW, READY, WAITING, ENDED };

struct FiberThread : Thread {
  State state = State::NEW;
  Fiber* fiber = nullptr;
  void* tsan = nullptr;
  const char *waits_in = "", *file = "";
  const void* waits_on = nullptr;
  int line = 0;
};

// ---- emulator.cpp --------------------------------------------------------------------------------------------------------
extern FiberThread threads[MAX_THREADS];
extern int n_threads, alive, alive_of[MOST_RANKS];  // n_threads: of the whole cluster; alive_of: each of its blocks
inline FiberThread* self() { return static_cast<FiberThread*>(current); }
void make_ready(FiberThread* t);
// Leaves the current thread, whose state says whether it waits or has ended, for one that can run; returns when it is its turn.
void next_thread();
bool in_order();   // the schedule
bool at_random();

// ---- waiting.cpp ---------------------------------------------------------------------------------------------------------
void begin_block_waiting();
void leave(const FiberThread* t);  // a thread has ended: who waits for it in a barrier need not, and in a collective it is an error

}  // namespace emu
