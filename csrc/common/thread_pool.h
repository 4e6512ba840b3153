// Threads that are kept between calls: one pool for all kernels and variants of the process.
#pragma once

namespace fovblur {

// Calls work(context) here and on up to threads - 1 threads of the pool at once; returns when all of them have returned.
// `work` must not throw, and must be complete when any one of the calls has returned: there may be no other.
void run_on_threads(int threads, void (*work)(void*), void* context);

}  // namespace fovblur
