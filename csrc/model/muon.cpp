// Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): the step of a weight matrix is its momentum with all singular
// values made about 1. Every logical matrix by itself: q, k, v, gate and up are rows of their own in the parameter table, though
// the decoder multiplies by some of them at once. Embeddings, head, biases and norms take AdamW.
//
//   u = Nesterov momentum of the clipped gradient (csrc/ops.h: muon_momentum);  X = u / |u|
//   five times:  X = a X + (b G + c G G) X,  G = X X^T        (a, b, c) = (3.4445, -4.7750, 2.0315)
//   W -= lr (scale X + weight_decay W)
//
// G lives on the matrix's smaller side: for more rows than columns it is X^T X and stands to the right of X, so nothing is turned
// round. Products run in the decoder's own precision; the iteration only has to bring singular values to between 0.7 and 1.2.
//
// State: one momentum for each matrix, where AdamW has its first moment. Memory of a step besides: two matrices of the largest
// size, two squares of its smaller side, taken at the first step. FLOPs a matrix [O,C], r = min(O,C): 5 (4 O C r + 2 r^3).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "decoder.h"
#include "view.h"

namespace freedive {

namespace {

constexpr int STEPS = 5;
constexpr double A = 3.4445, B = -4.7750, C2 = 2.0315;

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

// scratch: X, its next value, G and G G (then their sum), for matrix p. Returns where the result lies.
float* Decoder::orthogonalize(const Parameter& p) {
  const int64_t O = p.shape[0], C = p.shape[1], r = std::min(O, C);
  float *x = muon_.floats(), *next = x + muon_matrix_, *g = next + muon_matrix_, *gg = g + muon_square_, *norm = scalars_ + 2;
  fd_global_norm_args n{view(norm, 1), view(x, p.size)};
  ops_.global_norm(&ctx_, &n);
  fd_normalize_args unit{view(x, p.size), view(x, p.size), view(norm, 1), 1e-7};
  ops_.normalize(&ctx_, &unit);
  for (int step = 0; step < STEPS; ++step) {
    const fd_tensor X = view(x, O, C), Y = view(next, O, C), G = view(g, r, r), GG = view(gg, r, r);
    if (O <= C) {
      fd_matmul_forward_args gram{G, X, X, absent(), absent(), absent(), 0, compute_};
      ops_.matmul_forward(&ctx_, &gram);
    } else {
      zero(g, r * r * sizeof(float));
      fd_matmul_backward_weight_args gram{G, absent(), X, X, compute_};
      ops_.matmul_backward_weight(&ctx_, &gram);
    }
    fd_matmul_forward_args twice{GG, G, G, absent(), absent(), absent(), 0, compute_};  // G is symmetric
    ops_.matmul_forward(&ctx_, &twice);
    fd_linear_combination_args sum{view(gg, r * r), view(g, r * r), view(gg, r * r), B, C2};
    ops_.linear_combination(&ctx_, &sum);
    fd_linear_combination_args first{view(next, p.size), view(x, p.size), absent(), A, 0};
    ops_.linear_combination(&ctx_, &first);
    if (O <= C) {
      fd_matmul_backward_input_args rest{Y, GG, X, 1, compute_};
      ops_.matmul_backward_input(&ctx_, &rest);
    } else {
      fd_matmul_forward_args rest{Y, X, GG, absent(), absent(), absent(), 1, compute_};
      ops_.matmul_forward(&ctx_, &rest);
    }
    std::swap(x, next);
  }
  return x;
}

float Decoder::muon(const float hyper[5], MuonScale rule, const float adamw_hyper[3][8]) {
  if (muon_.size() == 0) {
    for (const Parameter& p : table_.rows)
      if (takes_muon(p)) muon_matrix_ = std::max(muon_matrix_, p.size), muon_square_ = std::max(muon_square_, square(p));
    muon_ = buffer(2 * (muon_matrix_ + muon_square_) * sizeof(float));
  }
  float *norm = scalars_ + 1, *h = scalars_ + 3;
  fd_global_norm_args n{view(norm, 1), view(grads_.floats(), table_.total_floats)};
  let_snapshot_pass();
  put(h, hyper, 5 * sizeof(float));
  ops_.global_norm(&ctx_, &n);
  for (const Parameter& p : table_.rows) {
    if (p.matrix && !takes_muon(p)) adamw_range(p.offset, p.size, adamw_hyper[p.name == "lm_head.weight" ? 2 : 1], true);
    if (!takes_muon(p)) continue;
    fd_muon_momentum_args m{view(muon_.floats(), p.size), view(m_.floats() + p.offset, p.size),
                            view(grads_.floats() + p.offset, p.size), view(norm, 1), view(h, 5)};
    ops_.muon_momentum(&ctx_, &m);
    fd_muon_update_args u{view(param(p.offset), p.size), view(orthogonalize(p), p.size), view(norm, 1), view(h, 5),
                          scale_of(rule, p.shape[0], p.shape[1])};
    ops_.muon_update(&ctx_, &u);
  }
  adamw_range(table_.matrix_floats, table_.total_floats - table_.matrix_floats, adamw_hyper[0], false);
  touch();
  float total = 0.0f;
  get(&total, norm, sizeof total);
  settle();
  return total;
}

}  // namespace freedive
