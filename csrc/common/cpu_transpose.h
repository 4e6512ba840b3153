// Transposing matrices, in square blocks as wide as a vector.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu_rows.h"

namespace fovblur {
namespace FOVBLUR_VARIANT {

template <class V, size_t... I>
inline V interleave_low(V a, V b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (I % 2 ? sizeof...(I) + I / 2 : I / 2)...);
}
template <class V, size_t... I>
inline V interleave_high(V a, V b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (sizeof...(I) / 2 + (I % 2 ? sizeof...(I) + I / 2 : I / 2))...);
}

// Transpose a square block of lanes x lanes elements: log2(lanes) rounds of perfect shuffles.
template <class T>
inline void transpose_block(const T* in, int64_t in_stride, T* out, int64_t out_stride) {
  constexpr int L = kLanes<T>;
  constexpr auto lanes = std::make_index_sequence<L>();
  Vec<T> a[L], b[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) a[i] = *reinterpret_cast<const Vec<T>*>(in + i * in_stride);
#pragma GCC unroll 4
  for (int round = 1; round < L; round *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < L / 2; ++i) {
      b[2 * i] = interleave_low(a[i], a[i + L / 2], lanes);
      b[2 * i + 1] = interleave_high(a[i], a[i + L / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) a[i] = b[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) *reinterpret_cast<Vec<T>*>(out + i * out_stride) = a[i];
}

}  // namespace FOVBLUR_VARIANT
}  // namespace fovblur
