#include "thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define FD_PAUSE() _mm_pause()
#else
#define FD_PAUSE() std::this_thread::yield()
#endif

namespace freedive {

// Spins before sleeping: the gap between two ops of a step is microseconds, a sleep costs tens of them. Bounded, so that
// an idle model burns nothing, and short, so that a machine shared with another process is given its core back.
static constexpr int kSpins = 4000;

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& w : workers_) w.join();
}

// Waits until ready() is true, the last stretch in other threads' favour.
template <class Ready>
static void wait_for(const Ready& ready) {
  for (int spins = 0; !ready(); ++spins) {
    if (spins < kSpins)
      FD_PAUSE();
    else
      std::this_thread::yield();
  }
}

void ThreadPool::start(Fn fn, void* user, bool all) {
  if (workers_.empty()) return fn(user, 0);
  fn_ = fn;
  user_ = user;
  joined_.store(0, std::memory_order_relaxed);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    job_.fetch_add(1);  // odd: open
  }
  wake_.notify_all();
  fn(user, 0);
  if (all) wait_for([&] { return joined_.load(std::memory_order_acquire) == static_cast<int>(workers_.size()); });
  // Closing and entering are both sequentially consistent: a worker sees that the job is closed, or is seen inside.
  job_.fetch_add(1);
  wait_for([&] { return inside_.load() == 0; });
}

void ThreadPool::work(int index) {
  uint64_t seen = 0;
  auto open = [&](uint64_t job) { return job % 2 == 1 && job != seen; };
  for (;;) {
    uint64_t job = job_.load(std::memory_order_acquire);
    for (int spins = 0; !open(job) && !stop_.load(std::memory_order_relaxed) && spins < kSpins; ++spins) {
      FD_PAUSE();
      job = job_.load(std::memory_order_acquire);
    }
    if (!open(job)) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || open(job_.load(std::memory_order_acquire)); });
      if (stop_) return;
    }
    inside_.fetch_add(1);
    job = job_.load();
    if (open(job)) {
      seen = job;
      fn_(user_, index);
      joined_.fetch_add(1, std::memory_order_release);
    }
    inside_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace freedive
