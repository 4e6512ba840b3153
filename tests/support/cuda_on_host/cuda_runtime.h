// Runs .cu files on the CPU, for tests: the C++ compiler finds this header in place of CUDA's.
//
// A block's threads are fibers that take turns between barriers. `fovblur_thread_order` sets the order of the turns:
// a kernel whose result depends on it has a race.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

using std::isfinite;

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
inline const char* cudaGetErrorString(cudaError_t) { return "error"; }

inline dim3 gridDim, blockDim, blockIdx, threadIdx;
inline int fovblur_thread_order = 1;  // 1: ascending, -1: descending

namespace cuda_on_host {

constexpr size_t kStackBytes = 256 * 1024;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  dim3 index;
  long barriers = 0;
  bool done = false;
};

inline ucontext_t scheduler;
inline std::vector<Fiber> fibers;
inline Fiber* running = nullptr;
inline void (*body)(void*) = nullptr;
inline void* body_argument = nullptr;
inline int votes = 0, last_votes = 0;

inline void fail(const char* message) {
  std::fprintf(stderr, "cuda_on_host: %s\n", message);
  std::abort();
}

inline void start() {
  body(body_argument);
  running->done = true;
}

inline void barrier() {
  ++running->barriers;
  Fiber* self = running;
  swapcontext(&self->context, &scheduler);
  threadIdx = self->index;
}

inline void run_block() {
  const int count = int(fibers.size());
  for (int i = 0; i < count; ++i) {
    Fiber& fiber = fibers[size_t(i)];
    const unsigned n = unsigned(i);
    fiber.index = dim3(n % blockDim.x, n / blockDim.x % blockDim.y, n / (blockDim.x * blockDim.y));
    fiber.barriers = 0;
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, start, 0);
  }
  for (bool any = true; any;) {
    any = false;
    votes = 0;
    for (int turn = 0; turn < count; ++turn) {
      Fiber& fiber = fibers[size_t(fovblur_thread_order > 0 ? turn : count - 1 - turn)];
      if (fiber.done) continue;
      running = &fiber;
      threadIdx = fiber.index;
      swapcontext(&scheduler, &fiber.context);
      any = any || !fiber.done;
    }
    last_votes = votes;
    if (any)
      for (const Fiber& fiber : fibers)
        if (fiber.done || fiber.barriers != fibers[0].barriers) fail("threads of a block met different barriers");
  }
}

template <class... Parameters, size_t... I>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, void** arguments, std::index_sequence<I...>) {
  auto call = [&] { kernel(*static_cast<std::remove_reference_t<Parameters>*>(arguments[I])...); };
  body = [](void* argument) { (*static_cast<decltype(call)*>(argument))(); };
  body_argument = &call;
  gridDim = grid;
  blockDim = block;
  fibers.resize(size_t(block.x) * block.y * block.z);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        run_block();
      }
}

}  // namespace cuda_on_host

inline void __syncthreads() { cuda_on_host::barrier(); }
inline int __syncthreads_or(int vote) {
  cuda_on_host::votes |= vote != 0;
  cuda_on_host::barrier();
  return cuda_on_host::last_votes;
}

template <class... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void** arguments, size_t, cudaStream_t) {
  cuda_on_host::launch(kernel, grid, block, arguments, std::index_sequence_for<Parameters...>());
  return cudaSuccess;
}
