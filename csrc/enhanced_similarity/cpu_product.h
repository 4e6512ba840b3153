// Dot products of a block of recordings, which lie in SIMD lanes, with a tile of images, which are broadcast.
//
// Every dot product is one chain of multiply-adds in the order of the columns, wherever its tile begins and whichever
// thread computes it: equal rows have equal scores.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/cpu_parallel.h"
#include "../common/cpu_rows.h"
#include "../common/cpu_transpose.h"
#include "params.h"

namespace fovblur {
namespace FOVBLUR_VARIANT {

constexpr int kBlock = 64;       // recordings of a block
constexpr int kTile = 48;        // images of a tile
constexpr int kItems = 6;        // images of a step; kItems x kVecs accumulators
constexpr int64_t kDepth = 256;  // columns of a step: a block's part fits the L2 cache, a lane group's the L1
constexpr int kVecs = FOVBLUR_VECTOR_REGISTERS == 32 ? 4 : 2;
template <class T>
constexpr int kGroup = kVecs * kLanes<T>;  // lanes of a step
constexpr int64_t kLine = 64;              // bytes of a cache line

// out[i][lanes] (+)= sum_d panel[d][lanes] * items[i][d] for I images and V vectors of lanes.
template <class T, int V, int I>
void multiply(const T* panel, const T* items, int64_t item_stride, int64_t depth, bool add, T* out) {
  using Vector = Vec<T>;
  constexpr int L = kLanes<T>;
  constexpr int64_t kStep = kLine / sizeof(T);
  Vector sums[I][V] = {};
  auto place = [&](int i, int v) { return reinterpret_cast<Vector*>(out + i * kBlock + v * L); };
  if (add)
#pragma GCC unroll 6
    for (int i = 0; i < I; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[i][v] = *place(i, v);
  auto add_column = [&](int64_t d) __attribute__((always_inline)) {
    Vector q[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) q[v] = *reinterpret_cast<const Vector*>(panel + d * (V * L) + v * L);
#pragma GCC unroll 6
    for (int i = 0; i < I; ++i) {
      const T x = items[i * item_stride + d];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[i][v] += q[v] * x;
    }
  };
  int64_t d = 0;
  for (; d + kStep <= depth; d += kStep) {
    // The rows of the next step lie far apart: no hardware prefetcher follows them.
#pragma GCC unroll 6
    for (int i = 0; i < I; ++i) __builtin_prefetch(items + (I + i) * item_stride + d);
#pragma GCC unroll 2
    for (int64_t s = 0; s < kStep; ++s) add_column(d + s);
  }
  for (; d < depth; ++d) add_column(d);
#pragma GCC unroll 6
  for (int i = 0; i < I; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) *place(i, v) = sums[i][v];
}

template <class T, int V>
void multiply_tile(const T* panel, const T* items, int64_t item_stride, int64_t count, int64_t depth, bool add, T* out) {
  int64_t i = 0;
  for (; i + kItems <= count; i += kItems)
    multiply<T, V, kItems>(panel, items + i * item_stride, item_stride, depth, add, out + i * kBlock);
  for (; i < count; ++i) multiply<T, V, 1>(panel, items + i * item_stride, item_stride, depth, add, out + i * kBlock);
}

template <class T>
void multiply_tile(int vectors, const T* panel, const T* items, int64_t item_stride, int64_t count, int64_t depth, bool add,
                   T* out) {
  switch (vectors) {
    case 1:
      return multiply_tile<T, 1>(panel, items, item_stride, count, depth, add, out);
#if FOVBLUR_VECTOR_REGISTERS == 32
    case 2:
      return multiply_tile<T, 2>(panel, items, item_stride, count, depth, add, out);
    case 3:
      return multiply_tile<T, 3>(panel, items, item_stride, count, depth, add, out);
#endif
    default:
      return multiply_tile<T, kVecs>(panel, items, item_stride, count, depth, add, out);
  }
}

// Up to kBlock recordings, transposed: for every group of lanes [width][lanes of the group], the last group as wide as it
// has vectors. Lanes without a recording are 0.
template <class T>
class Panel {
 public:
  Panel(T* data, int64_t width, int64_t count) : data_(data), width_(width), count_(count) {}

  static int64_t size(int64_t width) { return width * kBlock; }

  static int64_t packing_space(int64_t width) { return kLanes<T> * row_stride(width); }

  // Packs recordings [first, first + count) through memory for packing_space(width) elements.
  void pack(DType dtype, const Embeddings& source, int64_t first, T* rows) const {
    constexpr int64_t L = kLanes<T>;
    const int64_t stride = row_stride(width_);
    for (int64_t q = 0; q < count_; q += L) {
      for (int64_t k = 0; k < L; ++k) {
        T* row = rows + k * stride;
        if (q + k < count_)
          load_row(dtype, source.data, (first + q + k) * source.row_stride, source.column_stride, width_, row);
        else
          std::fill_n(row, width_, T(0));
      }
      const int64_t group = q / kGroup<T>, lanes = vectors(group) * L;
      T* target = data_ + group * kGroup<T> * width_ + q % kGroup<T>;
      int64_t d = 0;
      for (; d + L <= width_; d += L) transpose_block(rows + d, stride, target + d * lanes, lanes);
      for (; d < width_; ++d)
        for (int64_t k = 0; k < L; ++k) target[d * lanes + k] = rows[k * stride + d];
    }
  }

  // out[i][q] for i in [0, count): products with rows [first, first + count) of the gallery, through `packed` where
  // those are not of type T or not contiguous.
  void products(DType dtype, const Embeddings& gallery, int64_t first, int64_t count, Scratch<T>& packed, T* out) const {
    if (width_ == 0) std::fill_n(out, count * kBlock, T(0));
    const bool direct = gallery.column_stride == 1 && size_of(dtype) == int64_t(sizeof(T));
    for (int64_t begin = 0; begin < width_; begin += kDepth) {
      const int64_t depth = std::min(kDepth, width_ - begin);
      const T* items = static_cast<const T*>(gallery.data) + (direct ? first * gallery.row_stride + begin : 0);
      int64_t stride = gallery.row_stride;
      if (!direct) {
        T* rows = packed.get(kTile * kDepth);
        for (int64_t i = 0; i < count; ++i)
          load_row(dtype, gallery.data, (first + i) * gallery.row_stride + begin * gallery.column_stride, gallery.column_stride,
                   depth, rows + i * kDepth);
        items = rows;
        stride = kDepth;
      }
      for (int64_t group = 0; group * kGroup<T> < count_; ++group) {
        const int wide = vectors(group);
        const T* panel = data_ + group * kGroup<T> * width_ + begin * wide * kLanes<T>;
        multiply_tile(wide, panel, items, stride, count, depth, begin > 0, out + group * kGroup<T>);
      }
    }
  }

 private:
  // Not a power of two, so that a column of the rows is in different sets of the cache.
  static int64_t row_stride(int64_t width) { return round_up(width, kLanes<T>) + kLanes<T>; }

  int vectors(int64_t group) const {
    const int64_t lanes = std::min<int64_t>(kGroup<T>, count_ - group * kGroup<T>);
    return int((lanes + kLanes<T> - 1) / kLanes<T>);
  }

  T* data_;
  int64_t width_, count_;
};

}  // namespace FOVBLUR_VARIANT
}  // namespace fovblur
