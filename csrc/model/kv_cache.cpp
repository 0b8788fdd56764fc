// Keys and values of sequences that are decoded, in blocks of FD_KV_BLOCK positions: layer by layer, as kv_cache_write (csrc/ops.h)
// lays out a block.
#include "decoder.h"
#include "view.h"

namespace freedive {

// The words of a block and a layer, and of it the scales' one.
static int64_t key_words(const DecoderConfig& c, int64_t P) { return c.n_kv_head * ((c.head_dim + P - 1) / P) * FD_KV_BLOCK; }
static int64_t value_words(const DecoderConfig& c, int64_t P) { return c.n_kv_head * c.head_dim * FD_KV_BLOCK / P; }

size_t Decoder::cache_block_bytes(int32_t dtype) const {
  const int64_t P = fd_numbers_per_word(dtype), scales = dtype == FD_I8 ? 2 * config_.n_kv_head * FD_KV_BLOCK : 0;
  const int64_t seen = config_.bigram_rows > 0 ? FD_KV_BLOCK : 0;
  return static_cast<size_t>(config_.n_layer * (key_words(config_, P) + value_words(config_, P) + scales) + seen) * sizeof(float);
}

KVCache Decoder::new_cache(int64_t blocks, int32_t dtype) const {
  KVCache c;
  c.blocks = blocks, c.dtype = dtype;
  const int64_t P = fd_numbers_per_word(dtype);
  const size_t words = static_cast<size_t>(config_.n_layer) * blocks * sizeof(float);
  // Small pages: a conversation begins at the front of every layer, and a huge page of each is 2 MB to be made zero, 120 MB for
  // SmolLM2.
  c.keys = buffer(words * key_words(config_, P), false), c.values = buffer(words * value_words(config_, P), false);
  if (dtype == FD_I8) {
    c.key_scales = buffer(words * config_.n_kv_head * FD_KV_BLOCK);
    c.value_scales = buffer(words * config_.n_kv_head * FD_KV_BLOCK);
  }
  if (config_.bigram_rows > 0) c.seen = buffer(blocks * FD_KV_BLOCK * sizeof(int32_t));
  return c;
}

void Decoder::copy_block(KVCache& c, int64_t from, int64_t to) {
  const int64_t P = fd_numbers_per_word(c.dtype), scales = config_.n_kv_head * FD_KV_BLOCK;
  auto copy = [&](Buffer& b, int64_t words, int64_t layers) {
    for (int64_t layer = 0; layer < layers; ++layer) {
      float* at = b.floats() + layer * c.blocks * words;
      move(at + to * words, at + from * words, words * sizeof(float));
    }
  };
  const int64_t L = config_.n_layer;
  copy(c.keys, key_words(config_, P), L), copy(c.values, value_words(config_, P), L);
  if (c.dtype == FD_I8) copy(c.key_scales, scales, L), copy(c.value_scales, scales, L);
  if (config_.bigram_rows > 0) copy(c.seen, FD_KV_BLOCK, 1);
  settle();
}

KVCache::Layer Decoder::cache_layer(const KVCache& c, int64_t layer) const {
  const int64_t P = fd_numbers_per_word(c.dtype), G = config_.n_kv_head, D = config_.head_dim, T = FD_KV_BLOCK;
  const int64_t before = layer * c.blocks, W = (D + P - 1) / P;
  KVCache::Layer l{view(c.keys.floats() + before * key_words(config_, P), c.blocks, G, W, T * P),
                   view(c.values.floats() + before * value_words(config_, P), c.blocks, G, T / P, D * P), absent(), absent()};
  l.keys.dtype = l.values.dtype = c.dtype;
  if (c.dtype == FD_I8) {
    l.key_scales = view(c.key_scales.floats() + before * G * T, c.blocks, G, T);
    l.value_scales = view(c.value_scales.floats() + before * G * T, c.blocks, G, T);
  }
  return l;
}

}  // namespace freedive
