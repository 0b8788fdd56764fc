// Whether a pool's workers are worth waiting for. Where other programs use the cores, a worker that has lost its own holds the
// caller up by a slice of the scheduler's at the end of a job, and two threads can get less done than one. What tells is the CPU
// time that the program gets by the second: below about one core's, the caller tries to work alone for a moment, and goes on so
// for as long as that gets it as much.
#pragma once
#include <algorithm>
#include <chrono>
#include <ctime>

namespace freedive {

class Contention {
 public:
  bool alone() const { return state_ == TRY_ALONE || state_ == ALONE; }

  // Around every job. Every WINDOW seconds of nothing but jobs are judged.
  void begin() { job_ = Clock::now(); }
  void end() {
    const Clock::time_point now = Clock::now();
    busy_ += seconds(now - job_);
    const double wall = seconds(now - window_);
    if (wall < WINDOW) return;
    const double cpu = cpu_seconds();
    if (busy_ > 0.8 * wall) judge((cpu - cpu_) / wall);
    window_ = now, cpu_ = cpu, busy_ = 0;
  }

  // share: CPU-seconds this program got in a second of the last window.
  void judge(double share) {
    switch (state_) {
      case TOGETHER:
        if (--left_ > 0) break;
        together_ = share;
        if (share < ENOUGH) state_ = TRY_ALONE;
        else patience_ = 1;
        break;
      case TRY_ALONE:  // then alone, or together, for a time that grows while nothing changes
        state_ = together_ < ENOUGH * share ? ALONE : TOGETHER;
        left_ = patience_;
        patience_ = std::min(2 * patience_, PATIENCE);
        break;
      case ALONE:
        if (--left_ <= 0) state_ = TRY_TOGETHER;
        break;
      case TRY_TOGETHER:
        together_ = share;
        state_ = share < ENOUGH ? TRY_ALONE : TOGETHER;
        if (share >= ENOUGH) patience_ = 1;
        break;
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr double WINDOW = 0.03;  // some slices of the scheduler's
  static constexpr double ENOUGH = 1.1;   // what of it is spinning is not progress
  static constexpr int PATIENCE = 64;     // windows: two seconds

  static double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }
  static double cpu_seconds() {
    timespec t{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }

  enum { TOGETHER, TRY_ALONE, ALONE, TRY_TOGETHER } state_ = TOGETHER;
  int left_ = 0, patience_ = 1;  // windows until the next trial
  double together_ = 0, busy_ = 0, cpu_ = 0;
  Clock::time_point job_{}, window_{};
};

}  // namespace freedive
