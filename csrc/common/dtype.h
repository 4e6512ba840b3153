// Element types of images, and their conversion to and from the type the blur accumulates in.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

// Marks the functions that the CPU and the CUDA module share.
#ifdef __CUDACC__
#define FOVBLUR_HD __host__ __device__ __forceinline__
#else
#define FOVBLUR_HD inline
#endif

namespace fovblur {

enum class DType : int { uint8 = 0, float16 = 1, bfloat16 = 2, float32 = 3, float64 = 4 };

// Bytes of an element.
FOVBLUR_HD int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::uint8:
      return 1;
    case DType::float16:
    case DType::bfloat16:
      return 2;
    case DType::float32:
      return 4;
    case DType::float64:
      return 8;
  }
  return 0;
}

// IEEE binary16 and bfloat16 by their bits, so that host code needs no half type of the compiler's.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class To, class From>
FOVBLUR_HD To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

FOVBLUR_HD DType dtype_of(Half) { return DType::float16; }
FOVBLUR_HD DType dtype_of(BFloat16) { return DType::bfloat16; }

FOVBLUR_HD float to_float(Half h) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(h.bits));
#else
  // Multiplying by 2^112 moves the 5-bit exponent to float's bias and makes subnormals normal.
  const uint32_t magnitude = uint32_t(h.bits & 0x7fff) << 13;
  const uint32_t sign = uint32_t(h.bits & 0x8000) << 16;
  const uint32_t inf_or_nan = (h.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  const float scaled = bit_cast<float>(magnitude) * bit_cast<float>(uint32_t(239) << 23);
  return bit_cast<float>(bit_cast<uint32_t>(scaled) | inf_or_nan | sign);
#endif
}

FOVBLUR_HD float to_float(BFloat16 b) { return bit_cast<float>(uint32_t(b.bits) << 16); }
FOVBLUR_HD float to_float(uint8_t v) { return float(v); }
FOVBLUR_HD float to_float(float v) { return v; }

template <class To>
struct Convert;  // Convert<To>::from(accumulated value): rounds to nearest, ties to even

template <>
struct Convert<float> {
  static FOVBLUR_HD float from(float v) { return v; }
};

template <>
struct Convert<Half> {
  static FOVBLUR_HD Half from(float v) {
#ifdef __CUDA_ARCH__
    return {__half_as_ushort(__float2half_rn(v))};
#else
    const uint32_t bits = bit_cast<uint32_t>(v);
    const uint32_t sign = bits & 0x80000000u;
    const uint32_t magnitude = bits ^ sign;
    uint32_t out;
    if (magnitude >= 0x47800000u) {  // 65536 and above, infinities and NaN
      out = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // subnormal in binary16: adding 0.5 aligns and rounds the last bits
      out = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
    } else {
      const uint32_t odd = (magnitude >> 13) & 1;
      out = (magnitude - (uint32_t(112) << 23) + 0xfffu + odd) >> 13;
    }
    return {uint16_t(out | (sign >> 16))};
#endif
  }
};

template <>
struct Convert<BFloat16> {
  static FOVBLUR_HD BFloat16 from(float v) {
    const uint32_t bits = bit_cast<uint32_t>(v);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    return {uint16_t(is_nan ? 0x7fc0u : rounded)};
  }
};

template <>
struct Convert<uint8_t> {
  // Saturates; NaN becomes 0.
  static FOVBLUR_HD uint8_t from(float v) {
    const float clamped = v > 0.0f ? (v < 255.0f ? v : 255.0f) : 0.0f;
    return uint8_t(int(rintf(clamped)));
  }
};

}  // namespace fovblur
