// Keeps registers free.
#pragma once

#include <cuda_runtime.h>

namespace fovblur {

// The same number, hidden from the optimiser: what follows from it is not kept in registers from one round of a loop to
// the next.
__device__ inline int recomputed(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

}  // namespace fovblur
