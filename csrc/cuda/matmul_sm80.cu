// matmul_sm80.cu: the products of matmul.cuh on tensor cores, with what every GPU from compute capability 8.0 on has.
//
//   out[i,j] = (out[i,j] +) sum_k a[i,k] b[j,k] (+ bias[j]) (+ residual[i,j]),  a and b rounded to bfloat16, sums in float32
//
// Operands that are float32 are first rounded into the workspace, once each, in the order they lie in, with rows padded to 16 bytes:
// 4 bytes read and 2 written an element, then 2 read for every tile that needs it. A weight that matmul_pack has rounded is read
// as it is, and so is a tensor that is bfloat16 in memory, in whole rows of 16 bytes.
//
// A block computes a tile of `out`. Tiles of a and b, K deep, come by cp.async into a ring of STAGES; while one is
// multiplied the next ones are under way. Both layouts an operand can have lie in shared memory as in memory, [rows][K] or
// [K][rows]: ldmatrix reads the first, ldmatrix.trans the second, and from there on it is one kernel body for the three
// layouts of training. Pieces of 16 bytes are exchanged (swizzled) so that the eight rows of a matrix lie in different banks.
//
// An element's sum is one chain of mma.sync.m16n8k16 over k = 0, 16, 32, .. starting from out or 0, whatever the tile: so a row's
// bits depend neither on how many other rows there are nor on which tile is chosen, and a decode step has the bits of training.
//
// Where that would leave most of a GPU idle (few columns and a long k: the second product of an MLP in decode, the head's dx, the
// gradient of a small weight) the chain is cut into parts of k, added in order: p0 + p1 + .. Blocks compute parts apart and a
// second kernel adds them; where there are tiles enough, one block computes them one after the other and adds them itself, so it
// is the same sum. How many parts follows from the weight's shape alone, never from rows, but for gradients of weights.
//
// Where gelu or SwiGLU follows, a lane makes out of its finished sums, and rounds them to aux: they are not written to be read
// again. Of SwiGLU a tile's b is N / 2 rows of the gate and the same N / 2 of up, one below the other, and an operand of mma.sync
// takes 8 of each, so that a lane has both sums of a column. No bit of a sum changes.
#include <algorithm>

#include "fragments.cuh"
#include "matmul_rounded.cuh"

namespace freedive::cuda {
namespace {

// ---- operands, rounded ----------------------------------------------------------------------------------------------
// Rows of `width` numbers, `stride` apart, to rows of padded(width) bfloat16; 0 behind their end. A thread writes 16 bytes.
template <class T>
__global__ void round_kernel(uint16_t* out, const T* x, int64_t rows, int64_t width, int64_t stride) {
  const int64_t pieces = (width + PIECE - 1) / PIECE, e = global_thread(), r = e / pieces, begin = e % pieces * PIECE;
  if (r >= rows) return;
  const T* source = x + r * stride + begin;
  const Four first = load4(source, width - begin), second = load4(source + VECTOR, width - begin - VECTOR);
  *reinterpret_cast<uint4*>(out + e * PIECE) = rounded8(first, second);
}

}  // namespace

void round_rows(fd_context* ctx, const char* op, uint16_t* out, const float* x, int64_t rows, int64_t width, int64_t stride) {
  launch_threads(ctx, op, rows * (padded(width) / PIECE), round_kernel<float>, out, x, rows, width, stride);
}
void round_rows(fd_context* ctx, const char* op, uint16_t* out, const uint16_t* x, int64_t rows, int64_t width, int64_t stride) {
  launch_threads(ctx, op, rows * (padded(width) / PIECE), round_kernel<uint16_t>, out, x, rows, width, stride);
}

namespace {

// ---- the product ------------------------------------------------------------------------------------------------------
template <int M_, int N_, int K_, int WARPS_M_, int WARPS_N_, int STAGES_, int BLOCKS_>
struct Tile {
  static constexpr int M = M_, N = N_, K = K_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, STAGES = STAGES_, BLOCKS = BLOCKS_;
  static constexpr int BLOCK_THREADS = WARPS_M * WARPS_N * WARP;
  static constexpr int WARP_M = M / WARPS_M, WARP_N = N / WARPS_N;  // of the tile, a warp's part
  static constexpr int STAGE = (M + N) * K;
  static constexpr size_t SHARED = size_t{STAGES} * STAGE * 2;
  static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0 && K % 16 == 0, "whole instructions");
  static_assert(M * K / PIECE % BLOCK_THREADS == 0 && N * K / PIECE % BLOCK_THREADS == 0, "whole pieces for every thread");
};
//                      M    N   K  warps stages blocks of a multiprocessor
using Wide = Tile<128, 256, 32, 2, 4, 4, 1>;   // 96 KB: all that cards of 8.6, 8.9 and 12.0 have
using Square = Tile<128, 128, 32, 2, 2, 4, 2>;
using Small = Tile<64, 64, 32, 2, 2, 4, 4>;    // where large ones would leave multiprocessors idle
using Skinny = Tile<16, 32, 64, 1, 2, 4, 8>;   // decode: few rows, and the weight is read once

// Copies tiles of ROWS x WIDTH numbers of x [rows, x_row] to shared memory, one after the other; what x has not is 0.
template <int ROWS, int WIDTH, int BLOCK_THREADS>
struct Fetcher {
  static constexpr int PIECES = WIDTH / PIECE, DOWN = BLOCK_THREADS / PIECES;  // this thread's pieces lie DOWN rows apart
  static_assert(DOWN % 8 == 0, "and at the same place within eight rows");
  const uint16_t* at;  // the thread's first piece of the next tile
  int64_t x_row;
  int row, column, rows_left, columns_left;

  __device__ __forceinline__ Fetcher(const uint16_t* x, int64_t x_row_, int64_t first_row, int64_t rows, int64_t first_column)
      : x_row(x_row_), row(static_cast<int>(threadIdx.x) / PIECES), column(static_cast<int>(threadIdx.x) % PIECES) {
    at = x + (first_row + row) * x_row + first_column + column * PIECE;
    rows_left = clipped(rows - first_row - row), columns_left = clipped(x_row - first_column - column * PIECE);
  }
  __device__ __forceinline__ void fetch(uint16_t* tile, int64_t further = 0) const {  // numbers from its own place in x
#pragma unroll
    for (int n = 0; n < ROWS / DOWN; ++n) {
      const bool inside = n * DOWN < rows_left && columns_left > 0;
      ptx::cp_async_16(tile + swizzled<WIDTH>(row + n * DOWN, column), at + further + n * DOWN * x_row, inside ? 16 : 0);
    }
  }
  __device__ __forceinline__ void go_right(int columns) { at += columns, columns_left -= columns; }
  __device__ __forceinline__ void go_down(int rows) { at += rows * x_row, rows_left -= rows; }
};

template <class T, bool A_BY_K, bool B_BY_K, bool PARTS, Epilogue E>
__global__ void __launch_bounds__(T::BLOCK_THREADS, T::BLOCKS) product_kernel(RoundedProduct p) {
  FD_DYNAMIC_SHARED(uint16_t, shared);
  constexpr int MS = T::WARP_M / 16, NS = T::WARP_N / 16;
  constexpr int A_WIDTH = A_BY_K ? T::K : T::M, B_WIDTH = B_BY_K ? T::K : T::N;
  constexpr int SUMS = SUMS_OF<E>, ACROSS = T::N / SUMS;  // columns of out in a tile
  static_assert(SUMS == 1 || B_BY_K, "rows of b are the gate's, and up's");
  const int64_t outputs = p.columns / SUMS;

  int64_t i0, j0;
  unsigned tile = blockIdx.x, part = 0;
  if (PARTS && p.apart) {
    const auto tiles = static_cast<unsigned>((p.rows + T::M - 1) / T::M * ((outputs + ACROSS - 1) / ACROSS));
    part = tile / tiles, tile -= part * tiles;
  }
  place_of_tile(tile, p.rows, outputs, T::M, ACROSS, i0, j0);
  const int64_t k0 = PARTS ? static_cast<int64_t>(part) * p.part_depth : 0;  // of this block
  Fetcher<A_BY_K ? T::M : T::K, A_WIDTH, T::BLOCK_THREADS> a_tiles(
      p.a, p.a_row, A_BY_K ? i0 : k0, A_BY_K ? p.rows : p.depth, A_BY_K ? k0 : i0);
  Fetcher<B_BY_K ? ACROSS : T::K, B_WIDTH, T::BLOCK_THREADS> b_tiles(
      p.b, p.b_row, B_BY_K ? j0 : k0, B_BY_K ? outputs : p.depth, B_BY_K ? k0 : j0);
  int steps = static_cast<int>((p.depth - k0 + T::K - 1) / T::K);
  const int steps_of_part = PARTS ? p.part_depth / T::K : 0;
  if (PARTS && p.apart && steps > steps_of_part) steps = steps_of_part;
  const auto fetch_step = [&](int step) {
    if (step < steps) {
      uint16_t* const stage = shared + step % T::STAGES * T::STAGE;
      a_tiles.fetch(stage), b_tiles.fetch(stage + T::M * T::K);
      if (SUMS == 2) b_tiles.fetch(stage + (T::M + ACROSS) * T::K, outputs * p.b_row);
      A_BY_K ? a_tiles.go_right(T::K) : a_tiles.go_down(T::K);
      B_BY_K ? b_tiles.go_right(T::K) : b_tiles.go_down(T::K);
    }
    ptx::cp_async_commit();  // an empty group, too: the wait below counts them
  };
#pragma unroll
  for (int step = 0; step < T::STAGES - 1; ++step) fetch_step(step);

  // A lane holds rows lane / 4 and 8 below it, columns 2 (lane % 4) and the next, of every 16 x 8 part; of SwiGLU every other part
  // is of up, and columns are counted by those of out.
  const int warp_i = warp_of_block() / T::WARPS_N * T::WARP_M, warp_j = warp_of_block() % T::WARPS_N * (T::WARP_N / SUMS);
  const int64_t lane_i = i0 + warp_i + lane_id() / 4, lane_j = j0 + warp_j + lane_id() % 4 * 2;
  const int rows_left = clipped(p.rows - lane_i), columns_left = clipped(outputs - lane_j);
  float sum[MS][2 * NS][4] = {};
  // Sums of a part, of this lane, two neighbours at a time: partial rows are of even length.
  const auto for_partial = [&](const auto& visit) {
    float* at = p.partial + (static_cast<int64_t>(part) * p.rows + lane_i) * p.partial_row + lane_j;
#pragma unroll
    for (int m = 0; m < MS; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half, at += 8 * p.partial_row) {
        if (16 * m + 8 * half >= rows_left) continue;
#pragma unroll
        for (int n = 0; n < 2 * NS; ++n)
          if (n / SUMS * 8 < columns_left)
            visit(*reinterpret_cast<float2*>(at + n / SUMS * 8 + n % SUMS * (p.partial_row / 2)), sum[m][n][2 * half],
                  sum[m][n][2 * half + 1]);
      }
  };
  if (E == Epilogue::SUM && p.add && part == 0) {
    const float* from = p.out + lane_i * p.out_row + lane_j;
#pragma unroll
    for (int m = 0; m < MS; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half, from += 8 * p.out_row)
#pragma unroll
        for (int n = 0; n < 2 * NS; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e)
            if (16 * m + 8 * half < rows_left && 8 * n + e < columns_left) sum[m][n][2 * half + e] = from[8 * n + e];
  }

  int in_part = 0;  // steps
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    if (PARTS && in_part++ == steps_of_part) {  // a part is complete, and others come: never when apart
      const bool first = step == steps_of_part;
      for_partial([&](float2& so_far, float& x, float& y) {
        so_far = first ? make_float2(x, y) : make_float2(so_far.x + x, so_far.y + y);
        x = y = 0.0f;
      });
      in_part = 1;
    }
    ptx::cp_async_wait<T::STAGES - 2>();  // this step has arrived, of this thread's copies
    __syncthreads();                      // and of all; and nobody reads the stage any more that is filled now
    fetch_step(step + T::STAGES - 1);
    const uint16_t *const a = shared + step % T::STAGES * T::STAGE, *const b = a + T::M * T::K;
#pragma unroll
    for (int k = 0; k < T::K; k += 16) {
      uint32_t fa[MS][4], fb[NS][4];
#pragma unroll
      for (int m = 0; m < MS; ++m) load_a<A_BY_K, A_WIDTH>(fa[m], a, warp_i + 16 * m, k);
#pragma unroll
      for (int n = 0; n < NS; ++n) load_b<B_BY_K, B_WIDTH, SUMS == 2 ? ACROSS : 8>(fb[n], b, warp_j + 16 / SUMS * n, k);
#pragma unroll
      for (int m = 0; m < MS; ++m)
#pragma unroll
        for (int n = 0; n < NS; ++n) {
          ptx::mma_bf16(sum[m][2 * n], fa[m], fb[n][0], fb[n][1]);
          ptx::mma_bf16(sum[m][2 * n + 1], fa[m], fb[n][2], fb[n][3]);
        }
    }
  }

  if (PARTS && p.apart) {
    for_partial([&](float2& mine, float x, float y) { mine = make_float2(x, y); });
    return;
  }
  if (PARTS) for_partial([&](float2& so_far, float& x, float& y) { x = so_far.x + x, y = so_far.y + y; });
#pragma unroll
  for (int m = 0; m < MS; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (16 * m + 8 * half >= rows_left) continue;
#pragma unroll
      for (int n = 0; n < 2 * NS / SUMS; ++n)
        if (8 * n < columns_left)
          finish_two<E>(p, lane_i + 16 * m + 8 * half, lane_j + 8 * n, sum[m][SUMS * n][2 * half],
                        sum[m][SUMS * n][2 * half + 1], sum[m][SUMS * n + SUMS - 1][2 * half],
                        sum[m][SUMS * n + SUMS - 1][2 * half + 1]);
    }
}

// Parts computed apart, added in order. A thread has two neighbours of out.
template <Epilogue E>
__global__ void add_parts_kernel(RoundedProduct p) {
  constexpr int SUMS = SUMS_OF<E>;
  const int64_t pairs = p.partial_row / 2 / SUMS, e = global_thread(), i = e / pairs, j = e % pairs * 2;
  if (i >= p.rows) return;
  float2 sum[SUMS];
#pragma unroll
  for (int s = 0; s < SUMS; ++s) {
    const float* at = p.partial + i * p.partial_row + s * (p.partial_row / 2) + j;
    sum[s] = *reinterpret_cast<const float2*>(at);
#pragma unroll 4
    for (int part = 1; part < p.parts; ++part) {
      const float2 x = *reinterpret_cast<const float2*>(at + part * p.rows * p.partial_row);
      sum[s].x += x.x, sum[s].y += x.y;
    }
  }
  finish_two<E>(p, i, j, sum[0].x, sum[0].y, sum[SUMS - 1].x, sum[SUMS - 1].y);
}

// ---- launching --------------------------------------------------------------------------------------------------------
// Blocks that keep an A100 busy; other cards have 68 to 148 multiprocessors. Of the tile it changes the speed and no bit; the
// number of parts follows from it, so it is the same on all cards.
constexpr int64_t WAVE = 108;
constexpr int64_t MOST_PARTIAL = 8 << 20;      // numbers of parts computed apart
constexpr int64_t LEAST_BY_SHAPE = 1536;       // k of a part: a tile of 128 x 256 that adds it itself moves a fifth more bytes
constexpr int64_t LEAST_BY_SIZE = 512, MOST_BY_SIZE = 16;

template <class T>
int64_t tiles(int64_t rows, int64_t columns) {
  return blocks_for(rows, T::M) * blocks_for(columns, T::N);
}

int64_t even(int64_t n) { return (n + 1) / 2 * 2; }

// How many parts, and their depth: whole steps of every tile.
void cut(RoundedProduct& p, Split split) {
  int64_t n = 1;
  if (split == Split::BY_SHAPE) n = std::min(blocks_for(WAVE, blocks_for(p.columns, Skinny::N)), p.depth / LEAST_BY_SHAPE);
  if (split == Split::BY_SIZE && tiles<Wide>(p.rows, p.columns) < WAVE)
    n = std::min(std::min(blocks_for(2 * WAVE, tiles<Square>(p.rows, p.columns)), p.depth / LEAST_BY_SIZE), MOST_BY_SIZE);
  if (n < 2) return;
  constexpr int64_t STEP = 64;
  static_assert(STEP % Wide::K == 0 && STEP % Square::K == 0 && STEP % Small::K == 0 && STEP % Skinny::K == 0, "whole steps");
  p.part_depth = static_cast<int>(blocks_for(blocks_for(p.depth, n), STEP) * STEP);
  p.parts = static_cast<int>(blocks_for(p.depth, p.part_depth));
  const int64_t halves = p.epilogue == Epilogue::SWIGLU ? 2 : 1;
  p.partial_row = even(p.columns / halves) * halves;
}

template <class T, bool PARTS, Epilogue E>
void launch_tile(fd_context* ctx, const char* op, const RoundedProduct& p) {
  auto kernel = product_kernel<T, true, true, PARTS, E>;
  if constexpr (E == Epilogue::SUM) {
    if (p.a_by_k && !p.b_by_k) kernel = product_kernel<T, true, false, PARTS, E>;
    if (!p.a_by_k) kernel = product_kernel<T, false, false, PARTS, E>;
  }
  launch_shared(ctx, op, tiles<T>(p.rows, p.columns) * (p.apart ? p.parts : 1), T::BLOCK_THREADS, T::SHARED, kernel, p);
}

template <class T, Epilogue E>
void launch_product(fd_context* ctx, const char* op, const RoundedProduct& p) {
  if (p.parts == 1) return launch_tile<T, false, E>(ctx, op, p);
  launch_tile<T, true, E>(ctx, op, p);
  if (p.apart) launch_threads(ctx, op, p.rows * (p.partial_row / 2 / SUMS_OF<E>), add_parts_kernel<E>, p);
}
template <class T>
void launch_product(fd_context* ctx, const char* op, const RoundedProduct& p) {
  switch (p.epilogue) {
    case Epilogue::SUM:
      return launch_product<T, Epilogue::SUM>(ctx, op, p);
    case Epilogue::GELU:
      return launch_product<T, Epilogue::GELU>(ctx, op, p);
    case Epilogue::SWIGLU:
      return launch_product<T, Epilogue::SWIGLU>(ctx, op, p);
  }
}

// By rows or by columns: which dimension of an operand lies without gaps.
struct Laid {
  bool by_k;
  int64_t rows, width, stride;
};
Laid laid(const Operand& x, int64_t rows, int64_t depth) {
  if (x.step == 1) return {true, rows, depth, x.row};
  return {false, depth, rows, x.step};
}

}  // namespace

size_t operand_bytes(int64_t rows, int64_t columns, int64_t depth) {
  const auto operand = [&](int64_t n) {
    return bytes_of(n, depth) > bytes_of(depth, n) ? bytes_of(n, depth) : bytes_of(depth, n);
  };
  return operand(rows) + operand(columns);
}

// Not less for more of anything: a model asks for its largest products.
size_t parts_bytes(Split split, int64_t rows, int64_t columns, int64_t depth) {
  const int64_t wide = even(columns);
  int64_t numbers = 0;
  if (split == Split::BY_SHAPE && depth >= 2 * LEAST_BY_SHAPE) {
    // more columns than CUT are never cut; n parts of fewer have n x columns <= MOST
    constexpr int64_t CUT = (WAVE - 1) * Skinny::N, MOST = (WAVE + 1) * Skinny::N + CUT + WAVE;
    numbers = std::max(rows * std::min(wide, CUT), std::min(MOST_PARTIAL, rows * std::min(depth / LEAST_BY_SHAPE * wide, MOST)));
  }
  if (split == Split::BY_SIZE && depth >= 2 * LEAST_BY_SIZE) numbers = std::min(MOST_PARTIAL, MOST_BY_SIZE * rows * wide);
  return static_cast<size_t>(numbers) * sizeof(float);
}

size_t sm80_workspace(Split split, int64_t rows, int64_t columns, int64_t depth) {
  return operand_bytes(rows, columns, depth) + parts_bytes(split, rows, columns, depth);
}

int64_t sm80_packed_words(int64_t O, int64_t C) { return O * padded(C) / 2; }

void sm80_pack(fd_context* ctx, const char* op, void* packed, const fd_tensor& weight) {
  round_rows(ctx, op, static_cast<uint16_t*>(packed), static_cast<const float*>(weight.data), weight.shape[0], weight.shape[1],
             weight.stride[0]);
}

RoundedProduct round_operands(fd_context* ctx, const char* op, const Product& p, const void* packed_b, uint8_t* workspace) {
  const Laid a = laid(p.a, p.rows, p.depth);
  Laid b = laid(p.b, p.columns, p.depth);
  if (!a.by_k && b.by_k) b = {false, p.depth, p.columns, p.b.step};  // a single column, which lies either way
  // As products read it: where it lies, or rounded to `to`.
  const auto rounded = [&](const Operand& x, const Laid& l, uint8_t* to) -> const uint16_t* {
    const bool whole = reinterpret_cast<uintptr_t>(x.half) % 16 == 0 && l.width % PIECE == 0 && (l.stride == l.width || l.rows == 1);
    if (x.half != nullptr && whole) return x.half;
    auto* out = reinterpret_cast<uint16_t*>(to);
    x.half != nullptr ? round_rows(ctx, op, out, x.half, l.rows, l.width, l.stride)
                      : round_rows(ctx, op, out, x.data, l.rows, l.width, l.stride);
    return out;
  };
  const uint16_t* a_given = rounded(p.a, a, workspace);
  const uint16_t* b_given = packed_b != nullptr ? static_cast<const uint16_t*>(packed_b)
                                                : rounded(p.b, b, workspace + bytes_of(a.rows, a.width));
  const bool pairs = reinterpret_cast<uintptr_t>(p.out) % 8 == 0 && p.out_row % 2 == 0;
  RoundedProduct rounded_product{a_given, b_given, padded(a.width), padded(b.width), a.by_k, b.by_k, p.out, p.out_row, p.rows,
                                 p.columns, p.depth, p.add, pairs, p.bias, p.residual, p.residual_row};
  rounded_product.epilogue = p.epilogue, rounded_product.activated = p.activated;
  return rounded_product;
}

void multiply_rounded(fd_context* ctx, const char* op, const RoundedProduct& product, Split split, void* partial, bool wide) {
  RoundedProduct p = product;
  if (p.rows == 0 || p.columns == 0) return;
  cut(p, split);
  p.partial = static_cast<float*>(partial);
  p.apart = p.parts > 1 && !wide && tiles<Square>(p.rows, p.columns) < WAVE &&
            p.parts * p.rows * p.partial_row <= MOST_PARTIAL;
  const int64_t times = p.apart ? p.parts : 1;
  if (wide || (times == 1 && tiles<Wide>(p.rows, p.columns) >= WAVE))
    launch_product<Wide>(ctx, op, p);
  else if (p.rows <= Skinny::M)
    launch_product<Skinny>(ctx, op, p);
  else if (tiles<Square>(p.rows, p.columns) * times >= WAVE)
    launch_product<Square>(ctx, op, p);
  else
    launch_product<Small>(ctx, op, p);
}

void multiply_sm80(fd_context* ctx, const char* op, const Product& p, Split split, const void* packed_b, uint8_t* workspace,
                   bool wide) {
  if (p.rows == 0 || p.columns == 0) return;
  const RoundedProduct r = round_operands(ctx, op, p, packed_b, workspace);
  multiply_rounded(ctx, op, r, split, workspace + operand_bytes(p.rows, p.columns, p.depth), wide);
}

}  // namespace freedive::cuda
