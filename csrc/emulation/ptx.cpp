// ptx.cpp: what ldmatrix and mma.sync do to a warp, from the fragment layouts of the PTX ISA (9.7.14.5). The last lane to come
// does the whole warp's work, so a product of 16 x 8 x 16 is computed once.
#include <cstring>

#include "emulator.h"

namespace emu {

namespace {

constexpr int LANES = 32, LDMATRIX = 64, MMA = 65;
constexpr unsigned FULL = 0xffffffffu;

struct Load {
  const uint16_t* row;
  int matrices;
  bool transposed;
  uint32_t got[4];
};

struct Product {
  const float* c;
  const uint32_t* a;
  uint32_t b[2];
  float d[4];
};

float widened(uint32_t word, int half) {  // the low or high bfloat16 of a register
  const uint32_t bits = half == 0 ? word << 16 : word & 0xffff0000u;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

}  // namespace

void ldmatrix(uint32_t* r, int matrices, bool transposed, const void* row, const char* file, int line) {
  Load mine{static_cast<const uint16_t*>(row), matrices, transposed, {}};
  if (current->lane < 8u * static_cast<unsigned>(matrices)) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
      fail("ldmatrix at %s:%d: the row at %p is not aligned to 16 bytes", file, line, row);
    shared_pointer(shared_address(row), 16);
    note_read(row, 16);
  }
  collective(
      FULL, LDMATRIX + 2 * matrices + transposed, &mine,
      [](void** lanes, unsigned mask) {
        if (mask != FULL) fail("ldmatrix needs a full warp");
        const auto* first = static_cast<Load*>(lanes[0]);
        for (int m = 0; m < first->matrices; ++m)
          for (int lane = 0; lane < LANES; ++lane) {
            uint32_t word = 0;
            for (int half = 0; half < 2; ++half) {
              const int i = lane / 4, j = lane % 4 * 2 + half, from = first->transposed ? j : i,
                        column = first->transposed ? i : j;
              word |= static_cast<uint32_t>(static_cast<Load*>(lanes[8 * m + from])->row[column]) << (16 * half);
            }
            static_cast<Load*>(lanes[lane])->got[m] = word;
          }
      },
      false, file, line);
  for (int m = 0; m < matrices; ++m) r[m] = mine.got[m];
}

void mma_m16n8k16_bf16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, const char* file, int line) {
  Product mine{d, a, {b0, b1}, {}};
  collective(
      FULL, MMA, &mine,
      [](void** lanes, unsigned mask) {
        if (mask != FULL) fail("mma.sync needs a full warp");
        float A[16][16], B[16][8], C[16][8];
        for (int lane = 0; lane < LANES; ++lane) {
          const auto* p = static_cast<Product*>(lanes[lane]);
          const int row = lane / 4, pair = lane % 4 * 2;
          for (int half = 0; half < 2; ++half) {
            for (int k = 0; k < 4; ++k) A[row + k % 2 * 8][pair + k / 2 * 8 + half] = widened(p->a[k], half);
            for (int k = 0; k < 2; ++k) B[pair + k * 8 + half][row] = widened(p->b[k], half);
            for (int k = 0; k < 2; ++k) C[row + k * 8][pair + half] = p->c[2 * k + half];
          }
        }
        for (int i = 0; i < 16; ++i)
          for (int k = 0; k < 16; ++k)
            for (int j = 0; j < 8; ++j) C[i][j] += A[i][k] * B[k][j];
        for (int lane = 0; lane < LANES; ++lane) {
          auto* p = static_cast<Product*>(lanes[lane]);
          const int row = lane / 4, pair = lane % 4 * 2;
          for (int half = 0; half < 2; ++half)
            for (int k = 0; k < 2; ++k) p->d[2 * k + half] = C[row + k * 8][pair + half];
        }
      },
      false, file, line);
  for (int i = 0; i < 4; ++i) d[i] = mine.d[i];
}

}  // namespace emu
