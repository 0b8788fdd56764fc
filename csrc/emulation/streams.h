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

Stream* open_stream();
void close_stream(Stream* stream);
Event* open_event(bool timed = false);
void close_event(Event* event);

// Of a null stream: after all that is pending on any stream, and at once.
void enqueue(Stream* stream, std::function<void()> work);
void record(Event* event, Stream* stream);
void stream_wait(Stream* stream, Event* event);
double seconds_between(Event* from, Event* to);  // of the processor that emulates: proves the calls, says nothing of a GPU
void synchronize(Stream* stream);  // null: all
void synchronize(Event* event);

void* allocate_private(size_t bytes);  // null when there is none
bool release_private(void* memory);    // false: it is none
void* allocate_pinned(size_t bytes);
void release_pinned(void* memory);
// Fails unless each side is device memory, managed or not, or pinned.
void copy(Stream* stream, void* to, const void* from, size_t bytes);
void fill(Stream* stream, void* memory, int value, size_t bytes);
size_t free_memory();

uint64_t waits();  // of the host, so far: for tests

}  // namespace emu
