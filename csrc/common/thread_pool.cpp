#include "thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace fovblur {
namespace {

constexpr auto kIdleTime = std::chrono::seconds(2);  // a thread that has slept for so long ends

struct Job {
  void (*work)(void*);
  void* context;
  int running = 0;  // threads of the pool that have begun and not returned
  std::condition_variable returned;
};

class Pool {
 public:
  void run(int threads, void (*work)(void*), void* context) {
    Job job{work, context};
    std::unique_lock<std::mutex> lock(mutex_);
    assign(job, threads - 1);
    lock.unlock();
    work(context);
    lock.lock();
    for (const auto& worker : workers_)
      if (worker->job == &job) worker->job = nullptr;  // it has not begun, and nothing is left to do
    job.returned.wait(lock, [&] { return job.running == 0; });
  }

 private:
  struct Worker {
    explicit Worker(Job* first) : job(first) {}

    Job* job;  // to begin
    bool busy = false;
    std::condition_variable assigned;
  };

  // The first idle threads are taken, so that those not needed for long sleep and end.
  void assign(Job& job, int helpers) {
    for (const auto& worker : workers_) {
      if (helpers == 0) return;
      if (worker->busy || worker->job) continue;
      worker->job = &job;
      worker->assigned.notify_one();
      --helpers;
    }
    // Calls at the same time share the processor's cores; one call may have more threads than there are.
    const int room = std::max(processors_ - 1, helpers) - int(workers_.size());
    try {
      for (int i = 0; i < std::min(helpers, room); ++i) {
        workers_.push_back(std::make_unique<Worker>(&job));
        try {
          std::thread(&Pool::serve, this, workers_.back().get()).detach();
        } catch (...) {
          workers_.pop_back();
          throw;
        }
      }
    } catch (const std::exception&) {  // no more threads or memory available: the existing threads do the work
    }
  }

  void serve(Worker* self) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (self->assigned.wait_for(lock, kIdleTime, [&] { return self->job != nullptr; })) {
      Job& job = *self->job;
      self->job = nullptr;
      self->busy = true;
      ++job.running;
      lock.unlock();
      job.work(job.context);
      lock.lock();
      self->busy = false;
      if (--job.running == 0) job.returned.notify_one();
    }
    workers_.erase(std::find_if(workers_.begin(), workers_.end(), [&](const auto& worker) { return worker.get() == self; }));
  }

  const int processors_ = int(std::thread::hardware_concurrency());
  std::mutex mutex_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

// Never destroyed: sleeping threads use it until the process ends. A forked process has none of the threads, and may
// have the mutex in any state: it begins with a pool of its own.
Pool* pool = [] {
  pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  return new Pool;
}();

}  // namespace

void run_on_threads(int threads, void (*work)(void*), void* context) {
  if (threads > 1)
    pool->run(threads, work, context);
  else
    work(context);
}

}  // namespace fovblur
