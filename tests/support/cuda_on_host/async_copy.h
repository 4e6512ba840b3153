// The functions of csrc/common/async_copy.cuh, for cuda_runtime.h. A copy runs at once in one order of threads and only at its
// wait in the other: a kernel that does not wait, or overwrites data that is still read, gives two results.
#pragma once

#include <cstring>

namespace cuda_on_host {

inline void run(const Copy& copy) {
  std::memset(copy.target, 0, size_t(copy.size));
  std::memcpy(copy.target, copy.source, size_t(copy.bytes));
}

inline void start_copy(void* target, const void* source, int size, int bytes) {
  if (reinterpret_cast<uintptr_t>(target) % size_t(size) || reinterpret_cast<uintptr_t>(source) % size_t(size))
    fail("a copy is not aligned to its size");
  const Copy copy{target, source, size, bytes, running->groups};
  if (fovblur_thread_order > 0)
    run(copy);
  else
    running->copies.push_back(copy);
}

inline void run_groups_up_to(long group) {
  std::vector<Copy>& copies = running->copies;
  size_t done = 0;
  for (; done < copies.size() && copies[done].group <= group; ++done) run(copies[done]);
  copies.erase(copies.begin(), copies.begin() + long(done));
}

}  // namespace cuda_on_host

namespace fovblur {

inline uint4* const dynamic_shared = reinterpret_cast<uint4*>(cuda_on_host::shared_memory);

inline void copy_async(void* shared, const void* global, int bytes) { cuda_on_host::start_copy(shared, global, 16, bytes); }
inline void copy_async(void* shared, const void* global) { cuda_on_host::start_copy(shared, global, 16, 16); }
inline void copy_async_float(float* shared, const float* global) { cuda_on_host::start_copy(shared, global, 4, 4); }

inline void commit_copies() { ++cuda_on_host::running->groups; }

template <int kLeft>
void wait_for_copies() {
  cuda_on_host::run_groups_up_to(cuda_on_host::running->groups - 1 - kLeft);
}

}  // namespace fovblur
