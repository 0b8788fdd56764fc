// A pool of worker threads with one verb: run a function on every thread at once and wait.
// Results must not depend on how many threads there are: split work by output, or by chunks of a fixed size.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace freedive {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // fn(user, thread_index) on every thread, the caller being thread 0. Not reentrant.
  using Fn = void (*)(void* user, int thread);
  void run(Fn fn, void* user);

 private:
  void work(int index);
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> pending_{0};
  std::atomic<bool> stop_{false};
  Fn fn_ = nullptr;
  void* user_ = nullptr;
};

}  // namespace freedive
