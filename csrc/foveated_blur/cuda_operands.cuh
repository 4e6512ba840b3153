// The operand types of the banded products, with the same interface. A pair holds two neighbours along the dimension that a
// product sums over.
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

}  // namespace fovblur
