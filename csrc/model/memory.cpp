// The decoder's memory: a plan computed from configuration and capacities, then taken once. Nothing is allocated by a step
// (except packed copies of weights, made by the first decode after the weights changed).
#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "../core/dispatch.h"
#include "decoder.h"
#include "view.h"

namespace freedive {

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
  const int64_t M = Decoder::mlp_rows(device, max_tokens);
  const int64_t heads = c.n_head + c.n_kv_head;
  const bool half = compute == FD_BF16;
  return {max_tokens, M, max_seqs, c.d_model, c.qkv_width(), c.d_ff, c.up_width(), c.n_head * c.head_dim,
          c.qk_norm ? heads * c.head_dim : 0, heads,
          half && trainable && !frozen ? 2 : 1,  // else the weights may come packed
          half};
}

}  // namespace

size_t workspace_of(const fd_device_table* device, const char* op, const void* args, int threads) {
  int32_t best = -1;
  size_t bytes = 0;
  for (int i = 0; i < device->n_variants; ++i) {
    const fd_variant& v = device->variants[i];
    if (std::strcmp(v.op, op) == 0 && v.priority > best)
      best = v.priority, bytes = v.workspace ? v.workspace(args, threads) : 0;
  }
  return bytes;
}

namespace {

// What besides the sizes says which places there are.
struct Setting {
  bool trainable, frozen;
  int64_t widest;  // of an adapter's rows
  Recompute recompute;
};

// Gradients first: one of their places serves the forward pass too.
void lay_out(Places& at, Arena& a, Arena& g, const DecoderConfig& c, const Sizes& z, const Setting& s) {
  if (s.trainable) {
    at.dx_ = g.take(z.N * z.C), at.dnorm_ = g.take(z.N * z.C), at.dqkv_ = g.take(z.N * z.E), at.dqk_ = g.take(z.N * z.QK);
    at.dattention_ = g.take(z.N * z.HD), at.dup_ = g.take(z.M * z.U), at.dact_ = g.take(z.M * z.F);
  }
  at.act_.assign(s.trainable ? c.n_layer : 1, {});
  for (auto& l : at.act_) {
    // What is computed again has one place for all layers, the first one's; so has, of a model that keeps bfloat16, what is kept so.
    const bool first = &l == &at.act_[0], again = !first && s.recompute == Recompute::BLOCK,
               up_again = !first && s.recompute != Recompute::NONE, one_place = !first && z.half;
    if (!first) l = at.act_[0];
    l.x = a.take(z.N * z.C);
    if (!again) {
      l.stat1 = a.take(z.N), l.mean1 = a.take(z.N);
      if (!one_place) {
        l.qkv = a.take(z.N * z.E);
        l.qk = z.QK > 0 ? a.take(z.N * z.QK) : nullptr;
        l.attention = a.take(z.N * z.HD);
      }
      if (z.half && s.trainable) {
        l.kept_qkv = a.take_half(z.N * z.E);
        l.kept_qk = z.QK > 0 ? a.take_half(z.N * z.QK) : nullptr;
        l.kept_attention = a.take_half(z.N * z.HD);
      }
      l.qk_stat = a.take(z.QK > 0 ? z.N * z.heads : 0);
      l.lse = a.take(z.N * c.n_head);
      l.x2 = a.take(z.N * z.C), l.stat2 = a.take(z.N), l.mean2 = a.take(z.N);
    }
    if (!s.trainable) {
      l.up = s.frozen ? a.take(z.M * z.U) : nullptr;  // without an adapter nobody adds to it; packed rows: reserve_packed
    } else if (z.half) {
      if (first) l.up = at.dup_;  // written after the last look at it
      if (!up_again) l.kept_up = a.take_half(z.N * z.U);
    } else if (!up_again) {
      l.up = a.take(z.N * z.U);
    }
  }
  at.norm_ = a.take((z.N * z.C + 1) / z.per_operand), at.act_out_ = a.take((z.M * z.F + 1) / z.per_operand);
  at.lora_h_ = a.take(z.N * s.widest), at.lora_dh_ = a.take(s.trainable ? z.N * s.widest : 0);
  at.unread_ = a.take(s.trainable && s.frozen ? 2 * std::max(z.C, c.head_dim) : 0);
  at.x_last_ = a.take(z.N * z.C), at.final_ = a.take(z.N * z.C), at.final_stat_ = a.take(z.N), at.final_mean_ = a.take(z.N);
  at.final_lse_ = a.take(z.N), at.final_entropy_ = a.take(z.N), at.sampled_hidden_ = a.take(z.S * z.C), at.scalars_ = a.take(16);
}

// The most workspace any op of this model asks for, at capacity.
size_t workspace_bytes(const DecoderConfig& c, const fd_device_table* device, int threads, int64_t N, int64_t S, int64_t K,
                       bool trainable, bool frozen) {
  size_t most = 0;
  auto ask = [&](const char* op, const void* args) { most = std::max(most, workspace_of(device, op, args, threads)); };
  float* f = nullptr;
  int32_t* i32 = nullptr;
  const int64_t C = c.d_model, H = c.n_head, G = c.n_kv_head, D = c.head_dim, V = c.vocab_size;
  const fd_tensor second = view(f, std::max(c.max_positions, c.bigram_rows), C);  // positions or pairs
  fd_embedding_backward_args eb{view(f, c.vocab_size, C), second, view(f, N, C), view(i32, N), view(i32, N)};
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
  const int64_t M = Decoder::mlp_rows(device, N), U = c.up_width();
  const fd_tensor rows = view(f, M, C), up_weight = view(f, U, C);
  fd_matmul_gelu_forward_args mg{absent(), absent(), rows, up_weight, absent(), absent(), FD_F32};
  if (c.gelu) ask("matmul_gelu_forward", &mg);
  fd_matmul_swiglu_forward_args ms{absent(), absent(), rows, up_weight, absent(), absent(), FD_F32};
  if (!c.gelu) ask("matmul_swiglu_forward", &ms);
  const fd_tensor q = view(f, N, H, D), k = view(f, N, G, D), cu = view(i32, S + 1);
  fd_attention_forward_args af{q, view(f, N, H), q, k, k, cu, 1, FD_F32};
  ask("attention_forward", &af);
  fd_attention_backward_args ab{q, k, k, q, q, view(f, N, H), q, k, k, cu, 1, FD_F32};
  ask("attention_backward", &ab);
  const int64_t T = FD_KV_BLOCK, B = (c.max_positions + T - 1) / T;
  const fd_tensor kc = view(f, B, G, D, T), vc = view(f, B, G, T, D);
  fd_attention_cached_args ac{q, q, kc, vc, absent(), absent(), cu, view(i32, S), view(i32, S, B), 1, FD_F32};
  ask("attention_cached", &ac);  // says enough for a cache of any dtype
  fd_kv_cache_write_args wr{kc, vc, absent(), absent(), k, k, cu, view(i32, S), view(i32, S, B)};
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
  return std::max(most, muon_workspace(table, device, threads));
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
  embed_bigrams_ = at("embed_bigrams.weight");
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
  const Setting setting{trainable, frozen(), adapter_table_.widest, recompute};
  Arena count{nullptr}, count_gradients{nullptr};
  lay_out(*this, count, count_gradients, config, z, setting);

  // A buffer each; on a device with memory of its own they are pieces of one.
  const size_t angles = config.learned_positions ? 0 : config.max_positions * (config.head_dim / 2) * sizeof(float);
  const int64_t pairs = config.bigram_rows > 0 ? max_tokens + 2 * max_seqs : 0;
  const std::pair<Buffer*, size_t> planned[] = {
      {&cos_, angles},
      {&sin_, angles},
      {&activations_, count.used * sizeof(float)},
      {&gradients_of_activations_, count_gradients.used * sizeof(float)},
      {&batch_, (max_tokens * (2 + max_targets) + max_seqs + 1 + pairs) * sizeof(int32_t)},
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
  lay_out(*this, place, place_gradients, config, z, setting);

  tokens_ = reinterpret_cast<int32_t*>(batch_.bytes());
  positions_ = tokens_ + max_tokens;
  targets_ = positions_ + max_tokens;
  cu_seqlens_ = targets_ + max_tokens * max_targets;
  bigrams_ = cu_seqlens_ + max_seqs + 1, prefixes_ = bigrams_ + max_tokens;  // of a model that has such a table

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
  Places nowhere;
  Arena count{nullptr}, count_gradients{nullptr};
  lay_out(nowhere, count, count_gradients, c, z, {trainable, frozen, adapters.widest, recompute});
  const size_t pairs = static_cast<size_t>(adapters.total_floats) * sizeof(float), trained = frozen ? pairs : p;
  return {{"parameters", p},
          {"adapter", pairs},
          {"gradients", trainable ? trained : 0},
          {"AdamW moments", trainable ? 2 * trained : 0},
          {"activations", count.used * sizeof(float)},
          {"activation gradients", count_gradients.used * sizeof(float)},
          {"workspace", workspace_bytes(c, device, threads, max_tokens, max_seqs, 1, trainable, frozen)},
          {"graphs", device->begin_graph == nullptr ? 0 : Commands::planned(c.n_layer)}};
}

}  // namespace freedive
