// Adapters, forward and backward. With h = s x A^T:
//   out += h B^T;   dB += dout^T h,  dh = dout B,  dA += (s dh)^T x,  dx += (s dh) A
// These are products like any others, so every element is one chain and the sampler's numbers are the trainer's, bit for bit. h
// is computed again in the backward pass (rank / C of the product beside it). FLOPs a token: 2 rank (C + O) forward, 6 backward.
#include "lora.h"

#include <algorithm>
#include <stdexcept>

#include "decoder.h"
#include "view.h"

namespace freedive {

AdapterTable::AdapterTable(const DecoderConfig& c, const AdapterConfig& adapter) {
  if (adapter.rank == 0) return;
  const int64_t C = c.d_model, HD = c.n_head * c.head_dim, GD = c.n_kv_head * c.head_dim, F = c.d_ff, r = adapter.rank;
  struct Target {
    std::string name;
    int64_t rows;
  };
  struct Product {
    std::vector<Target> parts;  // in the order of their outputs
    int64_t columns;
  };
  std::vector<Target> up;
  if (!c.gelu) up.push_back({"gate_proj", F});
  up.push_back({"up_proj", F});
  const std::vector<Product> products = {
      {{{"q_proj", HD}, {"k_proj", GD}, {"v_proj", GD}}, C}, {{{"o_proj", C}}, HD}, {up, C}, {{{"down_proj", C}}, F}};
  auto wanted = [&](const std::string& name) {
    return std::find(adapter.targets.begin(), adapter.targets.end(), name) != adapter.targets.end();
  };
  for (const std::string& name : adapter.targets) {
    bool known = false;
    for (const Product& p : products)
      for (const Target& t : p.parts) known |= t.name == name;
    if (!known) throw std::invalid_argument("this model has no matrix '" + name + "' for an adapter");
  }
  if (adapter.targets.empty()) throw std::invalid_argument("an adapter needs target matrices");

  const ParameterTable base(c);
  auto add = [&](const std::string& name, int64_t O, int64_t I) {
    rows.push_back({name, {O, I}, total_floats, O * I, true});
    total_floats += O * I;
  };
  auto align = [&] { total_floats = (total_floats + 15) / 16 * 16; };
  for (int64_t i = 0; i < c.n_layer; ++i) {
    const std::string layer = "layers." + std::to_string(i) + ".";
    for (const Product& product : products) {
      AdapterGroup group;
      align();
      group.a = total_floats;
      for (const Target& t : product.parts)
        if (wanted(t.name)) add(layer + t.name + ".lora_A", r, product.columns);
      int64_t column = 0;
      for (const Target& t : product.parts) {
        if (wanted(t.name)) {
          align();
          group.parts.push_back({column, t.rows, total_floats});
          add(layer + t.name + ".lora_B", t.rows, r);
        }
        column += t.rows;
      }
      if (group.parts.empty()) continue;
      widest = std::max(widest, static_cast<int64_t>(group.parts.size()) * r);
      groups[base.offset(layer + product.parts.front().name + ".weight")] = group;
    }
  }
  align();
}

// lora_h_ [N, R] = s x A^T
void Decoder::adapter_down(const AdapterGroup& group, const fd_tensor& x) {
  const int64_t N = x.shape[0], C = x.shape[1], R = static_cast<int64_t>(group.parts.size()) * adapter_.rank;
  float* a = adapter_params_.floats() + group.a;
  fd_matmul_forward_args m{view(lora_h_, N, R),
                           x,
                           view(a, R, C),
                           use_packed_ ? packed(a, R, C, adapter_version_) : absent(),
                           absent(),
                           absent(),
                           0,
                           compute_};
  ops_.matmul_forward(&ctx_, &m);
  scale_adapter(lora_h_, N * R);
}

void Decoder::scale_adapter(float* h, int64_t size) {
  fd_linear_combination_args s{view(h, size), view(h, size), absent(), adapter_.scale, 0.0};
  if (adapter_.scale != 1.0f) ops_.linear_combination(&ctx_, &s);
}

// out [N, O] += s x A^T B^T, in the columns of each target
void Decoder::adapter_forward(const AdapterGroup& group, float* out, const fd_tensor& x, int64_t O) {
  const int64_t N = x.shape[0], r = adapter_.rank, R = static_cast<int64_t>(group.parts.size()) * r;
  adapter_down(group, x);
  for (size_t i = 0; i < group.parts.size(); ++i) {
    const AdapterGroup::Part& part = group.parts[i];
    float* b = adapter_params_.floats() + part.b;
    fd_matmul_forward_args m{columns(out + part.column, N, part.rows, O),
                             columns(lora_h_ + i * r, N, r, R),
                             view(b, part.rows, r),
                             use_packed_ ? packed(b, part.rows, r, adapter_version_) : absent(),
                             absent(),
                             absent(),
                             1,
                             compute_};
    ops_.matmul_forward(&ctx_, &m);
  }
}

// dx [N, C] += what goes through the adapter (dx null: not wanted); gradients of A and B
void Decoder::adapter_backward(const AdapterGroup& group, float* dx, const float* dout, const fd_tensor& x, int64_t O) {
  const int64_t N = x.shape[0], C = x.shape[1], r = adapter_.rank, R = static_cast<int64_t>(group.parts.size()) * r;
  const float* params = adapter_params_.floats();
  float* g = grads_.floats();
  adapter_down(group, x);
  for (size_t i = 0; i < group.parts.size(); ++i) {
    const AdapterGroup::Part& part = group.parts[i];
    const fd_tensor d = columns(dout + part.column, N, part.rows, O);
    fd_matmul_backward_weight_args w{view(g + part.b, part.rows, r), absent(), d, columns(lora_h_ + i * r, N, r, R), compute_};
    ops_.matmul_backward_weight(&ctx_, &w);
    fd_matmul_backward_input_args h{columns(lora_dh_ + i * r, N, r, R), d, view(params + part.b, part.rows, r), 0, compute_};
    ops_.matmul_backward_input(&ctx_, &h);
  }
  scale_adapter(lora_dh_, N * R);
  fd_matmul_backward_weight_args w{view(g + group.a, R, C), absent(), view(lora_dh_, N, R), x, compute_};
  ops_.matmul_backward_weight(&ctx_, &w);
  if (dx == nullptr) return;
  fd_matmul_backward_input_args m{view(dx, N, C), view(lora_dh_, N, R), view(params + group.a, R, C), 1, compute_};
  ops_.matmul_backward_input(&ctx_, &m);
}

// The adapters beside a weight, or null where there are none or they are switched off.
const AdapterGroup* Decoder::adapters(int64_t weight, bool on) const {
  if (!on) return nullptr;
  const auto found = adapter_table_.groups.find(weight);
  return found == adapter_table_.groups.end() ? nullptr : &found->second;
}

}  // namespace freedive
