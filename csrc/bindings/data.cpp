// What the data room computes in C++: words, repeated n-grams, MinHash, the depth of a page. The friendly functions are
// freedive.data.words and .minhash.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "../data/grams.h"
#include "../data/html.h"
#include "../data/merges.h"
#include "../data/minhash.h"
#include "../data/ngrams.h"
#include "../data/words.h"
#include "bindings.h"

namespace py = pybind11;

namespace freedive {

using U64 = py::array_t<uint64_t, py::array::c_style>;

void bind_data(py::module_& m) {
  using namespace data;
  m.def(
      "first_parts",
      [](const std::vector<py::bytes>& tokens) {
        std::vector<std::string_view> views(tokens.begin(), tokens.end());
        std::vector<int32_t> found;
        {
          py::gil_scoped_release release;
          found = first_parts(views);
        }
        return py::array_t<int32_t>(static_cast<py::ssize_t>(found.size()), found.data());
      },
      py::arg("tokens"));
  py::class_<Repetition>(m, "Repetition")
      .def("top", &Repetition::top, py::arg("n"))
      .def("repeated", &Repetition::repeated, py::arg("n"));
  py::class_<Words>(m, "Words")
      .def_readonly("missing_pages", &Words::missing_pages)
      .def_readonly("needs_reference", &Words::needs_reference)
      .def("__len__", &Words::size)
      .def_property_readonly("text", [](const Words& w) { return w.text; })
      .def("list",
           [](const Words& w) {
             py::list out(w.size());
             for (size_t i = 0; i < w.size(); ++i) {
               const auto s = w.word(i);
               out[i] = py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(s.data(), s.size(), "strict"));
             }
             return out;
           })
      .def("repetition", [](const Words& w) { return Repetition(w); })
      .def(
          "grams",
          [](const Words& w, int n) {
            if (n < 1) throw py::value_error("n must be at least 1");
            const std::vector<uint64_t> found = grams(w, static_cast<size_t>(n));
            return U64(static_cast<py::ssize_t>(found.size()), found.data());
          },
          py::arg("n"))
      .def(
          "find_grams",
          [](const Words& w, int n, const U64& keys, const py::array_t<bool, py::array::c_style>& maybe) {
            const auto size = static_cast<uint64_t>(maybe.size());
            if (n < 1 || size == 0 || (size & (size - 1)) != 0)
              throw py::value_error("n must be at least 1, and the size of maybe a power of 2");
            return find_grams(w, static_cast<size_t>(n), keys.data(), static_cast<size_t>(keys.size()),
                              reinterpret_cast<const uint8_t*>(maybe.data()), size - 1);
          },
          py::arg("n"), py::arg("keys"), py::arg("maybe"))
      .def(
          "signature",
          [](const Words& w, const U64& a, const U64& b) -> py::object {
            if (a.ndim() != 1 || b.ndim() != 1 || a.size() != b.size()) throw py::value_error("a and b must be uint64[n]");
            U64 out(a.size());
            if (!signature(w, a.data(), b.data(), static_cast<int>(a.size()), out.mutable_data())) return py::none();
            return out;
          },
          py::arg("a"), py::arg("b"));
  py::class_<WordCounts>(m, "WordCounts")
      .def_readonly("all", &WordCounts::all)
      .def_readonly("real", &WordCounts::real)
      .def_readonly("real_characters", &WordCounts::real_characters)
      .def_readonly("alphabetic", &WordCounts::alphabetic)
      .def_readonly("wanted", &WordCounts::wanted);
  py::class_<Splitter>(m, "Splitter")
      .def(py::init<>())
      .def("learn_page", &Splitter::learn_page, py::arg("page"), py::arg("flags"), py::arg("replacements"))
      .def("learn", &Splitter::learn, py::arg("piece"), py::arg("lengths"))
      .def("split", &Splitter::split, py::arg("text"), py::arg("simplify"))
      .def("count", &Splitter::count, py::arg("words"), py::arg("wanted"));
  m.def(
      "html_depth",
      [](const py::bytes& html) {
        return html_depth({PyBytes_AS_STRING(html.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(html.ptr()))});
      },
      py::arg("html"));
  m.def(
      "sha1_64",
      [](const py::bytes& data) {
        const std::string s = data;
        return sha1_64(s.data(), s.size());
      },
      py::arg("data"));
  m.def(
      "minhash_cluster",
      [](const U64& signatures, uint64_t memory, int agreement) {
        if (signatures.ndim() != 3 || signatures.shape(1) < 1 || signatures.shape(2) < 1)
          throw py::value_error("signatures must be uint64[n, buckets, hashes]");
        Clusters c;
        {
          py::gil_scoped_release release;
          c = cluster(signatures.data(), signatures.shape(0), static_cast<int>(signatures.shape(1)),
                      static_cast<int>(signatures.shape(2)), memory, agreement);
        }
        py::array_t<bool> keep(c.keep.size());
        std::copy(c.keep.begin(), c.keep.end(), keep.mutable_data());
        py::array_t<uint32_t> root(c.root.size());
        std::copy(c.root.begin(), c.root.end(), root.mutable_data());
        return py::make_tuple(keep, root);
      },
      py::arg("signatures"), py::arg("memory"), py::arg("agreement"));
}

}  // namespace freedive
