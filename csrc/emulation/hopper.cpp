// hopper.cpp: what compute capability 9.0 adds, from the PTX ISA (9.7.9.27 and 9.7.13 on): mbarriers, copies of whole tiles by
// TMA, and wgmma.
//
// All of it is asynchronous. A TMA load is carried out at once, by chance, or when nothing else can run (early, random, late); a
// TMA store and a wgmma at once, by chance, or when the program waits for them. Accumulators are NaN while a wgmma is under way,
// and TMA and wgmma read shared memory as of the last fence.proxy.async (memory.cpp's async_view). No allocation here: kernels
// are running.
#include "include/cuda.h"

#include <cstring>

#include "emulator.h"
#include "memory.h"
#include "sanitizers.h"

namespace emu {
namespace {

constexpr int GROUP_WARPS = 4;
constexpr unsigned FULL = 0xffffffffu;
constexpr int FENCE = 80, COMMIT = 81, WAIT = 82, WGMMA = 83, REGISTERS = 84;  // kinds of collectives
constexpr int TMA_ENGINE = 0;                                                 // warp w's tensor cores are engine 1 + w

// ---- mbarrier: our own layout of its 64 bits ------------------------------------------------------------------------------
constexpr unsigned INITIALISED = 1, VISIBLE = 2;  // to the asynchronous proxy, too; poison is 3
struct Barrier {
  uint64_t phase : 1, pending : 20, count : 20;
  int64_t bytes : 21;  // still expected; negative while bytes have come that nobody has announced yet
  uint64_t state : 2;
};
static_assert(sizeof(Barrier) == 8, "an mbarrier has 64 bits");
constexpr int64_t MOST = (1 << 20) - 1;

struct Initialised {
  uint64_t* barrier;
  unsigned by;
};
Initialised unseen[64];  // not yet fenced
int n_unseen = 0;

Barrier read(uint64_t* p, const char* file, int line) {
  if (reinterpret_cast<uintptr_t>(p) % 8 != 0) fail("the mbarrier at %s:%d is not aligned to 8 bytes", file, line);
  shared_address(p);
  Barrier b;
  copy_bytes(&b, p, 8);
  if (b.state != INITIALISED && b.state != VISIBLE) fail("an mbarrier is used at %s:%d before mbarrier.init", file, line);
  return b;
}

char* edge_of(uint64_t* p, unsigned phase) { return reinterpret_cast<char*>(p) + (phase & 1); }

void change(uint64_t* p, int arrivals, int64_t bytes, const char* file, int line) {
  Barrier b = read(p, file, line);
  release_edge(edge_of(p, b.phase));
  if (arrivals > static_cast<int>(b.pending))
    fail("an mbarrier of %d gets one arrival more in a phase at %s:%d", static_cast<int>(b.count), file, line);
  const int64_t now = b.bytes + bytes;
  if (now > MOST || now < -MOST)
    fail("an mbarrier expects %lld bytes at %s:%d, more than it can count", static_cast<long long>(now), file, line);
  b.pending -= static_cast<unsigned>(arrivals);
  b.bytes = now;
  const bool completes = b.pending == 0 && now == 0;
  if (completes) b.phase ^= 1, b.pending = b.count;
  copy_bytes(p, &b, 8);
  if (completes) wake(p);
}

// ---- TMA --------------------------------------------------------------------------------------------------------------------
struct Bulk {
  CUtensorMap map;
  uint32_t shared;
  uint64_t* barrier;  // of a load
  int x, y, group;    // group: of a store
  unsigned slot;      // of a store, its edge in Stores: pending ones move up, and an edge is its address
  unsigned blocks;    // of the cluster, that a load goes to; 0: to this thread's alone
  const char* file;
  int line;
  char edge;          // of a load
};
constexpr int MOST_LOADS = 256, MOST_STORES = 64;
Bulk loads[MOST_LOADS];
int order[MOST_LOADS], n_loads = 0;  // of those under way, oldest first: places in `loads`
bool used[MOST_LOADS];
struct Stores {
  Bulk pending[MOST_STORES];
  int n = 0, groups = 0;
  unsigned thread = 0, issued = 0;
  char edges[MOST_STORES];  // from the thread to its stores, in turns
  char done;  // an edge from stores carried out, early ones too, to the thread that waits
};
constexpr int MOST_STORERS = 16;
Stores storers[MOST_STORERS];  // threads that store, in order of appearance
int n_storers = 0;

uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }  // 128 bytes

// The pieces of 16 bytes of a box: visit(shared address, element of the tensor or null when outside).
template <class Visit>
void for_pieces(const Bulk& b, Visit visit) {
  const CUtensorMap& m = b.map;
  const uint32_t row_bytes = m.box_columns * m.element_bytes, per_piece = 16 / m.element_bytes;
  for (uint32_t r = 0; r < m.box_rows; ++r)
    for (uint32_t piece = 0; piece < row_bytes / 16; ++piece) {
      const uint32_t plain = b.shared + r * row_bytes + piece * 16,
                     address = m.swizzle == CU_TENSOR_MAP_SWIZZLE_128B ? swizzled(plain) : plain;
      const int64_t row = int64_t{b.y} + r, column = int64_t{b.x} + piece * per_piece;
      const bool row_inside = row >= 0 && row < static_cast<int64_t>(m.rows);
      uint32_t inside = 0, before = 0;  // numbers of this piece that the tensor has, and those before its first
      for (uint32_t i = 0; i < per_piece; ++i) {
        const int64_t c = column + i;
        if (c < 0) ++before;
        if (row_inside && c >= 0 && c < static_cast<int64_t>(m.columns)) ++inside;
      }
      const char* element =
          inside == 0 ? nullptr : m.base + row * static_cast<int64_t>(m.row_bytes) + (column + before) * m.element_bytes;
      visit(address, const_cast<char*>(element), before * m.element_bytes, inside * m.element_bytes);
    }
}

void load_to(const Bulk& b, uint32_t shift, uint64_t* barrier) {
  for_pieces(b, [&](uint32_t plain, char* element, uint32_t skip, uint32_t bytes) {
    const uint32_t address = plain + shift;
    auto* to = static_cast<char*>(shared_pointer(address, 16));
    note_write(to, 16);
    char piece[16];
    for (char& c : piece) c = 0;
    if (bytes > 0) {
      note_read(element, bytes);
      copy_bytes(piece + skip, element, bytes);
    }
    copy_bytes(to, piece, 16);
    copy_bytes(async_view(address, 16), piece, 16);
  });
  change(barrier, 0, -int64_t{b.map.box_rows} * b.map.box_columns * b.map.element_bytes, b.file, b.line);
}

void carry_out_load(Bulk& b) {
  enter_engine(TMA_ENGINE);
  acquire(&b.edge);
  if (b.blocks == 0) load_to(b, 0, b.barrier);
  for (unsigned r = 0; r < MOST_RANKS; ++r)
    if (b.blocks >> r & 1) {
      const uint32_t barrier = shared_address(b.barrier);
      load_to(b, address_in(b.shared, r, b.file, b.line) - b.shared,
              static_cast<uint64_t*>(shared_pointer(address_in(barrier, r, b.file, b.line), 8)));
    }
  leave_engine();
}

void carry_out_store(Stores& by, Bulk& b) {
  enter_engine(TMA_ENGINE);
  acquire(&by.edges[b.slot]);
  for_pieces(b, [](uint32_t address, char* element, uint32_t skip, uint32_t bytes) {
    note_read(shared_pointer(address, 16), 16);
    if (bytes == 0) return;
    note_write(element, bytes);
    copy_bytes(element, async_view(address, 16) + skip, bytes);
  });
  release_edge(&by.done);
  leave_engine();
}

Bulk checked(const CUtensorMap* map, const void* shared, int x, int y, const char* file, int line) {
  Bulk b{};
  copy_bytes(&b.map, map, sizeof b.map);
  if (b.map.element_bytes == 0 || b.map.element_bytes > 16) fail("TMA at %s:%d: this is no tensor map", file, line);
  b.shared = shared_address(shared);
  const uint32_t alignment = b.map.swizzle == CU_TENSOR_MAP_SWIZZLE_128B ? 1024 : 128;
  if (b.shared % alignment != 0)
    fail("TMA at %s:%d: shared memory at %#x, which is not aligned to %u bytes", file, line, b.shared, alignment);
  shared_pointer(b.shared, size_t{b.map.box_rows} * b.map.box_columns * b.map.element_bytes);
  b.x = x, b.y = y, b.file = file, b.line = line;
  return b;
}

Stores& my_stores() {
  for (int i = 0; i < n_storers; ++i)
    if (storers[i].thread == current->linear) return storers[i];
  if (n_storers == MOST_STORERS) fail("more than %d threads of a block store by TMA", MOST_STORERS);
  Stores& mine = storers[n_storers++];
  mine.n = mine.groups = 0, mine.thread = current->linear;
  return mine;
}

// ---- wgmma: every warp of a group of four does the 16 rows of its own ---------------------------------------------------
struct Accumulator {  // one that is being written: what the lanes' registers will be
  float* registers[WARP];
  float value[16][256];
  int n = 0, under_way = 0;
};
struct Product {
  Accumulator* d;
  uint64_t a, b;
  int n, group;
  bool a_by_k, b_by_k, add;
  const uint32_t* registers[WARP];  // of A, where it is not in shared memory; else null
  uint32_t held[WARP][4];           // what was in them
};
struct Same {  // what the first warp of the group said of its i-th product; the others must say it too
  uint64_t index, a, b;
  int n, flags;
};
constexpr int MOST_PRODUCTS = 128, ACCUMULATORS = 4, REMEMBERED = 256;
struct WarpState {
  Accumulator accumulators[ACCUMULATORS];
  Product pending[MOST_PRODUCTS];  // a ring: n from `first` on
  int first = 0, n = 0, groups = 0, registers = 0;
  uint64_t issued = 0;
  bool fenced = false;
  char edge_in, edge_out;
} warps[MAX_WARPS];
Same remembered[MAX_WARPS / GROUP_WARPS][REMEMBERED];
int n_warps = 0, warps_of_block = 0;  // n_warps: of the whole cluster

struct Request {
  float* d;
  uint64_t a, b;
  const uint32_t* registers;  // instead of a, or null
  int n;
  bool a_by_k, b_by_k, add;
  int flags() const { return a_by_k + 2 * b_by_k + 4 * add + 8 * (registers != nullptr); }
};

float widened(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float f;
  __builtin_memcpy(&f, &word, 4);
  return f;
}

// Rows [first, first + rows) of an operand and its 16 k, from a descriptor (matrix-descriptor format of the ISA; only 128-byte
// swizzle here).
//   along k:   row m at (m / 8) stride + (m % 8) 128, k at 2 k
//   across k:  m at (m / 64) leading + (m % 64) 2, k at (k / 8) stride + (k % 8) 128
void read_operand(uint64_t descriptor, bool by_k, uint32_t window, int first, int rows, float (*out)[16]) {
  const auto field = [&](int shift) { return static_cast<uint32_t>(descriptor >> shift & 0x3FFF) << 4; };
  const uint32_t start = window + field(0), leading = field(16), stride = field(32);
  if (descriptor >> 62 != 1) fail("wgmma: a descriptor without 128-byte swizzle, which this emulator does not know");
  if ((descriptor >> 49 & 7) != 0) fail("wgmma: a descriptor with a base offset, which this emulator does not know");
  const auto piece = [&](uint32_t plain) {
    const uint32_t address = swizzled(plain);
    note_read(shared_pointer(address, 16), 16);
    return reinterpret_cast<const uint16_t*>(async_view(address, 16));
  };
  for (int r = 0; r < rows; r += by_k ? 1 : 8) {
    const auto m = static_cast<uint32_t>(first + r);
    if (by_k) {
      for (uint32_t c = 0; c < 2; ++c) {
        const uint16_t* p = piece(start + m / 8 * stride + m % 8 * 128 + c * 16);
        for (int k = 0; k < 8; ++k) out[r][8 * c + static_cast<unsigned>(k)] = widened(p[k]);
      }
    } else {
      for (uint32_t k = 0; k < 16; ++k) {
        const uint16_t* p = piece(start + m / 64 * leading + m % 64 * 2 + k / 8 * stride + k % 8 * 128);
        for (int i = 0; i < 8; ++i) out[r + i][k] = widened(p[i]);
      }
    }
  }
}

// Lane l of a warp holds of its 16 rows those of l / 4 and 8 below, and columns 8 j + 2 (l % 4) and one more: 4 registers for
// each j.
template <class Visit>
void for_registers(int n, Visit visit) {
  for (int lane = 0; lane < WARP; ++lane)
    for (int e = 0; e < n / 2; ++e) visit(lane, e, lane / 4 + e / 2 % 2 * 8, e / 4 * 8 + lane % 4 * 2 + e % 2);
}

// A's 16 x 16 of a warp from its lanes' registers.
void read_registers(const Product& p, float (*out)[16]) {
  for (int lane = 0; lane < WARP; ++lane)
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = p.held[lane][i];
      if (p.registers[lane][i] != word) fail("the registers of A of a wgmma under way are written");
      for (int half = 0; half < 2; ++half)
        out[lane / 4 + i % 2 * 8][lane % 4 * 2 + i / 2 * 8 + half] = widened(static_cast<uint16_t>(word >> 16 * half));
    }
}

void carry_out(WarpState& w, unsigned warp, const Product& p) {
  static float A[16][16], B[256][16], transposed[16][256];
  enter_engine(1 + static_cast<int>(warp));
  acquire(&w.edge_in);
  const uint32_t window = warp / static_cast<unsigned>(warps_of_block) * WINDOW;
  if (p.registers[0] != nullptr)
    read_registers(p, A);
  else
    read_operand(p.a, p.a_by_k, window, static_cast<int>(warp % GROUP_WARPS) * 16, 16, A);
  read_operand(p.b, p.b_by_k, window, 0, p.n, B);
  for (int j = 0; j < p.n; ++j)
    for (int k = 0; k < 16; ++k) transposed[k][j] = B[j][k];
  for (int i = 0; i < 16; ++i) {
    float* row = p.d->value[i];
    if (!p.add)
      for (int j = 0; j < p.n; ++j) row[j] = 0.0f;
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < p.n; ++j) row[j] += A[i][k] * transposed[k][j];
  }
  release_edge(&w.edge_out);
  leave_engine();
  if (--p.d->under_way == 0)
    for_registers(p.n, [&](int lane, int e, int i, int j) { p.d->registers[lane][e] = p.d->value[i][j]; });
}

void carry_out_all(WarpState& w, unsigned warp, int before_group) {
  for (; w.n > 0 && w.pending[w.first].group < before_group; --w.n) {
    carry_out(w, warp, w.pending[w.first]);
    w.first = (w.first + 1) % MOST_PRODUCTS;
  }
}

void issue(void** lanes, unsigned mask) {
  if (mask != FULL) fail("wgmma needs full warps");
  const unsigned warp = current->warp;
  WarpState& w = warps[warp];
  const auto& first = *static_cast<Request*>(lanes[0]);
  if (static_cast<int>(warp / GROUP_WARPS * GROUP_WARPS + GROUP_WARPS) > n_warps) fail("wgmma needs a warpgroup of four warps");
  for (int lane = 0; lane < WARP; ++lane) {
    const auto& r = *static_cast<Request*>(lanes[lane]);
    if (r.a != first.a || r.b != first.b || r.n != first.n || r.flags() != first.flags())
      fail("wgmma: the lanes of a warp bring different operands");
  }
  Same& same = remembered[warp / GROUP_WARPS][w.issued % REMEMBERED];
  if (same.index == w.issued + 1 && (same.a != first.a || same.b != first.b || same.n != first.n || same.flags != first.flags()))
    fail("wgmma: the warps of a group bring different operands");
  same = {++w.issued, first.a, first.b, first.n, first.flags()};
  if (!w.fenced) fail("wgmma without a wgmma.fence before it");
  Accumulator* d = nullptr;
  for (Accumulator& x : w.accumulators)
    if (x.under_way > 0 && x.registers[0] == first.d) d = &x;
  if (d == nullptr) {
    for (Accumulator& x : w.accumulators)
      if (x.under_way == 0) d = &x;
    if (d == nullptr) fail("more than %d accumulators of one warp under way", ACCUMULATORS);
    d->n = first.n;
    for (int lane = 0; lane < WARP; ++lane) d->registers[lane] = static_cast<Request*>(lanes[lane])->d;
    for_registers(first.n, [&](int lane, int e, int i, int j) {
      d->value[i][j] = d->registers[lane][e];
      d->registers[lane][e] = __builtin_nanf("");  // nobody's until the program has waited
    });
  }
  if (d->n != first.n) fail("wgmma: two products of different shapes add to the same registers");
  ++d->under_way;
  if (w.n == MOST_PRODUCTS) fail("more than %d wgmma of one warp under way", MOST_PRODUCTS);
  Product& p = w.pending[(w.first + w.n++) % MOST_PRODUCTS];
  // Member by member: as a whole it would be a memset, which ThreadSanitizer sees (emulator.cpp).
  p.d = d, p.a = first.a, p.b = first.b, p.n = first.n, p.group = w.groups;
  p.a_by_k = first.a_by_k, p.b_by_k = first.b_by_k, p.add = first.add;
  for (int lane = 0; lane < WARP; ++lane) {
    p.registers[lane] = static_cast<Request*>(lanes[lane])->registers;
    for (int i = 0; i < 4 && first.registers != nullptr; ++i) p.held[lane][i] = p.registers[lane][i];
  }
  if (copies_are_early()) carry_out_all(w, warp, w.groups + 1);
}

// All warps' lanes come to it, and the last does it for the warp.
template <class Do>
void of_the_warp(int kind, void* argument, Do operation, const char* file, int line) {
  collective(FULL, kind, argument, operation, false, file, line);
}

void ask(Request mine, const char* file, int line) {
  release_edge(&warps[current->warp].edge_in);
  of_the_warp(WGMMA, &mine, issue, file, line);
}

}  // namespace

// ---- mbarrier -----------------------------------------------------------------------------------------------------------
void mbarrier_init(uint64_t* p, int count) {
  shared_address(p);
  if (count < 1 || count > MOST) fail("an mbarrier for %d arrivals", count);
  if (n_unseen == 64) fail("more than 64 mbarriers without a fence");
  Barrier b{};
  b.count = b.pending = static_cast<unsigned>(count), b.state = INITIALISED;
  note_write(p, 8);
  copy_bytes(p, &b, 8);
  unseen[n_unseen++] = {p, current->linear};
}

void fence_mbarrier_init() {
  int kept = 0;
  for (int i = 0; i < n_unseen; ++i) {
    if (unseen[i].by != current->linear) {
      unseen[kept++] = unseen[i];
      continue;
    }
    Barrier b = read(unseen[i].barrier, "", 0);
    b.state = VISIBLE;
    copy_bytes(unseen[i].barrier, &b, 8);
  }
  n_unseen = kept;
}

void mbarrier_arrive(uint64_t* p, int expected_bytes, const char* file, int line) { change(p, 1, expected_bytes, file, line); }

void mbarrier_arrive_at(uint64_t* p, unsigned rank, const char* file, int line) {
  auto* there = static_cast<uint64_t*>(shared_pointer(address_in(shared_address(p), rank, file, line), 8));
  change(there, 1, 0, file, line);
}

void mbarrier_wait(uint64_t* p, int parity, const char* file, int line) {
  while ((read(p, file, line).phase & 1) == static_cast<unsigned>(parity & 1)) wait_on(p, "an mbarrier", file, line);
  acquire(edge_of(p, static_cast<unsigned>(parity)));
}

void fence_proxy_async() {
  update_async_view();
  fence_mbarrier_init();
}

// ---- TMA ----------------------------------------------------------------------------------------------------------------
void tma_load_2d(void* to, const CUtensorMap* map, uint64_t* barrier, int x, int y, const char* file, int line) {
  tma_load_2d_multicast(to, map, barrier, x, y, 0, file, line);
}

void tma_load_2d_multicast(void* to, const CUtensorMap* map, uint64_t* barrier, int x, int y, unsigned blocks, const char* file,
                           int line) {
  Bulk b = checked(map, to, x, y, file, line);
  b.blocks = blocks;
  if (read(barrier, file, line).state != VISIBLE)
    fail("TMA at %s:%d: its mbarrier was initialised without a fence.mbarrier_init or fence.proxy.async", file, line);
  b.barrier = barrier;
  int place = 0;
  while (place < MOST_LOADS && used[place]) ++place;
  if (place == MOST_LOADS) fail("more than %d TMA loads under way", MOST_LOADS);
  loads[place] = b;
  release_edge(&loads[place].edge);
  if (copies_are_early()) return carry_out_load(loads[place]);
  used[place] = true;
  order[n_loads++] = place;
}

bool advance_loads(bool must) {
  if (n_loads == 0 || (!must && draw() % 8 != 0)) return false;
  const int i = loads_are_drawn() ? static_cast<int>(draw() % static_cast<unsigned>(n_loads)) : 0;
  const int place = order[i];
  for (int j = i + 1; j < n_loads; ++j) order[j - 1] = order[j];
  --n_loads;
  used[place] = false;
  carry_out_load(loads[place]);
  return true;
}

void tma_store_2d(const CUtensorMap* map, const void* from, int x, int y, const char* file, int line) {
  Bulk b = checked(map, from, x, y, file, line);
  Stores& mine = my_stores();
  if (mine.n == MOST_STORES) fail("more than %d TMA stores of one thread under way", MOST_STORES);
  b.group = mine.groups, b.slot = mine.issued++ % MOST_STORES;
  Bulk& kept = mine.pending[mine.n] = b;
  release_edge(&mine.edges[b.slot]);
  if (copies_are_early())
    carry_out_store(mine, kept);
  else
    ++mine.n;
}

void bulk_commit() { ++my_stores().groups; }

void bulk_wait(int n, const char*, int) {
  Stores& mine = my_stores();
  int kept = 0;
  for (int i = 0; i < mine.n; ++i) {
    if (mine.pending[i].group < mine.groups - n) {
      carry_out_store(mine, mine.pending[i]);
    } else {
      mine.pending[kept++] = mine.pending[i];
    }
  }
  mine.n = kept;
  acquire(&mine.done);
}

// ---- wgmma ----------------------------------------------------------------------------------------------------------------
void wgmma(float* d, int n, uint64_t a, uint64_t b, bool a_by_k, bool b_by_k, bool add, const char* file, int line) {
  ask({d, a, b, nullptr, n, a_by_k, b_by_k, add}, file, line);
}

void wgmma_rs(float* d, int n, const uint32_t* a, uint64_t b, bool b_by_k, bool add, const char* file, int line) {
  ask({d, 0, b, a, n, true, b_by_k, add}, file, line);
}

void wgmma_fence(const char* file, int line) {
  of_the_warp(FENCE, nullptr, [](void**, unsigned) { warps[current->warp].fenced = true; }, file, line);
}

void wgmma_commit(const char* file, int line) {
  of_the_warp(COMMIT, nullptr, [](void**, unsigned) { ++warps[current->warp].groups; }, file, line);
}

void wgmma_wait(int n, const char* file, int line) {
  of_the_warp(
      WAIT, &n,
      [](void** lanes, unsigned) {
        const unsigned warp = current->warp;
        WarpState& w = warps[warp];
        carry_out_all(w, warp, w.groups - *static_cast<int*>(lanes[0]));
        w.fenced = false;  // the program may touch the registers now
      },
      file, line);
  acquire(&warps[current->warp].edge_out);
}

// setmaxnreg: moves no register here, but says what a GPU would: the warps of a block cannot have more than the 65,536 of a
// multiprocessor.
void set_registers(int count, const char* file, int line) {
  if (count < 24 || count > 256 || count % 8 != 0)
    fail("setmaxnreg at %s:%d: %d registers; they go from 24 to 256 by eights", file, line, count);
  of_the_warp(
      REGISTERS, &count,
      [](void** lanes, unsigned) {
        warps[current->warp].registers = *static_cast<int*>(lanes[0]);
        int total = 0;
        const int first = static_cast<int>(current->rank) * warps_of_block;
        for (int i = first; i < first + warps_of_block; ++i) {
          if (warps[i].registers == 0) return;  // another has yet to say
          total += WARP * warps[i].registers;
        }
        if (total > 65536) fail("setmaxnreg: the warps of this block want %d registers of 65536", total);
      },
      file, line);
}

// ---- the block ------------------------------------------------------------------------------------------------------------
void begin_block_hopper(int threads, int threads_of_block) {
  n_warps = (threads + WARP - 1) / WARP, warps_of_block = (threads_of_block + WARP - 1) / WARP;
  n_unseen = n_loads = n_storers = 0;
  for (bool& u : used) u = false;
  for (int i = 0; i < n_warps; ++i) {
    WarpState& w = warps[i];
    w.n = w.groups = w.registers = 0, w.issued = 0, w.fenced = false;
    for (Accumulator& a : w.accumulators) a.under_way = 0;
  }
  for (auto& group : remembered)
    for (Same& s : group) s.index = 0;
}

void finish_hopper(unsigned thread) {
  for (int i = 0; i < n_storers; ++i)
    if (storers[i].thread == thread && storers[i].n > 0) {
      const Bulk& b = storers[i].pending[0];
      fail("a thread ends without waiting for its TMA store at %s:%d, which still reads shared memory", b.file, b.line);
    }
  if (warps[thread / WARP].n > 0) fail("a thread ends without waiting for its wgmma");
}

void end_block_hopper() {
  if (n_loads > 0) {
    const Bulk& b = loads[order[0]];
    fail("a block ends before its TMA load at %s:%d has arrived", b.file, b.line);
  }
  for (int i = 0; i < n_warps; ++i)
    if (warps[i].issued != warps[i / GROUP_WARPS * GROUP_WARPS].issued)
      fail("the warps of a group have not done the same number of wgmma");
}

}  // namespace emu

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base,
                                const cuuint64_t* dimensions, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* element_strides, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  const uint32_t element = type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32 ? 4 : 2;
  const bool supported = rank == 2 && (swizzle == CU_TENSOR_MAP_SWIZZLE_NONE || swizzle == CU_TENSOR_MAP_SWIZZLE_128B);
  if (!supported || reinterpret_cast<uintptr_t>(base) % 16 != 0 || strides[0] % 16 != 0) return CUDA_ERROR_INVALID_VALUE;
  for (int i = 0; i < 2; ++i)
    if (dimensions[i] == 0 || dimensions[i] > (uint64_t{1} << 32) || box[i] == 0 || box[i] > 256 || element_strides[i] != 1)
      return CUDA_ERROR_INVALID_VALUE;
  if (box[0] * element % 16 != 0 || (swizzle == CU_TENSOR_MAP_SWIZZLE_128B && box[0] * element > 128))
    return CUDA_ERROR_INVALID_VALUE;
  *map = {static_cast<const char*>(base), dimensions[0], dimensions[1], strides[0], box[0], box[1],
          element, static_cast<uint32_t>(swizzle), {}};
  return CUDA_SUCCESS;
}
