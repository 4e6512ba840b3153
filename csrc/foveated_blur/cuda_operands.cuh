// The operand types of the banded products, all with the same interface.
//
// A pair holds two neighbours along the dimension that a product sums over, rounded to the operand's type. A lane's part of a
// 16 x 16 tile of a Toeplitz matrix A[i, p] = tap(p - i) is three pairs, from 2t - g - 8, 2t - g and 2t - g + 8 on, for lane
// 4 g + t; its part of a 16 x 8 right operand is two: rows 2t, 2t + 1 and 2t + 8, 2t + 9 of column g.
#pragma once

#include "../common/dtype.h"
#include "../common/mma.cuh"

namespace fovblur {

constexpr int kTile = 16;

template <class Type>
struct Mma16;
template <>
struct Mma16<Half> {
  static __device__ uint32_t pack(float low, float high) { return pack_half(low, high); }
  static __device__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_half(c, a, b); }
  // `sums` + 0 `pair`, which is 0 until a number is not finite.
  static __device__ uint32_t add_zeros(uint32_t pair, uint32_t sums) { return add_zeros_half(pair, sums); }
};
template <>
struct Mma16<BFloat16> {
  static __device__ uint32_t pack(float low, float high) { return pack_bfloat16(low, high); }
  static __device__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_bfloat16(c, a, b); }
  static __device__ uint32_t add_zeros(uint32_t pair, uint32_t sums) { return add_zeros_bfloat16(pair, sums); }
};

// tf32: ten bits of mantissa and float's range, for float32 images if PyTorch's matmul precision is "high" or "medium".
struct Operand32 {
  using Element = float;
  struct alignas(8) Pair {
    uint32_t low, high;
  };
  static constexpr int kBlocks = 2;
  static constexpr float kLargest = 3.3e38f;
  static __device__ Pair pair(float low, float high) { return {to_tf32(low), to_tf32(high)}; }
  static __device__ float round(float x) { return bit_cast<float>(to_tf32(x)); }

  static __device__ void store_eight(const float (&x)[8], Element* target) {
    reinterpret_cast<float4*>(target)[0] = make_float4(round(x[0]), round(x[1]), round(x[2]), round(x[3]));
    reinterpret_cast<float4*>(target)[1] = make_float4(round(x[4]), round(x[5]), round(x[6]), round(x[7]));
  }

  template <int kStride>
  static __device__ void load_tile(const Element* x, Pair (&b)[2][2]) {
    const int lane = int(threadIdx.x) % 32;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int k = 0; k < 2; ++k)
        b[h][k] = *reinterpret_cast<const Pair*>(x + (h * 8 + lane / 4) * kStride + k * 8 + lane % 4 * 2);
  }

  // Columns t and t + 4 of a hardware tile hold columns 2t and 2t + 1, and so do the rows of b: the order of a sum is free.
  static __device__ void multiply(float (&c)[4], const Pair* v, const Pair (&b)[2]) {
    mma_tf32(c, {v[1].low, v[0].low, v[1].high, v[0].high}, {b[0].low, b[0].high});
    mma_tf32(c, {v[2].low, v[1].low, v[2].high, v[1].high}, {b[1].low, b[1].high});
  }
};

}  // namespace fovblur
