// Products of small matrices held by the 32 lanes of a warp, as the tensor cores of sm_80 and later do them.
//
// Lane l holds, with g = l / 4 and t = l % 4:
//   half:  A 16 x 16: a[0] = (g, 2t..2t+1), a[1] = (g + 8, 2t..), a[2] = (g, 2t + 8..), a[3] = (g + 8, 2t + 8..)
//          B 16 x 8:  b[0] = (2t..2t+1, g), b[1] = (2t + 8.., g)
//   tf32:  A 16 x 8:  a[0] = (g, t), a[1] = (g + 8, t), a[2] = (g, t + 4), a[3] = (g + 8, t + 4)
//          B 8 x 8:   b[0] = (t, g), b[1] = (t + 4, g)
//   C 16 x 8 in float: c[0..1] = (g, 2t..2t+1), c[2..3] = (g + 8, 2t..2t+1)
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fovblur {

#ifdef __CUDACC__

// c += a b, half operands.
__device__ __forceinline__ void mma_half(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += a b, tf32 operands.
__device__ __forceinline__ void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The transpose of an 8 x 8 matrix of halves, row g of which lane l holds at columns 2t..2t+1.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t a) {
  uint32_t b;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(b) : "r"(a));
  return b;
}

__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(x));
  return bits;
}

// Two floats as halves, the first in the low bits; beyond the largest half they saturate.
__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
  const __half2 both = __floats2half2_rn(fminf(fmaxf(low, -65504.0f), 65504.0f), fminf(fmaxf(high, -65504.0f), 65504.0f));
  return *reinterpret_cast<const uint32_t*>(&both);
}

#endif

}  // namespace fovblur
