// Copies from device to shared memory that run while the thread goes on, in groups that it waits for in their order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fovblur {

#ifdef __CUDACC__

// All shared memory of a block, of the size it was launched with.
extern __shared__ uint4 dynamic_shared[];

// 16 bytes, aligned to their size on both sides; those beyond `bytes` are not read and become 0.
__device__ __forceinline__ void copy_async(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}

// Ends a group, empty or not.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Until all of the thread's groups but the last kLeft have arrived.
template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kLeft) : "memory");
}

#endif

}  // namespace fovblur
