// snapshot.cpp: parameters and moments as they are at one moment, without stopping for them.
//
// A checkpoint is three copies of what is trained. They are made on a stream of their own, into pinned memory, while the next
// forward and backward passes run: these only read parameters. The optimizer would overwrite them, so its next step waits, on the
// device, for the copies. Whoever writes the file waits for them on the host, and is told what goes wrong with them; the trainer
// is told what goes wrong with its own stream. Where there is no second memory it is a plain copy,
// made at once.
#include <cstring>
#include <stdexcept>
#include <string>

#include "decoder.h"

namespace freedive {

Snapshot::Snapshot(const fd_device_table* d, int64_t n, int count)
    : device(d), floats(n), arrays(count), memory(static_cast<size_t>(n) * count * sizeof(float), true, d, Buffer::HOST) {
  if (device->copy != nullptr) mark = device->open_mark();
}

Snapshot::~Snapshot() {
  if (mark == nullptr) return;
  device->reach(mark);  // nothing may write to its memory any more
  device->close_mark(mark);
}

void Snapshot::wait() const {
  if (mark == nullptr) return;
  if (const char* error = device->reach(mark)) throw std::runtime_error(error);
}

std::shared_ptr<Snapshot> Decoder::snapshot() {
  const int64_t floats = trained_floats();
  const int arrays = trainable_ ? 3 : 1;
  const float* from[] = {(frozen() ? adapter_params_ : params_).floats(), m_.floats(), v_.floats()};
  if (!has_own_memory()) {
    auto made = std::make_shared<Snapshot>(device_, floats, arrays);
    for (int i = 0; i < arrays; ++i) std::memcpy(made->memory.floats() + i * floats, from[i], floats * sizeof(float));
    return made;
  }
  if (copying_.stream == nullptr) copying_.stream = device_->open_stream();
  device_->synchronize(&copying_);  // what went wrong with the last one is told to who has it, not to who has the next
  if (!snapshot_ || snapshot_.use_count() > 1)
    snapshot_ = std::make_shared<Snapshot>(device_, floats, arrays);  // who has the last one keeps it
  device_->mark(&ctx_, snapshot_->mark), device_->follow(&copying_, snapshot_->mark);
  for (int i = 0; i < arrays; ++i)
    device_->copy(&copying_, snapshot_->memory.floats() + i * floats, from[i], floats * sizeof(float));
  device_->mark(&copying_, snapshot_->mark);
  snapshot_under_way_ = true;
  return snapshot_;
}

// Before the optimizer's first op.
void Decoder::let_snapshot_pass() {
  if (!snapshot_under_way_) return;
  device_->follow(&ctx_, snapshot_->mark);
  snapshot_under_way_ = false;  // what is waited for after that step includes it
}

}  // namespace freedive
