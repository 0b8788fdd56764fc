// The decoder: configuration in, explicit forward and backward out. Knows ops.h only: whatever device fills the table
// runs it. All memory is planned for capacities (max_tokens, max_seqs) and taken once.
#pragma once
#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "../core/context.h"
#include "../core/thread_pool.h"
#include "../ops.h"
#include "activations.h"
#include "buffer.h"
#include "commands.h"
#include "later.h"
#include "lora.h"
#include "parameters.h"

namespace freedive {

// One flat batch; see ops.h. Arrays belong to the caller and live for the call.
struct BatchView {
  const int32_t *tokens, *targets, *positions, *cu_seqlens;  // targets may be null when decoding
  int64_t n_tokens, n_seqs, n_targets;                       // n_targets = K candidate ids per token
  // [S, 2], training only: the sequence whose first rows come before this one's, how many; see shared_prefix.cpp.
  const int32_t* prefixes = nullptr;
};

struct TokenOutputs {
  float *logprobs, *entropy, *lse;  // [N,K], [N], [N]; caller's
};

struct PlanRow {
  std::string name;
  size_t bytes;
};

// How the length of a Muon step follows from a matrix's shape [rows, columns]; see muon.cpp.
enum class MuonScale { MATCH_RMS_ADAMW, ORIGINAL, SPECTRAL };
struct MuonRoom;

// What the forward pass keeps of a layer for the backward pass; the rest is computed again there, by the same ops on the same
// rows, so gradients have the same bits. NONE: everything. FFN: not the outputs of W_up, the widest rows; costs that product.
// BLOCK: a layer's input alone; costs its forward pass.
enum class Recompute { NONE, FFN, BLOCK };

struct KVCache {
  struct Layer {
    fd_tensor keys, values, key_scales, value_scales;
  };
  int64_t blocks = 0;
  int32_t dtype = FD_F32;
  Buffer keys, values;              // all layers, each as in ops.h
  Buffer key_scales, value_scales;  // of int8
  Buffer seen;                      // ids, of a model with a table of pairs
};

// Trained parameters and, where there are some, the optimizer's two moments as they were at one time, of the same number of
// floats each, for a checkpoint (snapshot.cpp).
struct Snapshot {
  Snapshot(const fd_device_table* device, int64_t floats, int arrays);
  ~Snapshot();
  Snapshot(const Snapshot&) = delete;
  void wait() const;  // until it is whole; throws what the device tells. From any thread
  const fd_device_table* device;
  int64_t floats;
  int arrays;
  Buffer memory;
  void* mark = nullptr;
};

// Rows of a weight in the type of their file, rearranged by quantized_pack.
struct PackedRows {
  int64_t rows, type;  // ggml's number of the type
  uint8_t* data;
  int64_t bytes;
};

// Bytes that the best variant of an op asks for, and the most that any op of a Muon step does, of matrices of at most so many numbers.
size_t workspace_of(const fd_device_table* device, const char* op, const void* args, int threads);
size_t muon_workspace(const ParameterTable& table, const fd_device_table* device, int threads, int64_t most_numbers = INT64_MAX);

class Decoder : Places {
 public:
  static constexpr int64_t MLP_ROWS = 1472;  // of the batch go through an MLP at once, on the CPU; see in_chunks

  static int64_t mlp_rows(const fd_device_table* device, int64_t rows) {
    return device->copy != nullptr ? rows : std::min(rows, MLP_ROWS);
  }

  Decoder(const DecoderConfig& config, const fd_device_table* device, int threads, int64_t max_tokens, int64_t max_seqs,
          int64_t max_targets, bool trainable, int64_t compute, const float* cos, const float* sin,
          const AdapterConfig& adapter = {}, Recompute recompute = Recompute::NONE);
  ~Decoder();
  Decoder(const Decoder&) = delete;

  // What the constructor will take, without taking it.
  static std::vector<PlanRow> plan(const DecoderConfig& config, const fd_device_table* device, int threads, int64_t max_tokens,
                                   int64_t max_seqs, bool trainable, const AdapterConfig& adapter = {},
                                   Recompute recompute = Recompute::NONE, int64_t compute = FD_F32);

  // With an adapter the parameters are frozen: gradients, moments and optimizer are the adapter's.
  const ParameterTable& table() const { return table_; }
  const AdapterTable& adapter_table() const { return adapter_table_; }
  bool frozen() const { return adapter_.rank > 0; }
  float* parameters() { return params_.floats(); }
  float* adapter_parameters() { return adapter_params_.floats(); }
  int64_t trained_floats() const { return frozen() ? adapter_table_.total_floats : table_.total_floats; }
  void use_adapter(bool on) { adapter_on_ = on; }  // off: the frozen model alone
  float* gradients() { return grads_.floats(); }
  float* moment1() { return m_.floats(); }
  float* moment2() { return v_.floats(); }
  bool trainable() const { return trainable_; }
  void touch() { ++weight_version_, ++adapter_version_; }  // parameters were written from outside: packed copies are stale
  // For inference, or frozen: `rows` more rows of the weight that begins at this parameter (q, k, v are one weight, and gate and
  // up) are kept in a ggml type and used instead of the float32 parameter, whose memory is then never touched. data: the file's
  // rows, row_bytes each. reserve_packed first: all lie in one piece of memory, in huge pages, so that what reads one to its end
  // has fetched the beginning of the next.
  void reserve_packed(size_t bytes);
  void add_packed(const std::string& parameter, const uint8_t* data, int64_t rows, int64_t row_bytes, int64_t type);
  void set_vocab_mask(const uint8_t* mask);

  void forward(const BatchView& b, float temperature, bool keep, const TokenOutputs& out);
  // of the last forward(keep = true); dhidden [N, C]: what a head of the caller's own gives back to `hidden`. Null: zero.
  void backward(const float* dlogprobs, const float* dentropy, const float* dlse, const float* dhidden = nullptr);
  // On a device nothing is waited for: not the outputs either (wait).
  std::shared_ptr<Scores> forward_backward(const BatchView& b, float temperature, const float* dlogprobs);
  void hidden(float* out);  // final hidden states [N, C] of the last forward

  // What the optimizer's next step will change, as it is now. On a device it is copied on a stream of its own while later calls
  // run; of those only the optimizer's next step waits for it, and finish().
  std::shared_ptr<Snapshot> snapshot();
  void zero_gradients();
  // forward_backward, backward and zero_gradients return when their work is queued. The host may look at parameters, gradients
  // and moments after finish(), or any other call.
  void finish();
  // Lists of commands that were launched as a graph, and op by op; see commands.h.
  std::pair<int64_t, int64_t> launches() const { return {ctx_.launched(), ctx_.plain()}; }
  // hyper as in ops.h, without weight decay on vectors. Returns the gradient norm before clipping.
  float adamw(const float hyper[8]);
  // Muon on the matrices of the layers (hyper as in ops.h), AdamW on the rest: rows of adamw_hyper are for vectors, embeddings (a
  // tied head too) and the head. Returns the gradient norm before clipping.
  float muon(const float hyper[5], MuonScale scale, const float adamw_hyper[3][8]);

  KVCache new_cache(int64_t blocks, int32_t dtype) const;
  size_t cache_block_bytes(int32_t dtype) const;  // of all layers
  void copy_block(KVCache& cache, int64_t from, int64_t to);  // keys and values of all layers
  struct Sampling {
    const float *temperature, *top_p, *min_p;
    const int32_t* top_k;
    const uint64_t *seeds, *counters;
  };
  // Runs N new tokens of S sequences against the cache and samples one token after each of `n_rows` rows of the batch (at most
  // max_seqs): the last of each sequence in plain decoding, several of one where a guess is checked.
  void decode(KVCache& cache, const BatchView& b, const int32_t* past_lens, const int32_t* block_table, int64_t blocks_per_seq,
              const int32_t* rows, int64_t n_rows, const Sampling& sampling, int32_t* tokens, float* logprobs);
  // The same for one new token of each sequence, `steps` times over, each sampled token the next input, until the sequence has
  // sampled one of its stop_ids [S, n] (-1: none) or `remaining` tokens [S]: then nothing of it is written or attended to any
  // more. On a device the host sees none of them before all are there, and does not wait for these either (wait). The cache has
  // blocks for all steps. On the CPU `done` steps are fewer where all have stopped.
  std::shared_ptr<Visit> decode_steps(KVCache& cache, const BatchView& b, const int32_t* past_lens, const int32_t* remaining,
                                      const int32_t* block_table, int64_t blocks_per_seq, int64_t steps, const Sampling& sampling,
                                      const int32_t* stop_ids, int64_t n_stop_ids);
  // As many steps more from where `before` ends, which need not have come; its cache, another block table. Null: another batch
  // has been here since, and where it ends is known to the caller alone.
  std::shared_ptr<Visit> decode_on(const Visit& before, const int32_t* block_table);
  void wait(Later& later);
  // Logits [n_rows, V] after rows of the last call's batch (at most max_seqs), before mask and temperature: the head's bits.
  void logits(const int32_t* rows, int64_t n_rows, float* out);

  // What passes through the layers of one forward, for people to look at; see trace.cpp. Caller's memory.
  struct Trace {
    float* residual;  // [L + 1, N, C]: the embedding, then the output of each layer
    float *q, *k;     // [L, N, H, D] and [L, N, G, D], as attention multiplies them: after QK-norm and rotation
  };
  void trace(const BatchView& b, const Trace& out);
  // Logits [n_rows, V] of rows x [n_rows, C] of a residual stream (at most max_seqs), through the final norm and the head.
  void lens(const float* x, int64_t n_rows, float* out);

 private:
  struct Layer {  // parameters of one layer, as offsets into the flat buffer (-1 = absent)
    int64_t input_norm, input_norm_bias, qkv, qkv_bias, q_norm, k_norm, o, o_bias, mlp_norm, mlp_norm_bias, up, up_bias, down,
        down_bias;
  };
  struct Rows {  // of the batch
    int64_t begin, count;
  };
  struct Cached {  // decoding: where keys and values live
    KVCache* cache;
    const int32_t *past_lens, *block_table;
    int64_t blocks_per_seq;
  };
  // Of a batch with prefixes, what attention sees at once: copies of rows, end to end in `seqs` sequences.
  struct Piece {
    int64_t row, rows, copies, seqs;      // own rows of the batch, the first and how many; copies of rows
    int32_t *from, *own, *starts;         // [copies]: the row of the batch; [rows]: where its own copy is; [seqs + 1]
  };
  struct Copies {
    fd_tensor q, k, v, out, lse, zero, dq, dk, dv, dout, cu_seqlens;
  };
  void plan_shared(const BatchView& b, int64_t copies);
  Copies copies(const Piece& piece) const;
  void copy_rows(const fd_tensor& out, const fd_tensor& table, const int32_t* rows);
  void add_rows(const fd_tensor& table, const fd_tensor& from, const int32_t* rows);
  void zero_rows(const fd_tensor& out, const fd_tensor& zero);
  void shared_attention_forward(Activations& a, const fd_tensor& q, const fd_tensor& k, const fd_tensor& v);
  void shared_attention_backward(const Activations& a, const fd_tensor& dq, const fd_tensor& dk, const fd_tensor& dv,
                                 const fd_tensor& q, const fd_tensor& k, const fd_tensor& v);
  // The two halves of a layer, forward and backward; each reads like the maths.
  void attention_forward(int64_t layer, Activations& a, bool keep, const Cached* cached);
  void mlp_forward(int64_t layer, Activations& a, bool keep, float* x_next);
  template <class Body>
  void in_chunks(const Body& body);
  void up_forward(int64_t layer, Activations& a, bool keep, bool activate, Rows r);
  void activation_forward(const fd_tensor& up);
  fd_tensor kept_up(const Activations& a, Rows r) const;
  fd_tensor kept_attention(const Activations& a) const;
  void rotate(const fd_tensor& q, const fd_tensor& k, int64_t inverse);
  void cast(const fd_tensor& out, const fd_tensor& x);
  fd_tensor operand(float* place, int64_t rows, int64_t width) const;
  void attention_backward(int64_t layer, Activations& a);
  void mlp_backward(int64_t layer, Activations& a);
  void compute_again(int64_t layer);
  void trunk_forward(const BatchView& b, bool keep, const Cached* cached, const Trace* trace = nullptr);
  void find_bigrams(const Cached* cached);
  std::pair<fd_tensor, const int32_t*> second_table(float* base) const;
  void trunk(bool keep, const Cached* cached, const Trace* trace = nullptr);
  void sample(const float* hidden, int64_t n_rows, const Sampling& p, int32_t* tokens, float* logprobs);
  // Decoding between two visits of the host: by sequence what is in the cache and how many tokens may come yet; by row how to
  // sample, and what was.
  struct Running {
    uint64_t *seeds, *counters;
    int32_t *past_lens, *remaining, *top_k, *sampled;
    float *temperature, *top_p, *min_p, *logprobs;
  };
  static size_t running_bytes(int64_t rows) { return static_cast<size_t>(rows) * (2 * sizeof(uint64_t) + 8 * sizeof(float)); }
  static Running running(uint8_t* memory, int64_t rows);
  std::shared_ptr<Visit> visit(std::shared_ptr<Visit> v, const int32_t* block_table);
  Sampling in(const Sampling& s, int64_t n_rows);
  void record(const Trace& trace, int64_t layer, const Activations& a, const float* output);
  void trunk_backward(const float* dhidden = nullptr);
  void norm_forward(const fd_tensor& out, float* stat, float* mean, const float* x, int64_t weight, int64_t bias);
  void norm_backward(float* dx, bool accumulate, const float* dout, const float* x, int64_t weight, int64_t bias,
                     const float* stat, const float* mean, int64_t rows);
  void linear(float* out, const fd_tensor& x, int64_t weight, int64_t bias, int64_t O, const float* residual);
  void linear_backward_frozen(float* dx, const float* dout, const fd_tensor& x, int64_t weight, int64_t O);
  void linear_backward(float* dx, const float* dout, const fd_tensor& x, int64_t weight, int64_t bias, int64_t O);
  static int64_t padded_rows(int64_t n, int64_t most);
  static int64_t padded_sequences(int64_t n, int64_t most);
  void accept(const BatchView& b, bool padded);
  // A caller's memory as ops may see it: itself on the CPU, else a piece of the device's, into which `in` copies and from which
  // settle() copies what `out` lent. All copies are in order with the ops, through pinned memory, so nothing waits for them.
  // settle() waits for all that was launched, and throws what the device tells; leave() for nothing. Every public call ends with
  // one of them. What is the device's may be larger (padded) than what is the caller's: 0 behind it.
  template <class T>
  const T* in(const T* host, int64_t count, int64_t padded = 0) {
    return static_cast<const T*>(lend(const_cast<T*>(host), count * sizeof(T), padded * sizeof(T), true));
  }
  template <class T>
  T* out(T* host, int64_t count, int64_t padded = 0) {
    return static_cast<T*>(lend(host, count * sizeof(T), padded * sizeof(T), false));
  }
  template <class T>
  const T* in_rows(const T* host, int64_t width) {
    return in(host, rows_ * width, n_ * width);
  }
  TokenOutputs out(const TokenOutputs& host) {
    return {out(host.logprobs, rows_ * k_, n_ * k_), out(host.entropy, rows_, n_), out(host.lse, rows_, n_)};
  }
  void* lend(void* host, size_t bytes, size_t padded, bool is_input);
  bool has_own_memory() const { return device_->copy != nullptr; }
  void put(void* to, const void* host, size_t bytes, size_t padded = 0, int rest = 0);  // into memory of ops; `host` may change at once
  void get(void* host, const void* from, size_t bytes);  // out of it; there when the call ends
  void move(void* to, const void* from, size_t bytes);   // within it
  void zero(void* memory, size_t bytes);
  uint8_t* pinned(size_t bytes);
  std::string failed();
  void reach(void* mark);
  void fetch();
  void settle();
  void next_stage();
  void leave(const std::shared_ptr<Later>& later);  // the end of a call whose outputs, if it has some, come later
  void launch();  // what ctx_ holds
  void let_snapshot_pass();
  Buffer buffer(size_t bytes, bool huge_pages = true, Buffer::Kind kind = Buffer::PRIVATE) const {
    return Buffer(bytes, huge_pages, device_, kind);
  }
  fd_tensor mask() const;
  KVCache::Layer cache_layer(const KVCache& cache, int64_t layer) const;
  void gather_hidden(const int32_t* rows, int64_t n_rows);  // to sampled_hidden_
  void adamw_range(int64_t begin, int64_t size, const float hyper[8], bool decay);
  float* orthogonalize(fd_context* ctx, const Parameter& matrix, const MuonRoom& room);
  void muon_step(fd_context* ctx, const Parameter& matrix, const MuonRoom& room, MuonScale rule);
  void muon_steps_apart(const std::vector<const Parameter*>& matrices, MuonRoom room, float* memory, size_t workspace,
                        MuonScale rule);
  fd_tensor packed(const float* weight, int64_t O, int64_t C, uint64_t version);
  const AdapterGroup* adapters(int64_t weight, bool on) const;
  void adapter_down(const AdapterGroup& group, const fd_tensor& x);
  void adapter_forward(const AdapterGroup& group, float* out, const fd_tensor& x, int64_t O);
  void adapter_backward(const AdapterGroup& group, float* dx, const float* dout, const fd_tensor& x, int64_t O);
  void scale_adapter(float* h, int64_t size);
  const std::vector<PackedRows>* packed_rows(int64_t weight, int64_t O) const;
  fd_tensor packed_view(const PackedRows& part) const;
  void multiply(float* out, const fd_tensor& x, int64_t weight, int64_t bias, int64_t O, const float* residual);
  fd_tensor head_weight(float* base) const;
  float* param(int64_t offset) { return params_.floats() + offset; }
  // Where the gradient of a vector goes; of a frozen one to a place nobody reads, `second` of two at once.
  float* grad(int64_t offset, bool second = false) {
    return frozen() ? unread_ + (second ? config_.d_model : 0) : grads_.floats() + offset;
  }

  DecoderConfig config_;
  ParameterTable table_;
  AdapterConfig adapter_;
  AdapterTable adapter_table_;
  bool adapter_on_ = true, kept_adapter_ = true;  // now, and in the forward pass that a backward is due of
  const fd_device_table* device_;
  fd_ops ops_;
  std::unique_ptr<ThreadPool> pool_;
  Commands ctx_;  // of a device with memory of its own; elsewhere a context and no more
  int64_t max_tokens_, max_seqs_, max_targets_;
  bool trainable_;
  Recompute recompute_;
  int64_t compute_;                                         // FD_F32 or FD_BF16: how products multiply
  int64_t packed_compute_;                                  // the same with packed rows: also FD_I8
  Buffer packed_memory_, packed_up_;  // packed_up_: what W_up's products leave, of a model that plans no place for it
  size_t packed_used_ = 0;
  std::map<int64_t, std::vector<PackedRows>> packed_rows_;  // by offset of the weight; the same for all of them or none
  std::vector<Layer> layers_;
  int64_t embed_, embed_positions_, embed_bigrams_, final_norm_, final_norm_bias_, head_;
  Buffer vocab_mask_;  // empty: every id is allowed

  std::vector<Lent> lent_;  // to be copied back
  // The device's side of what is lent, filled anew by every call, in order; and pinned memory, of which two calls take turns: the
  // copies of one may be under way while the next fills its own. `more` is for a call that needs more than any before.
  struct Stage {
    Buffer memory;
    size_t used = 0, wanted = 0, most = 0;  // by this call, with what did not fit; by any
    std::vector<Buffer> more;
    void* mark = nullptr;  // of the last copy from it
    bool busy = false;
    std::shared_ptr<Later> later;  // whose outputs come through it
    uint8_t* take(size_t bytes);  // null: it does not fit
    void end(const std::string& error);
    void next() { most = std::max(most, wanted), used = wanted = 0, more.clear(); }
  };
  Stage device_stage_, host_stages_[2];
  int host_stage_ = 0;
  fd_context copying_{};                 // a stream for snapshots
  std::shared_ptr<Snapshot> snapshot_;   // the last one, its memory to be used again
  bool snapshot_under_way_ = false;
  bool pending_ = false;  // work that no call has waited for
  Buffer arena_;          // of a device: all that the constructor plans, but what is shared with the host

  Buffer adapter_params_;
  Buffer params_, grads_, m_, v_, cos_, sin_, activations_, gradients_of_activations_, workspace_, batch_, running_;
  int32_t *tokens_, *targets_, *positions_, *cu_seqlens_;
  int32_t *bigrams_, *prefixes_;  // of a model with a table of pairs: rows of it; the batch's prefixes, which it has or not
  bool has_prefixes_ = false;
  Buffer muon_;     // scratch of its step, taken at the first
  std::vector<Piece> pieces_;  // of the batch at work; none: nothing is shared
  Buffer shared_, shared_rows_;
  std::vector<int32_t> shared_plan_;  // as shared_rows_ has it
  int32_t* zeros_ = nullptr;
  // Of the batch: rows and sequences as ops see them, on a device padded to sizes that come again, so that a graph of one batch
  // serves others; and the rows the caller has. What is behind those has no target, so no derivative: it adds nothing to anything.
  int64_t n_ = 0, s_ = 0, k_ = 1, rows_ = 0;
  uint64_t turn_ = 0;  // of batches and visits
  bool kept_ = false;

  // Packed copies of weights, for decoding; made when first asked for after a change.
  struct Packed {
    uint64_t version = 0;
    Buffer data;
  };
  std::unordered_map<const float*, Packed> packs_;
  uint64_t weight_version_ = 1, adapter_version_ = 1;
  bool use_packed_ = false;
};

}  // namespace freedive
