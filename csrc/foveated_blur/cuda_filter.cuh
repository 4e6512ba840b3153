// A tile of one plane filtered in both directions, direct form: exact in float32, any radius.
//
// A block computes 32 kSubRuns x kThreads / 4 outputs. It walks down the rows that the outputs reach, kChunk at a time: a
// chunk is staged in shared memory, filtered along its rows (eight neighbours per thread), and added to the vertical sums,
// which stay in registers until the tile is done. Shared memory does not grow with the radius, and only the result is
// written to device memory.
#pragma once

#include "blur_math.h"
#include "cuda_taps.cuh"

namespace fovblur {

constexpr int kChunk = 32;       // rows filtered along x at a time
constexpr int kSegment = 64;     // taps of the horizontal filter staged at a time
constexpr int kRun = 8;          // neighbouring outputs of a thread, in either direction
constexpr int kTapsHeld = 1088;  // taps of a radius up to 500 stay in shared memory; beyond that they are recomputed
constexpr int kMargin = 32;      // zeros around them, so that blocks of taps may overhang the band

// Shapes that follow from the threads of a block.
template <int kThreads>
struct Shape {
  static constexpr int kColumns = kThreads / 4;  // of a tile
  static constexpr int kStagedColumns = kColumns + kSegment;
  static constexpr int kStagedStride = kStagedColumns + 4;  // 16-byte loads of eight lanes meet 32 different banks
  static constexpr int kFilteredStride = kColumns + 4;
};

// kKernels is 1, or 2 if the derivative is a second filter.
template <int kThreads, int kKernels>
struct FilterMemory {
  alignas(16) float staged[kChunk * Shape<kThreads>::kStagedStride];
  alignas(16) float filtered[kKernels][kChunk * Shape<kThreads>::kFilteredStride];
  alignas(16) float weights[kKernels][kTapsHeld];  // weights[k][kMargin + radius + offset]
  float partial[2][kThreads];
};

// Writes taps, and with kKernels 2 their slopes, to shared memory, with zero margins.
template <int kThreads, int kKernels>
__device__ void hold_taps(const Taps& taps, FilterMemory<kThreads, kKernels>& shared) {
  for (int k = int(threadIdx.x); k < kTapsHeld; k += kThreads) {
    const int offset = k - kMargin - taps.radius;
    const bool inside = taps.radius == 0 ? offset == 0 : taps.reaches(offset);
    shared.weights[0][k] = !inside ? 0.0f : (taps.radius == 0 ? 1.0f : taps.tap(offset));
    if (kKernels == 2) shared.weights[kKernels - 1][k] = inside && taps.radius > 0 ? taps.slope(offset) : 0.0f;
  }
}

// Adds kRun rows to the sums of a run of rows. `weights` starts with that of the first row for the run's last output. The
// zero margins are multiplied too, which is right only if every filtered value is finite.
template <int kStride>
__device__ void add_rows(const float* weights, const float* filtered, float (&sums)[kRun]) {
  float w[2 * kRun - 1];
#pragma unroll
  for (int k = 0; k < 2 * kRun - 1; ++k) w[k] = weights[k];
#pragma unroll
  for (int s = 0; s < kRun; ++s) {
    const float x = filtered[s * kStride];
#pragma unroll
    for (int i = 0; i < kRun; ++i) sums[i] += w[s - i + kRun - 1] * x;
  }
}

// The same for any values and any radius: the first row lies `distance` below the run's first output.
template <int kStride, bool kSlope, class SomeTaps>
__device__ void add_rows_carefully(const SomeTaps& taps, int distance, const float* filtered, float (&sums)[kRun]) {
#pragma unroll 1
  for (int s = 0; s < kRun; ++s) {
    const float x = filtered[s * kStride];
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const int offset = distance + s - i;
      if (taps.reaches(offset)) sums[i] += (kSlope ? taps.slope(offset) : taps.tap(offset)) * x;
    }
  }
}

// A run of eight neighbours filtered along a staged row with `count` weights, rounded up to four.
__device__ inline void filter_run(const float* weights, int count, const float* x, float (&sums)[kRun]) {
  float4 low = *reinterpret_cast<const float4*>(x), high = *reinterpret_cast<const float4*>(x + 4);
#pragma unroll 4
  for (int t = 0; t < count; t += 4) {
    const float4 next = *reinterpret_cast<const float4*>(x + t + kRun);
    const float window[12] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w, next.x, next.y, next.z, next.w};
#pragma unroll
    for (int u = 0; u < 4; ++u)
#pragma unroll
      for (int i = 0; i < kRun; ++i) sums[i] += weights[t + u] * window[i + u];
    low = high;
    high = next;
  }
}

// Filters the tile that starts at (first_row, first_column). load(i, j) gives the pixel at (i, j) of the plane; `blurred`
// and, with kKernels 2, `slope` (the derivative in sigma) get the thread's sums: kSubRuns runs of eight rows, 32 rows
// apart, of one column. hold_taps comes before; ends without a barrier.
template <int kThreads, int kSubRuns, int kKernels, class Load>
__device__ void filter_tile(const Load& load, const Taps& taps, int height, int width, int first_row, int first_column,
                            FilterMemory<kThreads, kKernels>& shared, float (&blurred)[kSubRuns][kRun],
                            float (&slope)[kKernels == 2 ? kSubRuns : 1][kRun]) {
  using S = Shape<kThreads>;
  const int radius = taps.radius;
  const bool held = 2 * (radius + kMargin) < kTapsHeld;
  // Horizontal: eight lanes of a warp cover two rows and four runs.
  const int run_row = int(threadIdx.x) / 4 % kChunk;
  const int run_column = (int(threadIdx.x) % 4 + int(threadIdx.x) / (4 * kChunk) * 4) * kRun;
  const int column = int(threadIdx.x) % S::kColumns, run = int(threadIdx.x) / S::kColumns * kRun;

  const int rows_end = min(first_row + 4 * kRun * kSubRuns, height) + radius;
  for (int chunk = first_row - radius; chunk < rows_end; chunk += kChunk) {
    float along[kKernels][kRun] = {};
    bool finite = true;
    for (int segment = -radius; segment <= radius; segment += kSegment) {
      __syncthreads();  // the readers of the previous chunk or segment are done
      for (int place = int(threadIdx.x); place < kChunk * S::kStagedColumns; place += kThreads) {
        const int s = place / S::kStagedColumns, k = place % S::kStagedColumns;
        const float x = load(reflect(chunk + s, height), reflect(first_column + segment + k, width));
        shared.staged[s * S::kStagedStride + k] = x;
        finite = finite && isfinite(x);
      }
      finite = !__syncthreads_or(!finite);
      const float* x = shared.staged + run_row * S::kStagedStride + run_column;
      const int count = min(kSegment, radius - segment + 1);
      if (finite && held) {
#pragma unroll
        for (int kernel = 0; kernel < kKernels; ++kernel)
          filter_run(shared.weights[kernel] + kMargin + radius + segment, count, x, along[kernel]);
      } else {
        for (int t = 0; t < count; ++t) {
          const float tap = radius == 0 ? 1.0f : taps.tap(segment + t);
          const float its_slope = kKernels == 2 && radius > 0 ? taps.slope(segment + t) : 0.0f;
#pragma unroll
          for (int i = 0; i < kRun; ++i) {
            along[0][i] += tap * x[t + i];
            if (kKernels == 2) along[kKernels - 1][i] += its_slope * x[t + i];
          }
        }
      }
    }
#pragma unroll
    for (int kernel = 0; kernel < kKernels; ++kernel) {
      float4* filtered = reinterpret_cast<float4*>(shared.filtered[kernel] + run_row * S::kFilteredStride + run_column);
      const float(&sums)[kRun] = along[kernel];
      filtered[0] = make_float4(sums[0], sums[1], sums[2], sums[3]);
      filtered[1] = make_float4(sums[4], sums[5], sums[6], sums[7]);
    }
    __syncthreads();
#pragma unroll
    for (int sub = 0; sub < kSubRuns; ++sub) {
      for (int s = 0; s < kChunk; s += kRun) {
        const int distance = chunk + s - (first_row + sub * 4 * kRun + run);
        if (distance + kRun <= -radius || distance - kRun >= radius) continue;
        const float* rows = shared.filtered[0] + s * S::kFilteredStride + column;
        const float* slope_rows = shared.filtered[kKernels - 1] + s * S::kFilteredStride + column;
        const int first_weight = kMargin + radius + distance - (kRun - 1);
        if (finite && held) {
          add_rows<S::kFilteredStride>(shared.weights[0] + first_weight, rows, blurred[sub]);
          if (kKernels == 2) {
            add_rows<S::kFilteredStride>(shared.weights[0] + first_weight, slope_rows, slope[sub]);
            add_rows<S::kFilteredStride>(shared.weights[kKernels - 1] + first_weight, rows, slope[sub]);
          }
        } else {
          add_rows_carefully<S::kFilteredStride, false>(taps, distance, rows, blurred[sub]);
          if (kKernels == 2) {
            add_rows_carefully<S::kFilteredStride, false>(taps, distance, slope_rows, slope[sub]);
            add_rows_carefully<S::kFilteredStride, true>(taps, distance, rows, slope[sub]);
          }
        }
      }
    }
  }
}

// Calls each(i, j, sum) for every pixel of the tile inside the image. The sums pass through shared memory, so that the code
// after the blur, with every falloff and type, is compiled once.
template <int kThreads, int kSubRuns, class Each>
__device__ void for_each_output(const float (&sums)[kSubRuns][kRun], int height, int width, int first_row, int first_column,
                                float* memory, const Each& each) {
  using S = Shape<kThreads>;
  const int column = int(threadIdx.x) % S::kColumns, group = int(threadIdx.x) / S::kColumns;
#pragma unroll
  for (int sub = 0; sub < kSubRuns; ++sub) {
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRun; ++r) memory[(group * kRun + r) * S::kFilteredStride + column] = sums[sub][r];
    __syncthreads();
#pragma unroll 1
    for (int r = group; r < 4 * kRun; r += kThreads / S::kColumns) {
      const int i = first_row + sub * 4 * kRun + r, j = first_column + column;
      if (i < height && j < width) each(i, j, memory[r * S::kFilteredStride + column]);
    }
  }
}

}  // namespace fovblur
