// waiting.cpp: what threads wait in for each other: barriers of a block and of a cluster, collectives of a warp, and waits for a
// change of something in shared memory. Compiled like emulator.cpp, and with its restraint: no allocation, no memcpy.
#include <algorithm>
#include <cstring>

#include "emulator.h"
#include "memory.h"
#include "sanitizers.h"
#include "scheduler.h"

namespace emu {
namespace {

constexpr int BARRIERS = 16, PENDING = 4;
constexpr unsigned OF_CLUSTER = ~0u;

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

Barrier barriers[MOST_RANKS][BARRIERS], cluster_meets;
Pending pending[MAX_WARPS][PENDING];

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

}  // namespace

void begin_block_waiting() {
  for (unsigned r = 0; r < MOST_RANKS; ++r)
    for (Barrier& b : barriers[r]) b.arrived = b.waiting = 0, b.generation = 0, b.file = nullptr, b.rank = r;
  cluster_meets.arrived = cluster_meets.waiting = 0, cluster_meets.generation = 0, cluster_meets.file = nullptr;
  cluster_meets.rank = OF_CLUSTER;
  for (auto& warp : pending)
    for (Pending& p : warp) p.arrived = 0;
}

void leave(const FiberThread* t) {
  for (const Pending& p : pending[t->warp])
    if (p.arrived != 0 && (p.mask >> t->lane & 1))
      fail("a thread ends while lanes %08x wait for it in a collective of mask %08x at %s:%d", p.arrived, p.mask, p.file, p.line);
  for (Barrier& b : barriers[t->rank])
    if (b.arrived > 0 && b.wanted == 0) check_barrier(b);
  if (cluster_meets.arrived > 0) check_barrier(cluster_meets);
}

namespace {
int meet(Barrier& b, int id, int wanted, Vote vote, int predicate, const char* file, int line) {
  FiberThread* t = self();
  if (b.arrived > 0 && wanted == 0 && (b.line != line || (b.file != file && std::strcmp(b.file, file) != 0)))
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
  } else if (!in_order()) {  // the last to come has no right to go first
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
    if (at_random() && mask != me && (draw() & 1)) {
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

}  // namespace emu
