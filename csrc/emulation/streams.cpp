// streams.cpp: see streams.h. Everything is done on the thread that waits; a lock makes the streams one machine.
#include "streams.h"

#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "emulator.h"
#include "memory.h"

namespace emu {

namespace {

struct Queue {
  struct Task {
    std::function<void()> work;  // or nothing, and only the wait
    std::shared_ptr<Queue> after;
    uint64_t until = 0;  // of `after`
  };
  std::deque<Task> tasks;
  uint64_t issued = 0, done = 0;
};

std::recursive_mutex machine;
std::set<Stream*> streams;
uint64_t waited = 0;
Calls counted;

enum class When { LATE, EARLY, RANDOM };
When when() {
  static const When chosen = [] {
    const char* value = std::getenv("FREEDIVE_EMU_STREAMS");
    const std::string name = value == nullptr ? "late" : value;
    if (name == "late") return When::LATE;
    if (name == "early") return When::EARLY;
    if (name == "random") return When::RANDOM;
    fail("FREEDIVE_EMU_STREAMS is '%s'; it must be late, early or random", name.c_str());
  }();
  return chosen;
}

uint64_t drawn() {  // of its own: what kernels draw must not depend on it
  static uint64_t state = options_from_environment().seed * 0x9E3779B97F4A7C15ull + 1;
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return state;
}

// ---- memory that the host may not touch ----------------------------------------------------------------------------------
constexpr size_t ZONE = 64;  // behind it, looked at with all other memory of the device (memory.cpp)
std::map<uintptr_t, size_t> private_memory;  // begin -> bytes mapped
std::map<uintptr_t, size_t> pinned;
std::set<const void*> mapped;  // of the host, and kernels see it
int open_gates = 0;

size_t page() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

void protect(int protection) {
  for (const auto& [begin, bytes] : private_memory) mprotect(reinterpret_cast<void*>(begin), bytes, protection);
}

// While the device works its memory is there.
struct Gate {
  Gate() {
    if (open_gates++ == 0) protect(PROT_READ | PROT_WRITE);
  }
  ~Gate() {
    if (--open_gates == 0) protect(PROT_NONE);
  }
};

void advance(Queue& queue, uint64_t until) {
  while (queue.done < until) {
    Queue::Task task = std::move(queue.tasks.front());
    queue.tasks.pop_front();
    if (task.after) advance(*task.after, task.until);
    if (task.work) task.work();
    ++queue.done;
  }
}

bool within(const std::map<uintptr_t, size_t>& memory, const void* pointer, size_t bytes) {
  const auto p = reinterpret_cast<uintptr_t>(pointer);
  auto after = memory.upper_bound(p);
  return after != memory.begin() && (--after, p + bytes <= after->first + after->second);
}

}  // namespace

using Work = std::vector<std::function<void()>>;
struct Graph {
  Work work;
  int spoiled = FINE;
};
struct Runnable {
  std::shared_ptr<const Work> work;
};
struct Stream {
  std::shared_ptr<Queue> queue = std::make_shared<Queue>();
  std::shared_ptr<Graph> capture;
};
struct Event {
  using Clock = std::chrono::steady_clock;
  std::shared_ptr<Queue> queue;
  uint64_t until = 0;
  std::shared_ptr<Clock::time_point> passed;  // of one that is timed
  std::weak_ptr<Graph> capture;  // recorded within one: no moment that anybody can wait for
  bool captured = false;
};
static thread_local Stream* capturing = nullptr;  // by this thread

static void drain(Stream* stream) {
  Gate gate;
  if (stream != nullptr) return advance(*stream->queue, stream->queue->issued);
  for (Stream* s : streams) advance(*s->queue, s->queue->issued);
}

// A copy's side, when its time has come: a graph may have outlived it.
static void require_here(const void* side, size_t bytes) {
  if (!within(pinned, side, bytes) && !is_device_memory(side, bytes))
    fail("a copy of %zu bytes from or to memory that is gone", bytes);
}

// What the schedule lets happen by itself.
static void let_go() {
  if (when() == When::LATE) return;
  Gate gate;
  for (Stream* s : streams) {
    Queue& q = *s->queue;
    advance(q, when() == When::EARLY ? q.issued : q.done + drawn() % (q.issued - q.done + 1));
  }
}

Stream* open_stream() {
  std::lock_guard<std::recursive_mutex> lock(machine);
  auto* stream = new Stream;
  streams.insert(stream);
  return stream;
}

void close_stream(Stream* stream) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  if (streams.erase(stream) == 0) fail("a stream is closed that is not open");
  if (capturing == stream) capturing = nullptr;
  drain(stream);
  delete stream;
}

Event* open_event(bool timed) {
  auto* event = new Event;
  if (timed) event->passed = std::make_shared<Event::Clock::time_point>();
  return event;
}
void close_event(Event* event) { delete event; }

void enqueue(Stream* stream, std::function<void()> work) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  if (stream == nullptr) {
    if (capturing != nullptr) return static_cast<void>(spoiled(capturing, IMPLICIT));
    Gate gate;
    return work();
  }
  if (streams.count(stream) == 0) fail("work for a stream that is not open");
  if (stream->capture != nullptr) {
    if (capturing != stream) fail("work for a stream that another thread captures");
    ++counted.captured;
    return stream->capture->work.push_back(std::move(work));
  }
  stream->queue->tasks.push_back({std::move(work), nullptr, 0});
  ++stream->queue->issued;
  let_go();
}

void launch_kernel(Stream* stream, std::function<void()> work) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  ++counted.kernels;
  enqueue(stream, std::move(work));
}

void record(Event* event, Stream* stream) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  if (event->passed) enqueue(stream, [passed = event->passed] { *passed = Event::Clock::now(); });
  event->captured = stream->capture != nullptr, event->capture = stream->capture;
  event->queue = stream->queue, event->until = stream->queue->issued;
}

double seconds_between(Event* from, Event* to) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  for (const Event* e : {from, to})
    if (!e->passed || !e->queue || e->queue->done < e->until) fail("the time of an event that is not timed, or not passed yet");
  return std::chrono::duration<double>(*to->passed - *from->passed).count();
}

void stream_wait(Stream* stream, Event* event) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  if (stream->capture != nullptr) {
    if (!event->captured || event->capture.lock() != stream->capture) spoiled(stream, ISOLATION);
    return;  // its own: it is in order with what came before anyway
  }
  if (event->captured) fail("a stream that waits for a mark within another one's capture would join it: not emulated");
  if (!event->queue) return;  // never recorded: CUDA waits for nothing either
  stream->queue->tasks.push_back({nullptr, event->queue, event->until});
  ++stream->queue->issued;
}

void synchronize(Stream* stream) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  ++waited;
  drain(stream);
}

void synchronize(Event* event) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  ++waited;
  Gate gate;
  if (event->queue) advance(*event->queue, event->until);
}

void* allocate_private(size_t bytes) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  const size_t mapped = (bytes + ZONE + page() - 1) / page() * page();
  void* p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  adopt(p, bytes);
  private_memory[reinterpret_cast<uintptr_t>(p)] = mapped;
  if (open_gates == 0) mprotect(p, mapped, PROT_NONE);
  return p;
}

bool release_private(void* memory) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  const auto found = private_memory.find(reinterpret_cast<uintptr_t>(memory));
  if (found == private_memory.end()) return false;
  drain(nullptr);  // cudaFree waits for the device
  disown(memory);
  munmap(memory, found->second);
  private_memory.erase(found);
  return true;
}

void* allocate_pinned(size_t bytes) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  void* p = nullptr;
  if (posix_memalign(&p, 256, bytes > 0 ? bytes : 1) != 0) return nullptr;
  std::memset(p, 0xFF, bytes);
  pinned[reinterpret_cast<uintptr_t>(p)] = bytes;
  return p;
}

bool managed_memory() {
  static const bool there = [] {
    const char* value = std::getenv("FREEDIVE_EMU_MANAGED");
    return value == nullptr || std::strcmp(value, "0") != 0;
  }();
  return there;
}

void* allocate_mapped(size_t bytes) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  void* p = allocate(bytes);
  if (p != nullptr) mapped.insert(p);
  return p;
}

bool is_hosts(const void* memory) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  return mapped.count(memory) > 0 || pinned.count(reinterpret_cast<uintptr_t>(memory)) > 0;
}

void release_pinned(void* memory) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  if (memory == nullptr) return;
  if (mapped.erase(memory) > 0) return drain(nullptr), release(memory);
  if (pinned.erase(reinterpret_cast<uintptr_t>(memory)) == 0) fail("%p is freed as pinned memory and is none", memory);
  drain(nullptr);
  std::free(memory);
}

void copy(Stream* stream, void* to, const void* from, size_t bytes) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  for (const void* side : {static_cast<const void*>(to), from})
    if (!within(pinned, side, bytes) && !is_device_memory(side, bytes))
      fail("a copy of %zu bytes %s memory of the host that is not pinned", bytes, side == to ? "to" : "from");
  ++counted.copies;
  enqueue(stream, [=] {
    require_here(to, bytes), require_here(from, bytes);
    std::memmove(to, from, bytes);
  });
}

void fill(Stream* stream, void* memory, int value, size_t bytes) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  if (!is_device_memory(memory, bytes)) fail("%zu bytes that are no device memory are filled", bytes);
  ++counted.copies;
  enqueue(stream, [=] {
    require_here(memory, bytes);
    std::memset(memory, value, bytes);
  });
}

// ---- graphs ----------------------------------------------------------------------------------------------------------------

int spoiled(Stream* stream, int why) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  if (stream == nullptr || stream->capture == nullptr) return FINE;
  if (stream->capture->spoiled == FINE) stream->capture->spoiled = why;
  return why;
}

int spoiled(const Event* event) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  if (!event->captured) return FINE;
  if (const auto capture = event->capture.lock()) capture->spoiled = CAPTURED_EVENT;
  return CAPTURED_EVENT;
}

int unsafe_call() { return spoiled(capturing, UNSUPPORTED); }

int begin_capture(Stream* stream) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  if (stream == nullptr || capturing != nullptr || stream->capture != nullptr) return UNSUPPORTED;
  capturing = stream;
  stream->capture = std::make_shared<Graph>();
  return FINE;
}

int end_capture(Stream* stream, Graph** graph) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  *graph = nullptr;
  if (stream == nullptr || stream->capture == nullptr) return UNMATCHED;
  if (capturing != stream) return WRONG_THREAD;
  const std::shared_ptr<Graph> made = std::move(stream->capture);
  capturing = nullptr;
  if (made->spoiled != FINE) return INVALIDATED;
  *graph = new Graph(*made);
  return FINE;
}

Runnable* instantiate(const Graph* graph) { return new Runnable{std::make_shared<const Work>(graph->work)}; }

void launch(Runnable* graph, Stream* stream) {
  std::lock_guard<std::recursive_mutex> lock(machine);
  if (streams.count(stream) == 0) fail("a graph for a stream that is not open");
  if (stream->capture != nullptr) fail("a graph launched within a capture: not emulated");
  ++counted.graphs;
  for (size_t i = 0; i < graph->work->size(); ++i)
    stream->queue->tasks.push_back({[work = graph->work, i] { (*work)[i](); }, nullptr, 0}), ++stream->queue->issued;
  let_go();
}

void close_graph(Graph* graph) { delete graph; }
void close_graph(Runnable* graph) { delete graph; }

Calls calls() {
  std::lock_guard<std::recursive_mutex> lock(machine);
  return counted;
}

size_t free_memory() { return static_cast<size_t>(sysconf(_SC_AVPHYS_PAGES)) * page(); }

uint64_t waits() {
  std::lock_guard<std::recursive_mutex> lock(machine);
  return waited;
}

}  // namespace emu

// For tests, through ctypes.
extern "C" __attribute__((visibility("default"))) uint64_t emulation_waits() { return emu::waits(); }
// kernels launched, copies, graphs launched, of these what was only captured
extern "C" __attribute__((visibility("default"))) void emulation_calls(uint64_t out[4]) {
  const emu::Calls c = emu::calls();
  out[0] = c.kernels, out[1] = c.copies, out[2] = c.graphs, out[3] = c.captured;
}
