// emulator.cpp: the scheduler: one block (or cluster of blocks) at a time, its threads, what they wait in, and who runs next.
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

namespace emu {

Thread* current = nullptr;
dim3 block_dim, grid_dim;

namespace {

constexpr int MAX_THREADS = 1024, WARP = 32, MAX_WARPS = MAX_THREADS / WARP, BARRIERS = 16, PENDING = 4;
constexpr unsigned OF_CLUSTER = ~0u;

enum class State { NEW, READY, WAITING, ENDED };

struct FiberThread : Thread {
  State state = State::NEW;
  Fiber* fiber = nullptr;
  void* tsan = nullptr;
  const char *waits_in = "", *file = "";
  const void* waits_on = nullptr;
  int line = 0;
};

struct Barrier {
  unsigned rank = 0;
  int arrived = 0, wanted = 0;  // wanted 0: all that live, of the block or (OF_CLUSTER) of the cluster
  int result = 0, last_result = 0;
  unsigned generation = 0;
  const char* file = nullptr;
  int line = 0, waiting = 0;
  FiberThread* threads[MAX_THREADS];
  char edge[2];  // even and odd generations
};

struct Pending {  // a collective of some lanes of one warp which others have yet to join
  unsigned mask = 0, arrived = 0, generation = 0;
  int kind = 0, line = 0;
  const char* file = "";
  void* arguments[WARP];
  char edge[4];
};

// ---- the block at work -----------------------------------------------------------------------------------------------
FiberThread threads[MAX_THREADS];
int n_threads = 0, threads_of_block = 0, alive = 0, alive_of[MOST_RANKS], not_begun = 0;  // n_threads: of the whole cluster
int order[MAX_THREADS];                      // in which threads begin
FiberThread* ready[MAX_THREADS];             // a ring; a thread is in it at most once
unsigned ready_begin = 0, n_ready = 0;
Barrier barriers[MOST_RANKS][BARRIERS], cluster_meets;
Pending pending[MAX_WARPS][PENDING];
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

FiberThread* self() { return static_cast<FiberThread*>(current); }

void become(FiberThread* t) {
  current = t;
  if (tsan()) __tsan_switch_to_fiber(t != nullptr ? t->tsan : host_context, 1 /* no edge */);
}

FiberThread*& ready_at(unsigned i) { return ready[(ready_begin + i) % MAX_THREADS]; }

void make_ready(FiberThread* t) {
  t->state = State::READY;
  ready_at(n_ready++) = t;
}

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
      unsigned best = 0;
      for (unsigned i = 1; i < n_ready; ++i)
        if (priority[ready_at(i)->warp] > priority[ready_at(best)->warp]) best = i;
      if (not_begun > 0) {
        const unsigned warp = threads[order[n_threads - not_begun]].warp;
        if (n_ready == 0 || priority[warp] > priority[ready_at(best)->warp]) return take_new();
      }
      return take_ready(best);
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

void wait(const char* in, const char* file, int line) {
  FiberThread* t = self();
  t->state = State::WAITING, t->waits_in = in, t->file = file, t->line = line;
  next_thread();
}

void check_barrier(Barrier& b) {
  const int living = b.rank == OF_CLUSTER ? alive : alive_of[b.rank];
  if (b.arrived < (b.wanted ? b.wanted : living)) return;  // threads that have ended do not count, as from sm_70 on
  b.last_result = b.result;
  b.arrived = 0, b.file = nullptr;
  ++b.generation;
  for (int i = 0; i < b.waiting; ++i) make_ready(b.threads[i]);
  b.waiting = 0;
}

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
    for (const Pending& p : pending[t->warp])
      if (p.arrived != 0 && (p.mask >> t->lane & 1))
        fail("a thread ends while lanes %08x wait for it in a collective of mask %08x at %s:%d", p.arrived, p.mask, p.file,
             p.line);
    for (Barrier& b : barriers[t->rank])
      if (b.arrived > 0 && b.wanted == 0) check_barrier(b);
    if (cluster_meets.arrived > 0) check_barrier(cluster_meets);
    next_thread();
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
  for (unsigned r = 0; r < static_cast<unsigned>(n_threads / threads_of_block); ++r) {
    alive_of[r] = threads_of_block;
    for (Barrier& b : barriers[r]) b.arrived = b.waiting = 0, b.generation = 0, b.file = nullptr, b.rank = r;
  }
  cluster_meets.arrived = cluster_meets.waiting = 0, cluster_meets.generation = 0, cluster_meets.file = nullptr;
  cluster_meets.rank = OF_CLUSTER;
  for (auto& warp : pending)
    for (Pending& p : warp) p.arrived = 0;
  for (int i = 0; i < n_threads; ++i) {
    FiberThread& t = threads[i];
    const unsigned x = block_dim.x, y = block_dim.y, n = static_cast<unsigned>(i % threads_of_block);
    t.index = {n % x, n / x % y, n / (x * y)};
    t.rank = static_cast<unsigned>(i / threads_of_block);
    t.block = {block.x + t.rank, block.y, block.z};
    t.linear = static_cast<unsigned>(i), t.lane = t.linear % WARP, t.warp = t.linear / WARP;
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

namespace {
int meet(Barrier& b, int id, int wanted, Vote vote, int predicate, const char* file, int line) {
  FiberThread* t = self();
  if (b.arrived > 0 && wanted == 0 && (b.line != line || std::strcmp(b.file, file) != 0))
    fail("threads of one block wait in different barriers: this one at %s:%d, others at %s:%d", file, line, b.file, b.line);
  if (b.arrived > 0 && b.wanted != wanted)
    fail("barrier %d of %d threads at %s:%d, where others wait for %d", id, wanted, file, line, b.wanted);
  if (b.arrived == 0) b.wanted = wanted, b.file = file, b.line = line, b.result = vote == Vote::ALL;
  if (vote == Vote::COUNT) b.result += predicate != 0;
  if (vote == Vote::ALL) b.result = b.result && predicate;
  if (vote == Vote::ANY) b.result = b.result || predicate;
  const unsigned generation = b.generation;
  char* edge = &b.edge[generation & 1];
  release_edge(edge);
  ++b.arrived;
  check_barrier(b);
  if (b.generation == generation) {
    b.threads[b.waiting++] = t;
    wait("a barrier", file, line);
  } else if (options.schedule != Schedule::SEQUENTIAL) {  // the last to come has no right to go first
    make_ready(t);
    next_thread();
  }
  acquire(edge);
  return b.last_result;
}
}  // namespace

int barrier(int id, int wanted, Vote vote, int predicate, const char* file, int line) {
  return meet(barriers[current->rank][id], id, wanted, vote, predicate, file, line);
}

void cluster_barrier(const char* file, int line) { meet(cluster_meets, 0, 0, Vote::NONE, 0, file, line); }

bool lives(unsigned rank) { return alive_of[rank] > 0; }

void collective(unsigned mask, int kind, void* argument, Operation operation, bool orders_memory, const char* file, int line) {
  FiberThread* t = self();
  const int first = static_cast<int>(t->warp) * WARP, lanes = std::min(WARP, n_threads - first);
  const unsigned me = 1u << t->lane;
  mask &= lanes == WARP ? ~0u : (1u << lanes) - 1;
  if (!(mask & me)) fail("a collective at %s:%d: lane %u, which calls it, is not in its mask %08x", file, line, t->lane, mask);
  Pending *mine = nullptr, *unused = nullptr;
  for (Pending& p : pending[t->warp]) {
    if (p.arrived == 0)
      unused = &p;
    else if (p.mask == mask)
      mine = &p;
    else if (p.mask & mask)
      fail("collectives whose masks overlap: %08x at %s:%d, %08x at %s:%d", mask, file, line, p.mask, p.file, p.line);
  }
  if (mine == nullptr) {
    if (unused == nullptr) fail("more than %d collectives of one warp under way", PENDING);
    mine = unused;
    mine->mask = mask, mine->kind = kind, mine->file = file, mine->line = line;
    for (int lane = 0; lane < lanes; ++lane)
      if ((mask >> lane & 1) && threads[first + lane].state == State::ENDED)
        fail("a collective at %s:%d: lane %d of its mask %08x has ended", file, line, lane, mask);
  }
  if (mine->kind != kind || mine->line != line)
    fail("a warp has diverged: this lane is in the collective at %s:%d, lanes %08x wait at %s:%d", file, line, mine->arrived,
         mine->file, mine->line);
  char* edge = &mine->edge[mine->generation & 3];
  if (orders_memory) release_edge(edge);
  mine->arguments[t->lane] = argument;
  mine->arrived |= me;
  if (mine->arrived == mask) {
    operation(mine->arguments, mask);
    mine->arrived = 0;
    ++mine->generation;
    for (int lane = 0; lane < lanes; ++lane)
      if ((mask >> lane & 1) && threads[first + lane].linear != t->linear) make_ready(&threads[first + lane]);
    if (options.schedule == Schedule::RANDOM && mask != me && (draw() & 1)) {
      make_ready(t);
      next_thread();
    }
  } else {
    wait("a collective of its warp", file, line);
  }
  if (orders_memory) acquire(edge);
}

namespace {
struct Exchange {
  const void* value;
  void* got;
  int bytes;
  unsigned from;
};
struct Ballot {
  unsigned value, result;
};
}  // namespace

void shuffle_bytes(unsigned mask, const void* value, void* got, int bytes, unsigned from, const char* file, int line) {
  Exchange mine{value, got, bytes, from};
  collective(
      mask, bytes, &mine,
      [](void** lanes, unsigned m) {
        for (unsigned lane = 0; lane < WARP; ++lane) {
          if (!(m >> lane & 1)) continue;
          auto* to = static_cast<Exchange*>(lanes[lane]);
          if (to->from >= WARP || !(m >> to->from & 1))
            fail("a shuffle: lane %u reads lane %u, which is not in its mask %08x", lane, to->from, m);
          copy_bytes(to->got, static_cast<Exchange*>(lanes[to->from])->value, static_cast<size_t>(to->bytes));
        }
      },
      false, file, line);
}

unsigned ballot(unsigned mask, int predicate, const char* file, int line) {
  Ballot mine{predicate != 0, 0};
  collective(
      mask, 32, &mine,
      [](void** lanes, unsigned m) {
        unsigned result = 0;
        for (unsigned lane = 0; lane < WARP; ++lane)
          if (m >> lane & 1) result |= static_cast<Ballot*>(lanes[lane])->value << lane;
        for (unsigned lane = 0; lane < WARP; ++lane)
          if (m >> lane & 1) static_cast<Ballot*>(lanes[lane])->result = result;
      },
      false, file, line);
  return mine.result;
}

uint64_t draw() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

bool loads_are_drawn() { return options.async == Async::RANDOM; }

void wait_on(const void* what, const char* in, const char* file, int line) {
  self()->waits_on = what;
  wait(in, file, line);
}

void wake(const void* what) {
  for (int i = 0; i < n_threads; ++i)
    if (threads[i].waits_on == what && threads[i].state == State::WAITING) {
      threads[i].waits_on = nullptr;
      make_ready(&threads[i]);
    }
}

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
