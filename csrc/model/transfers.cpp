// Between the host's memory and the device's; where there is but one, these are plain copies. What a call is given is copied in,
// in order with its ops, through pinned memory of which two calls take turns; what it lends comes back the same way, when it
// settles, or later, when somebody waits for it or the next call but one needs the pinned memory. And the batch, which comes in so.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "decoder.h"
#include "view.h"

namespace freedive {

uint8_t* Decoder::Stage::take(size_t bytes) {
  const size_t taken = (bytes + 63) / 64 * 64;
  wanted += taken;
  if (used + taken > memory.size()) return nullptr;
  used += taken;
  return memory.bytes() + used - taken;
}

// A piece of this call's stage, valid until the call after the next.
uint8_t* Decoder::pinned(size_t bytes) {
  Stage& s = host_stages_[host_stage_];
  if (uint8_t* place = s.take(bytes)) return place;
  s.more.push_back(buffer(bytes, true, Buffer::HOST));
  return s.more.back().bytes();
}

void* Decoder::lend(void* host, size_t bytes, size_t padded, bool is_input) {
  if (!has_own_memory() || host == nullptr || bytes == 0) return host;
  padded = std::max(bytes, padded);
  uint8_t* place = device_stage_.take(padded);
  if (place == nullptr) device_stage_.more.push_back(buffer(padded)), place = device_stage_.more.back().bytes();
  if (is_input)
    put(place, host, bytes, padded);
  else
    lent_.push_back({host, place, bytes, padded, nullptr});
  return place;
}

void Decoder::put(void* to, const void* host, size_t bytes, size_t padded, int rest) {
  if (bytes == 0) return;
  if (!has_own_memory()) {
    std::memcpy(to, host, bytes);
    return;
  }
  padded = std::max(bytes, padded);
  uint8_t* place = pinned(padded);
  std::memcpy(place, host, bytes);
  std::memset(place + bytes, rest, padded - bytes);
  ctx_.copy(to, place, padded);
  pending_ = true;
}

void Decoder::get(void* host, const void* from, size_t bytes) {
  if (has_own_memory())
    lent_.push_back({host, from, bytes, bytes, nullptr});
  else
    std::memcpy(host, from, bytes);
}

void Decoder::move(void* to, const void* from, size_t bytes) {
  has_own_memory() ? ctx_.copy(to, from, bytes) : static_cast<void>(std::memcpy(to, from, bytes));
}

void Decoder::zero(void* memory, size_t bytes) {
  pending_ = true;
  has_own_memory() ? ctx_.clear(memory, bytes) : static_cast<void>(std::memset(memory, 0, bytes));
}

// All that was launched is waited for where something went wrong: synchronize takes the error, reach leaves it. No outputs come
// any more.
std::string Decoder::failed() {
  const char* error = device_->synchronize(&ctx_);
  const std::string why = error != nullptr ? error : "an earlier call failed";
  lent_.clear();
  for (Stage& s : host_stages_) s.end(why);
  return why;
}

void Decoder::reach(void* mark) {
  if (device_->reach(mark) != nullptr) throw std::runtime_error(failed());
}

// What was lent comes back: first into pinned memory, in order; then, when it is there, to the caller.
void Decoder::fetch() {
  for (Lent& l : lent_) {
    uint8_t* place = pinned(l.padded);
    ctx_.copy(place, l.device, l.padded);
    l.place = place;
  }
}

static void deliver(std::vector<Lent>& lent) {
  for (const Lent& l : lent) std::memcpy(l.host, l.place, l.bytes);
  lent.clear();
}

// The device has come past it, or `error` kept it from that.
void Decoder::Stage::end(const std::string& error) {
  if (later && error.empty()) deliver(later->lent);
  if (later && !later->lent.empty()) later->lent.clear(), later->error = error;
  later.reset();
  busy = false;
}

void Decoder::leave(const std::shared_ptr<Later>& later) {
  if (!has_own_memory()) return settle();
  fetch();
  Stage& mine = host_stages_[host_stage_];
  if (later) later->lent.swap(lent_), later->stage = host_stage_, mine.later = later;
  mine.more.empty() && device_stage_.more.empty() ? next_stage() : settle();  // which takes as much memory as this call needed
}

void Decoder::wait(Later& later) {
  if (!later.lent.empty()) {
    if (device_->reach(host_stages_[later.stage].mark) == nullptr) return deliver(later.lent);
    const std::string why = failed();
    if (!later.lent.empty()) later.lent.clear(), later.error = why;
  }
  if (!later.error.empty()) throw std::runtime_error(later.error);
}

// Memory that only this call has is named by no graph.
void Decoder::launch() {
  ctx_.run(!device_stage_.more.empty() || !host_stages_[host_stage_].more.empty());
}

void Decoder::settle() {
  if (!has_own_memory()) return;
  fetch();
  launch();
  const char* told = device_->synchronize(&ctx_);
  const std::string error = told == nullptr ? "" : told;
  pending_ = false, host_stage_ = 0;  // so that equal steps are equal lists
  if (error.empty()) deliver(lent_);
  for (Stage* s : {&device_stage_, &host_stages_[0], &host_stages_[1]}) {
    s->end(error);
    s->next();
    if (s->most <= s->memory.size() || !error.empty()) continue;
    s->memory = Buffer();
    s->memory = buffer(s->most, true, s == &device_stage_ ? Buffer::PRIVATE : Buffer::HOST);
  }
  lent_.clear();
  if (!error.empty()) throw std::runtime_error(error);
}

// The end of a call that leaves work behind.
void Decoder::next_stage() {
  pending_ = true;
  launch();
  Stage& mine = host_stages_[host_stage_];
  device_->mark(&ctx_, mine.mark), mine.busy = true;
  host_stage_ ^= 1;
  Stage& next = host_stages_[host_stage_];
  if (next.busy) reach(next.mark);
  next.end("");
  next.next();
  device_stage_.next();  // the next call's copies into it come after all that reads it now
}

void Decoder::finish() {
  if (pending_) settle();
  if (!snapshot_under_way_) return;
  snapshot_under_way_ = false;
  reach(snapshot_->mark);
}

void Decoder::set_vocab_mask(const uint8_t* mask) {
  finish();
  vocab_mask_ = buffer(static_cast<size_t>(config_.vocab_size));
  put(vocab_mask_.bytes(), mask, static_cast<size_t>(config_.vocab_size));
  settle();
}

fd_tensor Decoder::mask() const { return vocab_mask_.size() == 0 ? absent() : view(vocab_mask_.bytes(), config_.vocab_size); }

// Rows of a batch as ops get them: whole 16 below 1,024, then 32 sizes from one power of two to the next. Most of a step's time is
// the rows', so a graph must not cost many.
int64_t Decoder::padded_rows(int64_t n, int64_t most) {
  int64_t step = 16;
  while (64 * step <= n) step *= 2;
  return std::min((n + step - 1) / step * step, most);
}

// Sequences: those behind the last are empty, which costs next to nothing.
int64_t Decoder::padded_sequences(int64_t n, int64_t most) {
  int64_t padded = 1;
  while (padded < n) padded = padded < 16 ? 2 * padded : padded + 16;
  return std::min(padded, most);
}

// Copies the batch in; the caller has checked ids, positions and cu_seqlens.
void Decoder::accept(const BatchView& b, bool padded) {
  if (b.n_targets > max_targets_)
    throw std::invalid_argument("a batch with " + std::to_string(b.n_targets) +
                                " targets a token exceeds this model's capacity: max_targets=" + std::to_string(max_targets_));
  if (b.n_tokens > max_tokens_ || b.n_seqs > max_seqs_)
    throw std::invalid_argument("batch of " + std::to_string(b.n_tokens) + " tokens in " + std::to_string(b.n_seqs) +
                                " sequences exceeds the capacity of " + std::to_string(max_tokens_) + " tokens in " +
                                std::to_string(max_seqs_) + " sequences this model was made with");
  n_ = rows_ = b.n_tokens, s_ = b.n_seqs, k_ = b.n_targets > 0 ? b.n_targets : 1, ++turn_;
  int64_t copies = n_;  // of rows, where sequences share some: those of one piece can be padded, too
  for (int64_t s = 0; b.prefixes != nullptr && s < s_; ++s) copies += b.prefixes[2 * s + 1];
  if (padded && has_own_memory() && (b.prefixes == nullptr || copies < max_tokens_)) {
    n_ = padded_rows(rows_, max_tokens_), s_ = padded_sequences(s_, max_seqs_);
    copies = padded_rows(copies + 1, max_tokens_);
  }
  const size_t bytes = n_ * sizeof(int32_t), used = rows_ * sizeof(int32_t);
  put(tokens_, b.tokens, used, bytes);
  put(positions_, b.positions, used, bytes);
  std::vector<int32_t> cu_seqlens(s_ + 1, static_cast<int32_t>(rows_));
  std::copy(b.cu_seqlens, b.cu_seqlens + b.n_seqs + 1, cu_seqlens.begin());
  put(cu_seqlens_, cu_seqlens.data(), cu_seqlens.size() * sizeof(int32_t));
  if (b.targets) put(targets_, b.targets, used * k_, bytes * k_, 0xFF);  // -1
  has_prefixes_ = b.prefixes != nullptr;
  if (has_prefixes_ && config_.bigram_rows > 0) put(prefixes_, b.prefixes, 2 * b.n_seqs * sizeof(int32_t), 2 * s_ * sizeof(int32_t));
  plan_shared(b, copies);
}

}  // namespace freedive
