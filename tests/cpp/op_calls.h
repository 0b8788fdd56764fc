// op_calls.h: calls of every op of ops.h with random shapes, strides and contents. Arguments are made from the schemas: a new op
// is called by existing, and only a new letter or index name needs a line in `Call` or `fill`.
#pragma once
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/bindings/schema.h"
#include "../../csrc/core/context.h"

namespace freedive {

struct Random {
  std::mt19937_64 engine;
  int64_t below(int64_t n) { return static_cast<int64_t>(engine() % static_cast<uint64_t>(n)); }
  int64_t size(int64_t limit, int64_t least) {
    int64_t n = size(limit);
    while (n < least) n = size(limit);
    return n;
  }
  int64_t size(int64_t limit) {  // around the widths of vectors, blocks and tiles as often as anything
    static const int64_t likely[] = {1, 2, 3, 5, 6, 7, 8, 12, 16, 17, 31, 32, 33, 48, 64, 70, 96, 130, 240, 245, 256, 300, 520};
    const int64_t n = likely[below(sizeof likely / sizeof *likely)];
    return n <= limit ? n : 1 + below(limit);
  }
  float normal() { return std::normal_distribution<float>()(engine); }
  float uniform() { return std::uniform_real_distribution<float>()(engine); }
};

constexpr size_t element_bytes(int32_t dtype) {
  return dtype == FD_I64 || dtype == FD_U64 ? 8 : dtype == FD_U8 || dtype == FD_I8 ? 1 : dtype == FD_BF16 ? 2 : 4;
}

// How large sizes may be: of rows' widths, of the number of rows, of flat tensors. least: of the first two. compute: or any.
struct Limits {
  int64_t width, rows, flat, least = 1, compute = -1;
};
constexpr Limits SMALL = {70, 130, 3000}, LARGE = {600, 600, 70000};

// One call: sizes by letter, memory by argument, and the argument struct over it.
struct Call {
  const OpSchema& schema;
  const fd_device_table* device;
  Random& random;
  Limits limits;
  int64_t compute = limits.compute >= 0 ? limits.compute : random.below(2);  // FD_I8 of the quantized ops, too
  int32_t cache_dtype = std::array<int32_t, 3>{FD_F32, FD_BF16, FD_I8}[random.below(3)];
  int32_t input_dtype = random.below(2) == 0 ? FD_F32 : FD_BF16, output_dtype = random.below(2) == 0 ? FD_F32 : FD_BF16;
  bool cached = random.below(2) == 0;  // where an op goes without a cache, too
  int64_t type = 0;                   // of theirs, too: ggml's number
  std::map<std::string, int64_t> sizes;
  std::vector<std::vector<uint8_t>> memory;  // exactly as long as the tensor: what lies behind is the sanitizer's
  std::vector<uint64_t> arguments;
  std::vector<int32_t> cu_seqlens, past_lens;

  Call(const OpSchema& s, const fd_device_table* d, Random& r, const Limits& l) : schema(s), device(d), random(r), limits(l) {
    const bool head = schema.name.rfind("head", 0) == 0;
    const int64_t limit = limits.width;
    sizes["T"] = has("k_cache") || has("seen") ? static_cast<int64_t>(FD_KV_BLOCK) : random.size(limit);
    sizes["G"] = 1 + random.below(3);
    sizes["H"] = has("k") || has("k_cache") ? sizes["G"] * (1 + random.below(3)) : 1 + random.below(4);
    sizes["R"] = random.size(limit) / 2 + 1;
    sizes["D"] = schema.name == "rope" ? 2 * sizes["R"] : has("cu_seqlens") ? head_width() : random.size(limit);
    const int64_t P = fd_numbers_per_word(cache_dtype);
    sizes["W"] = (sizes["D"] + P - 1) / P, sizes["U"] = FD_KV_BLOCK * P;
    sizes["X"] = FD_KV_BLOCK / P, sizes["Y"] = has("k_cache") ? sizes["D"] * P : has("prefixes") ? 2 : 8;
    sizes["N"] = random.below(20) == 0 && limits.least == 1 ? 0 : random.size(limits.rows, limits.least);
    sizes["S"] = 1 + random.below(head ? 40 : 5);
    sizes["S1"] = sizes["S"] + 1;
    sizes["M"] = sizes["N"] / FD_KV_BLOCK + 3;
    sizes["B"] = sizes["S"] * sizes["M"] + 1;
    sizes["K"] = 1 + random.below(3), sizes["J"] = 1 + random.below(3);
    sizes["Z"] = 1;
    for (const char* letter : {"C", "V", "O", "F"}) sizes[letter] = random.size(limit, limits.least);
    if (has("aux") && schema.name != "matmul_gelu_forward") sizes["O"] = 2 * sizes["F"];
    const bool quantized = schema.name.rfind("quantized", 0) == 0;
    if (quantized) {
      static const int64_t types[] = {0, 1, 2, 3, 6, 7, 8, 12, 13, 30};
      type = types[random.below(10)];
      while (device->quantized_row(sizes["C"], type) == 0) sizes["C"] = 32 * (1 + random.below(limits.width > 256 ? 24 : 8));
      if (random.below(3) == 0) compute = FD_I8;
      sizes["R"] = device->quantized_row(sizes["C"], type);
      sizes["Q"] = device->quantized_size(sizes[has("vocab") ? "V" : "O"], sizes["C"], type);
    }
    sizes["P"] = quantized       ? 1
                 : has("packed") ? device->matmul_packed_size(head ? sizes["V"] : sizes["O"], sizes["C"], compute)
                                 : 1 + random.below(limits.flat);
    make_sequences();
    for (const Field& f : schema.fields) add(f);
  }

  bool has(const char* name) const {
    for (const Field& f : schema.fields)
      if (f.name == name) return true;
    return false;
  }

  // Any, and often what kernels for tensor cores are written for; of large ones that alone.
  int64_t head_width() { return limits.least > 1 || random.below(4) == 0 ? 64 * (1 + random.below(2)) : random.size(80); }

  // Sequences over the N rows, some empty, sometimes with an unused tail; with a cache also how much came before.
  void make_sequences() {
    int64_t left = sizes["N"];
    cu_seqlens = {0};
    for (int64_t s = 0; s < sizes["S"]; ++s) {
      int64_t length = random.below(4) == 0 ? left : random.below(left + 1);
      if (has("remaining")) length = std::min<int64_t>(length, 1);  // a step of decoding: a row or none
      left -= length;
      cu_seqlens.push_back(cu_seqlens.back() + static_cast<int32_t>(length));
      past_lens.push_back(static_cast<int32_t>(random.below(2 * FD_KV_BLOCK)));
    }
  }

  void add(const Field& f) {
    if (!f.tensor) {
      const double number = f.name == "eps" ? 1e-5 : 0.25;
      const int64_t flag = f.name == "compute" ? compute
                           : f.name == "type"  ? type
                           : f.name == "vocab" ? sizes["V"]
                           : f.name == "rows"  ? 2 + random.below(1000)
                                               : random.below(2);
      uint64_t word;
      std::memcpy(&word, f.scalar == 'f' ? static_cast<const void*>(&number) : &flag, 8);
      arguments.push_back(word);
      return;
    }
    const bool cache = f.dtypes.size() > 2;
    const int32_t dtype = cache ? cache_dtype : f.dtypes.size() > 1 ? (f.written ? output_dtype : input_dtype) : f.dtypes[0];
    const bool cache_scale = f.name == "k_scale" || f.name == "v_scale";  // with int8, and only there
    fd_tensor t{nullptr, {0, 0, 0, 0}, {0, 0, 0, 0}, 0, dtype};
    memory.emplace_back();
    const bool needed = f.name == "positions" || f.name == "wpe" || f.name == "dwpe";  // the last two need the first
    const bool of_cache = has("seen") && (f.name == "seen" || f.name == "past_lens" || f.name == "block_table");  // all or none
    const bool there = cache_scale                           ? cache_dtype == FD_I8
                       : of_cache                            ? cached
                       : f.name == "prefixes"                ? !cached
                                                             : !f.optional || needed || random.below(2) == 0;
    if (there) {
      t.ndim = static_cast<int32_t>(f.dims.size());
      int64_t inner = 1;
      for (int i = t.ndim - 1; i >= 0; --i) {
        t.shape[i] = sizes.at(f.dims[i]);
        t.stride[i] = inner;
        if (i == 0 && t.ndim > 1 && random.below(2) == 0)
          t.stride[0] += random.below(9) * (cache ? fd_numbers_per_word(dtype) : 1);
        inner *= t.shape[i];
      }
      const int64_t row = t.ndim > 1 && t.shape[0] > 0 ? inner / t.shape[0] : 1;
      const int64_t count = t.shape[0] == 0 ? 0 : (t.shape[0] - 1) * t.stride[0] + row;
      memory.back().resize(static_cast<size_t>(count) * element_bytes(dtype) + (count == 0));
      memory.back().shrink_to_fit();
      fill(f, t, count, memory.back().data());
      t.data = memory.back().data();
    }
    const size_t at = arguments.size();
    arguments.resize(at + sizeof t / 8);
    std::memcpy(&arguments[at], &t, sizeof t);
  }

  void fill(const Field& f, const fd_tensor& t, int64_t count, void* data) {
    auto* i32 = static_cast<int32_t*>(data);
    auto* f32 = static_cast<float*>(data);
    if (f.name == "cu_seqlens") return void(std::memcpy(data, cu_seqlens.data(), cu_seqlens.size() * 4));
    if (f.name == "past_lens") return void(std::memcpy(data, past_lens.data(), past_lens.size() * 4));
    for (int64_t i = 0; i < count; ++i) {
      if (t.dtype == FD_I8)
        static_cast<int8_t*>(data)[i] = static_cast<int8_t>(random.below(255) - 127);
      else if (t.dtype == FD_BF16)
        static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(0x3f80 + random.below(128) + (random.below(2) << 15));
      else if (t.dtype == FD_U8 && f.name != "vocab_mask")  // quants, scales and minima; no float16 of them is inf or NaN
        static_cast<uint8_t*>(data)[i] = static_cast<uint8_t>(random.below(60));
      else if (t.dtype == FD_U8)
        static_cast<uint8_t*>(data)[i] = i == 0 || random.below(2) == 0;
      else if (t.dtype == FD_U64)
        static_cast<uint64_t*>(data)[i] = random.engine();
      else if (f.name == "tokens" || f.name == "seen")
        i32[i] = static_cast<int32_t>(random.below(sizes["V"]));
      else if (f.name == "targets")
        i32[i] = static_cast<int32_t>(random.below(sizes["V"] + 1)) - 1;
      else if (f.name == "positions")
        i32[i] = static_cast<int32_t>(random.below(sizes[schema.name == "rope" ? "P" : "T"]));
      else if (f.name == "sampled" || f.name == "stop_ids" || f.name == "remaining")  // so few that they meet
        i32[i] = static_cast<int32_t>(random.below(4));
      else if (f.name == "top_k")
        i32[i] = static_cast<int32_t>(random.below(sizes["V"] + 1));
      else if (f.name == "top_p")
        f32[i] = 1.0f - 0.5f * random.uniform();
      else if (f.name == "min_p")
        f32[i] = 0.2f * random.uniform();
      else if (f.name == "temperature")
        f32[i] = f.dims[0] == "S" && random.below(4) == 0 ? 0.0f : 0.5f + random.uniform();
      else if (f.name == "rstd" || f.name == "v" || f.name == "norm")
        f32[i] = 0.1f + random.uniform();
      else if (f.name == "hyper")
        f32[i] = i == 4 || i == 0 ? 0.01f : 0.9f;
      else if (t.dtype == FD_F32)
        f32[i] = random.normal();
      else
        i32[i] = 0;
    }
    // Pairs of numbers: the lower half of a float32 is any bfloat16, NaN of either sign too.
    if (f.name == "packed" && t.dtype == FD_F32 && compute == FD_BF16) {
      auto* words = static_cast<uint32_t*>(data);
      for (int64_t i = 0; i < count; ++i) words[i] = (words[i] & 0xffff0000u) | words[i] >> 16;
    }
    for (int64_t s = 1; f.name == "prefixes" && s < t.shape[0]; ++s)  // of the first sequence
      i32[s * t.stride[0] + 1] = static_cast<int32_t>(random.below(cu_seqlens[1] + 1));
    if (f.name == "block_table") {  // every sequence has blocks of its own, in any order
      std::vector<int32_t> blocks;
      for (int32_t b = 0; b < sizes["B"]; ++b) blocks.push_back(b);
      std::shuffle(blocks.begin(), blocks.end(), random.engine);
      for (int64_t s = 0; s < t.shape[0]; ++s)
        for (int64_t m = 0; m < t.shape[1]; ++m) i32[s * t.stride[0] + m] = blocks[s * t.shape[1] + m];
    }
  }
};

}  // namespace freedive
