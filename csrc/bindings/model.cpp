// The decoder, as Python sees it. Batches are checked here; the friendly class is freedive.model.Model.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "../cpu/device.h"
#include "../model/decoder.h"
#include "bindings.h"

namespace py = pybind11;

namespace freedive {

using I32 = py::array_t<int32_t, py::array::c_style>;
using F32 = py::array_t<float, py::array::c_style>;
using U64 = py::array_t<uint64_t, py::array::c_style>;

static DecoderConfig config_from(const py::dict& d) {
  DecoderConfig c;
  auto i = [&](const char* k) { return d[k].cast<int64_t>(); };
  auto b = [&](const char* k) { return d[k].cast<bool>(); };
  c.vocab_size = i("vocab_size"), c.n_layer = i("n_layer"), c.n_head = i("n_head"), c.n_kv_head = i("n_kv_head");
  c.d_model = i("d_model"), c.head_dim = i("head_dim"), c.d_ff = i("d_ff"), c.max_positions = i("max_positions");
  c.layernorm = b("layernorm"), c.norm_eps = d["norm_eps"].cast<double>(), c.learned_positions = b("learned_positions"),
  c.gelu = b("gelu");
  c.bigram_rows = i("bigram_rows");
  c.attention_bias = b("attention_bias"), c.attention_out_bias = b("attention_out_bias"), c.mlp_bias = b("mlp_bias");
  c.qk_norm = b("qk_norm"), c.tie_embeddings = b("tie_embeddings");
  return c;
}

// {"rank": ..., "scale": ..., "targets": [...]}, or None.
static AdapterConfig adapter_from(const std::optional<py::dict>& d) {
  AdapterConfig a;
  if (!d) return a;
  a.rank = (*d)["rank"].cast<int64_t>(), a.scale = (*d)["scale"].cast<float>();
  a.targets = (*d)["targets"].cast<std::vector<std::string>>();
  if (a.rank < 1) throw py::value_error("an adapter's rank must be at least 1");
  return a;
}

static Recompute recompute_from(const std::string& level) {
  if (level == "none") return Recompute::NONE;
  if (level == "ffn") return Recompute::FFN;
  if (level == "block") return Recompute::BLOCK;
  throw py::value_error("recompute is '" + level + "'; it must be none, ffn or block");
}

static py::list table_of(const std::vector<Parameter>& rows) {
  py::list out;
  for (const auto& r : rows) out.append(py::make_tuple(r.name, r.shape, r.offset, r.matrix));
  return out;
}

// A decoder with the sizes the bindings check against.
struct PyDecoder {
  DecoderConfig config;
  Decoder decoder;
  int64_t max_tokens, max_seqs, last_tokens = 0, last_targets = 1;
  std::mutex in_use;
  PyDecoder(const DecoderConfig& c, int threads, int64_t n, int64_t s, int64_t k, bool trainable, int64_t compute, const F32& cos,
            const F32& sin, const AdapterConfig& adapter, const std::string& device, Recompute recompute)
      : config(c),
        decoder(c, require_device(device), threads, n, s, k, trainable, compute, cos.data(), sin.data(), adapter, recompute),
        max_tokens(n),
        max_seqs(s) {}

  void check_rows(const std::vector<int32_t>& rows, int64_t n_tokens) const {
    if (rows.empty() || static_cast<int64_t>(rows.size()) > max_seqs)
      throw py::value_error("between 1 and max_seqs = " + std::to_string(max_seqs) + " rows can be sampled at once, not " +
                            std::to_string(rows.size()));
    for (int32_t r : rows)
      if (r < 0 || r >= n_tokens) throw py::value_error("row " + std::to_string(r) + " is outside of the batch");
  }

  void check_table(const I32& table, const std::vector<int32_t>& lengths, const KVCache& cache) const {
    const auto S = static_cast<py::ssize_t>(lengths.size());
    if (table.ndim() != 2 || table.shape(0) != S)
      throw py::value_error("decode_steps: block_table and stop_ids need one row per sequence");
    for (py::ssize_t s = 0; s < S; ++s) {
      if (lengths[s] > table.shape(1) * FD_KV_BLOCK || lengths[s] > config.max_positions)
        throw py::value_error("decode_steps: a sequence is longer than its cache blocks, or than the model's context");
      for (py::ssize_t j = 0; j * FD_KV_BLOCK < lengths[s]; ++j)
        if (table.at(s, j) < 0 || table.at(s, j) >= cache.blocks)
          throw py::value_error("decode_steps: block_table names a block outside the cache");
    }
  }

  BatchView batch(const I32& tokens, const I32& targets, const I32& positions, const I32& cu, bool need_targets,
                  const std::optional<I32>& prefixes = std::nullopt) {
    const int64_t N = tokens.size(), S = cu.size() - 1, K = targets.ndim() == 2 ? targets.shape(1) : 1;
    auto bad = [](const std::string& why) { throw py::value_error(why); };
    if (tokens.ndim() != 1 || N < 1) bad("a batch needs tokens: int32[N], N >= 1");
    if (positions.ndim() != 1 || positions.size() != N) bad("positions must be int32[N]");
    if (need_targets && (targets.ndim() < 1 || targets.ndim() > 2 || targets.shape(0) != N))
      bad("targets must be int32[N] or int32[N, K]");
    if (cu.ndim() != 1 || S < 1) bad("cu_seqlens must be int32[S+1], S >= 1");
    if (N > max_tokens || S > max_seqs)
      bad("a batch of " + std::to_string(N) + " tokens in " + std::to_string(S) +
          " sequences exceeds this model's capacity: max_tokens=" + std::to_string(max_tokens) +
          ", max_seqs=" + std::to_string(max_seqs));
    if (cu.at(0) != 0 || cu.at(S) != N) bad("cu_seqlens must begin with 0 and end with N = " + std::to_string(N));
    for (int64_t s = 0; s < S; ++s)
      if (cu.at(s + 1) < cu.at(s)) bad("cu_seqlens must not decrease");
    const int32_t *t = tokens.data(), *p = positions.data();
    for (int64_t i = 0; i < N; ++i) {
      if (t[i] < 0 || t[i] >= config.vocab_size)
        bad("token id " + std::to_string(t[i]) + " at " + std::to_string(i) + " is outside the vocabulary of " +
            std::to_string(config.vocab_size));
      if (p[i] < 0 || p[i] >= config.max_positions)
        bad("position " + std::to_string(p[i]) + " is beyond max_positions = " + std::to_string(config.max_positions));
    }
    if (need_targets) {
      const int32_t* g = targets.data();
      for (int64_t i = 0; i < N * K; ++i)
        if (g[i] < -1 || g[i] >= config.vocab_size)
          bad("target id " + std::to_string(g[i]) + " is outside the vocabulary (and is not -1)");
    }
    if (prefixes) {
      if (prefixes->ndim() != 2 || prefixes->shape(0) != S || prefixes->shape(1) != 2) bad("prefixes must be int32[S, 2]");
      for (int64_t s = 0; s < S; ++s) {
        const int64_t from = prefixes->at(s, 0), count = prefixes->at(s, 1);
        if (count < 0 || from < 0 || from > s || (count > 0 && from == s))
          bad("a prefix is a number of rows of an earlier sequence");
        if (count > 0 && (prefixes->at(from, 1) > 0 || count > cu.at(from + 1) - cu.at(from)))
          bad("a prefix must be whole in the rows of its sequence, which has none itself");
      }
    }
    const int32_t *wanted = need_targets ? targets.data() : nullptr, *shared = prefixes ? prefixes->data() : nullptr;
    return {t, wanted, p, cu.data(), N, S, need_targets ? K : 1, shared};
  }
};

// One call of a decoder at a time: others wait, without Python's lock. Taken in this order, so that nobody holds one and waits
// for the other.
struct Alone {
  py::gil_scoped_release release;
  std::lock_guard<std::mutex> lock;
  explicit Alone(PyDecoder& d) : lock(d.in_use) {}
};

// Steps of decoding that may still be under way: then the decoder and the cache they work on are not given back.
struct PyVisit {
  py::object decoder, cache;
  std::shared_ptr<Visit> visit;
  PyVisit(py::object d, py::object c, std::shared_ptr<Visit> v)
      : decoder(std::move(d)), cache(std::move(c)), visit(std::move(v)) {}
  PyVisit(const PyVisit&) = delete;
  ~PyVisit() {
    try {
      wait();
    } catch (const std::exception&) {  // told to whoever waits
    }
  }
  void wait() {
    auto& d = decoder.cast<PyDecoder&>();
    Alone alone(d);
    d.decoder.wait(*visit);
  }
};

// Of forward_backward: arrays over its own memory, when they have come.
struct PyScores {
  py::object decoder;
  std::vector<py::ssize_t> shape;
  std::shared_ptr<Scores> scores;
};

static py::tuple outputs(PyDecoder& d, const BatchView& b, const std::vector<py::ssize_t>& shape,
                         const std::function<void(const TokenOutputs&)>& run) {
  F32 logprobs(shape), entropy(b.n_tokens), lse(b.n_tokens);
  TokenOutputs out{logprobs.mutable_data(), entropy.mutable_data(), lse.mutable_data()};
  {
    Alone alone(d);
    run(out);
  }
  d.last_tokens = b.n_tokens, d.last_targets = b.n_targets;
  return py::make_tuple(logprobs, entropy, lse);
}

static std::vector<py::ssize_t> shape_of(const I32& targets) {
  return targets.ndim() == 2 ? std::vector<py::ssize_t>{targets.shape(0), targets.shape(1)}
                             : std::vector<py::ssize_t>{targets.size()};
}

void bind_model(py::module_& m) {
  m.def(
      "plan",
      [](const py::dict& config, int threads, int64_t max_tokens, int64_t max_seqs, bool trainable,
         const std::optional<py::dict>& adapter, const std::string& device, const std::string& recompute,
         int64_t compute) {
        std::vector<std::pair<std::string, size_t>> out;
        for (const auto& r : Decoder::plan(config_from(config), require_device(device), threads, max_tokens, max_seqs, trainable,
                                           adapter_from(adapter), recompute_from(recompute), compute))
          out.emplace_back(r.name, r.bytes);
        return out;
      },
      py::arg("config"), py::arg("threads"), py::arg("max_tokens"), py::arg("max_seqs"), py::arg("trainable"),
      py::arg("adapter") = py::none(), py::arg("device") = "cpu", py::arg("recompute") = "none",
      py::arg("compute") = static_cast<int64_t>(FD_F32));
  m.def("free_memory", [](const std::string& device) -> std::optional<size_t> {  // of a device that has its own
    const fd_device_table* d = require_device(device);
    return d->free_memory == nullptr ? std::nullopt : std::optional<size_t>(d->free_memory());
  });
  m.def("parameter_table", [](const py::dict& config) { return table_of(ParameterTable(config_from(config)).rows); });
  m.def("adapter_table", [](const py::dict& config, const py::dict& adapter) {
    return table_of(AdapterTable(config_from(config), adapter_from(adapter)).rows);
  });

  py::class_<Snapshot, std::shared_ptr<Snapshot>>(m, "Snapshot")
      .def("wait", &Snapshot::wait, py::call_guard<py::gil_scoped_release>())
      .def("array", [](py::object self, int i) {  // 0: trained parameters, 1 and 2: moments
        const auto& s = self.cast<const Snapshot&>();
        if (i < 0 || i >= s.arrays) throw py::value_error("a snapshot has " + std::to_string(s.arrays) + " arrays");
        return py::array_t<float>({static_cast<py::ssize_t>(s.floats)}, {sizeof(float)}, s.memory.floats() + i * s.floats, self);
      });

  py::class_<KVCache>(m, "KVCache").def_readonly("blocks", &KVCache::blocks);

  py::class_<PyScores>(m, "Scores").def("wait", [](py::object self) {  // (logprobs, entropy, lse)
    auto& of = self.cast<PyScores&>();
    auto& d = of.decoder.cast<PyDecoder&>();
    {
      Alone alone(d);
      d.decoder.wait(*of.scores);
    }
    const std::vector<py::ssize_t> rows{of.shape[0]};
    return py::make_tuple(F32(of.shape, of.scores->logprobs.data(), self), F32(rows, of.scores->entropy.data(), self),
                          F32(rows, of.scores->lse.data(), self));
  });

  py::class_<PyVisit>(m, "Visit").def("wait", [](PyVisit& v) {  // (tokens, logprobs), both [steps done, sequences]
    v.wait();
    const Visit& of = *v.visit;
    I32 tokens({static_cast<py::ssize_t>(of.done), static_cast<py::ssize_t>(of.seqs)});
    F32 logprobs({static_cast<py::ssize_t>(of.done), static_cast<py::ssize_t>(of.seqs)});
    for (int64_t i = 0; i < of.done; ++i) {
      std::copy_n(of.tokens.data() + i * of.padded, of.seqs, tokens.mutable_data() + i * of.seqs);
      std::copy_n(of.logprobs.data() + i * of.padded, of.seqs, logprobs.mutable_data() + i * of.seqs);
    }
    return py::make_tuple(tokens, logprobs);
  });

  py::class_<PyDecoder>(m, "Decoder")
      .def(py::init([](const py::dict& config, int threads, int64_t n, int64_t s, int64_t k, bool trainable, const F32& cos,
                       const F32& sin, int64_t compute, const std::optional<py::dict>& adapter, const std::string& device,
                       const std::string& recompute) {
             const DecoderConfig c = config_from(config);
             const py::ssize_t want = c.learned_positions ? 0 : c.max_positions * (c.head_dim / 2);
             if (n < 1 || s < 1 || k < 1 || threads < 1) throw py::value_error("capacities and threads must be at least 1");
             if (compute != FD_F32 && compute != FD_BF16 && compute != FD_I8)
               throw py::value_error("compute must be 0 (float32), 1 (bfloat16) or 6 (int8)");
             if (compute == FD_I8 && trainable) throw py::value_error("int8 is for inference: trainable must be False");
             if (cos.size() < want || sin.size() < want)
               throw py::value_error("cos and sin must be float32[max_positions, head_dim/2]");
             return std::make_unique<PyDecoder>(c, threads, n, s, k, trainable, compute, cos, sin, adapter_from(adapter), device,
                                                recompute_from(recompute));
           }),
           py::arg("config"), py::arg("threads"), py::arg("max_tokens"), py::arg("max_seqs"), py::arg("max_targets"),
           py::arg("trainable"), py::arg("cos"), py::arg("sin"), py::arg("compute") = static_cast<int64_t>(FD_F32),
           py::arg("adapter") = py::none(), py::arg("device") = "cpu", py::arg("recompute") = "none")
      .def("buffer",
           [](py::object self, const std::string& which) {
             auto& d = self.cast<PyDecoder&>().decoder;
             {
               Alone alone(self.cast<PyDecoder&>());
               d.finish();
             }
             if (which != "parameters" && which != "adapter" && !d.trainable())
               throw py::value_error("this model was made with trainable=False");
             if (which == "adapter" && !d.frozen()) throw py::value_error("this model has no adapter");
             float* p = which == "parameters"  ? d.parameters()
                        : which == "adapter"   ? d.adapter_parameters()
                        : which == "gradients" ? d.gradients()
                        : which == "m"         ? d.moment1()
                                               : d.moment2();
             const int64_t floats = which == "parameters" ? d.table().total_floats : d.trained_floats();
             return py::array_t<float>({static_cast<py::ssize_t>(floats)}, {sizeof(float)}, p, self);
           })
      .def("use_adapter",
           [](PyDecoder& d, bool on) {
             Alone alone(d);
             d.decoder.use_adapter(on);
           })
      .def("snapshot",
           [](PyDecoder& d) {
             Alone alone(d);
             return d.decoder.snapshot();
           })
      .def("finish",
           [](PyDecoder& d) {
             Alone alone(d);
             d.decoder.finish();
           })
      .def("launches", [](const PyDecoder& d) { return d.decoder.launches(); })  // lists of commands: as graphs, op by op
      .def("touch",
           [](PyDecoder& d) {
             Alone alone(d);
             d.decoder.touch();
           })
      .def("reserve_packed",
           [](PyDecoder& d, size_t bytes) {
             Alone alone(d);
             d.decoder.reserve_packed(bytes);
           })
      .def("add_packed",
           [](PyDecoder& d, const std::string& name, const py::array_t<uint8_t, py::array::c_style>& rows, int64_t type) {
             if (rows.ndim() != 2) throw py::value_error("rows must be uint8[O, bytes of a row]");
             Alone alone(d);
             d.decoder.add_packed(name, rows.data(), rows.shape(0), rows.shape(1), type);
           })
      .def("set_vocab_mask",
           [](PyDecoder& d, const py::array_t<uint8_t, py::array::c_style>& mask) {
             if (mask.size() != d.config.vocab_size) throw py::value_error("vocab_mask must be uint8[vocab_size]");
             Alone alone(d);
             d.decoder.set_vocab_mask(mask.data());
           })
      .def(
          "forward",
          [](PyDecoder& d, const I32& tokens, const I32& targets, const I32& positions, const I32& cu, float temperature,
             bool keep, const std::optional<I32>& prefixes) {
            const BatchView b = d.batch(tokens, targets, positions, cu, true, prefixes);
            return outputs(d, b, shape_of(targets), [&](const TokenOutputs& o) { d.decoder.forward(b, temperature, keep, o); });
          },
          py::arg("tokens"), py::arg("targets"), py::arg("positions"), py::arg("cu_seqlens"), py::arg("temperature"),
          py::arg("keep"), py::arg("prefixes") = py::none())
      .def(
          "backward",
          [](PyDecoder& d, const std::optional<F32>& dlogprobs, const std::optional<F32>& dentropy,
             const std::optional<F32>& dlse, const std::optional<F32>& dhidden) {
            auto ptr = [&](const std::optional<F32>& a, int64_t want, const char* name) -> const float* {
              if (!a) return nullptr;
              if (a->size() != want)
                throw py::value_error(std::string(name) + " must have one entry per token of the last forward");
              return a->data();
            };
            const float* p = ptr(dlogprobs, d.last_tokens * d.last_targets, "dlogprobs");
            const float *e = ptr(dentropy, d.last_tokens, "dentropy"), *l = ptr(dlse, d.last_tokens, "dlse");
            const float* h = ptr(dhidden, d.last_tokens * d.config.d_model, "dhidden");
            Alone alone(d);
            d.decoder.backward(p, e, l, h);
          },
          py::arg("dlogprobs") = py::none(), py::arg("dentropy") = py::none(), py::arg("dlse") = py::none(),
          py::arg("dhidden") = py::none())
      .def(
          "forward_backward",
          [](py::object self, const I32& tokens, const I32& targets, const I32& positions, const I32& cu, const F32& dlogprobs,
             float temperature, const std::optional<I32>& prefixes) {
            auto& d = self.cast<PyDecoder&>();
            const BatchView b = d.batch(tokens, targets, positions, cu, true, prefixes);
            if (dlogprobs.size() != b.n_tokens * b.n_targets) throw py::value_error("dlogprobs must have the shape of targets");
            std::shared_ptr<Scores> scores;
            {
              Alone alone(d);
              scores = d.decoder.forward_backward(b, temperature, dlogprobs.data());
            }
            d.last_tokens = b.n_tokens, d.last_targets = b.n_targets;
            return std::make_unique<PyScores>(PyScores{self, shape_of(targets), scores});
          },
          py::arg("tokens"), py::arg("targets"), py::arg("positions"), py::arg("cu_seqlens"), py::arg("dlogprobs"),
          py::arg("temperature"), py::arg("prefixes") = py::none())
      .def("hidden",
           [](PyDecoder& d) {
             F32 out({static_cast<py::ssize_t>(d.last_tokens), static_cast<py::ssize_t>(d.config.d_model)});
             float* to = out.mutable_data();
             {
               Alone alone(d);
               d.decoder.hidden(to);
             }
             return out;
           })
      .def("zero_gradients",
           [](PyDecoder& d) {
             if (!d.decoder.trainable()) throw py::value_error("this model was made with trainable=False");
             Alone alone(d);
             d.decoder.zero_gradients();
           })
      .def("adamw",
           [](PyDecoder& d, const F32& hyper) {
             if (!d.decoder.trainable()) throw py::value_error("this model was made with trainable=False");
             if (hyper.size() != 8) throw py::value_error("hyper must be float32[8]");
             Alone alone(d);
             return d.decoder.adamw(hyper.data());
           })
      .def("muon",
           [](PyDecoder& d, const F32& hyper, const std::string& scale, const F32& adamw_hyper) {
             if (!d.decoder.trainable()) throw py::value_error("this model was made with trainable=False");
             if (d.decoder.frozen()) throw py::value_error("adapters are trained with adamw");
             if (hyper.size() != 5 || adamw_hyper.size() != 24)
               throw py::value_error("hyper must be float32[5] and adamw_hyper float32[3,8]");
             static const std::map<std::string, MuonScale> rules = {{"match_rms_adamw", MuonScale::MATCH_RMS_ADAMW},
                                                                    {"original", MuonScale::ORIGINAL},
                                                                    {"spectral", MuonScale::SPECTRAL}};
             const auto rule = rules.find(scale);
             if (rule == rules.end())
               throw py::value_error("scale is '" + scale + "'; it must be match_rms_adamw, original or spectral");
             Alone alone(d);
             return d.decoder.muon(hyper.data(), rule->second, reinterpret_cast<const float(*)[8]>(adamw_hyper.data()));
           })
      .def("new_cache",
           [](PyDecoder& d, int64_t blocks, int32_t dtype) {
             if (blocks < 1) throw py::value_error("a cache needs at least one block");
             if (dtype != FD_F32 && dtype != FD_BF16 && dtype != FD_I8) throw py::value_error("a cache has no such dtype");
             return d.decoder.new_cache(blocks, dtype);
           })
      .def("cache_block_bytes", [](PyDecoder& d, int32_t dtype) { return d.decoder.cache_block_bytes(dtype); })
      .def("copy_block",
           [](PyDecoder& d, KVCache& cache, int64_t from, int64_t to) {
             if (from < 0 || to < 0 || from >= cache.blocks || to >= cache.blocks)
               throw py::value_error("copy_block names a block outside the cache");
             Alone alone(d);
             if (from != to) d.decoder.copy_block(cache, from, to);
           })
      .def("decode", [](PyDecoder& d, KVCache& cache, const I32& tokens, const I32& positions, const I32& cu, const I32& past,
                        const I32& table, const F32& temperature, const I32& top_k, const F32& top_p, const F32& min_p,
                        const U64& seeds, const U64& counters, const std::optional<I32>& wanted) {
        const BatchView b = d.batch(tokens, tokens, positions, cu, false);
        const py::ssize_t S = b.n_seqs;
        std::vector<int32_t> rows;
        if (wanted)
          rows.assign(wanted->data(), wanted->data() + wanted->size());
        else
          for (py::ssize_t s = 0; s < S; ++s) rows.push_back(cu.at(s + 1) - 1);
        d.check_rows(rows, b.n_tokens);
        const py::ssize_t R = static_cast<py::ssize_t>(rows.size());
        if (past.size() != S || table.ndim() != 2 || table.shape(0) != S)
          throw py::value_error("decode: past_lens and block_table need one row per sequence");
        if (temperature.size() != R || top_k.size() != R || top_p.size() != R || min_p.size() != R || seeds.size() != R ||
            counters.size() != R)
          throw py::value_error("decode: the sampling arrays need one entry per sampled row");
        const int64_t M = table.shape(1);
        for (py::ssize_t s = 0; s < S; ++s) {
          const int64_t fresh = cu.at(s + 1) - cu.at(s), length = past.at(s) + fresh;
          if (fresh < 1) throw py::value_error("decode: every sequence needs at least one new token");
          if (past.at(s) < 0 || length > M * FD_KV_BLOCK)
            throw py::value_error("decode: a sequence is longer than its cache blocks");
          for (int64_t j = 0; j * FD_KV_BLOCK < length; ++j)
            if (table.at(s, j) < 0 || table.at(s, j) >= cache.blocks)
              throw py::value_error("decode: block_table names a block outside the cache");
        }
        I32 out_tokens(R);
        F32 logprobs(R);
        const Decoder::Sampling p{temperature.data(), top_p.data(), min_p.data(), top_k.data(), seeds.data(), counters.data()};
        {
          Alone alone(d);
          d.decoder.decode(cache, b, past.data(), table.data(), M, rows.data(), R, p, out_tokens.mutable_data(),
                           logprobs.mutable_data());
        }
        d.last_tokens = b.n_tokens;
        return py::make_tuple(out_tokens, logprobs);
      })
      .def("decode_steps",
           [](py::object self, py::object held, int64_t steps, const I32& tokens, const I32& past, const I32& remaining,
              const I32& table, const F32& temperature, const I32& top_k, const F32& top_p, const F32& min_p, const U64& seeds,
              const U64& counters, const I32& stop_ids) {
             auto& d = self.cast<PyDecoder&>();
             auto& cache = held.cast<KVCache&>();
             const py::ssize_t S = tokens.size();
             if (steps < 1 || S < 1) throw py::value_error("decode_steps needs at least one step and one sequence");
             std::vector<int32_t> starts(static_cast<size_t>(S) + 1), lengths;
             for (py::ssize_t s = 0; s <= S; ++s) starts[s] = static_cast<int32_t>(s);
             const I32 cu(S + 1, starts.data());
             const BatchView b = d.batch(tokens, tokens, past, cu, false);
             if (stop_ids.ndim() != 2 || stop_ids.shape(0) != S)
               throw py::value_error("decode_steps: block_table and stop_ids need one row per sequence");
             for (const py::array* a : {static_cast<const py::array*>(&remaining), static_cast<const py::array*>(&temperature),
                                        static_cast<const py::array*>(&top_k), static_cast<const py::array*>(&top_p),
                                        static_cast<const py::array*>(&min_p), static_cast<const py::array*>(&seeds),
                                        static_cast<const py::array*>(&counters)})
               if (a->size() != S) throw py::value_error("decode_steps: remaining and the sampling arrays need one entry per sequence");
             for (py::ssize_t s = 0; s < S; ++s) {
               if (remaining.at(s) < 1 || remaining.at(s) > INT32_MAX / 2)
                 throw py::value_error("decode_steps: a sequence may sample " + std::to_string(remaining.at(s)) + " tokens; one at least");
               lengths.push_back(past.at(s) + static_cast<int32_t>(std::min<int64_t>(steps, remaining.at(s))));
             }
             d.check_table(table, lengths, cache);
             const Decoder::Sampling p{temperature.data(), top_p.data(), min_p.data(), top_k.data(), seeds.data(), counters.data()};
             std::shared_ptr<Visit> v;
             {
               Alone alone(d);
               v = d.decoder.decode_steps(cache, b, past.data(), remaining.data(), table.data(), table.shape(1), steps, p,
                                          stop_ids.data(), stop_ids.shape(1));
             }
             d.last_tokens = 0;
             return std::make_unique<PyVisit>(self, held, v);
           })
      .def("decode_on",
           [](py::object self, const PyVisit& before, const I32& table) -> std::unique_ptr<PyVisit> {
             auto& d = self.cast<PyDecoder&>();
             if (!before.decoder.is(self)) throw py::value_error("decode_on: the visit is another model's");
             std::vector<int32_t> lengths = before.visit->lengths;
             for (size_t s = 0; s < lengths.size(); ++s)
               lengths[s] = static_cast<int32_t>(std::min<int64_t>(lengths[s] + before.visit->steps, before.visit->limits[s]));
             d.check_table(table, lengths, *before.visit->cache);
             if (table.shape(1) != before.visit->blocks_per_seq) throw py::value_error("decode_on: block_table has another width");
             std::shared_ptr<Visit> v;
             {
               Alone alone(d);
               v = d.decoder.decode_on(*before.visit, table.data());
             }
             return v == nullptr ? nullptr : std::make_unique<PyVisit>(self, before.cache, v);
           })
      .def("trace",
           [](PyDecoder& d, const I32& tokens, const I32& positions, const I32& cu) {
             const BatchView b = d.batch(tokens, tokens, positions, cu, false);
             const DecoderConfig& c = d.config;
             const py::ssize_t L = c.n_layer, N = b.n_tokens;
             F32 residual(std::vector<py::ssize_t>{L + 1, N, c.d_model});
             F32 q(std::vector<py::ssize_t>{L, N, c.n_head, c.head_dim}),
                 k(std::vector<py::ssize_t>{L, N, c.n_kv_head, c.head_dim});
             const Decoder::Trace out{residual.mutable_data(), q.mutable_data(), k.mutable_data()};
             {
               Alone alone(d);
               d.decoder.trace(b, out);
             }
             d.last_tokens = b.n_tokens;
             return py::make_tuple(residual, q, k);
           })
      .def("lens",
           [](PyDecoder& d, const F32& x) {
             const int64_t rows = x.ndim() == 2 ? x.shape(0) : 0, most = std::min(d.max_seqs, d.max_tokens);
             if (rows < 1 || rows > most || x.shape(1) != d.config.d_model)
               throw py::value_error("lens takes float32[R, d_model], with R from 1 to " + std::to_string(most));
             F32 out(std::vector<py::ssize_t>{static_cast<py::ssize_t>(rows), static_cast<py::ssize_t>(d.config.vocab_size)});
             float* to = out.mutable_data();
             {
               Alone alone(d);
               d.decoder.lens(x.data(), rows, to);
             }
             return out;
           })
      .def("logits", [](PyDecoder& d, const I32& wanted) {
        const std::vector<int32_t> rows(wanted.data(), wanted.data() + wanted.size());
        d.check_rows(rows, d.last_tokens);
        F32 out({static_cast<py::ssize_t>(rows.size()), static_cast<py::ssize_t>(d.config.vocab_size)});
        float* to = out.mutable_data();
        {
          Alone alone(d);
          d.decoder.logits(rows.data(), static_cast<int64_t>(rows.size()), to);
        }
        return out;
      });
}

}  // namespace freedive
