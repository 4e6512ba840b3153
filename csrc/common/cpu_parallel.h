// Threads of one call, and scratch memory for each of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

#include "scratch.h"
#include "thread_pool.h"

namespace fovblur {
namespace FOVBLUR_VARIANT {

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Uninitialised, cache-line aligned scratch memory that grows and is reused by later tasks and calls.
template <class T>
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { give_block(block_); }

  T* get(int64_t count) {
    const int64_t bytes = count * int64_t(sizeof(T));
    if (bytes > block_.bytes) {
      const Block larger = take_block(bytes);
      give_block(block_);
      block_ = larger;
    }
    return static_cast<T*>(block_.data);
  }

 private:
  Block block_;
};

// Calls body(task, workspace) for every task; the first exception of any thread is rethrown here.
template <class Workspace, class Body>
void parallel_for(int64_t tasks, int threads, const Body& body) {
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  auto work = [&] {
    try {
      Workspace workspace;
      for (int64_t task; (task = next.fetch_add(1)) < tasks;) body(task, workspace);
    } catch (...) {
      next = tasks;
      std::lock_guard<std::mutex> lock(failure_mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  const auto call = [](void* context) { (*static_cast<decltype(work)*>(context))(); };
  run_on_threads(int(std::min<int64_t>(threads, tasks)), call, &work);
  if (failure) std::rethrow_exception(failure);
}

}  // namespace FOVBLUR_VARIANT
}  // namespace fovblur
