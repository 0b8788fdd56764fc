// The pool under stress: pieces handed out one by one must each be done once, whoever comes in time, after pauses too short and
// long enough for workers to fall asleep, and with more threads than the machine has cores. Built with ThreadSanitizer
// (dev/sanitize.sh thread) it proves that nobody reads a job that is over. And when the caller works alone (core/contention.h).
//
//   thread_pool [jobs, default 3000]
#include "../../csrc/core/thread_pool.h"

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

using namespace freedive;

namespace {

struct Job {
  std::vector<int> done;     // times each piece was done; plain memory, so a piece done twice or after the end is a race
  std::atomic<int> next{0};  // the next piece to hand out
  std::atomic<int> threads{0};
};

void pieces(void* user, int) {
  Job& job = *static_cast<Job*>(user);
  job.threads.fetch_add(1);
  for (;;) {
    const int i = job.next.fetch_add(1, std::memory_order_relaxed);
    if (i >= static_cast<int>(job.done.size())) return;
    ++job.done[i];
  }
}

void sleep_microseconds(long n) {
  const timespec t{0, n * 1000};
  nanosleep(&t, nullptr);
}

int check(int threads, int jobs) {
  ThreadPool pool(threads);
  for (int j = 0; j < jobs; ++j) {
    Job job;
    job.done.assign(j % 37, 0);
    const bool all = j % 5 == 0;
    all ? pool.run_on_all(pieces, &job) : pool.run(pieces, &job);
    for (int times : job.done)
      if (times != 1) return std::printf("%d threads, job %d: a piece was done %d times\n", threads, j, times), 1;
    if (all && job.threads != threads)
      return std::printf("%d threads, job %d: only %d came\n", threads, j, job.threads.load()), 1;
    if (j % 50 == 0) sleep_microseconds(j % 100 == 0 ? 50 : 2000);  // shorter and longer than workers spin
  }
  return 0;
}

// What a program gets by the second, together and alone, and how many of 1000 windows it should work alone.
int check_contention(double together, double alone, int least, int most) {
  Contention contention;
  int windows = 0;
  for (int i = 0; i < 1000; ++i) {
    windows += contention.alone();
    contention.judge(contention.alone() ? alone : together);
  }
  if (windows >= least && windows <= most) return 0;
  return std::printf("%.1f together, %.1f alone: alone for %d windows of 1000\n", together, alone, windows), 1;
}

int check_contention() {
  Contention contention;
  for (int i = 0; i < 200; ++i) contention.judge(1.0);  // the neighbour comes ...
  if (!contention.alone()) return std::puts("two threads beside a neighbour that leaves them one core"), 1;
  for (int i = 0; i < 200; ++i) contention.judge(contention.alone() ? 1.0 : 2.0);  // ... and goes
  if (contention.alone()) return std::puts("one thread on a machine that is free again"), 1;
  return check_contention(2.0, 1.0, 0, 0)         // a free machine
         | check_contention(1.0, 1.0, 900, 1000)  // a neighbour on one core of two
         | check_contention(1.0, 0.5, 1, 50)      // one on each: together they get twice as much
         | check_contention(7.0, 1.0, 0, 0);      // one on one of eight
}

}  // namespace

int main(int argc, char** argv) {
  const int jobs = argc > 1 ? std::atoi(argv[1]) : 3000;
  if (check_contention()) return 1;
  for (int threads : {1, 2, 3, 8})
    if (check(threads, jobs)) return 1;
  for (int i = 0; i < 50; ++i) ThreadPool(4);  // made and thrown away without a job
  std::printf("thread_pool: %d jobs on 1, 2, 3 and 8 threads\n", jobs);
}
