// An op whose arguments stay in the device's memory, so that many calls of it can be timed, by the device's own clock and without
// copies between them; and the speed of the device's own copies, to compare with.
//
// `sets` is how many times the arguments are there: calls take them in turns, so that none finds in a cache what it read before.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "../core/context.h"
#include "../core/thread_pool.h"
#include "../model/decoder.h"
#include "bindings.h"
#include "op_call.h"
#include "staging.h"

namespace py = pybind11;

namespace freedive {

namespace {

constexpr size_t BRIDGE = size_t{32} << 20;  // of pinned memory, which copies go through

// A stream and two clocks of a device; of one without streams the host's clock.
struct Timer {
  const fd_device_table* device;
  fd_context ctx{nullptr, nullptr, nullptr, 0, 1};
  void *begin = nullptr, *end = nullptr;
  Buffer bridge;

  explicit Timer(const fd_device_table* d) : device(d) {
    if (device->open_stream == nullptr) return;
    ctx.stream = device->open_stream();
    begin = device->open_clock(), end = device->open_clock();
  }
  Timer(const Timer&) = delete;
  ~Timer() {
    if (device->open_stream == nullptr) return;
    device->close_stream(ctx.stream);
    device->close_mark(begin), device->close_mark(end);
  }
  void wait() {
    const char* error = device->synchronize == nullptr ? nullptr : device->synchronize(&ctx);
    if (error != nullptr) throw std::runtime_error(error);
  }
  template <class F>
  double seconds(F&& work) {
    if (ctx.stream == nullptr) {
      const auto began = std::chrono::steady_clock::now();
      work();
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    }
    device->mark(&ctx, begin);
    work();
    device->mark(&ctx, end);
    wait();
    return device->seconds_between(begin, end);
  }
};

// Memory of the host to memory of the device (there), or back, through pinned memory.
void carry(Timer& timer, uint8_t* host, uint8_t* there, size_t bytes, bool back) {
  const size_t most = std::min(bytes, BRIDGE);
  if (timer.bridge.size() < most) timer.bridge = Buffer(most, true, timer.device, Buffer::HOST);
  uint8_t* bridge = timer.bridge.bytes();
  for (size_t at = 0; at < bytes; at += BRIDGE) {
    const size_t n = std::min(BRIDGE, bytes - at);
    if (!back) std::memcpy(bridge, host + at, n);
    timer.device->copy(&timer.ctx, back ? bridge : there + at, back ? there + at : bridge, n);
    timer.wait();
    if (back) std::memcpy(host + at, bridge, n);
  }
}

class ResidentOp {
 public:
  ResidentOp(const std::string& name, const py::object& variant, int threads, const py::dict& arguments,
             const std::string& device, int sets)
      : call_(check_call(name, variant, threads, arguments, device)), arguments_(arguments), timer_(call_.device) {
    if (sets < 1) throw py::value_error("sets must be at least 1");
    py::gil_scoped_release release;
    const bool own_memory = call_.device->allocate != nullptr;
    workspace_ = Buffer(call_.workspace_bytes, true, own_memory ? call_.device : nullptr);
    timer_.ctx.workspace = workspace_.bytes(), timer_.ctx.workspace_bytes = call_.workspace_bytes, timer_.ctx.threads = threads;
    if (!own_memory) {  // the arrays themselves, whatever `sets`
      sets_.push_back({{}, call_.args});
      return;
    }
    pieces_ = host_pieces(*call_.schema, call_.args);
    for (int i = 0; i < sets; ++i) {
      Set set;
      std::vector<uint8_t*> places;
      for (const HostPiece& piece : pieces_) {
        set.memory.emplace_back(std::max<size_t>(piece.bytes(), 1), true, call_.device);
        places.push_back(set.memory.back().bytes());
        carry(timer_, piece.begin, places.back(), piece.bytes(), false);
      }
      set.args = args_over(*call_.schema, call_.args, pieces_, places);
      sets_.push_back(std::move(set));
    }
  }

  double seconds(int calls) {
    if (calls < 1) throw py::value_error("calls must be at least 1");
    ThreadPool* pool = call_.device->allocate == nullptr ? shared_pool(call_.threads) : nullptr;
    py::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(shared_pools_in_use);
    timer_.ctx.pool = pool;
    const double all = timer_.seconds([&] {
      for (int i = 0; i < calls; ++i) call_.variant->run(&timer_.ctx, sets_[next_++ % sets_.size()].args.data());
    });
    return all / calls;
  }

  void read() {
    py::gil_scoped_release release;
    for (size_t i = 0; i < pieces_.size(); ++i)
      if (pieces_[i].written) carry(timer_, pieces_[i].begin, sets_[0].memory[i].bytes(), pieces_[i].bytes(), true);
  }

  const char* variant() const { return call_.variant->name; }
  size_t workspace_bytes() const { return call_.workspace_bytes; }

 private:
  struct Set {
    std::vector<Buffer> memory;
    std::vector<uint8_t> args;
  };
  CheckedCall call_;
  py::dict arguments_;  // kept, since `read` writes to them
  std::vector<HostPiece> pieces_;
  Buffer workspace_;
  std::vector<Set> sets_;
  size_t next_ = 0;
  Timer timer_;  // goes first: it waits for what is under way
};

double copy_seconds(const std::string& name, size_t bytes, int calls) {
  const fd_device_table* device = require_device(name);
  if (bytes < 4 || calls < 1) throw py::value_error("copy_seconds: bytes must be at least 4 and calls at least 1");
  py::gil_scoped_release release;
  const fd_device_table* owner = device->allocate == nullptr ? nullptr : device;
  const Buffer from(bytes, true, owner), to(bytes, true, owner);
  std::vector<uint32_t> noise(std::min(bytes, BRIDGE) / 4);
  uint32_t state = 1;
  for (uint32_t& word : noise) word = state = state * 1664525u + 1013904223u;
  Timer timer(device);
  for (size_t at = 0; at < bytes; at += noise.size() * 4) {
    const size_t n = std::min(noise.size() * 4, bytes - at);
    if (owner != nullptr)
      carry(timer, reinterpret_cast<uint8_t*>(noise.data()), from.bytes() + at, n, false);
    else
      std::memcpy(from.bytes() + at, noise.data(), n);
  }
  auto copies = [&](int n) {
    for (int i = 0; i < n; ++i)
      if (owner != nullptr)
        device->copy(&timer.ctx, to.bytes(), from.bytes(), bytes);
      else
        std::memcpy(to.bytes(), from.bytes(), bytes);
  };
  copies(1);
  return timer.seconds([&] { copies(calls); }) / calls;
}

}  // namespace

void bind_resident(py::module_& m) {
  py::class_<ResidentOp>(m, "ResidentOp")
      .def(py::init<const std::string&, const py::object&, int, const py::dict&, const std::string&, int>(), py::arg("name"),
           py::arg("variant"), py::arg("threads"), py::arg("arguments"), py::arg("device") = "cpu", py::arg("sets") = 1)
      .def("seconds", &ResidentOp::seconds, py::arg("calls"))
      .def("read", &ResidentOp::read)
      .def_property_readonly("variant", &ResidentOp::variant)
      .def_property_readonly("workspace_bytes", &ResidentOp::workspace_bytes);
  m.def("copy_seconds", &copy_seconds, py::arg("device"), py::arg("bytes"), py::arg("calls"));
}

}  // namespace freedive
