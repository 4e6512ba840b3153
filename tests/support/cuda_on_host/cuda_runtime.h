// Runs .cu files on the CPU, for tests: this header replaces CUDA's.
//
// A block's threads are fibers that take turns between barriers, those of the block and those of a warp.
// `fovblur_thread_order` sets the order of the turns: a kernel whose result depends on it has a race.
#pragma once

#include <setjmp.h>
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
struct alignas(8) float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t places) {
  const uint64_t bytes = x | uint64_t(y) << 32;
  uint32_t result = 0;
  for (int k = 0; k < 4; ++k) result |= uint32_t(bytes >> 8 * (places >> 4 * k & 7) & 0xff) << 8 * k;
  return result;
}
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

// A GPU of few multiprocessors, so that a block gets several tiles.
inline int fovblur_architecture = 86;
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor };
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const int values[] = {3, fovblur_architecture / 10, fovblur_architecture % 10};
  return *value = values[attribute], cudaSuccess;
}

// The memory of the device is the host's.
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
inline cudaError_t cudaMalloc(void** data, size_t bytes) { return *data = std::malloc(bytes), cudaSuccess; }
inline cudaError_t cudaFree(void* data) { return std::free(data), cudaSuccess; }
inline cudaError_t cudaMemset(void* data, int value, size_t bytes) { return std::memset(data, value, bytes), cudaSuccess; }
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

inline dim3 gridDim, blockDim, blockIdx, threadIdx;
inline int fovblur_thread_order = 1;  // 1: ascending, -1: descending

namespace cuda_on_host {

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kSharedBytes = 99 * 1024;  // of a block, as on sm_86

inline size_t shared_bytes = 0;
alignas(16) inline unsigned char shared_memory[kSharedBytes];

// An asynchronous copy to shared memory, in one of the thread's groups.
struct Copy {
  void* target;
  const void* source;
  int size, bytes;  // the rest of `size` becomes 0
  long group;
};

struct Fiber {
  ucontext_t context;  // for the start; later switches are jumps, which need no system call
  jmp_buf place;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  dim3 index;
  long barriers = 0, warp_barriers = 0;  // met so far
  long groups = 0;                       // of copies, ended so far
  std::vector<Copy> copies;              // under way
  bool at_block_barrier = false, begun = false, done = false;
};

inline jmp_buf scheduler;
inline std::vector<Fiber> fibers;
inline Fiber* running = nullptr;
inline void (*body)(void*) = nullptr;
inline void* body_argument = nullptr;
inline int votes = 0, last_votes = 0;

// Words that the lanes of a warp exchange, eight each, alternating between two places, so that a lane may go on before the
// others have read.
struct Exchange {
  uint64_t words[32][8];
};
inline std::vector<Exchange> exchanges;  // two of each warp

inline void fail(const char* message) {
  std::fprintf(stderr, "cuda_on_host: %s\n", message);
  std::abort();
}

inline void start() {
  body(body_argument);
  running->done = true;
  _longjmp(scheduler, 1);
}

inline void wait() {
  if (_setjmp(running->place) == 0) _longjmp(scheduler, 1);
  threadIdx = running->index;
}

__attribute__((noinline)) inline void run(Fiber& fiber) {
  running = &fiber;
  threadIdx = fiber.index;
  if (_setjmp(scheduler) != 0) return;
  if (std::exchange(fiber.begun, true)) _longjmp(fiber.place, 1);
  setcontext(&fiber.context);
}

inline void barrier() {
  ++running->barriers;
  running->at_block_barrier = true;
  wait();
}

inline void warp_barrier() {
  ++running->warp_barriers;
  wait();
}

inline unsigned flat_thread() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }

// Runs a warp's threads until all of them are done or wait for the block.
inline void run_warp(int first, int last) {
  for (bool waiting = true; waiting;) {
    for (int turn = 0; turn < last - first; ++turn) {
      Fiber& fiber = fibers[size_t(fovblur_thread_order > 0 ? first + turn : last - 1 - turn)];
      if (!fiber.done) run(fiber);
    }
    const Fiber& one = fibers[size_t(first)];
    waiting = !one.done && !one.at_block_barrier;
    for (int i = first; i < last; ++i) {
      const Fiber& fiber = fibers[size_t(i)];
      if (fiber.warp_barriers != one.warp_barriers || waiting != (!fiber.done && !fiber.at_block_barrier))
        fail("lanes of a warp met different barriers");
    }
  }
}

inline void run_block() {
  const int count = int(fibers.size());
  for (int i = 0; i < count; ++i) {
    Fiber& fiber = fibers[size_t(i)];
    const unsigned n = unsigned(i);
    fiber.index = dim3(n % blockDim.x, n / blockDim.x % blockDim.y, n / (blockDim.x * blockDim.y));
    fiber.barriers = fiber.warp_barriers = fiber.groups = 0;
    fiber.copies.clear();
    fiber.begun = fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber.context, start, 0);
  }
  std::memset(shared_memory, 0xff, shared_bytes);  // NaN
  const int warps = (count + 31) / 32;
  for (bool any = true; any;) {
    votes = 0;
    for (Fiber& fiber : fibers) fiber.at_block_barrier = false;
    for (int turn = 0; turn < warps; ++turn) {
      const int warp = fovblur_thread_order > 0 ? turn : warps - 1 - turn;
      run_warp(32 * warp, min(32 * warp + 32, count));
    }
    last_votes = votes;
    any = !fibers[0].done;
    for (const Fiber& fiber : fibers)
      if (fiber.done == any || fiber.barriers != fibers[0].barriers) fail("threads of a block met different barriers");
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
  exchanges.resize(2 * ((fibers.size() + 31) / 32));
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

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*)(Parameters...), cudaFuncAttribute, int bytes) {
  return bytes > cuda_on_host::kSharedBytes;
}

template <class... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                             cudaStream_t) {
  cuda_on_host::shared_bytes = shared_bytes;
  cuda_on_host::launch(kernel, grid, block, arguments, std::index_sequence_for<Parameters...>());
  return cudaSuccess;
}

#include "async_copy.h"
#include "warp.h"
