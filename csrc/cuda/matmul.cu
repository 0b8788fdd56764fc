// matmul.cu: the three products of training, and packing.
//
//   forward         out[n,o]     = (out +) sum_c x[n,c] weight[o,c] (+ bias[o]) (+ residual[n,o])
//   backward_input  dx[n,c]      = (dx +)  sum_o dout[n,o] weight[o,c]
//   backward_weight dweight[o,c] +=        sum_n dout[n,o] x[n,c],   dbias[o] += sum_n dout[n,o]
//   gelu_forward    aux = x weight^T (+ bias), out = gelu(aux)
//   swiglu_forward  the same aux, out = silu(aux[:, :F]) aux[:, F:]
//
// naive: one thread per output element, one chain of fused multiply-adds in order, both operands read from memory (2 loads a
// step: the caches, not the arithmetic, are the limit).
// tiled: the block copies 32 x 32 tiles of both operands to shared memory and multiplies from there: each number is read from
// memory once per tile instead of once per element, a thirty-second of the traffic. The chain is the same, so the bits are.
// sm80 (matmul_sm80.cu): on tensor cores when `compute` is bfloat16, tiled else. sm80_128x256: always its largest tile.
// sm90 (matmul_sm90.cu): by TMA and wgmma, with the rungs of a ladder of its own. They stand below sm80, in whose place nothing
// takes them until a GPU has measured them: a step of decode needs its chains' order too, and their tiles have 128 rows.
#include "activation.cuh"
#include "matmul.cuh"
#include "vector.cuh"

namespace freedive::cuda {
namespace {

// Element e of an operand, as a product takes it.
template <bool BF16>
__device__ float taken(const Operand& x, int64_t e) {
  return x.half != nullptr ? widened(x.half[e]) : operand<BF16>(x.data[e]);
}

// Column j of out, whose sums these are.
template <Epilogue E>
__device__ void store(const Product& p, int64_t i, int64_t j, float (&sum)[SUMS_OF<E>]) {
  const int64_t outputs = p.columns / SUMS_OF<E>;
  for (int s = 0; s < SUMS_OF<E>; ++s)
    if (p.bias != nullptr) sum[s] += p.bias[j + s * outputs];
  if constexpr (E == Epilogue::SUM) {
    if (p.residual != nullptr) sum[0] += p.residual[i * p.residual_row + j];
    p.out[i * p.out_row + j] = sum[0];
  } else {
    const fd_tensor &out = p.activated.out, &aux = p.activated.aux;
    for (int s = 0; s < SUMS_OF<E>; ++s)
      if (aux.data != nullptr) set_number(aux, row_at(aux, i) + j + s * outputs, sum[s]);
    if (out.data != nullptr)
      set_number(out, row_at(out, i) + j, E == Epilogue::SWIGLU ? swiglu(sum[0], sum[SUMS_OF<E> - 1]) : gelu(sum[0]));
  }
}

template <bool BF16, Epilogue E>
__global__ void naive_kernel(Product p) {
  const int64_t outputs = p.columns / SUMS_OF<E>, e = global_thread(), i = e / outputs, j = e % outputs;
  if (i >= p.rows) return;
  float sum[SUMS_OF<E>];
  for (int s = 0; s < SUMS_OF<E>; ++s) {
    sum[s] = E == Epilogue::SUM && p.add ? p.out[i * p.out_row + j] : 0.0f;
    const int64_t b = (j + s * outputs) * p.b.row;
    for (int64_t k = 0; k < p.depth; ++k)
      sum[s] = fmaf(taken<BF16>(p.a, i * p.a.row + k * p.a.step), taken<BF16>(p.b, b + k * p.b.step), sum[s]);
  }
  store<E>(p, i, j, sum);
}

constexpr int TILE = 32, TILE_ROWS = THREADS / TILE, PER_THREAD = TILE / TILE_ROWS;

template <bool BF16>
__device__ void load_tile(float (&tile)[TILE][TILE + 1], const Operand& x, int64_t begin, int64_t end, int64_t k0,
                          int64_t depth) {
  const bool along_k = x.step == 1;  // neighbouring threads read neighbouring numbers, whichever way they lie
  for (int t = 0; t < PER_THREAD; ++t) {
    const int fast = static_cast<int>(threadIdx.x) % TILE, slow = static_cast<int>(threadIdx.x) / TILE + t * TILE_ROWS;
    const int i = along_k ? slow : fast, k = along_k ? fast : slow;
    tile[i][k] = begin + i < end && k0 + k < depth ? taken<BF16>(x, (begin + i) * x.row + (k0 + k) * x.step) : 0.0f;
  }
}

template <bool BF16, Epilogue E>
__global__ void tiled_kernel(Product p) {
  constexpr int SUMS = SUMS_OF<E>;
  FD_SHARED(float, a, [TILE][TILE + 1]);  // a column more than is used: columns do not share a bank
  FD_SHARED(float, b, [SUMS][TILE][TILE + 1]);
  const int64_t outputs = p.columns / SUMS, across = (outputs + TILE - 1) / TILE;
  const int64_t i0 = blockIdx.x / across * TILE, j0 = blockIdx.x % across * TILE;
  const int column = static_cast<int>(threadIdx.x) % TILE, first = static_cast<int>(threadIdx.x) / TILE;
  const int64_t j = j0 + column;
  float sum[PER_THREAD][SUMS];
  for (int t = 0; t < PER_THREAD; ++t) {
    const int64_t i = i0 + first + t * TILE_ROWS;
    for (int s = 0; s < SUMS; ++s)
      sum[t][s] = E == Epilogue::SUM && p.add && i < p.rows && j < outputs ? p.out[i * p.out_row + j] : 0.0f;
  }
  for (int64_t k0 = 0; k0 < p.depth; k0 += TILE) {
    load_tile<BF16>(a, p.a, i0, p.rows, k0, p.depth);
    for (int s = 0; s < SUMS; ++s) load_tile<BF16>(b[s], p.b, j0 + s * outputs, (s + 1) * outputs, k0, p.depth);
    __syncthreads();
    const int steps = p.depth - k0 < TILE ? static_cast<int>(p.depth - k0) : TILE;
    for (int k = 0; k < steps; ++k)
      for (int t = 0; t < PER_THREAD; ++t)
        for (int s = 0; s < SUMS; ++s) sum[t][s] = fmaf(a[first + t * TILE_ROWS][k], b[s][column][k], sum[t][s]);
    __syncthreads();  // before the next tiles overwrite these
  }
  for (int t = 0; t < PER_THREAD; ++t) {
    const int64_t i = i0 + first + t * TILE_ROWS;
    if (i < p.rows && j < outputs) store<E>(p, i, j, sum[t]);
  }
}

enum Rung { NAIVE, TILED, SM80, SM80_WIDE, SM90_PLAIN, SM90_PERSISTENT, SM90_MULTICAST, SM90 };  // of the ladder

template <Epilogue E>
void multiply_in_order(fd_context* ctx, const char* op, const Product& p, int64_t compute, bool tiled) {
  const int64_t outputs = p.columns / SUMS_OF<E>;
  if (tiled) {
    const int64_t blocks = blocks_for(p.rows, TILE) * blocks_for(outputs, TILE);
    launch(ctx, op, blocks, THREADS, compute == FD_BF16 ? tiled_kernel<true, E> : tiled_kernel<false, E>, p);
  } else {
    launch_threads(ctx, op, p.rows * outputs, compute == FD_BF16 ? naive_kernel<true, E> : naive_kernel<false, E>, p);
  }
}

template <Rung RUNG>
void multiply(fd_context* ctx, const char* op, const Product& p, Split split, int64_t compute, const void* packed_b = nullptr) {
  if (p.rows == 0 || p.columns == 0) return;
  if (RUNG >= SM90_PLAIN && compute == FD_BF16) {
    constexpr Sm90 OF[] = {Sm90::PLAIN, Sm90::PERSISTENT, Sm90::MULTICAST, Sm90::STORED};
    multiply_sm90(ctx, op, p, split, packed_b, ctx->workspace, OF[RUNG >= SM90_PLAIN ? RUNG - SM90_PLAIN : 0]);
  } else if (RUNG >= SM80 && compute == FD_BF16) {
    multiply_sm80(ctx, op, p, split, packed_b, ctx->workspace, RUNG == SM80_WIDE);
  } else if (p.epilogue == Epilogue::GELU) {
    multiply_in_order<Epilogue::GELU>(ctx, op, p, compute, RUNG >= TILED);
  } else if (p.epilogue == Epilogue::SWIGLU) {
    multiply_in_order<Epilogue::SWIGLU>(ctx, op, p, compute, RUNG >= TILED);
  } else {
    multiply_in_order<Epilogue::SUM>(ctx, op, p, compute, RUNG >= TILED);
  }
}

template <Rung RUNG>
void forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_matmul_forward_args*>(arguments);
  const Product p{by_rows(a.x), by_rows(a.weight), static_cast<float*>(a.out.data), a.out.stride[0], a.out.shape[0],
                  a.out.shape[1], a.x.shape[1], a.accumulate != 0, static_cast<const float*>(a.bias.data),
                  static_cast<const float*>(a.residual.data), a.residual.stride[0]};
  multiply<RUNG>(ctx, "matmul_forward", p, Split::BY_SHAPE, a.compute, a.packed.data);
}

// x weight^T, and what follows.
template <class Args>
Product activated(const Args& a, Epilogue epilogue) {
  return {by_rows(a.x), by_rows(a.weight), nullptr, 0, a.x.shape[0], a.weight.shape[0], a.x.shape[1], false,
          static_cast<const float*>(a.bias.data), nullptr, 0, epilogue, {a.out, a.aux}};
}
template <Rung RUNG>
void gelu_forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_matmul_gelu_forward_args*>(arguments);
  multiply<RUNG>(ctx, "matmul_gelu_forward", activated(a, Epilogue::GELU), Split::BY_SHAPE, a.compute, a.packed.data);
}
template <Rung RUNG>
void swiglu_forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_matmul_swiglu_forward_args*>(arguments);
  multiply<RUNG>(ctx, "matmul_swiglu_forward", activated(a, Epilogue::SWIGLU), Split::BY_SHAPE, a.compute, a.packed.data);
}

template <Rung RUNG>
void backward_input(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_matmul_backward_input_args*>(arguments);
  const Product p{by_rows(a.dout), by_columns(a.weight), static_cast<float*>(a.dx.data), a.dx.stride[0], a.dx.shape[0],
                  a.dx.shape[1], a.dout.shape[1], a.accumulate != 0, nullptr, nullptr, 0};
  multiply<RUNG>(ctx, "matmul_backward_input", p, Split::BY_SHAPE, a.compute);
}

// ---- dbias: sums of columns in double: of GROUP rows in order, of GROUPS of those, of all these; the same bits in both rungs --
constexpr int GROUP = 16, GROUPS = 8, CHUNK = GROUP * GROUPS;

__device__ double group_sum(const fd_tensor& x, int64_t first, int64_t column) {
  double sum = 0.0;
  for (int64_t n = first; n < first + GROUP && n < x.shape[0]; ++n) sum += static_cast<double>(row(x, n)[column]);
  return sum;
}

// naive: a thread walks down a column.
__global__ void column_sum_kernel(fd_tensor dbias, fd_tensor dout) {
  const int64_t o = global_thread();
  if (o >= dout.shape[1]) return;
  double sum = 0.0;
  for (int64_t n = 0; n < dout.shape[0]; n += CHUNK) {
    double of_chunk = 0.0;
    for (int g = 0; g < GROUPS; ++g) of_chunk += group_sum(dout, n + g * GROUP, o);
    sum += of_chunk;
  }
  flat(dbias)[o] += static_cast<float>(sum);
}

// else in two stages. A block for 128 columns of a chunk of rows, a warp for a group of them, four columns a lane.
constexpr int COLUMNS = WARP * VECTOR;
__global__ void chunk_sums_kernel(double* sums, fd_tensor dout) {
  static_assert(GROUPS == WARPS, "a warp a group");
  FD_SHARED(double, of_group, [GROUPS][COLUMNS]);
  const int64_t O = dout.shape[1], across = (O + COLUMNS - 1) / COLUMNS, chunk = blockIdx.x / across,
                first = blockIdx.x % across * COLUMNS, o = first + lane_id() * VECTOR,
                begin = chunk * CHUNK + warp_of_block() * GROUP;
  double sum[VECTOR] = {};
  if (o < O)
#pragma unroll
    for (int r = 0; r < GROUP; ++r) {  // unrolled: its loads are under way together
      const int64_t n = begin + r;
      if (n >= dout.shape[0]) continue;
      const Four x = load4(row(dout, n) + o, O - o);
#pragma unroll
      for (int c = 0; c < VECTOR; ++c) sum[c] += static_cast<double>(x.at[c]);
    }
  for (int c = 0; c < VECTOR; ++c) of_group[warp_of_block()][lane_id() * VECTOR + c] = sum[c];
  __syncthreads();
  const int column = static_cast<int>(threadIdx.x);
  if (column >= COLUMNS || first + column >= O) return;
  double total = 0.0;
  for (int g = 0; g < GROUPS; ++g) total += of_group[g][column];
  sums[chunk * O + first + column] = total;
}
__global__ void add_chunks_kernel(fd_tensor dbias, const double* sums, int64_t chunks) {
  const int64_t o = global_thread(), O = dbias.shape[0];
  if (o >= O) return;
  double sum = 0.0;
#pragma unroll 8
  for (int64_t c = 0; c < chunks; ++c) sum += sums[c * O + o];
  flat(dbias)[o] += static_cast<float>(sum);
}

size_t column_sums_bytes(int64_t N, int64_t O) { return static_cast<size_t>(blocks_for(N, CHUNK) * O) * sizeof(double); }

void add_column_sums(fd_context* ctx, const char* op, const fd_tensor& dbias, const fd_tensor& dout, bool naive) {
  const int64_t N = dout.shape[0], O = dout.shape[1];
  if (naive) return launch(ctx, op, blocks_for(O, WARP), WARP, column_sum_kernel, dbias, dout);
  launch(ctx, op, blocks_for(N, CHUNK) * blocks_for(O, COLUMNS), THREADS, chunk_sums_kernel, scratch<double>(ctx), dout);
  launch(ctx, op, blocks_for(O, WARP), WARP, add_chunks_kernel, dbias, scratch<double>(ctx), blocks_for(N, CHUNK));
}

template <Rung RUNG>
void backward_weight(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_matmul_backward_weight_args*>(arguments);
  const Product p{by_columns(a.dout), by_columns(a.x), static_cast<float*>(a.dweight.data), a.dweight.stride[0],
                  a.dweight.shape[0], a.dweight.shape[1], a.dout.shape[0], true, nullptr, nullptr, 0};
  multiply<RUNG>(ctx, "matmul_backward_weight", p, Split::BY_SIZE, a.compute);
  if (a.dbias.data != nullptr) add_column_sums(ctx, "matmul_backward_weight", a.dbias, a.dout, RUNG == NAIVE);
}

size_t forward_workspace(const void* arguments, int32_t) {  // for either `compute`: a model asks once
  const auto& a = *static_cast<const fd_matmul_forward_args*>(arguments);
  return sm80_workspace(Split::BY_SHAPE, a.out.shape[0], a.out.shape[1], a.x.shape[1]);
}
size_t gelu_forward_workspace(const void* arguments, int32_t) {
  const auto& a = *static_cast<const fd_matmul_gelu_forward_args*>(arguments);
  return sm80_workspace(Split::BY_SHAPE, a.x.shape[0], a.weight.shape[0], a.x.shape[1]);
}
size_t swiglu_forward_workspace(const void* arguments, int32_t) {
  const auto& a = *static_cast<const fd_matmul_swiglu_forward_args*>(arguments);
  return sm80_workspace(Split::BY_SHAPE, a.x.shape[0], a.weight.shape[0] + 2, a.x.shape[1]);  // either half's sums in pairs
}
size_t backward_input_workspace(const void* arguments, int32_t) {
  const auto& a = *static_cast<const fd_matmul_backward_input_args*>(arguments);
  return sm80_workspace(Split::BY_SHAPE, a.dx.shape[0], a.dx.shape[1], a.dout.shape[1]);
}
size_t backward_weight_workspace(const void* arguments, int32_t) {
  const auto& a = *static_cast<const fd_matmul_backward_weight_args*>(arguments);
  const size_t product = sm80_workspace(Split::BY_SIZE, a.dweight.shape[0], a.dweight.shape[1], a.dout.shape[0]),
               sums = column_sums_bytes(a.dout.shape[0], a.dout.shape[1]);  // after the product, in its place
  return product > sums ? product : sums;
}

// In float32 a packed weight has no words, and kernels read the weight itself.
void pack(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_matmul_pack_args*>(arguments);
  if (a.compute == FD_BF16) sm80_pack(ctx, "matmul_pack", a.packed.data, a.weight);
}

}  // namespace

int64_t matmul_packed_size(int64_t O, int64_t C, int64_t compute) { return compute == FD_BF16 ? sm80_packed_words(O, C) : 0; }

void multiply_tiled(fd_context* ctx, const char* op, const Product& p, int64_t compute) {
  multiply<TILED>(ctx, op, p, Split::NEVER, compute);
}

#define FD_RUNGS(op)                                                                                        \
  {"matmul_" #op, "naive", 0, op<NAIVE>, nullptr}, {"matmul_" #op, "tiled", 1, op<TILED>, op##_workspace},  \
      {"matmul_" #op, "sm90_plain", 2, op<SM90_PLAIN>, op##_workspace},                                     \
      {"matmul_" #op, "sm90_persistent", 3, op<SM90_PERSISTENT>, op##_workspace},                           \
      {"matmul_" #op, "sm90_multicast", 4, op<SM90_MULTICAST>, op##_workspace},                             \
      {"matmul_" #op, "sm90", 5, op<SM90>, op##_workspace},                                                 \
      {"matmul_" #op, "sm80_128x256", 6, op<SM80_WIDE>, op##_workspace},                                    \
      {"matmul_" #op, "sm80", 7, op<SM80>, op##_workspace}

FD_VARIANT_LIST(matmul, FD_RUNGS(forward), FD_RUNGS(gelu_forward), FD_RUNGS(swiglu_forward), FD_RUNGS(backward_input),
                FD_RUNGS(backward_weight),
                {"matmul_pack", "naive", 0, pack, nullptr})

}  // namespace freedive::cuda
