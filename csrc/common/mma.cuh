// Products of small matrices held by the 32 lanes of a warp, as the tensor cores of sm_80 and later do them.
//
// Lane l holds, with g = l / 4 and t = l % 4:
//   16-bit: A 16 x 16: a[0] = (g, 2t..2t+1), a[1] = (g + 8, 2t..), a[2] = (g, 2t + 8..), a[3] = (g + 8, 2t + 8..)
//           B 16 x 8:  b[0] = (2t..2t+1, g), b[1] = (2t + 8.., g)
//   tf32:   A 16 x 8:  a[0] = (g, t), a[1] = (g + 8, t), a[2] = (g, t + 4), a[3] = (g + 8, t + 4)
//           B 8 x 8:   b[0] = (t, g), b[1] = (t + 4, g)
//   C 16 x 8 in float: c[0..1] = (g, 2t..2t+1), c[2..3] = (g + 8, 2t..2t+1)
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fovblur {

#ifdef __CUDACC__

// c += a b, binary16 operands.
__device__ __forceinline__ void mma_half(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// c += a b, bfloat16 operands.
__device__ __forceinline__ void mma_bfloat16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// c += a b, tf32 operands.
__device__ __forceinline__ void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane l gives the address of row l % 8 of matrix l / 8, 16 bytes
// aligned to their size, and gets columns 2t..2t+1 of row g of each.
__device__ __forceinline__ void load_matrices(const void* row, uint32_t (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// The same of the transposed matrices: rows 2t..2t+1 of column g of each.
__device__ __forceinline__ void load_transposed_matrices(const void* row, uint32_t (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// Two floats rounded to the operand's type, the first in the low bits.
__device__ __forceinline__ uint32_t pack_half(float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
__device__ __forceinline__ uint32_t pack_bfloat16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// sums + 0 pair in both halves: 0 as long as all numbers were finite, then NaN.
__device__ __forceinline__ uint32_t add_zeros_half(uint32_t pair, uint32_t sums) {
  asm("fma.rn.f16x2 %0, %1, %2, %0;\n" : "+r"(sums) : "r"(pair), "r"(0));
  return sums;
}
__device__ __forceinline__ uint32_t add_zeros_bfloat16(uint32_t pair, uint32_t sums) {
  asm("fma.rn.bf16x2 %0, %1, %2, %0;\n" : "+r"(sums) : "r"(pair), "r"(0));
  return sums;
}

// A float rounded to tf32: ten bits of mantissa, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(x));
  return bits;
}

#endif

}  // namespace fovblur
