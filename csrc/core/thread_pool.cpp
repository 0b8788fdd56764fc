#include "thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define FD_PAUSE() _mm_pause()
#elif defined(__aarch64__)
#define FD_PAUSE() asm volatile("isb" : : : "memory")  // some tens of cycles, as a pause is; "yield" does nothing on most
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

void ThreadPool::run(Fn fn, void* user) {
  if (workers_.empty()) return fn(user, 0);
  contention_.begin();
  contention_.alone() ? fn(user, 0) : start(fn, user, false);
  contention_.end();
}

void ThreadPool::run_on_all(Fn fn, void* user) { workers_.empty() ? fn(user, 0) : start(fn, user, true); }

void ThreadPool::start(Fn fn, void* user, bool all) {
  fn_ = fn;
  user_ = user;
  joined_.store(0, std::memory_order_relaxed);
  job_.fetch_add(1);  // odd: open
  if (asleep_.load() != 0) {
    { std::lock_guard<std::mutex> lock(mutex_); }  // who counted itself asleep either sees the job or waits already
    wake_.notify_all();
  }
  fn(user, 0);
  if (all) wait_for([&] { return joined_.load() == static_cast<int>(workers_.size()); });
  // Closing and entering are both sequentially consistent: a worker sees that the job is closed, or is seen inside.
  job_.fetch_add(1);
  wait_for([&] { return inside_.load() == 0; });
}

// Until ready() is true. A worker that is late has lost its core: then the caller's own is of more use to it, and only a thread
// that sleeps leaves an idle core, which the system fills with the worker at once. A thread that yields does not.
template <class Ready>
void ThreadPool::wait_for(const Ready& ready) {
  for (int spins = 0; spins < kSpins; ++spins) {
    if (ready()) return;
    FD_PAUSE();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  caller_waits_.store(true);
  done_.wait(lock, ready);
  caller_waits_.store(false);
}

void ThreadPool::leave() {
  inside_.fetch_sub(1);
  if (caller_waits_.load()) {
    { std::lock_guard<std::mutex> lock(mutex_); }
    done_.notify_one();
  }
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
      asleep_.fetch_add(1);
      wake_.wait(lock, [&] { return stop_ || open(job_.load()); });
      asleep_.fetch_sub(1);
      if (stop_) return;
    }
    inside_.fetch_add(1);
    job = job_.load();
    if (open(job)) {
      seen = job;
      fn_(user_, index);
      joined_.fetch_add(1);
    }
    leave();
  }
}

}  // namespace freedive
