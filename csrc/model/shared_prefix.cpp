// Sequences that begin alike: the tokens they share go through the layers once.
//
// Completions of one prompt, or a chosen and a rejected answer, repeat hundreds of tokens. In a batch with `prefixes` a sequence
// leaves out the first rows that an earlier one has; all that works row by row (norms, products, activations, head) sees each row
// once. Only attention looks along a sequence: for it rows are copied out, shared ones in front of each that needs them, into
// sequences as ops.h knows them, in pieces of at most max_tokens rows; and the derivatives of shared rows are added up, in the
// order of the sequences. So a row's numbers are those of the batch that repeats everything, bit for bit, whatever kernel
// attends; its gradients are the same sums in another order.
//
// Memory: the copies of a piece, 4 (2 HD + 2 GD + H) bytes a row, as much again for the backward pass; taken at the first batch
// that shares. Copying and adding are embedding_forward and embedding_backward with rows for ids: no device needs anything new.
#include <algorithm>
#include <cstring>

#include "decoder.h"
#include "view.h"

namespace freedive {

namespace {

// A tensor [N, heads, D] as [N, heads D].
fd_tensor flat(fd_tensor t) {
  t.shape[1] *= t.shape[2], t.stride[1] = 1, t.ndim = 2;
  t.shape[2] = t.stride[2] = 1;
  return t;
}

}  // namespace

// Which rows each piece copies; prefixes int32 [S, 2] = (sequence whose first rows come before this one's, how many), checked by
// the caller. all: how many copies, padded where the batch is, which is one piece then: the copies behind its sequences are an
// unused tail, whose attention is 0, and the batch's own unused rows have theirs in the last of them.
void Decoder::plan_shared(const BatchView& b, int64_t all) {
  const int32_t *prefixes = b.prefixes, *cu = b.cu_seqlens;
  pieces_.clear();
  if (prefixes == nullptr) return;
  const size_t numbers = static_cast<size_t>(all + n_ + 2 * s_ + std::max(n_, max_tokens_));
  if (shared_rows_.size() < numbers * sizeof(int32_t)) finish(), shared_rows_ = buffer(numbers * sizeof(int32_t) * 5 / 4);
  shared_plan_.assign(numbers, 0);
  // Places in what ops read, and the same in the plan, which is copied there.
  int32_t *from = reinterpret_cast<int32_t*>(shared_rows_.bytes()), *own = from + all, *starts = own + n_;
  zeros_ = starts + 2 * s_;  // a piece has one start more than sequences, and at least one of these
  auto planned = [&, there = from](int32_t* p) -> int32_t& { return shared_plan_[static_cast<size_t>(p - there)]; };
  int64_t at = 0;
  for (int64_t s = 0; s < b.n_seqs;) {
    Piece p{cu[s], 0, 0, 0, from + at, own + cu[s], starts};
    for (; s < b.n_seqs && p.seqs < max_seqs_; ++s) {
      const int64_t parent = prefixes[2 * s], before = prefixes[2 * s + 1], mine = cu[s + 1] - cu[s];
      if (p.seqs > 0 && p.copies + before + mine > max_tokens_) break;
      planned(starts++) = static_cast<int32_t>(p.copies);
      for (int64_t i = 0; i < before; ++i) planned(p.from + p.copies++) = static_cast<int32_t>(cu[parent] + i);
      for (int64_t i = 0; i < mine; ++i) {
        planned(own + cu[s] + i) = static_cast<int32_t>(p.copies);
        planned(p.from + p.copies++) = static_cast<int32_t>(cu[s] + i);
      }
      p.rows += mine, ++p.seqs;
    }
    planned(starts++) = static_cast<int32_t>(p.copies);
    if (p.rows == rows_ && p.copies < all) {
      for (; p.seqs < s_; ++p.seqs) planned(starts++) = static_cast<int32_t>(p.copies);
      for (; p.rows < n_; ++p.rows) planned(own + p.rows) = static_cast<int32_t>(all - 1);
      p.copies = all;
    }
    at += p.copies;
    pieces_.push_back(p);
  }
  put(shared_rows_.bytes(), shared_plan_.data(), numbers * sizeof(int32_t));
  const int64_t H = config_.n_head, G = config_.n_kv_head, D = config_.head_dim, M = max_tokens_;
  const size_t floats = static_cast<size_t>((trainable_ ? 2 : 1) * M * (2 * H + 2 * G) * D + M * H + H * D);
  if (shared_.size() == 0) shared_ = buffer(floats * sizeof(float));
}

// Of a piece of R rows, the copies of what attention reads and writes.
Decoder::Copies Decoder::copies(const Piece& p) const {
  const int64_t H = config_.n_head, G = config_.n_kv_head, D = config_.head_dim, M = max_tokens_, R = p.copies;
  float *q = shared_.floats(), *k = q + M * H * D, *v = k + M * G * D, *out = v + M * G * D, *lse = out + M * H * D,
        *zero = lse + M * H;
  float *dq = zero + H * D, *dk = dq + M * H * D, *dv = dk + M * G * D, *dout = dv + M * G * D;
  return {view(q, R, H, D), view(k, R, G, D), view(v, R, G, D), view(out, R, H, D), view(lse, R, H), view(zero, 1, H * D),
          view(dq, R, H, D), view(dk, R, G, D), view(dv, R, G, D), view(dout, R, H, D), view(p.starts, p.seqs + 1)};
}

// out[i] = table[rows[i]]
void Decoder::copy_rows(const fd_tensor& out, const fd_tensor& table, const int32_t* rows) {
  fd_embedding_forward_args a{out, view(rows, out.shape[0]), absent(), table, absent()};
  ops_.embedding_forward(&ctx_, &a);
}

// table[rows[i]] += from[i], in the order of i
void Decoder::add_rows(const fd_tensor& table, const fd_tensor& from, const int32_t* rows) {
  fd_embedding_backward_args a{table, absent(), from, view(rows, from.shape[0]), absent()};
  ops_.embedding_backward(&ctx_, &a);
}

void Decoder::zero_rows(const fd_tensor& out, const fd_tensor& zero) {
  fd_tensor first = zero;
  first.shape[1] = out.shape[1];
  copy_rows(out, first, zeros_);
}

void Decoder::shared_attention_forward(Activations& a, const fd_tensor& q, const fd_tensor& k, const fd_tensor& v) {
  const int64_t H = config_.n_head, D = config_.head_dim;
  for (const Piece& p : pieces_) {
    const Copies c = copies(p);
    copy_rows(flat(c.q), flat(q), p.from), copy_rows(flat(c.k), flat(k), p.from), copy_rows(flat(c.v), flat(v), p.from);
    fd_attention_forward_args at{c.out, c.lse, c.q, c.k, c.v, c.cu_seqlens, attention_scale(D), compute_};
    ops_.attention_forward(&ctx_, &at);
    copy_rows(view(a.attention + p.row * H * D, p.rows, H * D), flat(c.out), p.own);
    copy_rows(view(a.lse + p.row * H, p.rows, H), c.lse, p.own);
  }
}

// In: dattention_. dq, dk and dv are written.
void Decoder::shared_attention_backward(const Activations& a, const fd_tensor& dq, const fd_tensor& dk, const fd_tensor& dv,
                                        const fd_tensor& q, const fd_tensor& k, const fd_tensor& v) {
  const int64_t H = config_.n_head, D = config_.head_dim;
  const fd_tensor out = view(a.attention, n_, H * D), lse = view(a.lse, n_, H), dout = view(dattention_, n_, H * D);
  const fd_tensor zero = copies(pieces_.front()).zero;
  zero_rows(flat(dk), zero), zero_rows(flat(dv), zero);
  for (const Piece& p : pieces_) {
    const Copies c = copies(p);
    copy_rows(flat(c.q), flat(q), p.from), copy_rows(flat(c.k), flat(k), p.from), copy_rows(flat(c.v), flat(v), p.from);
    copy_rows(flat(c.out), out, p.from), copy_rows(c.lse, lse, p.from);
    fd_tensor from = dout;  // the piece's own rows; a copy's output goes nowhere
    from.data = dattention_ + p.row * H * D, from.shape[0] = p.rows;
    zero_rows(flat(c.dout), zero), add_rows(flat(c.dout), from, p.own);
    const double scale = attention_scale(D);
    fd_attention_backward_args at{c.dq, c.dk, c.dv, c.dout, c.out, c.lse, c.q, c.k, c.v, c.cu_seqlens, scale, compute_};
    ops_.attention_backward(&ctx_, &at);
    fd_tensor to = flat(dq);
    to.data = static_cast<float*>(dq.data) + p.row * dq.stride[0], to.shape[0] = p.rows;
    copy_rows(to, flat(c.dq), p.own);
    add_rows(flat(dk), flat(c.dk), p.from), add_rows(flat(dv), flat(c.dv), p.from);
  }
}

}  // namespace freedive
