// streams.h: streams, events and copies of the CUDA runtime, memory that only kernels may touch, and pinned memory of the host.
//
// What is put on a stream is done in order, and when is the schedule's choice (FREEDIVE_EMU_STREAMS): `late`, the default, does
// nothing until somebody waits for it, and of other streams no more than what was waited for; `early` does it at once; `random`
// draws. So a result that the host reads, or an input it overwrites, without having waited is a wrong number here, as it can be
// on a GPU. Device memory that is not managed is out of bounds while the host runs: reading it there ends the process, as it
// would with a GPU. A copy to or from memory of the host that is not pinned is refused.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

namespace emu {

struct Stream;
struct Event;
struct Graph;     // what was put on a stream while it was captured
struct Runnable;  // a graph made ready, with arguments of its own

Stream* open_stream();
void close_stream(Stream* stream);
Event* open_event(bool timed = false);
void close_event(Event* event);

// Of a null stream: at once, and not after what is pending on others: all streams here are cudaStreamNonBlocking.
void enqueue(Stream* stream, std::function<void()> work);
void launch_kernel(Stream* stream, std::function<void()> work);  // the same, counted
void record(Event* event, Stream* stream);
void stream_wait(Stream* stream, Event* event);
double seconds_between(Event* from, Event* to);  // of the processor that emulates: proves the calls, says nothing of a GPU
void synchronize(Stream* stream);  // null: all
void synchronize(Event* event);

void* allocate_private(size_t bytes);  // null when there is none
bool release_private(void* memory);    // false: it is none
bool managed_memory();  // false (FREEDIVE_EMU_MANAGED=0): the GPU is one whose managed memory the host may not touch beside kernels
void* allocate_pinned(size_t bytes);
void* allocate_mapped(size_t bytes);  // pinned, and kernels see it
bool is_hosts(const void* memory);    // the beginning of one of these two
void release_pinned(void* memory);
// Fails unless each side is device memory, managed or not, or pinned.
void copy(Stream* stream, void* to, const void* from, size_t bytes);
void fill(Stream* stream, void* memory, int value, size_t bytes);
size_t free_memory();

// Graphs. Between begin and end what is put on the stream is kept, with its arguments by value, and nothing of it is done. What
// CUDA refuses meanwhile is refused here and spoils the capture: to wait for the stream or for a mark within it, to wait on it
// for another stream's mark, and, by the thread that captures, to allocate, to free or to use the null stream. Addresses are
// looked at again at each launch: memory may have been freed since.
enum Capture {
  FINE = 0,
  UNSUPPORTED = 900,
  INVALIDATED = 901,
  UNMATCHED = 903,
  ISOLATION = 905,
  IMPLICIT = 906,
  CAPTURED_EVENT = 907,
  WRONG_THREAD = 908
};
int begin_capture(Stream* stream);
int end_capture(Stream* stream, Graph** graph);  // null, and why, where it was spoiled
Runnable* instantiate(const Graph* graph);
void launch(Runnable* graph, Stream* stream);
void close_graph(Graph* graph);
void close_graph(Runnable* graph);  // what is under way goes on
int unsafe_call();                  // one that may not come from a thread that captures: FINE, or it spoils the capture
int spoiled(Stream* stream, int why);  // FINE where the stream is not captured
int spoiled(const Event* event);       // the same of an event recorded while it was

// Calls of the host, so far: for tests.
struct Calls {
  uint64_t kernels = 0, copies = 0, graphs = 0, captured = 0;
};
Calls calls();

uint64_t waits();  // of the host, so far: for tests

}  // namespace emu
