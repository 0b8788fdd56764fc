// emulation_bugs_graphs.cpp: planted bugs of streams that are captured: see emulation_bugs.cpp.
#include "emulation_bugs.h"

namespace freedive::cuda {

namespace {

__global__ void times(float* x, float by) { x[threadIdx.x] *= by; }
__global__ void times_of(float* x, const float* by) { x[threadIdx.x] *= by[0]; }

fd_context on(cudaStream_t stream) { return fd_context{nullptr, stream, nullptr, 0, 1}; }

// A graph of what `record` puts on the stream; null where it cannot be had.
template <class Record>
cudaGraphExec_t captured(cudaStream_t stream, const Record& record) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t made = nullptr;
  if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) return nullptr;
  record();
  if (cudaStreamEndCapture(stream, &graph) != cudaSuccess) return nullptr;
  cudaGraphInstantiate(&made, graph, 0);
  cudaGraphDestroy(graph);
  return made;
}

struct Machine {
  cudaStream_t stream = nullptr;
  cudaEvent_t event = nullptr;
  fd_context ctx{};
  Machine() {
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    ctx = on(stream);
  }
  ~Machine() { cudaStreamSynchronize(stream), cudaEventDestroy(event), cudaStreamDestroy(stream); }
};

// x is 1; the graph, which triples it, is launched twice. `during` is called in the midst of the capture.
template <class During>
bool tripled_twice(const During& during) {
  Machine m;
  Device<float> x(WARP, [](size_t) { return 1.0f; });
  const cudaGraphExec_t graph = captured(m.stream, [&] {
    launch(&m.ctx, "times", 1, WARP, times, x.data, 3.0f);
    during(m, x.data);
  });
  if (graph == nullptr) return false;
  for (int i = 0; i < 2; ++i) cudaGraphLaunch(graph, m.stream);
  cudaStreamSynchronize(m.stream);
  cudaGraphExecDestroy(graph);
  return x.is([](size_t) { return 9.0; });
}

template <bool BUG>
bool host_waits_within_a_capture() {
  return tripled_twice([](Machine& m, float*) {
    if (BUG) cudaStreamSynchronize(m.stream);  // BUG: to read a loss, say
  });
}

template <bool BUG>
bool memory_taken_within_a_capture() {
  return tripled_twice([](Machine&, float*) {
    void* more = nullptr;
    if (BUG) cudaMalloc(&more, 64);  // BUG: a workspace that grows
  });
}

template <bool BUG>
bool mark_of_a_capture_waited_for() {
  return tripled_twice([](Machine& m, float*) {
    cudaEventRecord(m.event, m.stream);
    if (BUG) cudaEventSynchronize(m.event);  // BUG: nothing has happened, so there is nothing to wait for
  });
}

template <bool BUG>
bool capture_waits_for_another_stream() {
  Machine other;
  cudaEventRecord(other.event, other.stream);
  return tripled_twice([&](Machine& m, float*) {
    if (BUG) cudaStreamWaitEvent(m.stream, other.event, 0);  // BUG: of a moment before the capture
  });
}

template <bool BUG>
bool null_stream_within_a_capture() {
  Device<float> y(WARP, [](size_t) { return 1.0f; });
  return tripled_twice([&](Machine&, float*) {
    if (BUG) launch(nullptr, "times", 1, WARP, times, y.data, 3.0f);  // BUG: a context without its stream
  });
}

template <bool BUG>
bool captured_is_not_done() {
  Machine m;
  Device<float> x(WARP, [](size_t) { return 1.0f; });
  const cudaGraphExec_t graph = captured(m.stream, [&] { launch(&m.ctx, "times", 1, WARP, times, x.data, 3.0f); });
  if (!BUG) cudaGraphLaunch(graph, m.stream);  // BUG: forgotten, as if capturing had done it
  cudaStreamSynchronize(m.stream);
  cudaGraphExecDestroy(graph);
  return x.is([](size_t) { return 3.0; });
}

// A number that changes from launch to launch.
template <bool BUG>
bool number_of_the_capture() {
  Machine m;
  Device<float> x(WARP, [](size_t) { return 1.0f; }), by(1);
  float number = 2.0f;
  by.data[0] = number;
  const cudaGraphExec_t graph = captured(m.stream, [&] {
    if (BUG)
      launch(&m.ctx, "times", 1, WARP, times, x.data, number);  // BUG: the argument is that of the capture for ever
    else
      launch(&m.ctx, "times_of", 1, WARP, times_of, x.data, by.data);
  });
  for (int i = 0; i < 3; ++i) {
    by.data[0] = number;
    cudaGraphLaunch(graph, m.stream);
    cudaStreamSynchronize(m.stream);
    number += 1.0f;
  }
  cudaGraphExecDestroy(graph);
  return x.is([](size_t) { return 24.0; });
}

// Memory that a graph names is freed before it is launched again.
template <bool BUG>
bool graph_outlives_its_memory() {
  Machine m;
  auto x = new Device<float>(1 << 16, [](size_t) { return 1.0f; });
  const cudaGraphExec_t graph = captured(m.stream, [&] { launch(&m.ctx, "times", 1, WARP, times, x->data, 3.0f); });
  cudaGraphLaunch(graph, m.stream);
  cudaStreamSynchronize(m.stream);
  const bool right = x->data[0] == 3.0f;
  if (BUG) delete x;  // BUG: one launch too early
  cudaGraphLaunch(graph, m.stream);
  cudaStreamSynchronize(m.stream);
  if (!BUG) delete x;
  cudaGraphExecDestroy(graph);
  return right;
}

// A copy within a graph reads pinned memory when it is launched, so the host may not write the next step's numbers before.
template <bool BUG>
bool pinned_memory_overwritten_too_early() {
  Machine m;
  Device<float> x(WARP);
  float* pinned = nullptr;
  cudaMallocHost(reinterpret_cast<void**>(&pinned), WARP * sizeof(float));
  auto write = [&](float v) {
    for (int i = 0; i < WARP; ++i) pinned[i] = v;
  };
  const cudaGraphExec_t graph = captured(m.stream, [&] {
    cudaMemcpyAsync(x.data, pinned, WARP * sizeof(float), cudaMemcpyDefault, m.stream);
    launch(&m.ctx, "times", 1, WARP, times, x.data, 3.0f);
  });
  write(5.0f);
  cudaGraphLaunch(graph, m.stream);
  if (!BUG) cudaStreamSynchronize(m.stream);  // BUG: not waited for
  write(7.0f);
  cudaStreamSynchronize(m.stream);
  cudaFreeHost(pinned);
  cudaGraphExecDestroy(graph);
  return x.is([](size_t) { return 15.0; });
}

}  // namespace

std::vector<Case> graph_cases() {
  return {
      FD_CASE(host_waits_within_a_capture),
      FD_CASE(memory_taken_within_a_capture),
      FD_CASE(mark_of_a_capture_waited_for),
      FD_CASE(capture_waits_for_another_stream),
      FD_CASE(null_stream_within_a_capture),
      FD_CASE(captured_is_not_done),
      FD_CASE(number_of_the_capture),
      FD_CASE(graph_outlives_its_memory),
      FD_CASE(pinned_memory_overwritten_too_early),
  };
}

}  // namespace freedive::cuda
