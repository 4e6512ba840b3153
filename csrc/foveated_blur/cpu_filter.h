// The arithmetic of the CPU blur: filtering down the columns of a matrix, which are SIMD lanes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/cpu_rows.h"
#include "../common/cpu_transpose.h"

namespace fovblur {
namespace FOVBLUR_VARIANT {

// Accumulators of a block, kRows x kVecs vectors: as many as the register file holds.
constexpr int kRows = FOVBLUR_VECTOR_REGISTERS == 32 ? 8 : 4;
constexpr int kVecs = 3;

// out[i][lanes] (+)= sum_t taps[t] * rows[i + t][lanes] for i in [0, R): R x V accumulators, every row loaded once.
template <class T, int R, int V>
void filter_block(const T* const* rows, int64_t lane, const T* taps, int64_t radius, bool add, T* out, int64_t out_stride) {
  using Vector = Vec<T>;
  constexpr int L = kLanes<T>;
  const int64_t last_tap = 2 * radius;
  Vector sums[R][V] = {};
  // Row s feeds output i by tap s - i. Only the first and last R - 1 rows have outputs they do not reach; those are
  // skipped, not multiplied by zero, so that a NaN stays inside the blur's support.
  auto add_row = [&](int64_t s, bool partial) __attribute__((always_inline)) {
    Vector x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) x[v] = *reinterpret_cast<const Vector*>(rows[s] + lane + v * L);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const int64_t t = s - i;
      if (partial && (t < 0 || t > last_tap)) continue;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[i][v] += x[v] * taps[t];
    }
  };
  const int64_t end = last_tap + R;
  const int64_t head = std::min<int64_t>(R - 1, end), tail = std::max<int64_t>(head, last_tap + 1);
  int64_t s = 0;
  for (; s < head; ++s) add_row(s, true);
  for (; s < tail; ++s) add_row(s, false);
  for (; s < end; ++s) add_row(s, true);
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Vector* target = reinterpret_cast<Vector*>(out + i * out_stride + v * L);
      *target = add ? *target + sums[i][v] : sums[i][v];
    }
}

template <class T, int V>
void filter_columns(const T* const* rows, int64_t count, int64_t lane, const T* taps, int64_t radius, bool add, T* out) {
  constexpr int64_t stride = V * kLanes<T>;
  int64_t i = 0;
  for (; i + kRows <= count; i += kRows)
    filter_block<T, kRows, V>(rows + i, lane, taps, radius, add, out + i * stride, stride);
  for (; i < count; ++i) filter_block<T, 1, V>(rows + i, lane, taps, radius, add, out + i * stride, stride);
}

// out[i][0 .. vectors * lanes) for i in [0, count), filtered down `rows` at the lanes from `lane` on; out is packed.
// With `add`, the result is added to out.
template <class T>
void filter_columns(int vectors, const T* const* rows, int64_t count, int64_t lane, const T* taps, int64_t radius, bool add,
                    T* out) {
  switch (vectors) {
    case 1:
      return filter_columns<T, 1>(rows, count, lane, taps, radius, add, out);
    case 2:
      return filter_columns<T, 2>(rows, count, lane, taps, radius, add, out);
    default:
      return filter_columns<T, kVecs>(rows, count, lane, taps, radius, add, out);
  }
}

}  // namespace FOVBLUR_VARIANT
}  // namespace fovblur
