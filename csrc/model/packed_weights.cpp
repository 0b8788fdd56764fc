// Weights as the forward products read them: rows of a file in their own type (quantized_pack), and packed copies of float32
// weights (matmul_pack), made by the first decode after the weights changed.
#include <stdexcept>
#include <string>

#include "decoder.h"
#include "view.h"

namespace freedive {

void Decoder::reserve_packed(size_t bytes) {
  if (packed_used_ > 0) throw std::logic_error("packed weights are there already");
  packed_memory_ = buffer(bytes + 4096);  // what fetches ahead stays inside
  if (act_[0].up != nullptr) return;
  packed_up_ = buffer(mlp_rows(device_, max_tokens_) * config_.up_width() * sizeof(float));
  act_[0].up = packed_up_.floats();
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
