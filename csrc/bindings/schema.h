// The schemas of ops.h, parsed: which argument of which op has which dtype, shape and role.
#pragma once
#include <string>
#include <vector>

#include "../ops.h"

namespace freedive {

struct Field {
  std::string name;
  bool tensor = true;
  char scalar = 0;  // 'f' or 'i' when not a tensor; 0 when optional and not given
  std::vector<int32_t> dtypes = {FD_F32};  // any of them
  std::vector<std::string> dims;
  bool written = false, optional = false;
};

struct OpSchema {
  std::string name, text;
  std::vector<Field> fields;
  size_t bytes = 0;  // of the argument struct
};

const std::vector<OpSchema>& op_schemas();
const OpSchema* find_schema(const std::string& name);

}  // namespace freedive
