// Launches on a stream of the current device, and a hint for the register allocation of kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace fovblur {

// Launches at most as many blocks as a grid holds; kernels loop until no work is left, or the caller launches again.
template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), int threads, int64_t blocks, int64_t shared_bytes, void* stream,
                   std::decay_t<Parameters>... parameters) {
  void* arguments[] = {static_cast<void*>(&parameters)...};
  const dim3 grid(static_cast<unsigned>(blocks < INT32_MAX ? blocks : INT32_MAX));
  return cudaLaunchKernel(kernel, grid, dim3(static_cast<unsigned>(threads)), arguments, static_cast<size_t>(shared_bytes),
                          static_cast<cudaStream_t>(stream));
}

// Returns the same number, hidden from the optimiser, so that values derived from it are not kept in registers from one
// iteration of a loop to the next.
__device__ inline int recomputed(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
__device__ inline int64_t recomputed(int64_t x) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+l"(x));
#endif
  return x;
}

// Returns the same number, which all lanes of the warp have, known to the compiler to be one for the warp.
__device__ inline int uniform(int x) { return int(__shfl_sync(0xffffffffu, x, 0)); }

inline const char* message(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

}  // namespace fovblur
