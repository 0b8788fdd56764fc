#include "schema.h"

#include <map>
#include <sstream>
#include <stdexcept>

namespace freedive {

static_assert(sizeof(fd_tensor) == 80, "argument structs are laid out as 80-byte tensors and 8-byte scalars");

static OpSchema parse(const std::string& name, const std::string& text, size_t struct_bytes) {
  static const std::map<std::string, int32_t> dtypes = {{"f32", FD_F32}, {"bf16", FD_BF16}, {"i32", FD_I32},
                                                        {"i64", FD_I64}, {"u64", FD_U64},   {"u8", FD_U8},   {"i8", FD_I8}};
  OpSchema op{name, text, {}, 0};
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    Field f;
    const size_t colon = word.find(':'), open = word.find('[');
    f.name = word.substr(0, colon);
    if (open == std::string::npos) {
      f.tensor = false;
      f.scalar = word.at(colon + 1);
      f.optional = word.back() == '?';
      op.bytes += 8;
    } else {
      std::istringstream either(word.substr(colon + 1, open - colon - 1));
      f.dtypes.clear();
      for (std::string d; std::getline(either, d, '|');) f.dtypes.push_back(dtypes.at(d));
      const size_t close = word.find(']');
      std::istringstream dims(word.substr(open + 1, close - open - 1));
      for (std::string d; std::getline(dims, d, ',');) f.dims.push_back(d);
      for (char c : word.substr(close + 1)) f.written |= (c == '=' || c == '+'), f.optional |= c == '?';
      op.bytes += sizeof(fd_tensor);
    }
    op.fields.push_back(f);
  }
  if (op.bytes != struct_bytes) throw std::logic_error("ops.h: the schema of " + name + " does not match its struct");
  return op;
}

const std::vector<OpSchema>& op_schemas() {
  static const std::vector<OpSchema> all = {
#define FD_PARSE(name, schema) parse(#name, schema, sizeof(fd_##name##_args)),
      FD_OPS(FD_PARSE)
#undef FD_PARSE
  };
  return all;
}

const OpSchema* find_schema(const std::string& name) {
  for (const auto& s : op_schemas())
    if (s.name == name) return &s;
  return nullptr;
}

}  // namespace freedive
