#include "bindings.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "freedive's compiled core: the ops of csrc/ops.h and the decoder built of them";
  freedive::bind_ops(m);
  freedive::bind_model(m);
  freedive::bind_data(m);
  freedive::bind_language(m);
}
