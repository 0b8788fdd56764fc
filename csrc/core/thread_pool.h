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

// body(begin, end) over [0, n) in pieces of `grain`, handed out dynamically. Pieces are fixed by n and grain alone.
template <class Body>
void parallel_for(ThreadPool* pool, int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  if (pool == nullptr || pool->size() == 1 || n <= grain) {
    for (int64_t b = 0; b < n; b += grain) body(b, b + grain < n ? b + grain : n);
    return;
  }
  struct Shared {
    const Body* body;
    std::atomic<int64_t> next;
    int64_t n, grain;
  } shared{&body, {0}, n, grain};
  pool->run(
      [](void* user, int) {
        auto* s = static_cast<Shared*>(user);
        for (;;) {
          int64_t b = s->next.fetch_add(s->grain, std::memory_order_relaxed);
          if (b >= s->n) return;
          (*s->body)(b, b + s->grain < s->n ? b + s->grain : s->n);
        }
      },
      &shared);
}

}  // namespace freedive
