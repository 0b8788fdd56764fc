// memory.cpp: shared memory, asynchronous copies into it, and device memory.
#include "memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#include "emulator.h"
#include "sanitizers.h"

namespace emu {
namespace {

// ---- shared memory: offsets into the arena are its addresses of 32 bits; those below FIRST are nobody's ------------------
constexpr size_t ARENA = size_t{MOST_RANKS} * WINDOW, FIRST = 1024, RED_ZONE = 32;
constexpr int MAX_ARRAYS = 64, ZONE_BYTE = 0xA5;
char *arena = nullptr, *view = nullptr;  // view: what the asynchronous proxy sees
struct Array {
  const void* key;
  size_t offset, bytes;
};
struct Block {  // of a cluster
  size_t top, static_bytes, dynamic_offset;
  Array arrays[MAX_ARRAYS];
  int n_arrays;
} blocks[MOST_RANKS];
unsigned n_ranks = 1;
size_t dynamic_bytes = 0;

Block& my_block() { return blocks[current->rank]; }

void fill_bytes(void* p, int value, size_t bytes) {  // not memset: see emulator.cpp
  auto* q = static_cast<char*>(p);
  for (size_t i = 0; i < bytes; ++i) q[i] = static_cast<char>(value);
}

bool zone_is_whole(const char* zone, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i)
    if (static_cast<unsigned char>(zone[i]) != ZONE_BYTE) return false;
  return true;
}

size_t take_shared(Block& b, size_t bytes, size_t alignment) {
  const size_t a = alignment < 16 ? 16 : alignment, at = (b.top + a - 1) / a * a;
  if (at + bytes + RED_ZONE > (static_cast<size_t>(&b - blocks) + 1) * WINDOW) fail("shared memory is full");
  b.top = at + bytes + RED_ZONE;
  unpoison(arena + at, bytes);
  if (!asan()) fill_bytes(arena + at + bytes, ZONE_BYTE, RED_ZONE);  // looked at when the block ends
  fill_bytes(arena + at, 0xFF, bytes);
  fill_bytes(view + at, 0xFF, bytes);
  return at;
}

// ---- asynchronous copies, by thread ----------------------------------------------------------------------------------------
struct Copy {
  void* to;
  const void* from;
  int bytes, source_bytes, group;
};
struct Copies {
  std::vector<Copy> pending;
  int groups = 0;
};
std::vector<Copies> copies;

void do_copy(const Copy& c) {
  if (c.source_bytes > 0) note_read(c.from, static_cast<size_t>(c.source_bytes));
  note_write(c.to, static_cast<size_t>(c.bytes));
  copy_bytes(c.to, c.from, static_cast<size_t>(c.source_bytes));
  fill_bytes(static_cast<char*>(c.to) + c.source_bytes, 0, static_cast<size_t>(c.bytes - c.source_bytes));
}

// ---- device memory: what was given out, to tell a host's pointer from it ---------------------------------------------------
std::map<uintptr_t, size_t> allocations;
std::mutex allocations_in_use;

}  // namespace

void begin_launch_memory(size_t dynamic_shared_bytes, size_t threads, unsigned ranks) {
  if (arena == nullptr) {
    void* p = mmap(nullptr, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    arena = static_cast<char*>(p);
    view = new char[ARENA];
  }
  dynamic_bytes = dynamic_shared_bytes, n_ranks = ranks;
  if (copies.size() < threads) copies.resize(threads);
  for (Copies& c : copies) c.pending.clear(), c.groups = 0;
}

void begin_block_memory() {
  const size_t bytes = size_t{n_ranks} * WINDOW;
  if (tsan()) mmap(arena, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  poison(arena, bytes);
  for (unsigned r = 0; r < n_ranks; ++r) {
    Block& b = blocks[r];
    b.n_arrays = 0, b.static_bytes = 0, b.top = size_t{r} * WINDOW + FIRST;
    if (dynamic_bytes > 0) b.dynamic_offset = take_shared(b, dynamic_bytes, 1024);
  }
}

void end_block_memory() {
  if (asan()) return;  // which has told already
  for (unsigned r = 0; r < n_ranks; ++r) {
    const Block& b = blocks[r];
    for (int i = 0; i < b.n_arrays; ++i)
      if (!zone_is_whole(arena + b.arrays[i].offset + b.arrays[i].bytes, RED_ZONE))
        fail("written behind a shared array of %zu bytes", b.arrays[i].bytes);
    if (dynamic_bytes > 0 && !zone_is_whole(arena + b.dynamic_offset + dynamic_bytes, RED_ZONE))
      fail("written behind the %zu bytes of dynamic shared memory", dynamic_bytes);
  }
}

void* shared_array(const void* key, size_t bytes, size_t alignment) {
  Block& b = my_block();
  for (int i = 0; i < b.n_arrays; ++i)
    if (b.arrays[i].key == key) return arena + b.arrays[i].offset;
  if (b.n_arrays == MAX_ARRAYS) fail("more than %d shared arrays", MAX_ARRAYS);
  if ((b.static_bytes += bytes) > DEFAULT_SHARED) fail("more than %zu bytes of static shared memory", DEFAULT_SHARED);
  b.arrays[b.n_arrays++] = {key, take_shared(b, bytes, alignment), bytes};
  return arena + b.arrays[b.n_arrays - 1].offset;
}

void* dynamic_shared() {
  if (dynamic_bytes == 0) fail("the kernel uses dynamic shared memory, and the launch gave none");
  return arena + my_block().dynamic_offset;
}

uint32_t shared_address(const void* pointer) {
  const auto* p = static_cast<const char*>(pointer);
  if (p < arena + FIRST || p >= arena + size_t{n_ranks} * WINDOW) fail("%p is no address in shared memory", pointer);
  return static_cast<uint32_t>(p - arena);
}

void* shared_pointer(uint32_t address, size_t bytes) {
  if (address % WINDOW < FIRST || address % WINDOW + bytes > WINDOW || address >= n_ranks * WINDOW)
    fail("%#x is no address in shared memory", address);
  return arena + address;
}

uint32_t address_in(uint32_t address, unsigned rank, const char* file, int line) {
  if (rank >= n_ranks) fail("block %u at %s:%d of a cluster of %u", rank, file, line, n_ranks);
  if (!lives(rank)) fail("shared memory of block %u of the cluster is used at %s:%d, and that block has ended", rank, file, line);
  return address % WINDOW + rank * WINDOW;
}

char* async_view(uint32_t address, size_t bytes) { return view + (static_cast<char*>(shared_pointer(address, bytes)) - arena); }

void update_async_view() {
  const size_t first = size_t{current->rank} * WINDOW + FIRST;
  const auto* from = reinterpret_cast<const uint64_t*>(arena + first);
  auto* to = reinterpret_cast<uint64_t*>(view + first);
  for (size_t i = 0; i < (my_block().top - first + 7) / 8; ++i) to[i] = from[i];
}

void copy_bytes(void* to, const void* from, size_t bytes) {
  auto* t = static_cast<char*>(to);
  const auto* f = static_cast<const char*>(from);
  for (; bytes >= 16; bytes -= 16, t += 16, f += 16) __builtin_memcpy(t, f, 16);  // of a size that is known: no call
  for (; bytes > 0; --bytes) *t++ = *f++;
}

void note_read(const void* p, size_t bytes) {
  if (asan()) __asan_loadN(const_cast<void*>(p), bytes);
  if (tsan()) __tsan_read_range(const_cast<void*>(p), bytes);
}

void note_write(void* p, size_t bytes) {
  if (asan()) __asan_storeN(p, bytes);
  if (tsan()) __tsan_write_range(p, bytes);
}

void copy_async(void* to, const void* from, int bytes, int source_bytes, const char* file, int line) {
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async at %s:%d copies 4, 8 or 16 bytes, not %d", file, line, bytes);
  if (source_bytes < 0 || source_bytes > bytes) fail("cp.async at %s:%d: %d bytes of %d", file, line, source_bytes, bytes);
  if (reinterpret_cast<uintptr_t>(to) % static_cast<unsigned>(bytes) != 0 ||
      (source_bytes > 0 && reinterpret_cast<uintptr_t>(from) % static_cast<unsigned>(bytes) != 0))
    fail("cp.async at %s:%d: %d bytes from %p to %p, which are not aligned to that", file, line, bytes, from, to);
  shared_address(to);
  Copies& mine = copies[current->linear];
  const Copy c{to, from, bytes, source_bytes, mine.groups};
  if (copies_are_early())
    do_copy(c);
  else
    mine.pending.push_back(c);
}

void copy_commit() { ++copies[current->linear].groups; }

// All groups but the newest n are done when this returns.
void copy_wait(int n) {
  Copies& mine = copies[current->linear];
  size_t kept = 0;
  for (size_t i = 0; i < mine.pending.size(); ++i) {
    if (mine.pending[i].group < mine.groups - n)
      do_copy(mine.pending[i]);
    else
      mine.pending[kept++] = mine.pending[i];
  }
  mine.pending.resize(kept);
}

void finish_copies(unsigned thread) {
  Copies& mine = copies[thread];
  for (const Copy& c : mine.pending) do_copy(c);
  mine.pending.clear();
  mine.groups = 0;
}

void* allocate(size_t bytes) {
  void* p = nullptr;
  const size_t zone = asan() ? 0 : RED_ZONE;  // looked at when a kernel has ended, and when the memory is released
  if (posix_memalign(&p, 256, bytes + zone > 0 ? bytes + zone : 1) != 0) return nullptr;
  fill_bytes(p, 0xFF, bytes);
  fill_bytes(static_cast<char*>(p) + bytes, ZONE_BYTE, zone);
  std::lock_guard<std::mutex> lock(allocations_in_use);
  allocations[reinterpret_cast<uintptr_t>(p)] = bytes;
  return p;
}

void adopt(void* memory, size_t bytes) {
  auto* p = static_cast<char*>(memory);
  if (!asan()) fill_bytes(p + bytes, ZONE_BYTE, RED_ZONE);
  poison(p + (bytes + 7) / 8 * 8, RED_ZONE);
  std::lock_guard<std::mutex> lock(allocations_in_use);
  allocations[reinterpret_cast<uintptr_t>(p)] = bytes;
}

void disown(void* memory) {
  std::lock_guard<std::mutex> lock(allocations_in_use);
  const auto found = allocations.find(reinterpret_cast<uintptr_t>(memory));
  unpoison(static_cast<char*>(memory) + (found->second + 7) / 8 * 8, RED_ZONE);
  allocations.erase(found);
}

bool is_device_memory(const void* pointer, size_t bytes) {
  const auto p = reinterpret_cast<uintptr_t>(pointer);
  std::lock_guard<std::mutex> lock(allocations_in_use);
  auto after = allocations.upper_bound(p);
  return after != allocations.begin() && (--after, p + bytes <= after->first + after->second);
}

void check_allocations() {
  if (asan()) return;
  std::lock_guard<std::mutex> lock(allocations_in_use);
  for (const auto& [begin, bytes] : allocations) {
    auto* zone = reinterpret_cast<char*>(begin + bytes);
    if (zone_is_whole(zone, RED_ZONE)) continue;
    fill_bytes(zone, ZONE_BYTE, RED_ZONE);
    fail("written behind device memory of %zu bytes", bytes);
  }
}

void release(void* memory) {
  if (memory == nullptr) return;
  {
    std::lock_guard<std::mutex> lock(allocations_in_use);
    if (allocations.erase(reinterpret_cast<uintptr_t>(memory)) == 0) fail("%p is freed and was never allocated", memory);
  }
  std::free(memory);
}

void require_device_memory(const void* pointer, int argument) {
  const auto p = reinterpret_cast<uintptr_t>(pointer);
  std::lock_guard<std::mutex> lock(allocations_in_use);
  auto after = allocations.upper_bound(p);
  if (after == allocations.begin() || (--after, p > after->first + after->second))
    fail("argument %d of a kernel points to memory of the host (%p)", argument, pointer);
}

}  // namespace emu
