// A pool of worker threads with one verb: run a function on several threads at once and wait.
// Results must not depend on how many threads there are, nor on which of them come: split work by output, or by chunks of a fixed
// size, and hand the pieces out one by one.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "contention.h"

namespace freedive {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // fn(user, thread_index), the caller being thread 0. When the caller comes back from its own call there must be nothing left to
  // hand out: a worker that has not begun by then is not waited for and does not begin. So a thread whose core another program
  // holds delays nobody by more than the piece it is at; where that is often, the caller works alone (contention.h). Not
  // reentrant.
  using Fn = void (*)(void* user, int thread);
  void run(Fn fn, void* user);
  // On every thread, however long it takes to come.
  void run_on_all(Fn fn, void* user);

 private:
  void start(Fn fn, void* user, bool all);
  template <class Ready>
  void wait_for(const Ready& ready);
  void work(int index);
  void leave();
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> job_{0};  // even: none; odd: one that may be joined. Grows
  std::atomic<int> inside_{0};    // workers that may be reading fn_ and user_
  std::atomic<int> joined_{0};    // workers that ran this job
  std::atomic<int> asleep_{0};    // workers that must be woken
  std::atomic<bool> caller_waits_{false}, stop_{false};
  Contention contention_;
  Fn fn_ = nullptr;
  void* user_ = nullptr;
};

}  // namespace freedive
