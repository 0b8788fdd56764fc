// The decoder's memory: a plan computed from configuration and capacities, then taken once. Nothing is allocated by a step
// (except packed copies of weights, made by the first decode after the weights changed).
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "../core/dispatch.h"
#include "decoder.h"
#include "view.h"

namespace freedive {

namespace {

struct OutOfMemory : std::bad_alloc {  // Python's MemoryError, with these words
  explicit OutOfMemory(std::string w) : words(std::move(w)) {}
  const char* what() const noexcept override { return words.c_str(); }
  std::string words;
};

}  // namespace

// Anonymous mappings: zero-filled, and pages nobody touched cost nothing, so capacity may exceed what a run uses.
Buffer::Buffer(size_t bytes, bool huge_pages, const fd_device_table* device, Kind kind) : size_(bytes) {
  if (bytes == 0) return;
  if (device != nullptr && device->allocate != nullptr) {
    data_ = kind == SHARED ? device->allocate(bytes)
            : kind == HOST ? device->allocate_host(bytes)
                           : device->allocate_private(bytes);
    release_ = kind == HOST ? device->release_host : device->release;
    if (data_ != nullptr) return;
    const std::string lacks =
        std::string(device->name) + ": no " + std::to_string(bytes) + " bytes of " + (kind == HOST ? "pinned memory" : "memory");
    if (const char* why = device->refusal()) throw std::runtime_error(lacks + ": " + why);
    throw OutOfMemory(lacks + " left");
  }
  data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data_ == MAP_FAILED) data_ = nullptr, throw OutOfMemory("no " + std::to_string(bytes) + " bytes of memory left");
#ifdef MADV_HUGEPAGE
  if (bytes >= (size_t{4} << 20)) madvise(data_, bytes, huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
}
Buffer::~Buffer() {
  if (data_ == nullptr || borrowed_) return;
  if (release_ != nullptr)
    release_(data_);
  else
    munmap(data_, size_);
}
Buffer::Buffer(Buffer&& o) noexcept
    : data_(std::exchange(o.data_, nullptr)),
      size_(std::exchange(o.size_, 0)),
      borrowed_(o.borrowed_),
      release_(std::exchange(o.release_, nullptr)) {}
Buffer& Buffer::operator=(Buffer&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  std::swap(borrowed_, o.borrowed_);
  std::swap(release_, o.release_);
  return *this;
}

namespace {

// Hands out consecutive pieces of one buffer; with a null base it only counts.
struct Arena {
  float* base;
  size_t used = 0;
  float* take(int64_t floats) {
    float* p = base ? base + used : nullptr;
    used += (static_cast<size_t>(floats) + 15) / 16 * 16;
    return p;
  }
  uint16_t* take_half(int64_t numbers) { return reinterpret_cast<uint16_t*>(take((numbers + 1) / 2)); }
};

struct Sizes {
  int64_t N, M, S, C, E, F, U, HD, QK, heads;  // M: rows that go through an MLP at once; QK: q and k after QK-norm, else 0
  int64_t per_operand;                         // numbers of what only products read, in a float
  bool half;                                   // what is kept is bfloat16
};

Sizes sizes_of(const DecoderConfig& c, const fd_device_table* device, int64_t max_tokens, int64_t max_seqs, bool trainable,
               bool frozen, int64_t compute) {
  const int64_t M = device->copy != nullptr ? max_tokens : std::min(max_tokens, Decoder::MLP_ROWS);
  const int64_t heads = c.n_head + c.n_kv_head;
  const bool half = compute == FD_BF16;
  return {max_tokens, M, max_seqs, c.d_model, c.qkv_width(), c.d_ff, c.up_width(), c.n_head * c.head_dim,
          c.qk_norm ? heads * c.head_dim : 0, heads,
          half && trainable && !frozen ? 2 : 1,  // else the weights may come packed
          half};
}

// The most workspace any op of this model asks for, at capacity.
size_t workspace_bytes(const DecoderConfig& c, const fd_device_table* device, int threads, int64_t N, int64_t S, int64_t K,
                       bool trainable, bool frozen) {
  size_t most = 0;
  auto ask = [&](const char* op, const void* args) {
    int32_t best = -1;
    size_t bytes = 0;
    for (int i = 0; i < device->n_variants; ++i) {
      const fd_variant& v = device->variants[i];
      if (std::strcmp(v.op, op) == 0 && v.priority > best)
        best = v.priority, bytes = v.workspace ? v.workspace(args, threads) : 0;
    }
    most = std::max(most, bytes);
  };
  float* f = nullptr;
  int32_t* i32 = nullptr;
  const int64_t C = c.d_model, H = c.n_head, G = c.n_kv_head, D = c.head_dim, V = c.vocab_size;
  fd_embedding_backward_args eb{view(f, c.vocab_size, C), view(f, c.max_positions, C), view(f, N, C), view(i32, N), view(i32, N)};
  ask("embedding_backward", &eb);
  fd_rmsnorm_forward_args rf{view(f, N, H, D), view(f, N, H), view(f, N, H, D), view(f, D), 0};
  ask("rmsnorm_forward", &rf);
  for (auto hd : {std::pair<int64_t, int64_t>{1, C}, {H, D}, {G, D}}) {
    const int64_t h = hd.first, d = hd.second;
    fd_rmsnorm_backward_args rb{view(f, N, h, d), view(f, d), view(f, N, h, d), view(f, N, h, d), view(f, d), view(f, N, h), 1};
    ask("rmsnorm_backward", &rb);
  }
  fd_layernorm_forward_args lf{view(f, N, C), view(f, N), view(f, N), view(f, N, C), view(f, C), view(f, C), 0};
  ask("layernorm_forward", &lf);
  fd_layernorm_backward_args lb{view(f, N, C), view(f, C), view(f, C), view(f, N, C), view(f, N, C), view(f, C),
                                view(f, N),    view(f, N), 1};
  ask("layernorm_backward", &lb);
  const std::pair<int64_t, int64_t> products[] = {{c.qkv_width(), C}, {C, H * D}, {c.up_width(), C}, {C, c.d_ff}};
  for (auto [O, I] : products) {
    fd_matmul_forward_args mf{view(f, N, O), view(f, N, I), view(f, O, I), absent(), absent(), absent(), 0, FD_F32};
    ask("matmul_forward", &mf);
    fd_matmul_backward_input_args mi{view(f, N, I), view(f, N, O), view(f, O, I), 0, FD_F32};
    ask("matmul_backward_input", &mi);
    fd_matmul_backward_weight_args mw{view(f, O, I), view(f, O), view(f, N, O), view(f, N, I), FD_F32};
    ask("matmul_backward_weight", &mw);
    fd_matmul_pack_args mp{view(f, device->matmul_packed_size(O, I, FD_F32)), view(f, O, I), FD_F32};
    ask("matmul_pack", &mp);
    fd_quantized_matmul_args mq{view(f, N, O), view(f, N, I), absent(), absent(), absent(), 0, FD_F32};
    if (!trainable || frozen) ask("quantized_matmul", &mq);
    fd_quantized_matmul_backward_input_args mqb{view(f, N, I), view(f, N, O), absent(), 0, 0, FD_F32};
    if (trainable && frozen) ask("quantized_matmul_backward_input", &mqb);
  }
  const fd_tensor q = view(f, N, H, D), k = view(f, N, G, D), cu = view(i32, S + 1);
  fd_attention_forward_args af{q, view(f, N, H), q, k, k, cu, 1, FD_F32};
  ask("attention_forward", &af);
  fd_attention_backward_args ab{q, k, k, q, q, view(f, N, H), q, k, k, cu, 1, FD_F32};
  ask("attention_backward", &ab);
  const int64_t T = FD_KV_BLOCK, M = (c.max_positions + T - 1) / T;
  const fd_tensor kc = view(f, M, G, D, T), vc = view(f, M, G, T, D);
  fd_attention_cached_args ac{q, q, kc, vc, absent(), absent(), cu, view(i32, S), view(i32, S, M), 1, FD_F32};
  ask("attention_cached", &ac);  // says enough for a cache of any dtype
  fd_kv_cache_write_args wr{kc, vc, absent(), absent(), k, k, cu, view(i32, S), view(i32, S, M)};
  ask("kv_cache_write", &wr);
  const fd_tensor x = view(f, N, C), w = view(f, V, C), n = view(f, N), lp = view(f, N, K), t = view(i32, N, K), one = view(f, 1);
  fd_head_forward_args hf{lp, n, n, x, w, absent(), t, one, absent(), FD_F32};
  ask("head_forward", &hf);
  fd_head_backward_args hb{x, w, x, w, absent(), t, one, absent(), n, n, lp, n, n, FD_F32};
  ask("head_backward", &hb);
  fd_head_forward_backward_args hfb{lp, n, n, x, w, x, w, absent(), t, one, absent(), lp, FD_F32};
  ask("head_forward_backward", &hfb);
  uint64_t* u64 = nullptr;
  const fd_tensor s = view(f, S);
  fd_head_sample_args hs{view(i32, S), s,     view(f, S, C), w, absent(), absent(), s, view(i32, S), s, s, view(u64, S),
                         view(u64, S), FD_F32};
  ask("head_sample", &hs);
  if (trainable && frozen) {
    fd_quantized_head_backward_args qb{x, x, absent(), t, one, absent(), n, n, lp, n, n, V, 0, FD_F32};
    ask("quantized_head_backward", &qb);
    fd_quantized_head_forward_backward_args qfb{lp, n, n, x, x, absent(), t, one, absent(), lp, V, 0, FD_F32};
    ask("quantized_head_forward_backward", &qfb);
  }
  if (!trainable || frozen) {
    fd_quantized_head_forward_args qf{lp, n, n, x, absent(), t, one, absent(), V, 0, FD_F32};
    ask("quantized_head_forward", &qf);
    fd_quantized_head_sample_args qs{
        view(i32, S), s, view(f, S, C), absent(), absent(), s, view(i32, S), s, s, view(u64, S), view(u64, S), V, 0, FD_F32};
    ask("quantized_head_sample", &qs);
    fd_quantized_matmul_args ql{view(f, S, V), view(f, S, C), absent(), absent(), absent(), 0, FD_F32};
    ask("quantized_matmul", &ql);
  }
  fd_matmul_pack_args hp{view(f, device->matmul_packed_size(V, C, FD_F32)), w, FD_F32};
  ask("matmul_pack", &hp);
  const ParameterTable table(c);
  fd_global_norm_args gn{one, view(f, table.total_floats)};
  ask("global_norm", &gn);
  if (!trainable || frozen) return most;
  for (const Parameter& p : table.rows) {  // Muon's products (muon.cpp)
    if (!p.matrix || p.name.rfind("layers.", 0) != 0) continue;
    const int64_t O = p.shape[0], I = p.shape[1], r = std::min(O, I);
    const fd_tensor X = view(f, O, I), G = view(f, r, r);
    for (auto [out, x, w] : {std::tuple{G, X, X}, std::tuple{G, G, G}, std::tuple{X, X, G}}) {
      fd_matmul_forward_args mf{out, x, w, absent(), absent(), absent(), 1, FD_F32};
      ask("matmul_forward", &mf);
      mf.compute = FD_BF16;
      ask("matmul_forward", &mf);
    }
    for (int64_t compute : {int64_t{FD_F32}, int64_t{FD_BF16}}) {
      fd_matmul_backward_weight_args mw{G, absent(), X, X, compute};
      ask("matmul_backward_weight", &mw);
      fd_matmul_backward_input_args mi{X, G, X, 1, compute};
      ask("matmul_backward_input", &mi);
    }
  }
  return most;
}

}  // namespace

Decoder::Decoder(const DecoderConfig& config, const fd_device_table* device, int threads, int64_t max_tokens, int64_t max_seqs,
                 int64_t max_targets, bool trainable, int64_t compute, const float* cos, const float* sin,
                 const AdapterConfig& adapter, Recompute recompute)
    : config_(config),
      table_(config),
      adapter_(adapter),
      adapter_table_(config, adapter),
      device_(device),
      max_tokens_(max_tokens),
      max_seqs_(max_seqs),
      max_targets_(max_targets),
      trainable_(trainable),
      recompute_(recompute),
      compute_(compute == FD_BF16 ? FD_BF16 : FD_F32),
      packed_compute_(compute) {
  pool_ = std::make_unique<ThreadPool>(threads);

  auto at = [&](const std::string& name) { return table_.offset(name); };
  embed_ = at("embed_tokens.weight");
  embed_positions_ = at("embed_positions.weight");
  final_norm_ = at("final_norm.weight");
  final_norm_bias_ = at("final_norm.bias");
  head_ = config.tie_embeddings ? embed_ : at("lm_head.weight");
  for (int64_t i = 0; i < config.n_layer; ++i) {
    const std::string p = "layers." + std::to_string(i) + ".";
    const std::string up = config.gelu ? "up_proj" : "gate_proj";  // where [gate; up] begins
    layers_.push_back({at(p + "input_norm.weight"), at(p + "input_norm.bias"), at(p + "q_proj.weight"), at(p + "q_proj.bias"),
                       at(p + "q_norm.weight"), at(p + "k_norm.weight"), at(p + "o_proj.weight"), at(p + "o_proj.bias"),
                       at(p + "mlp_norm.weight"), at(p + "mlp_norm.bias"), at(p + up + ".weight"), at(p + up + ".bias"),
                       at(p + "down_proj.weight"), at(p + "down_proj.bias")});
  }

  const size_t floats = static_cast<size_t>(table_.total_floats) * sizeof(float);
  const auto shared = [&](size_t bytes) { return buffer(bytes, true, Buffer::SHARED); };
  params_ = shared(floats);
  const size_t trained = static_cast<size_t>(trained_floats()) * sizeof(float);
  if (trainable) grads_ = shared(trained), m_ = shared(trained), v_ = shared(trained);
  if (frozen()) adapter_params_ = shared(trained);

  const Sizes z = sizes_of(config, device, max_tokens, max_seqs, trainable, frozen(), compute_);
  const int64_t kept_layers = trainable ? config.n_layer : 1;
  auto lay_out = [&](Arena& a) {
    act_.assign(kept_layers, {});
    for (auto& l : act_) {
      // What is computed again has one place for all layers, the first one's; so has, of a model that keeps bfloat16, what is kept so.
      const bool first = &l == &act_[0], again = !first && recompute == Recompute::BLOCK,
                 up_again = !first && recompute != Recompute::NONE, one_place = !first && z.half;
      if (!first) l = act_[0];
      l.x = a.take(z.N * z.C);
      if (!again) {
        l.stat1 = a.take(z.N), l.mean1 = a.take(z.N);
        if (!one_place) {
          l.qkv = a.take(z.N * z.E);
          l.qk = z.QK > 0 ? a.take(z.N * z.QK) : nullptr;
          l.attention = a.take(z.N * z.HD);
        }
        if (z.half && trainable) {
          l.kept_qkv = a.take_half(z.N * z.E);
          l.kept_qk = z.QK > 0 ? a.take_half(z.N * z.QK) : nullptr;
          l.kept_attention = a.take_half(z.N * z.HD);
        }
        l.qk_stat = a.take(z.QK > 0 ? z.N * z.heads : 0);
        l.lse = a.take(z.N * config.n_head);
        l.x2 = a.take(z.N * z.C), l.stat2 = a.take(z.N), l.mean2 = a.take(z.N);
      }
      if (z.half) {
        if (first) l.up = trainable ? dup_ : a.take(z.M * z.U);  // dup_ is written after the last look at it
        if (trainable && !up_again) l.kept_up = a.take_half(z.N * z.U);
      } else if (!up_again) {
        l.up = a.take(z.N * z.U);
      }
    }
    norm_ = a.take((z.N * z.C + 1) / z.per_operand), act_out_ = a.take((z.M * z.F + 1) / z.per_operand);
    lora_h_ = a.take(z.N * adapter_table_.widest), lora_dh_ = a.take(trainable ? z.N * adapter_table_.widest : 0);
    unread_ = a.take(trainable && frozen() ? 2 * std::max(z.C, config.head_dim) : 0);
    x_last_ = a.take(z.N * z.C), final_ = a.take(z.N * z.C), final_stat_ = a.take(z.N), final_mean_ = a.take(z.N);
    final_lse_ = a.take(z.N), final_entropy_ = a.take(z.N), sampled_hidden_ = a.take(z.S * z.C), scalars_ = a.take(16);
  };
  auto lay_out_gradients = [&](Arena& a) {
    if (!trainable) return;
    dx_ = a.take(z.N * z.C), dnorm_ = a.take(z.N * z.C), dqkv_ = a.take(z.N * z.E), dqk_ = a.take(z.N * z.QK);
    dattention_ = a.take(z.N * z.HD), dup_ = a.take(z.M * z.U), dact_ = a.take(z.M * z.F);
  };
  Arena count{nullptr}, count_gradients{nullptr};
  lay_out_gradients(count_gradients), lay_out(count);

  // A buffer each; on a device with memory of its own they are pieces of one.
  const size_t angles = config.learned_positions ? 0 : config.max_positions * (config.head_dim / 2) * sizeof(float);
  const std::pair<Buffer*, size_t> planned[] = {
      {&cos_, angles},
      {&sin_, angles},
      {&activations_, count.used * sizeof(float)},
      {&gradients_of_activations_, count_gradients.used * sizeof(float)},
      {&batch_, (max_tokens * (2 + max_targets) + max_seqs + 1) * sizeof(int32_t)},
      {&running_, running_bytes(std::min(max_tokens, max_seqs))},
      {&workspace_, workspace_bytes(config, device, threads, max_tokens, max_seqs, max_targets, trainable, frozen())}};
  size_t all = 0;
  auto rounded = [](size_t bytes) { return (bytes + 255) / 256 * 256; };
  for (const auto& piece : planned) all += rounded(piece.second);
  if (has_own_memory()) arena_ = buffer(all);
  size_t at_byte = 0;
  for (auto [piece, bytes] : planned) {
    *piece = has_own_memory() ? Buffer(arena_.bytes() + at_byte, bytes) : buffer(bytes);
    at_byte += rounded(bytes);
  }
  Arena place{activations_.floats()}, place_gradients{gradients_of_activations_.floats()};
  lay_out_gradients(place_gradients), lay_out(place);

  tokens_ = reinterpret_cast<int32_t*>(batch_.bytes());
  positions_ = tokens_ + max_tokens;
  targets_ = positions_ + max_tokens;
  cu_seqlens_ = targets_ + max_tokens * max_targets;

  static_cast<fd_context&>(ctx_) = fd_context{pool_.get(), nullptr, workspace_.bytes(), workspace_.size(), threads};
  fill_ops(device, &ops_);
  if (has_own_memory()) {
    ctx_.stream = device_->open_stream(), ctx_.open(device_), ops_ = Commands::writing();
    for (Stage& s : host_stages_) s.mark = device_->open_mark();
  }
  if (angles > 0) put(cos_.bytes(), cos, angles), put(sin_.bytes(), sin, angles);
  settle();
}

Decoder::~Decoder() {
  if (!has_own_memory()) return;
  device_->close_stream(ctx_.stream);  // waits for it
  ctx_.close();
  if (copying_.stream != nullptr) device_->close_stream(copying_.stream);
  for (Stage& s : host_stages_) device_->close_mark(s.mark);
}

std::vector<PlanRow> Decoder::plan(const DecoderConfig& c, const fd_device_table* device, int threads, int64_t max_tokens,
                                   int64_t max_seqs, bool trainable, const AdapterConfig& adapter, Recompute recompute,
                                   int64_t compute) {
  const ParameterTable table(c);
  const AdapterTable adapters(c, adapter);
  const bool frozen = adapter.rank > 0;
  const Sizes z = sizes_of(c, device, max_tokens, max_seqs, trainable, frozen, compute);
  const size_t p = static_cast<size_t>(table.total_floats) * sizeof(float);
  const size_t layers = trainable ? c.n_layer : 1, blocks = recompute == Recompute::BLOCK ? 1 : layers,
               ups = recompute == Recompute::NONE ? layers : 1;
  // Halves of a float, so that a bfloat16 number is one. Of a token and layer: what is float32 always, and what products read.
  const size_t stays = 2 * (z.C + 4 + (z.QK > 0 ? z.heads : 0) + c.n_head), read = z.E + z.QK + z.HD;
  size_t halves = 2 * z.C * layers * z.N + stays * blocks * z.N;
  if (z.half) {
    halves += 2 * read * z.N + (trainable ? (read * blocks + z.U * ups) * z.N : 2 * z.U * z.M);
  } else {
    halves += 2 * (read * blocks + z.U * ups) * z.N;
  }
  const size_t lora = (trainable ? 2 : 1) * adapters.widest;
  const size_t act = (halves / 2 + z.C * z.N / z.per_operand + (2 * z.C + 4 + lora) * z.N + z.F * z.M / z.per_operand) * sizeof(float);
  const size_t pairs = static_cast<size_t>(adapters.total_floats) * sizeof(float), trained = frozen ? pairs : p;
  const size_t grad_rows = (2 * z.C + z.E + z.QK + z.HD) * z.N + (z.U + z.F) * z.M;
  const size_t grad = trainable ? grad_rows * sizeof(float) : 0;
  return {{"parameters", p},
          {"adapter", pairs},
          {"gradients", trainable ? trained : 0},
          {"AdamW moments", trainable ? 2 * trained : 0},
          {"activations", act},
          {"activation gradients", grad},
          {"workspace", workspace_bytes(c, device, threads, max_tokens, max_seqs, 1, trainable, frozen)},
          {"graphs", device->begin_graph == nullptr ? 0 : Commands::planned(c.n_layer)}};
}

// ---- between the host's memory and the device's; where there is but one, these are plain copies -----------------------------

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

void Decoder::told(const char* error) {
  if (error == nullptr) return;
  lent_.clear();
  throw std::runtime_error(error);
}

// All that was launched is waited for where something went wrong: synchronize takes the error, reach leaves it. No outputs come any more.
std::string Decoder::failed() {
  const char* error = device_->synchronize(&ctx_);
  const std::string why = error != nullptr ? error : "an earlier call failed";
  lent_.clear();
  for (Stage& s : host_stages_) {
    if (s.later && !s.later->lent.empty()) s.later->lent.clear(), s.later->error = why;
    s.later.reset();
    s.busy = false;
  }
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

void Decoder::deliver() {
  for (const Lent& l : lent_) std::memcpy(l.host, l.place, l.bytes);
  lent_.clear();
}

void Decoder::deliver(Later& later) {
  for (const Lent& l : later.lent) std::memcpy(l.host, l.place, l.bytes);
  later.lent.clear();
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
    if (device_->reach(host_stages_[later.stage].mark) == nullptr) return deliver(later);
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
  const char* error = device_->synchronize(&ctx_);
  pending_ = false, host_stage_ = 0;  // so that equal steps are equal lists
  if (error == nullptr) deliver();
  for (Stage* s : {&device_stage_, &host_stages_[0], &host_stages_[1]}) {
    if (s->later) error == nullptr ? deliver(*s->later) : s->later->lent.clear(), s->later->error = error == nullptr ? "" : error;
    s->later.reset();
    s->busy = false;
    s->next();
    s->more.clear();
    if (s->most <= s->memory.size() || error != nullptr) continue;
    s->memory = Buffer();
    s->memory = buffer(s->most, true, s == &device_stage_ ? Buffer::PRIVATE : Buffer::HOST);
  }
  told(error);
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
  if (next.later) deliver(*next.later), next.later.reset();
  next.busy = false, next.next();
  next.more.clear();
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
  plan_shared(b, copies);
}

// The words of a block and a layer, and of it the scales' one.
static int64_t key_words(const DecoderConfig& c, int64_t P) { return c.n_kv_head * ((c.head_dim + P - 1) / P) * FD_KV_BLOCK; }
static int64_t value_words(const DecoderConfig& c, int64_t P) { return c.n_kv_head * c.head_dim * FD_KV_BLOCK / P; }

size_t Decoder::cache_block_bytes(int32_t dtype) const {
  const int64_t P = fd_numbers_per_word(dtype), scales = dtype == FD_I8 ? 2 * config_.n_kv_head * FD_KV_BLOCK : 0;
  return static_cast<size_t>(config_.n_layer) * (key_words(config_, P) + value_words(config_, P) + scales) * sizeof(float);
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
  return c;
}

void Decoder::copy_block(KVCache& c, int64_t from, int64_t to) {
  const int64_t P = fd_numbers_per_word(c.dtype), scales = config_.n_kv_head * FD_KV_BLOCK;
  auto copy = [&](Buffer& b, int64_t words) {
    for (int64_t layer = 0; layer < config_.n_layer; ++layer) {
      float* at = b.floats() + layer * c.blocks * words;
      move(at + to * words, at + from * words, words * sizeof(float));
    }
  };
  copy(c.keys, key_words(config_, P)), copy(c.values, value_words(config_, P));
  if (c.dtype == FD_I8) copy(c.key_scales, scales), copy(c.value_scales, scales);
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

void Decoder::reserve_packed(size_t bytes) {
  if (packed_used_ > 0) throw std::logic_error("packed weights are there already");
  packed_memory_ = buffer(bytes + 4096);  // what fetches ahead stays inside
}

void Decoder::add_packed(const std::string& parameter, const uint8_t* data, int64_t rows, int64_t row_bytes, int64_t type) {
  if (trainable_ && !frozen())
    throw std::logic_error("packed weights cannot be trained: make the model with trainable=False, or with an adapter");
  const int64_t weight = table_.offset(parameter);
  const Parameter* found = nullptr;
  for (const Parameter& p : table_.rows)
    if (p.offset == weight && p.matrix) found = &p;
  if (weight < 0 || found == nullptr || found->shape.size() != 2)
    throw std::invalid_argument("no weight begins at '" + parameter + "'");
  const int64_t C = found->shape[1];
  const int64_t bytes = device_->quantized_size(rows, C, type);
  if (rows < 1 || bytes == 0 || device_->quantized_row(C, type) != row_bytes)
    throw std::invalid_argument("rows of " + std::to_string(C) + " numbers in " + std::to_string(row_bytes) +
                                " bytes cannot be held in ggml type " + std::to_string(type));
  const size_t taken = (static_cast<size_t>(bytes) + 63) / 64 * 64;
  if (packed_used_ + taken > packed_memory_.size()) throw std::logic_error("more packed weights than memory was reserved for");
  const PackedRows part{rows, type, packed_memory_.bytes() + packed_used_, bytes};
  packed_used_ += taken;
  fd_quantized_pack_args a{view(part.data, bytes), view(in(data, rows * row_bytes), rows, row_bytes), type};
  ops_.quantized_pack(&ctx_, &a);
  settle();
  for (Stage* stage : {&device_stage_, &host_stages_[0], &host_stages_[1]})
    stage->memory = Buffer(), stage->most = 0;  // as large as the matrix
  packed_rows_[weight].push_back(part);
}

// The parts of a weight of O rows, or null where it is in float32.
const std::vector<PackedRows>* Decoder::packed_rows(int64_t weight, int64_t O) const {
  const auto found = packed_rows_.find(weight);
  if (found == packed_rows_.end()) return nullptr;
  int64_t rows = 0;
  for (const PackedRows& part : found->second) rows += part.rows;
  if (rows != O) throw std::logic_error("a packed weight has " + std::to_string(rows) + " rows, not " + std::to_string(O));
  return &found->second;
}

fd_tensor Decoder::packed_view(const PackedRows& part) const { return view(part.data, part.bytes); }

fd_tensor Decoder::packed(const float* weight, int64_t O, int64_t C, uint64_t version) {
  const int64_t size = device_->matmul_packed_size(O, C, compute_);
  Packed& found = packs_[weight];
  if (found.version == 0) found.data = buffer(static_cast<size_t>(size) * sizeof(float));
  if (found.version != version) {
    fd_matmul_pack_args a{view(found.data.floats(), size), view(weight, O, C), compute_};
    ops_.matmul_pack(&ctx_, &a);
    found.version = version;
  }
  return view(found.data.floats(), size);
}

}  // namespace freedive
