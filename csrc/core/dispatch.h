// From a device's list of variants to its table: the highest priority wins.
#pragma once
#include "../ops.h"

namespace freedive {

// The variant of that op with that name, or with the highest priority when name is null; null if there is none.
const fd_variant* find_variant(const fd_device_table* table, const char* op, const char* name = nullptr);

// Ops without a variant stay null.
void fill_ops(const fd_device_table* table, fd_ops* ops);

}  // namespace freedive
