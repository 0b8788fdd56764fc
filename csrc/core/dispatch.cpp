#include "dispatch.h"

#include <cstring>

namespace freedive {

const fd_variant* find_variant(const fd_device_table* table, const char* op, const char* name) {
  const fd_variant* best = nullptr;
  for (int i = 0; i < table->n_variants; ++i) {
    const fd_variant& v = table->variants[i];
    if (std::strcmp(v.op, op) != 0 || (name != nullptr && std::strcmp(v.name, name) != 0)) continue;
    if (best == nullptr || v.priority > best->priority) best = &v;
  }
  return best;
}

void fill_ops(const fd_device_table* table, fd_ops* ops) {
#define FD_FILL(op, schema)                                                                                    \
  {                                                                                                            \
    const fd_variant* v = find_variant(table, #op);                                                            \
    ops->op = v == nullptr ? nullptr : reinterpret_cast<void (*)(fd_context*, const fd_##op##_args*)>(v->run); \
  }
  FD_OPS(FD_FILL)
#undef FD_FILL
}

}  // namespace freedive
