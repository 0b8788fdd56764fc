// later.h: outputs of calls that do not wait for a device.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace freedive {

struct KVCache;

// What is to be copied to the caller's memory when it has come.
struct Lent {
  void* host;
  const void* device;
  size_t bytes, padded;  // that the caller has, and that are copied: the same for all batches of a padded size
  const uint8_t* place;  // pinned, on the way
};

// Outputs of a call that did not wait for them: Decoder::wait gives them, or a later call that needs the pinned memory they come through. What owns
// the memory they are copied to is derived from this.
struct Later {
  virtual ~Later() = default;
  std::vector<Lent> lent;  // empty: they are there
  int stage = 0;
  std::string error;
};

// Of each token of a batch; see TokenOutputs.
struct Scores : Later {
  std::vector<float> logprobs, entropy, lse;
};

// Several steps of decoding; see Decoder::decode_steps.
struct Visit : Later {
  int64_t steps = 0, seqs = 0, padded = 0, blocks_per_seq = 0, n_stop_ids = 0, done = 0;
  KVCache* cache = nullptr;
  std::vector<int32_t> stop_ids, lengths, limits;  // lengths: the most that can be in the cache after it; limits: ever
  std::vector<int32_t> tokens;                     // [steps, padded], -1 where a sequence had stopped before
  std::vector<float> logprobs;
  uint64_t turn = 0;
};

}  // namespace freedive
