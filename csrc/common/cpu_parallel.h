// Threads of one call, and scratch memory for each of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace fovblur {
namespace FOVBLUR_VARIANT {

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Uninitialised, cache-line aligned scratch memory that grows and is reused by later tasks.
template <class T>
class Scratch {
 public:
  T* get(int64_t count) {
    if (count > capacity_) {
      data_.reset(static_cast<T*>(std::aligned_alloc(64, size_t(round_up(count * int64_t(sizeof(T)), 64)))));
      if (!data_) throw std::bad_alloc();
      capacity_ = count;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t capacity_ = 0;
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
  std::vector<std::thread> helpers;
  try {
    for (int i = 1; i < int(std::min<int64_t>(threads, tasks)); ++i) helpers.emplace_back(work);
  } catch (const std::system_error&) {  // no more threads available: the existing ones do the work
  }
  work();
  for (std::thread& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace FOVBLUR_VARIANT
}  // namespace fovblur
