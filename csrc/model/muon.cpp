// Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): the step of a weight matrix is its momentum with all singular
// values made about 1. Every logical matrix by itself: q, k, v, gate and up are rows of their own in the parameter table, though
// the decoder multiplies by some of them at once. Embeddings, head, biases and norms take AdamW.
//
//   u = Nesterov momentum of the clipped gradient (csrc/ops.h: muon_momentum);  X = u / |u|
//   four times, t = 1..4:  X = a_t X + (b_t G + c_t G G) X,  G = X X^T
//   W -= lr (scale X + weight_decay W)
//
// Each time by the odd polynomial of degree 5 that brings what the one before left of [0.003, 1] nearest to 1 (Amsel et al. 2025,
// arXiv:2505.16932; dev/newton_schulz.py computes a_t, b_t, c_t). All but the last are of x / 1.01: beyond 1 they are steep, and
// rounding to bfloat16 takes a singular value there, of a gradient of rank 1 or nearly. After four, singular values of 0.003 to 1
// are 0.78 to 1.20; after five times Jordan's (3.4445, -4.7750, 2.0315) they are 0.68 to 1.20.
//
// G lives on the matrix's smaller side: for more rows than columns it is X^T X and stands to the right of X, so nothing is turned
// round. Products run in the decoder's own precision.
//
// State: one momentum for each matrix, where AdamW has its first moment. Memory of a step besides: two matrices of the largest
// size, two squares of its smaller side, taken at the first step; on the CPU every thread has such of its own for small ones. FLOPs a matrix [O,C], r = min(O,C): 4 (4 O C r + 2 r^3).
// On the CPU a thread takes a matrix of at most a million numbers for itself: its products are too small to be shared, and stay in
// its cache. 28 matrices of 256 x 256 and 256 x 704, two threads: 69 to 47 ms.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "decoder.h"
#include "view.h"

namespace freedive {

namespace {

struct Step {
  double a, b, c;
};
constexpr Step STEPS[] = {{8.3007, -24.0375, 17.4661}, {4.0034, -2.9228, 0.5419}, {3.4709, -2.5494, 0.5002}, {2.4901, -1.8343, 0.4368}};
constexpr int64_t OF_ONE_THREAD = int64_t{1} << 20;  // numbers

bool takes_muon(const Parameter& p) { return p.matrix && p.name.rfind("layers.", 0) == 0; }

int64_t square(const Parameter& p) {
  const int64_t r = std::min(p.shape[0], p.shape[1]);
  return r * r;
}

// How long the step is, so that one lr fits matrices of all shapes.
double scale_of(MuonScale rule, int64_t rows, int64_t columns) {
  const double r = static_cast<double>(rows), c = static_cast<double>(columns);
  switch (rule) {
    case MuonScale::ORIGINAL:
      return std::sqrt(std::max(1.0, r / c));
    case MuonScale::SPECTRAL:
      return std::sqrt(r / c);
    default:  // arXiv:2502.16982: the root mean square of an AdamW step, so AdamW's lr and weight decay carry over
      return 0.2 * std::sqrt(std::max(r, c));
  }
}

}  // namespace

size_t muon_workspace(const ParameterTable& table, const fd_device_table* device, int threads, int64_t most_numbers) {
  size_t most = 0;
  const auto ask = [&](const char* op, const void* args) { most = std::max(most, workspace_of(device, op, args, threads)); };
  float* f = nullptr;
  for (const Parameter& p : table.rows) {
    if (!takes_muon(p) || p.size > most_numbers) continue;
    const int64_t O = p.shape[0], C = p.shape[1], r = std::min(O, C);
    const fd_tensor X = view(f, O, C), G = view(f, r, r);
    fd_global_norm_args n{view(f, 1), view(f, p.size)};
    ask("global_norm", &n);
    for (int64_t compute : {int64_t{FD_F32}, int64_t{FD_BF16}}) {
      for (auto [out, x, w] : {std::tuple{G, X, X}, std::tuple{G, G, G}, std::tuple{X, X, G}}) {
        fd_matmul_forward_args mf{out, x, w, absent(), absent(), absent(), 1, compute};
        ask("matmul_forward", &mf);
      }
      fd_matmul_backward_weight_args mw{G, absent(), X, X, compute};
      ask("matmul_backward_weight", &mw);
      fd_matmul_backward_input_args mi{X, G, X, 1, compute};
      ask("matmul_backward_input", &mi);
    }
  }
  return most;
}

// The matrix, its next value, G and G G (then their sum), a number.
struct MuonRoom {
  int64_t matrix = 0, square = 0;  // the largest it holds
  float* base = nullptr;
  void hold(const Parameter& p) { matrix = std::max(matrix, p.size), square = std::max(square, freedive::square(p)); }
  int64_t floats() const { return (2 * (matrix + square) + 1 + 15) / 16 * 16; }
};

// Returns where the result lies.
float* Decoder::orthogonalize(fd_context* ctx, const Parameter& p, const MuonRoom& room) {
  const int64_t O = p.shape[0], C = p.shape[1], r = std::min(O, C);
  float *x = room.base, *next = x + room.matrix, *g = next + room.matrix, *gg = g + room.square, *norm = gg + room.square;
  fd_global_norm_args n{view(norm, 1), view(x, p.size)};
  ops_.global_norm(ctx, &n);
  fd_normalize_args unit{view(x, p.size), view(x, p.size), view(norm, 1), 1e-7};
  ops_.normalize(ctx, &unit);
  for (const Step& step : STEPS) {
    const fd_tensor X = view(x, O, C), Y = view(next, O, C), G = view(g, r, r), GG = view(gg, r, r);
    if (O <= C) {
      fd_matmul_forward_args gram{G, X, X, absent(), absent(), absent(), 0, compute_};
      ops_.matmul_forward(ctx, &gram);
    } else {
      const size_t bytes = r * r * sizeof(float);
      has_own_memory() ? ctx_.clear(g, bytes) : static_cast<void>(std::memset(g, 0, bytes));
      fd_matmul_backward_weight_args gram{G, absent(), X, X, compute_};
      ops_.matmul_backward_weight(ctx, &gram);
    }
    fd_matmul_forward_args twice{GG, G, G, absent(), absent(), absent(), 0, compute_};  // G is symmetric
    ops_.matmul_forward(ctx, &twice);
    fd_linear_combination_args sum{view(gg, r * r), view(g, r * r), view(gg, r * r), step.b, step.c};
    ops_.linear_combination(ctx, &sum);
    fd_linear_combination_args first{view(next, p.size), view(x, p.size), absent(), step.a, 0};
    ops_.linear_combination(ctx, &first);
    if (O <= C) {
      fd_matmul_backward_input_args rest{Y, GG, X, 1, compute_};
      ops_.matmul_backward_input(ctx, &rest);
    } else {
      fd_matmul_forward_args rest{Y, X, GG, absent(), absent(), absent(), 1, compute_};
      ops_.matmul_forward(ctx, &rest);
    }
    std::swap(x, next);
  }
  return x;
}

void Decoder::muon_step(fd_context* ctx, const Parameter& p, const MuonRoom& room, MuonScale rule) {
  const fd_tensor norm = view(scalars_ + 1, 1), hyper = view(scalars_ + 3, 5);
  fd_muon_momentum_args m{view(room.base, p.size), view(m_.floats() + p.offset, p.size), view(grads_.floats() + p.offset, p.size),
                          norm, hyper};
  ops_.muon_momentum(ctx, &m);
  fd_muon_update_args u{view(param(p.offset), p.size), view(orthogonalize(ctx, p, room), p.size), norm, hyper,
                        scale_of(rule, p.shape[0], p.shape[1])};
  ops_.muon_update(ctx, &u);
}

// Every matrix by itself, a thread each.
void Decoder::muon_steps_apart(const std::vector<const Parameter*>& matrices, MuonRoom room, float* memory, size_t workspace,
                               MuonScale rule) {
  struct Job {
    Decoder* self;
    const std::vector<const Parameter*>& matrices;
    MuonRoom room;
    float* memory;
    size_t workspace;
    MuonScale rule;
    std::atomic<size_t> next{0};
  } job{this, matrices, room, memory, workspace, rule};
  pool_->run(
      [](void* user, int thread) {
        Job& j = *static_cast<Job*>(user);
        MuonRoom mine = j.room;
        mine.base = j.memory + thread * (mine.floats() + j.workspace / sizeof(float));
        uint8_t* scratch = reinterpret_cast<uint8_t*>(mine.base + mine.floats());
        fd_context ctx{nullptr, nullptr, scratch, j.workspace, 1};
        for (size_t i; (i = j.next.fetch_add(1, std::memory_order_relaxed)) < j.matrices.size();)
          j.self->muon_step(&ctx, *j.matrices[i], mine, j.rule);
      },
      &job);
}

float Decoder::muon(const float hyper[5], MuonScale rule, const float adamw_hyper[3][8]) {
  std::vector<const Parameter*> apart, together;  // matrices that a thread takes for itself, and those that all share
  MuonRoom small, large;
  for (const Parameter& p : table_.rows) {
    if (!takes_muon(p)) continue;
    const bool own = !has_own_memory() && p.size <= OF_ONE_THREAD;
    (own ? apart : together).push_back(&p), (own ? small : large).hold(p);
  }
  const size_t workspace = apart.empty() ? 0 : (muon_workspace(table_, device_, 1, OF_ONE_THREAD) + 63) / 64 * 64;
  if (muon_.size() == 0)
    muon_ = buffer(large.floats() * sizeof(float) + pool_->size() * (small.floats() * sizeof(float) + workspace));
  large.base = muon_.floats();

  float *norm = scalars_ + 1, *h = scalars_ + 3;
  fd_global_norm_args n{view(norm, 1), view(grads_.floats(), table_.total_floats)};
  let_snapshot_pass();
  put(h, hyper, 5 * sizeof(float));
  ops_.global_norm(&ctx_, &n);
  for (const Parameter& p : table_.rows)
    if (p.matrix && !takes_muon(p)) adamw_range(p.offset, p.size, adamw_hyper[p.name == "lm_head.weight" ? 2 : 1], true);
  for (const Parameter* p : together) muon_step(&ctx_, *p, large, rule);
  if (!apart.empty()) muon_steps_apart(apart, small, large.base + large.floats(), workspace, rule);
  adamw_range(table_.matrix_floats, table_.total_floats - table_.matrix_floats, adamw_hyper[0], false);
  touch();
  float total = 0.0f;
  get(&total, norm, sizeof total);
  settle();
  return total;
}

}  // namespace freedive
