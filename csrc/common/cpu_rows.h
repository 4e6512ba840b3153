// Vectors of the CPU kernels, and rows of any element type and stride converted to and from the type they compute in.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fovblur {
namespace FOVBLUR_VARIANT {

// Vector registers of the processor: AVX-512 and NEON have 32, SSE and AVX 16.
#if FOVBLUR_VECTOR_BYTES == 64 || defined(__aarch64__)
#define FOVBLUR_VECTOR_REGISTERS 32
#else
#define FOVBLUR_VECTOR_REGISTERS 16
#endif

// Vectors as wide as the registers of this variant.
template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(FOVBLUR_VECTOR_BYTES), aligned(alignof(T)), may_alias));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int kLanes = FOVBLUR_VECTOR_BYTES / sizeof(T);

template <class T, class Element>
inline void load_elements(const Element* source, int64_t stride, int64_t count, T* row) {
  if (stride == 1)  // a loop of its own, which vectorises
    for (int64_t j = 0; j < count; ++j) row[j] = T(to_float(source[j]));
  else
    for (int64_t j = 0; j < count; ++j) row[j] = T(to_float(source[j * stride]));
}

template <class T>
void load_row(DType dtype, const void* base, int64_t offset, int64_t stride, int64_t count, T* row) {
  switch (dtype) {
    case DType::uint8:
      return load_elements(static_cast<const uint8_t*>(base) + offset, stride, count, row);
    case DType::float16:
      return load_elements(static_cast<const Half*>(base) + offset, stride, count, row);
    case DType::bfloat16:
      return load_elements(static_cast<const BFloat16*>(base) + offset, stride, count, row);
    case DType::float32:
      return load_elements(static_cast<const float*>(base) + offset, stride, count, row);
    case DType::float64: {
      const double* source = static_cast<const double*>(base) + offset;
      for (int64_t j = 0; j < count; ++j) row[j] = T(source[j * stride]);
      return;
    }
  }
}

template <class T, class Element>
inline void store_elements(const T* row, int64_t count, Element* target, int64_t stride) {
  if (stride == 1)
    for (int64_t j = 0; j < count; ++j) target[j] = Convert<Element>::from(float(row[j]));
  else
    for (int64_t j = 0; j < count; ++j) target[j * stride] = Convert<Element>::from(float(row[j]));
}

template <class T>
void store_row(DType dtype, const T* row, int64_t count, void* base, int64_t offset, int64_t stride) {
  switch (dtype) {
    case DType::uint8:
      return store_elements(row, count, static_cast<uint8_t*>(base) + offset, stride);
    case DType::float16:
      return store_elements(row, count, static_cast<Half*>(base) + offset, stride);
    case DType::bfloat16:
      return store_elements(row, count, static_cast<BFloat16*>(base) + offset, stride);
    case DType::float32:
      return store_elements(row, count, static_cast<float*>(base) + offset, stride);
    case DType::float64: {
      double* target = static_cast<double*>(base) + offset;
      for (int64_t j = 0; j < count; ++j) target[j * stride] = double(row[j]);
      return;
    }
  }
}

}  // namespace FOVBLUR_VARIANT
}  // namespace fovblur
