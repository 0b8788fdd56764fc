// The language model's file and predictions; the friendly functions are freedive.data.language.
#include "../data/language.h"

#include <pybind11/stl.h>

#include "bindings.h"

namespace py = pybind11;

namespace freedive {

void bind_language(py::module_& m) {
  using data::LanguageModel;
  py::class_<LanguageModel>(m, "LanguageModel")
      .def(py::init([](const py::bytes& file) { return LanguageModel(std::string(file)); }))
      .def("best", &LanguageModel::best)
      .def("labels", &LanguageModel::names)
      .def("__len__", &LanguageModel::labels);
}

}  // namespace freedive
