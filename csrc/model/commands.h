// commands.h: what a decoder asks of a device with a stream, written down first and handed over then.
//
// The decoder calls ops as ever, but the ops it is given here only write down which op with which arguments; run() hands a list
// over. A list that is, byte for byte, one that came before is launched as one CUDA graph instead of hundreds of kernels: what a
// launch does follows from the op, its arguments and the numbers in device memory (ops.h: nothing that changes from step to step
// is an argument), so equal lists are equal work, and a list that differs in one address, size or scalar is another one. Nobody
// has to say which calls repeat, and nothing can be left out of date.
//
// Lists are run as they are, without a graph, where they are short, come for the first time, name memory that is given back after
// the call (`passing`), or where the device takes none: FREEDIVE_CUDA_GRAPHS=0, FREEDIVE_CUDA_SYNC=1, or a launch that cannot be
// captured. At most MOST graphs are held; a list gets the place of one that has not come since the list itself did. Batches of any number of tokens come padded to sizes that come again
// (Decoder::accept), so MOST is enough for those near a run's capacity.
#pragma once
#include <cstdint>
#include <vector>

#include "../core/context.h"
#include "../ops.h"

namespace freedive {

class Commands : public fd_context {
 public:
  static constexpr size_t MOST = 32;  // graphs
  Commands() : fd_context{} {}
  Commands(const Commands&) = delete;
  ~Commands() { close(); }
  void open(const fd_device_table* device);  // with the context's stream
  void close();                              // of all graphs
  static const fd_ops& writing();            // the ops that write down: their context is a Commands
  void copy(void* to, const void* from, size_t bytes);
  void clear(void* memory, size_t bytes);
  void run(bool passing);
  // Bytes for all graphs there may be: 2 KB a node, 64 nodes a layer (at most 60 in a step under emulation; a visit of decoding has
  // more, but few are held). What CUDA takes for a node was not measured.
  static size_t planned(int64_t layers) { return MOST * static_cast<size_t>(64 * layers + 32) * 2048; }
  // How many lists were launched as a graph, and how many op by op.
  int64_t launched() const { return launched_; }
  int64_t plain() const { return plain_; }

 private:
  struct Held {
    std::vector<uint64_t> list;
    void* graph;
    uint64_t used;
  };
  template <class Args>
  void write(uint64_t what, const Args& args);
  template <class Args>
  friend void write_op(fd_context* ctx, uint64_t what, const Args* args);
  void hand_over();
  void* held();
  static constexpr size_t SEEN = 128;  // lists remembered by their hash alone
  static constexpr int SHORT = 8;      // commands

  const fd_device_table* device_ = nullptr;
  fd_ops ops_{};
  std::vector<uint64_t> list_;  // of each command its number, then its arguments
  int commands_ = 0;
  std::vector<Held> graphs_;
  struct Seen {
    uint64_t hash, call;  // of the list, and when it came last
  };
  std::vector<Seen> seen_;  // in turn
  size_t next_seen_ = 0;
  uint64_t calls_ = 0;
  int64_t launched_ = 0, plain_ = 0;
  bool graphs_wanted_ = false;
};

}  // namespace freedive
