// A tile of one plane filtered with any border and with a kernel of its own along each axis, direct form: exact in float32, any
// radius. As in cuda_filter.cuh, a block walks down the rows that its outputs reach, kChunk at a time.
#pragma once

#include "cuda_filter.cuh"
#include "cuda_pixels.cuh"

namespace fovblur {

constexpr int kGeneralThreads = 256;
constexpr int kGeneralSubRuns = 2;
using GeneralShape = Shape<kGeneralThreads>;
constexpr int kGeneralRows = 4 * kRun * kGeneralSubRuns, kGeneralColumns = GeneralShape::kColumns;  // of a tile
FOVBLUR_HD int64_t tiles_along(int64_t n, int tile) { return (n + tile - 1) / tile; }

// The kernel along one axis: a Gaussian, or one of OpenCV's tables, which has no slope.
struct AxisTaps : Taps {
  bool is_table;
  __device__ float tap(int offset) const {
    if (radius == 0) return 1.0f;
    return is_table ? table_tap<float>(radius, offset) : Taps::tap(offset);
  }
  __device__ bool has_slope() const { return radius > 0 && !is_table; }
  __device__ float slope(int offset) const { return has_slope() ? Taps::slope(offset) : 0.0f; }
};

// Returns the taps of a Gaussian, or of its table; all threads of the block take part.
__device__ inline AxisTaps make_axis_taps(float sigma, int kernel_size, bool tables, float (&partial)[2][kGeneralThreads]) {
  const Taps gaussian = make_taps<kGeneralThreads>(sigma, kernel_size, partial);
  return {gaussian, tables && gaussian.radius <= kMostTableRadius};
}

// With kSlopes the derivatives in sigma are filtered beside the blur.
template <bool kSlopes>
struct GeneralMemory {
  static constexpr int kKernels = kSlopes ? 2 : 1;  // the taps, and their slopes
  alignas(16) float staged[kChunk * GeneralShape::kStagedStride];
  alignas(16) float filtered[kKernels][kChunk * GeneralShape::kFilteredStride];
  alignas(16) float weights[2][kKernels][kTapsHeld];  // of an axis: weights[axis][k][kMargin + radius + offset]
  float partial[2][kGeneralThreads];
  int rows[kChunk];  // of the plane, that are staged; -1: zeros
  AxisTaps taps[2];  // along y and x

  // Keeps the taps of an axis; all threads of the block take part, and a barrier follows.
  __device__ void hold(int axis, const AxisTaps& its_taps) {
    if (threadIdx.x == 0) taps[axis] = its_taps;
    for (int k = int(threadIdx.x); k < kTapsHeld; k += kGeneralThreads) {
      const int offset = k - kMargin - its_taps.radius;
      const bool inside = its_taps.reaches(offset);
      weights[axis][0][k] = inside ? its_taps.tap(offset) : 0.0f;
      if (kSlopes) weights[axis][kKernels - 1][k] = inside ? its_taps.slope(offset) : 0.0f;
    }
  }
  __device__ bool holds_all() const { return 2 * (max(taps[0].radius, taps[1].radius) + kMargin) < kTapsHeld; }
};

constexpr int kStagedRows = kGeneralThreads / GeneralShape::kStagedColumns;  // that the threads of a block stage at a time
static_assert(kGeneralThreads % GeneralShape::kStagedColumns == 0, "a thread stages one column");

template <class Element>
__device__ void stage_column(const Plane& source, int column, const int* rows, float* staged) {
  const Element* pixels = static_cast<const Element*>(source.images.data) + source.at(0, column);
  const int64_t stride = source.images.strides[2];
#pragma unroll 8
  for (int s = 0; s < kChunk; s += kStagedRows)
    staged[s * GeneralShape::kStagedStride] = rows[s] < 0 ? 0.0f : to_float(pixels[rows[s] * stride]);
}

// Stages the thread's part of a column of the plane, or zeros for column -1; returns whether all of it is finite.
template <class Input>
__device__ bool stage_column(const Input& input, int column, const int* rows, float* staged) {
  if (column < 0) {
    for (int s = 0; s < kChunk; s += kStagedRows) staged[s * GeneralShape::kStagedStride] = 0.0f;
    return true;
  }
  switch (input.source.images.dtype) {
    case DType::uint8:
      stage_column<uint8_t>(input.source, column, rows, staged);
      break;
    case DType::float16:
      stage_column<Half>(input.source, column, rows, staged);
      break;
    case DType::bfloat16:
      stage_column<BFloat16>(input.source, column, rows, staged);
      break;
    default:
      stage_column<float>(input.source, column, rows, staged);
  }
  bool finite = true;
#pragma unroll 1
  for (int s = 0; s < kChunk; s += kStagedRows) {
    float& x = staged[s * GeneralShape::kStagedStride];
    if constexpr (Input::kPrepares)
      if (rows[s] >= 0) x = input.prepare(rows[s], column, x);
    finite = finite && isfinite(x);
  }
  return finite;
}

// The image as it is.
struct Unprepared {
  static constexpr bool kPrepares = false;
  Plane source;
};

// Filters the tile that starts at (first_row, first_column) of a plane: sums[0] gets the thread's blurred pixels, and with
// kSlopes sums[1] and sums[2] the derivatives in sigma along y and x; kGeneralSubRuns runs of eight rows, 32 rows apart, of one
// column. `input` gives the plane as input.source, and may prepare its pixels. The taps are held before; starts and ends
// without a barrier, but has one before it overwrites what it filters.
template <bool kSlopes, class Input>
__device__ void filter_general_tile(const Input& input, Border border, int height, int width, int first_row, int first_column,
                                GeneralMemory<kSlopes>& shared, float (&sums)[kSlopes ? 3 : 1][kGeneralSubRuns][kRun]) {
  using S = GeneralShape;
  constexpr int kKernels = GeneralMemory<kSlopes>::kKernels;
  const int run_row = int(threadIdx.x) / 4 % kChunk;
  const int run_column = (int(threadIdx.x) % 4 + int(threadIdx.x) / (4 * kChunk) * 4) * kRun;
  const int column = int(threadIdx.x) % S::kColumns, run = int(threadIdx.x) / S::kColumns * kRun;
  const int staged_column = int(threadIdx.x) % S::kStagedColumns, staged_row = int(threadIdx.x) / S::kStagedColumns;

  __syncthreads();  // the taps are held
  const int radius_y = shared.taps[0].radius, radius_x = shared.taps[1].radius;
  const bool held = shared.holds_all();
  const int rows_end = min(first_row + kGeneralRows, height) + radius_y;
#pragma unroll 1
  for (int chunk = first_row - radius_y; chunk < rows_end; chunk += kChunk) {
    float along[kKernels][kRun] = {};
    bool finite = true;
    if (int(threadIdx.x) < kChunk) {
      const int row = chunk + int(threadIdx.x);
      shared.rows[threadIdx.x] = row < rows_end ? border_index(border, row, height) : -1;
    }
#pragma unroll 1
    for (int segment = -radius_x; segment <= radius_x; segment += kSegment) {
      const int count = min(kSegment, radius_x - segment + 1);
      __syncthreads();  // the readers of the previous chunk or segment are done
      const bool is_read = staged_column < S::kColumns + count - 1;
      const int its_column = is_read ? border_index(border, first_column + segment + staged_column, width) : -1;
      finite = stage_column(input, its_column, shared.rows + staged_row,
                            shared.staged + staged_row * S::kStagedStride + staged_column) && finite;
      finite = !__syncthreads_or(!finite);
      const float* x = shared.staged + run_row * S::kStagedStride + run_column;
      if (chunk + run_row >= rows_end) continue;
      if (finite && held) {
#pragma unroll
        for (int kernel = 0; kernel < kKernels; ++kernel)
          filter_run(shared.weights[1][kernel] + kMargin + radius_x + segment, count, x, along[kernel]);
      } else {
#pragma unroll 1
        for (int t = 0; t < count; ++t) {
          const float tap = shared.taps[1].tap(segment + t);
          const float slope = kSlopes ? shared.taps[1].slope(segment + t) : 0.0f;
#pragma unroll
          for (int i = 0; i < kRun; ++i) {
            along[0][i] += tap * x[t + i];
            if (kSlopes) along[kKernels - 1][i] += slope * x[t + i];
          }
        }
      }
    }
#pragma unroll
    for (int kernel = 0; kernel < kKernels; ++kernel) {
      float4* filtered = reinterpret_cast<float4*>(shared.filtered[kernel] + run_row * S::kFilteredStride + run_column);
      const float(&y)[kRun] = along[kernel];
      filtered[0] = make_float4(y[0], y[1], y[2], y[3]);
      filtered[1] = make_float4(y[4], y[5], y[6], y[7]);
    }
    __syncthreads();
#pragma unroll
    for (int sub = 0; sub < kGeneralSubRuns; ++sub) {
#pragma unroll 1
      for (int s = 0; s < kChunk; s += kRun) {
        const int distance = chunk + s - (first_row + sub * 4 * kRun + run);
        if (distance + kRun <= -radius_y || distance - kRun >= radius_y) continue;
        const float* rows = shared.filtered[0] + s * S::kFilteredStride + column;
        const float* slope_rows = shared.filtered[kKernels - 1] + s * S::kFilteredStride + column;
        const int first_weight = kMargin + radius_y + distance - (kRun - 1);
        if (finite && held) {
          add_rows<S::kFilteredStride>(shared.weights[0][0] + first_weight, rows, sums[0][sub]);
          if constexpr (kSlopes) {
            add_rows<S::kFilteredStride>(shared.weights[0][1] + first_weight, rows, sums[1][sub]);
            add_rows<S::kFilteredStride>(shared.weights[0][0] + first_weight, slope_rows, sums[2][sub]);
          }
        } else {
          add_rows_carefully<S::kFilteredStride, false>(shared.taps[0], distance, rows, sums[0][sub]);
          if constexpr (kSlopes) {
            add_rows_carefully<S::kFilteredStride, true>(shared.taps[0], distance, rows, sums[1][sub]);
            add_rows_carefully<S::kFilteredStride, false>(shared.taps[0], distance, slope_rows, sums[2][sub]);
          }
        }
      }
    }
  }
}

}  // namespace fovblur
