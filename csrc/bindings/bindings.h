#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "../ops.h"

namespace freedive {
class ThreadPool;
const fd_device_table* require_cpu();  // throws RuntimeError with the reason
const fd_device_table* require_device(const std::string& name);  // "cpu", "cuda", "cuda-emu"; throws RuntimeError with the reason
ThreadPool* shared_pool(int threads);  // of ops called one by one; a Decoder owns its own
void bind_ops(pybind11::module_& m);
void bind_model(pybind11::module_& m);
void bind_data(pybind11::module_& m);
void bind_language(pybind11::module_& m);
}  // namespace freedive
