// emulator.cpp: the scheduler: one block (or cluster of blocks) at a time, its threads, and who runs next. What they wait in is in
// waiting.cpp.
//
// Compiled without instrumentation (see sanitizers.h). Inside of kernels it neither allocates nor calls memcpy, memset or
// memmove, which ThreadSanitizer would take for accesses of the CUDA thread that runs.
#include "emulator.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "fibers.h"
#include "memory.h"
#include "sanitizers.h"
#include "scheduler.h"

namespace emu {

Thread* current = nullptr;
dim3 block_dim, grid_dim;

// ---- the block at work -----------------------------------------------------------------------------------------------
FiberThread threads[MAX_THREADS];
int n_threads = 0, alive = 0, alive_of[MOST_RANKS];

namespace {

int threads_of_block = 0, not_begun = 0;
int order[MAX_THREADS];                      // in which threads begin
FiberThread* ready[MAX_THREADS];             // a ring; a thread is in it at most once
unsigned ready_begin = 0, n_ready = 0;
struct Lanes {                               // of a warp that can run, in their order: of priority schedules, instead of the ring
  FiberThread* of[WARP];
  unsigned begin, n;
} ready_of[MAX_WARPS];
uint32_t priority[MAX_WARPS];
std::vector<Fiber*> free_fibers, retired;    // retired: ThreadSanitizer's, until the block ends
Fiber* running = &host_fiber;
char launch_edge, end_edge;

// ---- the launch at work ------------------------------------------------------------------------------------------------
Options options;
uint64_t random_state = 1;
std::string error;
bool failed = false;
void (*kernel_body)(void*) = nullptr;
void* kernel_argument = nullptr;
uint64_t blocks_begun = 0;
void* host_context = nullptr;  // ThreadSanitizer's
std::map<const void*, size_t> shared_limits;
std::mutex one_launch;         // the machine is one

void become(FiberThread* t) {
  current = t;
  if (tsan()) __tsan_switch_to_fiber(t != nullptr ? t->tsan : host_context, 1 /* no edge */);
}

FiberThread*& ready_at(unsigned i) { return ready[(ready_begin + i) % MAX_THREADS]; }

}  // namespace

bool in_order() { return options.schedule == Schedule::SEQUENTIAL; }
bool at_random() { return options.schedule == Schedule::RANDOM; }

void make_ready(FiberThread* t) {
  t->state = State::READY;
  if (options.schedule != Schedule::PRIORITY) {
    ready_at(n_ready++) = t;
    return;
  }
  Lanes& lanes = ready_of[t->warp];
  lanes.of[(lanes.begin + lanes.n++) % WARP] = t, ++n_ready;
}

namespace {

FiberThread* take_ready(unsigned i) {
  std::swap(ready_at(i), ready_at(0));
  FiberThread* t = ready_at(0);
  ++ready_begin, --n_ready;
  return t;
}

FiberThread* take_new() { return &threads[order[n_threads - not_begun--]]; }

// Who runs next; null when nobody can.
FiberThread* pick() {
  const unsigned choices = n_ready + static_cast<unsigned>(not_begun);
  if (choices == 0) return nullptr;
  switch (options.schedule) {
    case Schedule::RANDOM: {
      const unsigned i = static_cast<unsigned>(draw() % choices);
      return i < n_ready ? take_ready(i) : take_new();
    }
    // The same warps go first as long as they can: what starves others longest (after Burckhardt et al., 2010).
    case Schedule::PRIORITY: {
      if (draw() % 2048 == 0) priority[draw() % MAX_WARPS] = static_cast<uint32_t>(draw());
      unsigned best = MAX_WARPS;
      for (unsigned w = 0; w < static_cast<unsigned>(n_threads + WARP - 1) / WARP; ++w)
        if (ready_of[w].n > 0 && (best == MAX_WARPS || priority[w] > priority[best])) best = w;
      if (not_begun > 0) {
        const unsigned warp = threads[order[n_threads - not_begun]].warp;
        if (best == MAX_WARPS || priority[warp] > priority[best]) return take_new();
      }
      Lanes& lanes = ready_of[best];
      --lanes.n, --n_ready;
      return lanes.of[lanes.begin++ % WARP];
    }
    default:
      return n_ready > 0 ? take_ready(0) : take_new();
  }
}

void entry();

Fiber* take_fiber() {
  if (free_fibers.empty()) free_fibers.push_back(new_fiber());
  Fiber* f = free_fibers.back();
  free_fibers.pop_back();
  prepare(f, entry);
  return f;
}

void give_back(Fiber* f) { (tsan() ? retired : free_fibers).push_back(f); }

void to_fiber(Fiber* to, bool ends) {
  Fiber* from = running;
  running = to;
  switch_to(from, to, ends);
}

void to_host() {
  become(nullptr);
  to_fiber(&host_fiber, false);
}

}  // namespace

// Leaves the current thread, whose state says whether it waits or has ended. Returns when it runs again; if it has ended, when
// this stack is to begin another thread: one that ends without ever waiting leaves its stack to the next, and kernels without
// barriers are plain loops.
void next_thread() {
  FiberThread* me = self();
  const bool ended = me->state == State::ENDED;
  if (options.async == Async::RANDOM) advance_loads(false);
  FiberThread* t = pick();
  while (t == nullptr && alive > 0 && advance_loads(true)) t = pick();
  if (t == nullptr) {
    if (alive == 0) {
      give_back(running);
      to_host();
    }
    std::string who;
    int told = 0;
    for (int i = 0; i < n_threads && told < 4; ++i) {
      const FiberThread& w = threads[i];
      if (w.state != State::WAITING) continue;
      char text[300];
      snprintf(text, sizeof text, "%sthread (%u,%u,%u) waits in %s at %s:%d", told++ ? "; " : "", w.index.x, w.index.y, w.index.z,
               w.waits_in, w.file, w.line);
      who += text;
    }
    fail("deadlock: %s", who.c_str());
  }
  if (t == me) return become(t);
  if (t->state == State::NEW) {
    if (ended && !tsan()) {  // ThreadSanitizer would see two threads write one stack
      t->fiber = running;
      return become(t);
    }
    t->fiber = take_fiber();
  }
  if (ended) give_back(running);
  become(t);
  to_fiber(t->fiber, ended && !asan());
}

namespace {

void entry() {
  switched();
  for (;;) {
    self()->state = State::READY;
    acquire(&launch_edge);
    kernel_body(kernel_argument);
    FiberThread* t = self();
    finish_copies(t->linear);
    finish_hopper(t->linear);
    release_edge(&end_edge);
    t->state = State::ENDED;
    --alive, --alive_of[t->rank];
    leave(t);
    next_thread();
  }
}

// What the threads are in every block of a launch.
void name_threads() {
  const unsigned x = block_dim.x, y = block_dim.y;
  for (int i = 0; i < n_threads; ++i) {
    FiberThread& t = threads[i];
    const auto n = static_cast<unsigned>(i % threads_of_block);
    t.index = {n % x, n / x % y, n / (x * y)};
    t.rank = static_cast<unsigned>(i / threads_of_block);
    t.linear = static_cast<unsigned>(i), t.lane = t.linear % WARP, t.warp = t.linear / WARP;
  }
}

// The blocks of a cluster: `block` and those after it along x.
void run_block(uint3 block) {
  ++blocks_begun;
  if (tsan()) {  // neither this block's stacks nor its shared memory have a past
    for (Fiber* f : free_fibers) forget(f);
    while (static_cast<int>(free_fibers.size()) < n_threads) free_fibers.push_back(new_fiber());
  }
  begin_block_memory();
  begin_block_hopper(n_threads, threads_of_block);
  release_edge(&launch_edge);
  alive = not_begun = n_threads;
  ready_begin = n_ready = 0;
  for (Lanes& lanes : ready_of) lanes.n = 0;
  for (int r = 0; r < n_threads / threads_of_block; ++r) alive_of[r] = threads_of_block;
  begin_block_waiting();
  for (int i = 0; i < n_threads; ++i) {
    FiberThread& t = threads[i];
    t.block = {block.x + t.rank, block.y, block.z};
    t.state = State::NEW, t.fiber = nullptr, t.waits_on = nullptr;
    order[i] = i;
    if (tsan()) {  // two sets in turn: neighbouring blocks are unordered, so a race between blocks is seen
      static void* contexts[2][MAX_THREADS];
      void*& context = contexts[blocks_begun & 1][i];
      if (context == nullptr) context = __tsan_create_fiber(0);
      t.tsan = context;
    }
  }
  if (options.schedule == Schedule::RANDOM)
    for (int i = n_threads; i > 1; --i) std::swap(order[i - 1], order[draw() % static_cast<unsigned>(i)]);
  if (options.schedule == Schedule::PRIORITY) {
    for (uint32_t& p : priority) p = static_cast<uint32_t>(draw());
    std::stable_sort(order, order + n_threads, [](int a, int b) { return priority[a / WARP] > priority[b / WARP]; });
  }
  FiberThread* first = take_new();
  first->fiber = take_fiber();
  become(first);
  to_fiber(first->fiber, false);  // comes back when the block has ended, or failed
  current = nullptr;
  if (failed) {  // what waits will never run again: its stacks are free
    for (int i = 0; i < n_threads; ++i) {
      Fiber* f = threads[i].fiber;
      if (f != nullptr && threads[i].state != State::ENDED && threads[i].state != State::NEW) free_fibers.push_back(f);
    }
  }
  free_fibers.insert(free_fibers.end(), retired.begin(), retired.end());
  retired.clear();
  if (!failed) return;
  std::sort(free_fibers.begin(), free_fibers.end());
  free_fibers.erase(std::unique(free_fibers.begin(), free_fibers.end()), free_fibers.end());
}

}  // namespace

// ---- what kernels call -----------------------------------------------------------------------------------------------

void fail(const char* format, ...) {
  char message[1500], where[120] = "";
  va_list list;
  va_start(list, format);
  vsnprintf(message, sizeof message, format, list);
  va_end(list);
  if (current == nullptr) throw std::runtime_error(message);
  const uint3 b = current->block, t = current->index;
  snprintf(where, sizeof where, "block (%u,%u,%u), thread (%u,%u,%u): ", b.x, b.y, b.z, t.x, t.y, t.z);
  error = std::string(where) + message;
  failed = true;
  to_host();
  std::abort();  // nobody comes back
}

bool lives(unsigned rank) { return alive_of[rank] > 0; }

uint64_t draw() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

bool loads_are_drawn() { return options.async == Async::RANDOM; }

// A context of its own for each unit: TMA, and the tensor cores of each warp.
void enter_engine(int engine) {
  if (!tsan()) return;
  static void* contexts[2][1 + MAX_WARPS];
  void*& context = contexts[blocks_begun & 1][engine];
  if (context == nullptr) context = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(context, 1 /* no edge */);
}
void leave_engine() {
  if (tsan()) __tsan_switch_to_fiber(current != nullptr ? self()->tsan : host_context, 1);
}

bool copies_are_early() {
  return options.async == Async::EARLY || (options.async == Async::RANDOM && (draw() & 1));
}

// ---- launching ---------------------------------------------------------------------------------------------------------

Options options_from_environment() {
  Options o;
  auto choice = [](const char* name, std::initializer_list<const char*> values) {
    const char* given = std::getenv(name);
    if (given == nullptr || *given == 0) return 0;
    int i = 0;
    std::string allowed;
    for (const char* value : values) {
      if (std::strcmp(given, value) == 0) return i;
      allowed += (i++ ? ", " : "") + std::string(value);
    }
    throw std::runtime_error(std::string(name) + "=" + given + "; it must be one of " + allowed);
  };
  o.schedule = static_cast<Schedule>(choice("FREEDIVE_EMU_SCHEDULE", {"sequential", "random", "priority"}));
  o.async = static_cast<Async>(choice("FREEDIVE_EMU_ASYNC", {"late", "early", "random"}));
  if (const char* seed = std::getenv("FREEDIVE_EMU_SEED")) o.seed = std::strtoull(seed, nullptr, 10);
  return o;
}

void allow_shared(const void* kernel, size_t bytes) { shared_limits[kernel] = bytes; }

void run(const Launch& launch, const void* kernel, void (*body)(void*), void* argument) {
  std::lock_guard<std::mutex> lock(one_launch);
  options = options_from_environment();
  random_state = options.seed * 0x9E3779B97F4A7C15ull + 88172645463325252ull;
  const dim3 g = launch.grid, b = launch.block;
  const uint64_t size = uint64_t{b.x} * b.y * b.z;
  if (g.x == 0 || g.y == 0 || g.z == 0 || size == 0 || size > MAX_THREADS || b.z > 64 || g.x > 0x7FFFFFFF || g.y > 65535 ||
      g.z > 65535)
    fail("no GPU launches a grid of (%u,%u,%u) with blocks of (%u,%u,%u)", g.x, g.y, g.z, b.x, b.y, b.z);
  const auto found = shared_limits.find(kernel);
  const size_t limit = found == shared_limits.end() ? DEFAULT_SHARED : found->second;
  const uint64_t ranks = launch.cluster;
  if (ranks == 0 || ranks > MOST_RANKS || g.x % ranks != 0)
    fail("no GPU launches a grid of %u blocks in clusters of %u", g.x, launch.cluster);
  if (ranks > 1 && (size % WARP != 0 || ranks * size > MAX_THREADS))
    fail("clusters of %u blocks of %u threads, which this emulator does not know: whole warps, at most %d threads",
         launch.cluster, static_cast<unsigned>(size), MAX_THREADS);
  if (launch.shared_bytes > limit)
    fail("%zu bytes of dynamic shared memory; this kernel is allowed %zu", launch.shared_bytes, limit);
  if (tsan() && host_context == nullptr) host_context = __tsan_get_current_fiber();
  if (retired.capacity() == 0) retired.reserve(2 * MAX_THREADS), free_fibers.reserve(4 * MAX_THREADS);
  begin_launch_memory(launch.shared_bytes, ranks * size, launch.cluster);
  threads_of_block = static_cast<int>(size), n_threads = static_cast<int>(ranks * size);
  block_dim = b, grid_dim = g, kernel_body = body, kernel_argument = argument;
  name_threads();
  failed = false;
  release_edge(&launch_edge);
  const uint64_t blocks = uint64_t{g.x} * g.y * g.z;
  for (uint64_t i = 0; i < blocks; i += ranks) {
    run_block({static_cast<unsigned>(i % g.x), static_cast<unsigned>(i / g.x % g.y), static_cast<unsigned>(i / g.x / g.y)});
    if (failed) throw std::runtime_error(error);
    end_block_memory();
    end_block_hopper();
  }
  acquire(&end_edge);
  check_allocations();
}

}  // namespace emu
