// head_sm80.cu: the head's products on tensor cores, in bfloat16.
//
//   logits z = x W^T,   dx = dz W,   dW += dz^T x
//
// Every operand is rounded once: the weight at the beginning (or it is packed), x once a chunk, and the derivatives dz are
// written rounded by the kernel that computes them. All three products read them as they lie: dz and the weight along k in one,
// across k in the other.
//
// A chunk has as many tokens as keep its logits below 256 MB, at most 1024: each chunk reads the weight twice and dW once and
// writes it, 12 bytes a number of the weight, which a larger chunk shares among more tokens. Bytes a logit: 4 written, 4 read for
// the statistics, 4 read and 2 written for dz, which two products read. The chain of an element of dW goes on from chunk to chunk
// (a chunk is a whole number of steps of 16 tokens), so its bits do not depend on the size of chunks; those of the others cannot.
#include <algorithm>

#include "head.cuh"
#include "matmul_rounded.cuh"

namespace freedive::cuda {
namespace {

constexpr int64_t MOST_ROWS = 1024, LEAST_ROWS = 128, LOGITS = 1 << 26;


int64_t chunk_rows(int64_t V) {
  const int64_t rows = V > 0 ? LOGITS / padded(V) / LEAST_ROWS * LEAST_ROWS : MOST_ROWS;
  return rows < LEAST_ROWS ? LEAST_ROWS : rows > MOST_ROWS ? MOST_ROWS : rows;
}
// Of a chunk, not less for more tokens or a larger vocabulary
int64_t most_logits(int64_t N, int64_t V) {
  return std::min(std::min(N, MOST_ROWS) * padded(V), std::max(LOGITS, LEAST_ROWS * padded(V)));
}
size_t in_256(int64_t bytes) { return (static_cast<size_t>(bytes) + 255) / 256 * 256; }

// The workspace of a head: logits, and operands rounded.
struct RoundedHead {
  fd_context* ctx;
  const char* op;
  HeadTensors t;
  int64_t N, V, C, chunk;
  float* z = nullptr;
  uint16_t *dz = nullptr, *x = nullptr, *rounded_weight = nullptr;
  const uint16_t* weight = nullptr;
  uint8_t* partial = nullptr;
  size_t bytes = 0;

  // Without a context it only counts.
  RoundedHead(fd_context* ctx_, const char* op_, const HeadTensors& tensors, int64_t N_, int64_t V_, int64_t C_, bool backward)
      : ctx(ctx_), op(op_), t(tensors), N(N_), V(V_), C(C_), chunk(chunk_rows(V_)) {
    const int64_t rows = std::min(N, MOST_ROWS), logits = most_logits(N, V);
    const auto take = [&](size_t more) {
      const size_t at = bytes;
      bytes += more;
      return ctx == nullptr ? nullptr : ctx->workspace + at;
    };
    z = reinterpret_cast<float*>(take(in_256(logits * 4)));
    if (backward) dz = reinterpret_cast<uint16_t*>(take(in_256(logits * 2)));
    x = reinterpret_cast<uint16_t*>(take(bytes_of(rows, C)));
    rounded_weight = reinterpret_cast<uint16_t*>(take(bytes_of(V, C)));
    const size_t of_logits = parts_bytes(Split::BY_SHAPE, rows, V, C),
                 of_dx = backward ? parts_bytes(Split::BY_SHAPE, rows, C, V) : 0;
    partial = take(of_logits > of_dx ? of_logits : of_dx);
    if (ctx == nullptr || N == 0) return;
    weight = t.packed.data != nullptr ? static_cast<const uint16_t*>(t.packed.data) : rounded_weight;
    if (t.packed.data == nullptr)
      round_rows(ctx, op, rounded_weight, static_cast<const float*>(t.weight.data), V, C, t.weight.stride[0]);
  }

  // a and b as they lie: along k, or across
  void product(const uint16_t* a, bool a_by_k, int64_t a_row, const uint16_t* b, bool b_by_k, float* out, int64_t out_row,
               int64_t rows, int64_t columns, int64_t depth, bool add, Split split) {
    const bool pairs = reinterpret_cast<uintptr_t>(out) % 8 == 0 && out_row % 2 == 0;
    const RoundedProduct p{a,    b,       a_row, padded(C), a_by_k, b_by_k,  out,     out_row, rows,
                           columns, depth, add,   pairs,     nullptr, nullptr, 0};
    multiply_rounded(ctx, op, p, split, partial);
  }

  void logits(int64_t begin, int64_t rows) {
    round_rows(ctx, op, x, static_cast<const float*>(t.x.data) + begin * t.x.stride[0], rows, C, t.x.stride[0]);
    product(x, true, padded(C), weight, true, z, V, rows, V, C, false, Split::BY_SHAPE);
  }

  void gradients(int64_t begin, int64_t rows) {
    float* dx = static_cast<float*>(t.dx.data) + begin * t.dx.stride[0];
    product(dz, true, padded(V), weight, false, dx, t.dx.stride[0], rows, C, V, false, Split::BY_SHAPE);
    if (t.dweight.data != nullptr)
      product(dz, false, padded(V), x, false, static_cast<float*>(t.dweight.data), t.dweight.stride[0], V, C, rows, true,
              Split::NEVER);
  }
};

}  // namespace

void head_sm80(fd_context* ctx, const char* op, const HeadArguments& a, const HeadTensors& t, bool forward, bool backward) {
  RoundedHead h(ctx, op, t, t.x.shape[0], a.V, t.x.shape[1], backward);
  for (int64_t begin = 0; begin < h.N; begin += h.chunk) {
    const int64_t rows = std::min(h.N - begin, h.chunk);
    h.logits(begin, rows);
    if (forward) head_stats(ctx, op, a, h.z, begin, rows, false);
    if (!backward) continue;
    head_derivatives_rounded(ctx, op, a, h.z, h.dz, begin, rows);
    h.gradients(begin, rows);
  }
}

void sample_sm80(fd_context* ctx, const char* op, const SampleArguments& a, const HeadTensors& t) {
  RoundedHead h(ctx, op, t, t.x.shape[0], a.V, t.x.shape[1], false);
  for (int64_t begin = 0; begin < h.N; begin += h.chunk) {
    const int64_t rows = std::min(h.N - begin, h.chunk);
    h.logits(begin, rows);
    sample_rows(ctx, op, a, h.z, begin, rows);
  }
}

size_t head_sm80_workspace(int64_t N, int64_t V, int64_t C, bool backward) {
  const size_t rounded = RoundedHead(nullptr, "", {}, N, V, C, backward).bytes, tiled = head_workspace(N, V);
  return rounded > tiled ? rounded : tiled;
}

}  // namespace freedive::cuda
