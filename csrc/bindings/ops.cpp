// Every op callable from Python, by name, on NumPy arrays: arguments are checked against the schema of ops.h before a
// kernel sees them, so a wrong shape is a ValueError and never a crash.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>

#include "../core/context.h"
#include "../core/dispatch.h"
#include "../core/plugin.h"
#include "../core/thread_pool.h"
#include "../cpu/device.h"
#include "../model/decoder.h"
#include "bindings.h"
#include "op_call.h"
#include "schema.h"
#include "staging.h"

namespace py = pybind11;

namespace freedive {

const fd_device_table* require_cpu() {
  const fd_device_table* device = cpu_device();
  if (!device) throw std::runtime_error(cpu_device_error());
  return device;
}

const fd_device_table* require_device(const std::string& name) {
  if (name == "cpu") return require_cpu();
  std::string why;
  const fd_device_table* device = plugin_device(name, &why);
  if (device == nullptr) throw std::runtime_error("device '" + name + "' cannot be used here: " + why);
  return device;
}

ThreadPool* shared_pool(int threads) {
  static std::map<int, std::unique_ptr<ThreadPool>> pools;
  auto& pool = pools[threads];
  if (!pool) pool = std::make_unique<ThreadPool>(threads);
  return pool.get();
}

std::mutex shared_pools_in_use;  // they are not reentrant
// Kept from call to call, as a decoder keeps its own: a new one would be mapped page by page by every op that works in it.
static Buffer shared_workspace;

static const char* dtype_name(int32_t dtype) {
  static const char* names[] = {"float32", "bfloat16", "int32", "int64", "uint64", "uint8", "int8"};
  return names[dtype];
}

static bool same_dtype(const py::array& a, int32_t dtype) {
  const char kind = a.dtype().kind();
  const auto size = a.itemsize();
  switch (dtype) {
    case FD_F32:
      return kind == 'f' && size == 4;
    case FD_BF16:
      return kind == 'V' && size == 2;  // ml_dtypes
    case FD_I32:
      return kind == 'i' && size == 4;
    case FD_I64:
      return kind == 'i' && size == 8;
    case FD_U64:
      return kind == 'u' && size == 8;
    case FD_I8:
      return kind == 'i' && size == 1;
    default:
      return kind == 'u' && size == 1;
  }
}

static std::string shape_text(const py::array& a) {
  std::string s = "[";
  for (py::ssize_t i = 0; i < a.ndim(); ++i) s += (i ? "," : "") + std::to_string(a.shape(i));
  return s + "]";
}

static std::string dims_text(const Field& f) {
  std::string s = "[";
  for (size_t i = 0; i < f.dims.size(); ++i) s += (i ? "," : "") + f.dims[i];
  return s + "]";
}

static fd_tensor tensor_of(const std::string& op, const Field& f, const py::array& a, std::map<std::string, int64_t>& sizes) {
  auto fail = [&](const std::string& why) -> fd_tensor {
    std::string allowed;
    for (int32_t d : f.dtypes) allowed += (allowed.empty() ? "" : " or ") + std::string(dtype_name(d));
    throw py::value_error(op + ": argument '" + f.name + "' must be " + allowed + dims_text(f) + ", " + why);
  };
  const auto found = std::find_if(f.dtypes.begin(), f.dtypes.end(), [&](int32_t d) { return same_dtype(a, d); });
  if (found == f.dtypes.end()) return fail("got dtype " + py::str(a.dtype()).cast<std::string>());
  if (a.ndim() != static_cast<py::ssize_t>(f.dims.size())) return fail("got shape " + shape_text(a));
  if (f.written && !a.writeable()) return fail("got a read-only array");
  fd_tensor t{const_cast<void*>(a.data()), {1, 1, 1, 1}, {1, 1, 1, 1}, static_cast<int32_t>(a.ndim()), *found};
  for (int i = 0; i < t.ndim; ++i) {
    const std::string& letter = f.dims[i];
    const int64_t size = a.shape(i);
    auto [known, fresh] = sizes.emplace(letter, size);
    if (!fresh && known->second != size)
      return fail("got shape " + shape_text(a) + " where " + letter + " = " + std::to_string(known->second) +
                  " from another argument");
    t.shape[i] = size;
    if (a.strides(i) % a.itemsize() != 0) return fail("got strides that are not whole elements");
    t.stride[i] = a.strides(i) / a.itemsize();
  }
  // Kernels read rows: the last dimension must be contiguous, the others may be strided (a slice of a wider buffer).
  const bool empty = a.size() == 0;  // NumPy gives empty arrays whatever strides
  for (int i = t.ndim - 1; i >= 0; --i) {
    if (empty || t.shape[i] <= 1) t.stride[i] = i == t.ndim - 1 ? 1 : t.stride[i + 1] * t.shape[i + 1];
    if (i == t.ndim - 1 && t.stride[i] != 1) return fail("got a last dimension that is not contiguous");
    if (t.stride[i] < 0) return fail("got a negative stride");
  }
  if (t.ndim > 2 && t.stride[1] != t.shape[2] * (t.ndim > 3 ? t.shape[3] : 1))
    return fail("only the first dimension may be strided");
  return t;
}

// `vocab` is a size given as a number.
static void check_vocab(const std::string& op, std::map<std::string, int64_t>& sizes, int64_t vocab) {
  const auto [known, fresh] = sizes.emplace("V", vocab);
  if (vocab < 1 || (!fresh && known->second != vocab))
    throw py::value_error(op + ": vocab is " + std::to_string(vocab) +
                          (fresh ? ", it must be at least 1" : ", another argument has " + std::to_string(known->second)));
}

// A packed weight must be as long as its shape and type want it: kernels find their way by these alone.
static void check_packed(const std::string& op, const fd_device_table* device, std::map<std::string, int64_t>& sizes,
                         int64_t type) {
  int64_t C = sizes.count("C") ? sizes["C"] : 0;
  if (op == "quantized_pack") {
    const int64_t R = sizes["R"], bytes = device->quantized_row(256, type);  // of a number of whole blocks
    if (bytes == 0) throw py::value_error(op + ": weights of ggml type " + std::to_string(type) + " are not held packed");
    C = R * 256 / bytes;
    if (device->quantized_row(C, type) != R)
      throw py::value_error(op + ": rows of " + std::to_string(R) + " bytes are no whole blocks of ggml type " +
                            std::to_string(type));
  }
  const int64_t O = sizes.count("O") ? sizes["O"] : sizes["V"], want = device->quantized_size(O, C, type);
  if (want == 0 && O > 0 && C > 0)
    throw py::value_error(op + ": a weight of ggml type " + std::to_string(type) + " with rows of " + std::to_string(C) +
                          " numbers is not held packed");
  if (sizes["Q"] != want) throw py::value_error(op + ": the packed weight must be uint8[" + std::to_string(want) + "]");
}

// Values an op indexes with are checked too.
static void check_indices(const std::string& op, const std::map<std::string, fd_tensor>& t,
                          const std::map<std::string, int64_t>& sizes) {
  auto range = [&](const char* name, const char* letter, int64_t low) {
    auto it = t.find(name);
    auto size = sizes.find(letter);
    if (it == t.end() || size == sizes.end()) return;
    const fd_tensor& x = it->second;  // one or two dimensions, the first may be strided
    const int64_t columns = x.ndim == 2 ? x.shape[1] : 1;
    for (int64_t i = 0; i < x.shape[0]; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        const int32_t p = static_cast<const int32_t*>(x.data)[i * x.stride[0] + j];
        if (p < low || p >= size->second)
          throw py::value_error(op + ": " + name + " holds " + std::to_string(p) + ", allowed " + std::to_string(low) + " to " +
                                std::to_string(size->second - 1));
      }
  };
  if (op != "head_sample" && op != "quantized_head_sample") range("tokens", "V", 0);  // there they are an output
  range("targets", "V", -1);
  range("positions", op == "rope" ? "P" : "T", 0);
  if (op != "attention_forward" && op != "attention_backward") range("block_table", "B", 0);
  auto cu = t.find("cu_seqlens");
  if (cu != t.end()) {
    const auto* p = static_cast<const int32_t*>(cu->second.data);
    const int64_t S = cu->second.shape[0] - 1, N = sizes.at("N");
    if (S < 0 || p[0] != 0 || p[S] > N)
      throw py::value_error(op + ": cu_seqlens must begin with 0 and end at most at N = " + std::to_string(N));
    for (int64_t s = 0; s < S; ++s)
      if (p[s + 1] < p[s]) throw py::value_error(op + ": cu_seqlens must not decrease");
    if (op == "decode_advance")
      for (int64_t s = 0; s < S; ++s)
        if (p[s + 1] > p[s] + 1) throw py::value_error(op + ": a sequence has one row or none");
    auto past = t.find("past_lens");
    if (past != t.end() && t.count("block_table") == 1) {
      const auto* q = static_cast<const int32_t*>(past->second.data);
      if (past->second.shape[0] != S) throw py::value_error(op + ": cu_seqlens must have one more entry than past_lens");
      const int64_t room = t.at("block_table").shape[1] * FD_KV_BLOCK;
      for (int64_t s = 0; s < S; ++s)
        if (q[s] < 0 || q[s] + p[s + 1] - p[s] > room)
          throw py::value_error(op + ": sequence " + std::to_string(s) + " does not fit its " + std::to_string(room) +
                                " cache positions");
    }
  }
}

// The paged cache: both halves of one dtype, blocks of FD_KV_BLOCK positions in whole words, scales with int8 and only there.
static void check_cache(const std::string& op, const std::map<std::string, fd_tensor>& t, std::map<std::string, int64_t>& sizes) {
  const fd_tensor &k = t.at("k_cache"), &v = t.at("v_cache");
  const int64_t T = FD_KV_BLOCK, P = fd_numbers_per_word(k.dtype), D = sizes["D"];
  if (k.dtype != v.dtype) throw py::value_error(op + ": k_cache and v_cache must be of one dtype");
  const int64_t W = (D + P - 1) / P;
  if (sizes["W"] != W || sizes["U"] != T * P || sizes["X"] != T / P || sizes["Y"] != D * P)
    throw py::value_error(op + ": the cache's blocks hold " + std::to_string(T) + " positions: for " + std::to_string(D) +
                          " numbers of " + dtype_name(k.dtype) + " k_cache must be [B,G," + std::to_string(W) + "," +
                          std::to_string(T * P) + "] and v_cache [B,G," + std::to_string(T / P) + "," + std::to_string(D * P) +
                          "]");
  for (const fd_tensor* x : {&k, &v})
    if (x->stride[0] % P != 0 || reinterpret_cast<uintptr_t>(x->data) % 4 != 0)
      throw py::value_error(op + ": the cache must lie in whole words of 32 bits");
  if ((t.count("k_scale") == 1) != (k.dtype == FD_I8) || (t.count("v_scale") == 1) != (k.dtype == FD_I8))
    throw py::value_error(op + ": an int8 cache needs k_scale and v_scale, and no other has them");
  if (k.dtype == FD_I8 && sizes["T"] != T)
    throw py::value_error(op + ": k_scale and v_scale must be [B,G," + std::to_string(T) + "]");
}

static void check_bigrams(const std::map<std::string, fd_tensor>& t, const std::map<std::string, int64_t>& sizes, int64_t rows) {
  if (rows < 2 || rows > INT32_MAX) throw py::value_error("bigram_ids: rows is " + std::to_string(rows) + ", it must be at least 2");
  if (t.count("seen") != t.count("past_lens") || t.count("seen") != t.count("block_table"))
    throw py::value_error("bigram_ids: seen, past_lens and block_table are given together or not at all");
  if (t.count("seen") && (sizes.at("T") != FD_KV_BLOCK || t.count("prefixes")))
    throw py::value_error("bigram_ids: seen must be int32[B, " + std::to_string(FD_KV_BLOCK) + "], and excludes prefixes");
  if (!t.count("prefixes")) return;
  const fd_tensor& x = t.at("prefixes");
  const auto* cu = static_cast<const int32_t*>(t.at("cu_seqlens").data);
  if (x.shape[1] != 2) throw py::value_error("bigram_ids: prefixes must be int32[S, 2]");
  for (int64_t s = 0; s < x.shape[0]; ++s) {
    const int32_t* p = static_cast<const int32_t*>(x.data) + s * x.stride[0];
    if (p[1] > 0 && (p[0] < 0 || p[0] >= x.shape[0] || p[1] > cu[p[0] + 1] - cu[p[0]]))
      throw py::value_error("bigram_ids: the prefix of sequence " + std::to_string(s) + " is not in the rows of another");
  }
}

template <class T>
static T scalar_of(const std::string& op, const Field& f, const py::handle& value) {
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    throw py::value_error(op + ": argument '" + f.name + "' must be " + (f.scalar == 'f' ? "a number" : "an integer") + ", got " +
                          py::repr(value).cast<std::string>());
  }
}

CheckedCall check_call(const std::string& name, const py::object& variant, int threads, const py::dict& arguments,
                       const std::string& device_name) {
  const OpSchema* schema = find_schema(name);
  if (!schema) throw py::value_error("unknown op '" + name + "'");
  if (threads < 1 || threads > 1024) throw py::value_error("threads must be between 1 and 1024");
  std::vector<uint8_t> args(schema->bytes);
  std::map<std::string, int64_t> sizes;
  std::map<std::string, fd_tensor> tensors;
  uint8_t* at = args.data();
  size_t used = 0;
  int64_t compute = FD_F32, type = -1, rows = 0;
  for (const Field& f : schema->fields) {
    const bool given = arguments.contains(f.name.c_str()) && !arguments[f.name.c_str()].is_none();
    used += arguments.contains(f.name.c_str());
    if (!f.tensor) {
      if (!given && !f.optional) throw py::value_error(name + ": argument '" + f.name + "' is missing");
      if (!given) {
        std::memset(at, 0, 8);
      } else if (f.scalar == 'f') {
        const double x = scalar_of<double>(name, f, arguments[f.name.c_str()]);
        std::memcpy(at, &x, 8);
      } else {
        const int64_t x = scalar_of<int64_t>(name, f, arguments[f.name.c_str()]);
        if (f.name == "compute") compute = x;
        if (f.name == "type") type = x;
        if (f.name == "rows") rows = x;
        if (f.name == "vocab") check_vocab(name, sizes, x);
        std::memcpy(at, &x, 8);
      }
      at += 8;
      continue;
    }
    fd_tensor t{nullptr, {0, 0, 0, 0}, {0, 0, 0, 0}, 0, f.dtypes[0]};
    if (given) {
      py::handle h = arguments[f.name.c_str()];
      if (!py::isinstance<py::array>(h)) throw py::value_error(name + ": argument '" + f.name + "' must be a NumPy array");
      t = tensor_of(name, f, py::reinterpret_borrow<py::array>(h), sizes);
      tensors[f.name] = t;
    } else if (!f.optional) {
      throw py::value_error(name + ": argument '" + f.name + "' is missing");
    }
    std::memcpy(at, &t, sizeof t);
    at += sizeof t;
  }
  if (used != arguments.size()) {
    for (auto item : arguments) {
      const std::string key = py::str(item.first);
      bool known = false;
      for (const Field& f : schema->fields) known |= f.name == key;
      if (!known) throw py::value_error(name + ": unknown argument '" + key + "'; the arguments are: " + schema->text);
    }
  }
  const bool quantized = name.rfind("quantized", 0) == 0;
  if (compute != FD_F32 && compute != FD_BF16 && !(quantized && compute == FD_I8))
    throw py::value_error(name + ": compute must be " + std::to_string(FD_F32) + " (float32) or " + std::to_string(FD_BF16) +
                          " (bfloat16)" + (quantized ? " or " + std::to_string(FD_I8) + " (int8)" : ""));
  const fd_device_table* device = require_device(device_name);
  auto divides = [&](const char* a, const char* b) {
    if (sizes.count(a) && sizes.count(b) && (sizes[b] == 0 || sizes[a] % sizes[b]))
      throw py::value_error(name + ": " + a + " = " + std::to_string(sizes[a]) + " must be a multiple of " + b + " = " +
                            std::to_string(sizes[b]));
  };
  if (name.rfind("attention", 0) == 0) divides("H", "G");
  auto one_dtype = [&](std::initializer_list<const char*> names, const char* what) {
    for (const char* n : names)
      if (tensors.at(n).dtype != tensors.at(*names.begin()).dtype) throw py::value_error(name + ": " + what + " must be of one dtype");
  };
  if (name.rfind("swiglu", 0) == 0) one_dtype({"gate", "up"}, "gate and up");
  if (name == "matmul_swiglu_forward" && (sizes["O"] % 2 != 0 || (tensors.count("out") && sizes["O"] != 2 * sizes["F"])))
    throw py::value_error(name + ": the weight has a gate's rows and as many of up, so O must be 2 F");
  if (name == "attention_backward") one_dtype({"q", "k", "v", "out"}, "q, k, v and out");
  if (name == "rope" && sizes["D"] != 2 * sizes["R"]) throw py::value_error("rope: D must be 2 R");
  if (name.rfind("kv_cache", 0) == 0 || name == "attention_cached")
    check_cache(name, tensors, sizes);
  for (const char* one : {"temperature", "norm", "out"})
    if (tensors.count(one) && sizes.count("Z") && sizes["Z"] < 1)
      throw py::value_error(name + ": argument '" + one + "' must have an element");
  if (name == "adamw" && (sizes["Z"] < 1 || sizes["Y"] != 8))
    throw py::value_error("adamw: hyper must be float32[8] and norm float32[1]");
  if (name.rfind("muon", 0) == 0 && (sizes["Z"] < 1 || sizes["Y"] != 5))
    throw py::value_error(name + ": hyper must be float32[5] and norm float32[1]");
  if (tensors.count("packed") && sizes.count("P")) {
    const bool head = name.rfind("head", 0) == 0;
    const int64_t want = device->matmul_packed_size(head ? sizes["V"] : sizes["O"], sizes["C"], compute);
    if (sizes["P"] != want) throw py::value_error(name + ": packed must be float32[" + std::to_string(want) + "]");
  }
  if (quantized) check_packed(name, device, sizes, type);
  if ((name == "embedding_forward" || name == "quantized_embedding") && tensors.count("wpe") && !tensors.count("positions"))
    throw py::value_error(name + ": wpe needs positions");
  if (name == "embedding_backward" && tensors.count("dwpe") && !tensors.count("positions"))
    throw py::value_error("embedding_backward: dwpe needs positions");
  check_indices(name, tensors, sizes);
  if (name == "bigram_ids") check_bigrams(tensors, sizes, rows);

  const std::string wanted = variant.is_none() ? "" : variant.cast<std::string>();
  const fd_variant* chosen = find_variant(device, name.c_str(), variant.is_none() ? nullptr : wanted.c_str());
  if (!chosen) throw py::value_error(name + ": no variant '" + py::str(variant).cast<std::string>() + "' on this device");
  const size_t bytes = (chosen->workspace ? chosen->workspace(args.data(), threads) : 0) + 64;
  return {schema, device, chosen, std::move(args), bytes, threads};
}

static void op_call(const std::string& name, const py::object& variant, int threads, const py::dict& arguments,
                    const std::string& device_name) {
  CheckedCall call = check_call(name, variant, threads, arguments, device_name);
  ThreadPool* pool = shared_pool(threads);
  py::gil_scoped_release release;
  std::lock_guard<std::mutex> lock(shared_pools_in_use);
  if (call.device->allocate != nullptr)
    return run_staged(call.device, *call.variant, *call.schema, std::move(call.args), call.workspace_bytes);
  if (shared_workspace.size() < call.workspace_bytes) {
    shared_workspace = Buffer();
    shared_workspace = Buffer(call.workspace_bytes);
  }
  fd_context ctx{pool, nullptr, shared_workspace.bytes(), call.workspace_bytes, threads};
  call.variant->run(&ctx, call.args.data());
}

void bind_ops(py::module_& m) {
  m.def("op_list", [] {
    std::vector<std::pair<std::string, std::string>> out;
    for (const auto& s : op_schemas()) out.emplace_back(s.name, s.text);
    return out;
  });
  m.def("op_variants", [](const std::string& op, const std::string& device_name) {
    if (!find_schema(op)) throw py::value_error("unknown op '" + op + "'");
    const fd_device_table* device = require_device(device_name);
    std::vector<std::tuple<std::string, std::string, int>> out;  // name, tier, priority
    for (int i = 0; i < device->n_variants; ++i) {
      const fd_variant& v = device->variants[i];
      if (op == v.op) out.emplace_back(v.name, device->tier, v.priority);
    }
    return out;
  }, py::arg("op"), py::arg("device") = "cpu");
  // Null, or why the device cannot be used here.
  m.def("device_error", [](const std::string& name) -> std::optional<std::string> {
    try {
      require_device(name);
      return std::nullopt;
    } catch (const std::runtime_error& e) {
      return e.what();
    }
  });
  m.def("op_call", &op_call, py::arg("name"), py::arg("variant"), py::arg("threads"), py::arg("arguments"),
        py::arg("device") = "cpu");
  bind_resident(m);
  m.def(
      "matmul_packed_size",
      [](int64_t O, int64_t C, int64_t compute, const std::string& device) {
        return require_device(device)->matmul_packed_size(O, C, compute);
      },
      py::arg("O"), py::arg("C"), py::arg("compute") = static_cast<int64_t>(FD_F32), py::arg("device") = "cpu");
  m.def(
      "quantized_size",
      [](int64_t O, int64_t C, int64_t type, const std::string& device) {
        return require_device(device)->quantized_size(O, C, type);
      },
      py::arg("O"), py::arg("C"), py::arg("type"), py::arg("device") = "cpu");
  m.def(
      "quantized_row", [](int64_t C, int64_t type) { return require_cpu()->quantized_row(C, type); }, py::arg("C"),
      py::arg("type"));
  m.def("fast_bf16", [](const std::string& device) { return require_device(device)->fast_bf16 != 0; }, py::arg("device") = "cpu");
  m.def("cpu_tier", [] { return std::string(require_cpu()->tier); });
  m.def("cpu_tiers", [] {
    std::vector<std::string> out;
    for (const char* t : cpu_tiers()) out.push_back(t);
    return out;
  });
  // FLOP/s of multiply-adds on registers, float32 or bfloat16: the best of a few short runs, about 0.1 s in all.
  m.def(
      "measure_peak",
      [](int threads, int repeats, int64_t compute) {
        fd_context ctx{shared_pool(threads), nullptr, nullptr, 0, threads};
        py::gil_scoped_release release;
        std::lock_guard<std::mutex> lock(shared_pools_in_use);
        double best = 0;
        for (int repeat = 0; repeat < repeats; ++repeat) {
          const auto begin = std::chrono::steady_clock::now();
          const double flops = require_cpu()->peak_run(&ctx, 1000000, compute);
          best = std::max(best, flops / std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
        }
        return best;
      },
      py::arg("threads"), py::arg("repeats") = 8, py::arg("compute") = static_cast<int64_t>(FD_F32));
  // The same loop once, for callers who hold the clock: returns how many operations were done.
  m.def(
      "run_peak",
      [](int threads, int64_t iterations, int64_t compute) {
        fd_context ctx{shared_pool(threads), nullptr, nullptr, 0, threads};
        py::gil_scoped_release release;
        std::lock_guard<std::mutex> lock(shared_pools_in_use);
        return require_cpu()->peak_run(&ctx, iterations, compute);
      },
      py::arg("threads"), py::arg("iterations"), py::arg("compute") = static_cast<int64_t>(FD_F32));
  m.attr("KV_BLOCK") = static_cast<int>(FD_KV_BLOCK);
}

}  // namespace freedive
