// matmul.cu: the three products of training, and packing.
//
//   forward         out[n,o]     = (out +) sum_c x[n,c] weight[o,c] (+ bias[o]) (+ residual[n,o])
//   backward_input  dx[n,c]      = (dx +)  sum_o dout[n,o] weight[o,c]
//   backward_weight dweight[o,c] +=        sum_n dout[n,o] x[n,c],   dbias[o] += sum_n dout[n,o]
//
// naive: one thread per output element, one chain of fused multiply-adds in order, both operands read from memory (2 loads a
// step: the caches, not the arithmetic, are the limit).
// tiled: the block copies 32 x 32 tiles of both operands to shared memory and multiplies from there: each number is read from
// memory once per tile instead of once per element, a thirty-second of the traffic. The chain is the same, so the bits are.
// sm80 (matmul_sm80.cu): on tensor cores when `compute` is bfloat16, tiled else. sm80_128x256: always its largest tile.
// sm90 (matmul_sm90.cu): by TMA and wgmma. It stands below sm80, in whose place nothing takes it until a GPU has measured it: a
// step of decode needs its chains' order too, and its tiles have 128 rows.
#include "matmul.cuh"

namespace freedive::cuda {
namespace {

__device__ void store(const Product& p, int64_t i, int64_t j, float sum) {
  if (p.bias != nullptr) sum += p.bias[j];
  if (p.residual != nullptr) sum += p.residual[i * p.residual_row + j];
  p.out[i * p.out_row + j] = sum;
}

template <bool BF16>
__global__ void naive_kernel(Product p) {
  const int64_t e = global_thread(), i = e / p.columns, j = e % p.columns;
  if (i >= p.rows) return;
  const float *a = p.a.data + i * p.a.row, *b = p.b.data + j * p.b.row;
  float sum = p.add ? p.out[i * p.out_row + j] : 0.0f;
  for (int64_t k = 0; k < p.depth; ++k) sum = fmaf(operand<BF16>(a[k * p.a.step]), operand<BF16>(b[k * p.b.step]), sum);
  store(p, i, j, sum);
}

constexpr int TILE = 32, TILE_ROWS = THREADS / TILE, PER_THREAD = TILE / TILE_ROWS;

template <bool BF16>
__device__ void load_tile(float (&tile)[TILE][TILE + 1], const Operand& x, int64_t begin, int64_t end, int64_t k0,
                          int64_t depth) {
  const bool along_k = x.step == 1;  // neighbouring threads read neighbouring numbers, whichever way they lie
  for (int t = 0; t < PER_THREAD; ++t) {
    const int fast = static_cast<int>(threadIdx.x) % TILE, slow = static_cast<int>(threadIdx.x) / TILE + t * TILE_ROWS;
    const int i = along_k ? slow : fast, k = along_k ? fast : slow;
    tile[i][k] = begin + i < end && k0 + k < depth ? operand<BF16>(x.data[(begin + i) * x.row + (k0 + k) * x.step]) : 0.0f;
  }
}

template <bool BF16>
__global__ void tiled_kernel(Product p) {
  FD_SHARED(float, a, [TILE][TILE + 1]);  // a column more than is used: columns do not share a bank
  FD_SHARED(float, b, [TILE][TILE + 1]);
  const int64_t across = (p.columns + TILE - 1) / TILE;
  const int64_t i0 = blockIdx.x / across * TILE, j0 = blockIdx.x % across * TILE;
  const int column = static_cast<int>(threadIdx.x) % TILE, first = static_cast<int>(threadIdx.x) / TILE;
  const int64_t j = j0 + column;
  float sum[PER_THREAD];
  for (int t = 0; t < PER_THREAD; ++t) {
    const int64_t i = i0 + first + t * TILE_ROWS;
    sum[t] = p.add && i < p.rows && j < p.columns ? p.out[i * p.out_row + j] : 0.0f;
  }
  for (int64_t k0 = 0; k0 < p.depth; k0 += TILE) {
    load_tile<BF16>(a, p.a, i0, p.rows, k0, p.depth);
    load_tile<BF16>(b, p.b, j0, p.columns, k0, p.depth);
    __syncthreads();
    const int steps = p.depth - k0 < TILE ? static_cast<int>(p.depth - k0) : TILE;
    for (int k = 0; k < steps; ++k)
      for (int t = 0; t < PER_THREAD; ++t) sum[t] = fmaf(a[first + t * TILE_ROWS][k], b[column][k], sum[t]);
    __syncthreads();  // before the next tiles overwrite these
  }
  for (int t = 0; t < PER_THREAD; ++t) {
    const int64_t i = i0 + first + t * TILE_ROWS;
    if (i < p.rows && j < p.columns) store(p, i, j, sum[t]);
  }
}

enum Rung { NAIVE, TILED, SM80, SM80_WIDE, SM90 };  // of the ladder

template <Rung RUNG>
void multiply(fd_context* ctx, const char* op, const Product& p, int64_t compute, const void* packed_b = nullptr) {
  if (p.rows == 0 || p.columns == 0) return;
  if (RUNG == SM90 && compute == FD_BF16) {
    multiply_sm90(ctx, op, p, packed_b, ctx->workspace);
  } else if (RUNG >= SM80 && compute == FD_BF16) {
    multiply_sm80(ctx, op, p, packed_b, ctx->workspace, RUNG == SM80_WIDE);
  } else if (RUNG >= TILED) {
    const int64_t blocks = blocks_for(p.rows, TILE) * blocks_for(p.columns, TILE);
    launch(ctx, op, blocks, THREADS, compute == FD_BF16 ? tiled_kernel<true> : tiled_kernel<false>, p);
  } else {
    launch_threads(ctx, op, p.rows * p.columns, compute == FD_BF16 ? naive_kernel<true> : naive_kernel<false>, p);
  }
}

template <Rung RUNG>
void forward(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_matmul_forward_args*>(arguments);
  const Product p{by_rows(a.x), by_rows(a.weight), static_cast<float*>(a.out.data), a.out.stride[0], a.out.shape[0],
                  a.out.shape[1], a.x.shape[1], a.accumulate != 0, static_cast<const float*>(a.bias.data),
                  static_cast<const float*>(a.residual.data), a.residual.stride[0]};
  multiply<RUNG>(ctx, "matmul_forward", p, a.compute, a.packed.data);
}

template <Rung RUNG>
void backward_input(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_matmul_backward_input_args*>(arguments);
  const Product p{by_rows(a.dout), by_columns(a.weight), static_cast<float*>(a.dx.data), a.dx.stride[0], a.dx.shape[0],
                  a.dx.shape[1], a.dout.shape[1], a.accumulate != 0, nullptr, nullptr, 0};
  multiply<RUNG>(ctx, "matmul_backward_input", p, a.compute);
}

__global__ void column_sum_kernel(fd_tensor dbias, fd_tensor dout) {
  const int64_t o = global_thread();
  if (o >= dout.shape[1]) return;
  double sum = 0.0;
  for (int64_t n = 0; n < dout.shape[0]; ++n) sum += static_cast<double>(row(dout, n)[o]);
  flat(dbias)[o] += static_cast<float>(sum);
}

template <Rung RUNG>
void backward_weight(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_matmul_backward_weight_args*>(arguments);
  const Product p{by_columns(a.dout), by_columns(a.x), static_cast<float*>(a.dweight.data), a.dweight.stride[0],
                  a.dweight.shape[0], a.dweight.shape[1], a.dout.shape[0], true, nullptr, nullptr, 0};
  multiply<RUNG>(ctx, "matmul_backward_weight", p, a.compute);
  if (a.dbias.data != nullptr)
    launch(ctx, "matmul_backward_weight", blocks_for(a.dout.shape[1], WARP), WARP, column_sum_kernel, a.dbias, a.dout);
}

size_t forward_workspace(const void* arguments, int32_t) {  // for either `compute`: a model asks once
  const auto& a = *static_cast<const fd_matmul_forward_args*>(arguments);
  return sm80_workspace(a.out.shape[0], a.out.shape[1], a.x.shape[1]);
}
size_t backward_input_workspace(const void* arguments, int32_t) {
  const auto& a = *static_cast<const fd_matmul_backward_input_args*>(arguments);
  return sm80_workspace(a.dx.shape[0], a.dx.shape[1], a.dout.shape[1]);
}
size_t backward_weight_workspace(const void* arguments, int32_t) {
  const auto& a = *static_cast<const fd_matmul_backward_weight_args*>(arguments);
  return sm80_workspace(a.dweight.shape[0], a.dweight.shape[1], a.dout.shape[0]);
}

// In float32 a packed weight has no words, and kernels read the weight itself.
void pack(fd_context* ctx, const void* arguments) {
  const auto& a = *static_cast<const fd_matmul_pack_args*>(arguments);
  if (a.compute == FD_BF16) sm80_pack(ctx, "matmul_pack", a.packed.data, a.weight);
}

}  // namespace

int64_t matmul_packed_size(int64_t O, int64_t C, int64_t compute) { return compute == FD_BF16 ? sm80_packed_words(O, C) : 0; }

void multiply_tiled(fd_context* ctx, const char* op, const Product& p, int64_t compute) {
  multiply<TILED>(ctx, op, p, compute);
}

#define FD_RUNGS(op)                                                                                   \
  {"matmul_" #op, "naive", 0, op<NAIVE>, nullptr}, {"matmul_" #op, "tiled", 1, op<TILED>, nullptr},    \
      {"matmul_" #op, "sm90", 2, op<SM90>, op##_workspace},                                            \
      {"matmul_" #op, "sm80_128x256", 3, op<SM80_WIDE>, op##_workspace},                               \
      {"matmul_" #op, "sm80", 4, op<SM80>, op##_workspace}

FD_VARIANT_LIST(matmul, FD_RUNGS(forward), FD_RUNGS(backward_input), FD_RUNGS(backward_weight),
                {"matmul_pack", "naive", 0, pack, nullptr})

}  // namespace freedive::cuda
