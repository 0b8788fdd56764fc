// commands.cpp: see commands.h. The cost on the host, a list of 12 layers: writing 150 KB and comparing them.
#include "commands.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "../core/dispatch.h"

namespace freedive {

namespace {

enum : uint64_t {
#define FD_NUMBER(op, schema) NUMBER_##op,
  FD_OPS(FD_NUMBER)
#undef FD_NUMBER
  COPY,
  CLEAR
};
struct CopyArgs {
  void* to;
  const void* from;
  size_t bytes;
};
struct ClearArgs {
  void* memory;
  size_t bytes;
};

template <class Args>
const Args* read(const uint64_t*& at) {
  const auto* args = reinterpret_cast<const Args*>(at);
  at += sizeof(Args) / sizeof(uint64_t);
  return args;
}

uint64_t hash_of(const std::vector<uint64_t>& list) {
  uint64_t h = list.size();
  for (uint64_t word : list) h = (h ^ word) * 0x9E3779B97F4A7C15ull, h ^= h >> 29;
  return h;
}

}  // namespace

template <class Args>
void Commands::write(uint64_t what, const Args& args) {
  static_assert(sizeof(Args) % sizeof(uint64_t) == 0 && alignof(Args) <= alignof(uint64_t), "whole words, no padding");
  const size_t at = list_.size();
  list_.resize(at + 1 + sizeof(Args) / sizeof(uint64_t));
  list_[at] = what;
  std::memcpy(&list_[at + 1], &args, sizeof(Args));
  ++commands_;
}

template <class Args>
void write_op(fd_context* ctx, uint64_t what, const Args* args) {
  static_cast<Commands*>(ctx)->write(what, *args);
}

const fd_ops& Commands::writing() {
  static const fd_ops table = {
#define FD_WRITE(op, schema) [](fd_context* ctx, const fd_##op##_args* args) { write_op(ctx, NUMBER_##op, args); },
      FD_OPS(FD_WRITE)
#undef FD_WRITE
  };
  return table;
}

void Commands::open(const fd_device_table* device) {
  device_ = device;
  fill_ops(device, &ops_);
  graphs_wanted_ = device->begin_graph != nullptr;
}

void Commands::close() {
  for (const Held& h : graphs_) device_->close_graph(h.graph);
  graphs_.clear();
}

void Commands::copy(void* to, const void* from, size_t bytes) { write(COPY, CopyArgs{to, from, bytes}); }
void Commands::clear(void* memory, size_t bytes) { write(CLEAR, ClearArgs{memory, bytes}); }

// To the device, one after the other.
void Commands::hand_over() {
  const uint64_t* at = list_.data();
  const uint64_t* const end = at + list_.size();
  while (at < end) {
    switch (*at++) {
#define FD_HAND_OVER(op, schema)                         \
  case NUMBER_##op:                                      \
    ops_.op(this, read<fd_##op##_args>(at));             \
    break;
      FD_OPS(FD_HAND_OVER)
#undef FD_HAND_OVER
      case COPY: {
        const auto* c = read<CopyArgs>(at);
        device_->copy(this, c->to, c->from, c->bytes);
        break;
      }
      default: {
        const auto* c = read<ClearArgs>(at);
        device_->clear(this, c->memory, c->bytes);
      }
    }
  }
}

// The graph of this list, captured if the list comes for the second time; null: there is none. Where MOST are held, one that has come
// since this list came last is worth more than this list's would be: of more lists in turn than there are graphs MOST have theirs,
// and nothing is captured only to be thrown away.
void* Commands::held() {
  for (Held& h : graphs_)
    if (h.list == list_) return h.used = calls_, h.graph;
  const uint64_t hash = hash_of(list_);
  const auto seen = std::find_if(seen_.begin(), seen_.end(), [&](const Seen& s) { return s.hash == hash; });
  if (seen == seen_.end()) {
    if (seen_.size() < SEEN) seen_.push_back({});
    seen_[next_seen_++ % SEEN] = {hash, calls_};
    return nullptr;
  }
  const uint64_t before = std::exchange(seen->call, calls_);
  auto oldest = std::min_element(graphs_.begin(), graphs_.end(), [](const Held& a, const Held& b) { return a.used < b.used; });
  if (graphs_.size() == MOST && oldest->used > before) return nullptr;
  if (!device_->begin_graph(this)) return graphs_wanted_ = false, nullptr;
  hand_over();
  void* graph = device_->end_graph(this);
  if (graph == nullptr) return graphs_wanted_ = false, nullptr;
  if (graphs_.size() == MOST) {
    device_->close_graph(oldest->graph);
    graphs_.erase(oldest);
  }
  graphs_.push_back({list_, graph, calls_});
  return graph;
}

void Commands::run(bool passing) {
  if (list_.empty()) return;
  ++calls_;
  void* const graph = graphs_wanted_ && !passing && commands_ >= SHORT ? held() : nullptr;
  if (graph != nullptr)
    device_->run_graph(this, graph), ++launched_;
  else
    hand_over(), ++plain_;
  list_.clear();
  commands_ = 0;
}

}  // namespace freedive
