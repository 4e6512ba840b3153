// Blend of Gaussian levels on CUDA: y = sum_k w_k G_k x, where w_k(p) = max(0, 1 - |level(p) - k|).
//
// A block makes one tile of a plane. It filters only the levels that have weight in the tile; the sum stays in registers and is
// stored once.

#include "cuda.h"

#include "../common/async_copy.cuh"
#include "../common/launch.cuh"
#include "../foveated_blur/cuda_general_filter.cuh"

namespace fovblur {
namespace {

__global__ void __launch_bounds__(kGeneralThreads, 2)
    blend_levels(const LevelParams p, const Images out, const int64_t tiles) {
  auto& shared = *reinterpret_cast<GeneralMemory<false>*>(dynamic_shared);
  const int height = int(p.shape[2]), width = int(p.shape[3]);
  const int64_t column_tiles = tiles_along(width, kGeneralColumns), of_plane = tiles_along(height, kGeneralRows) * column_tiles;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t plane = tile / of_plane, within = tile - plane * of_plane;
    const int64_t sample = plane / p.shape[1], channel = plane - sample * p.shape[1];
    const int first_row = int(within / column_tiles) * kGeneralRows;
    const int first_column = int(within % column_tiles) * kGeneralColumns;
    const Plane source(p.images, sample, channel), target(out, sample, channel);

    float level[kGeneralSubRuns][kRun], blended[kGeneralSubRuns][kRun] = {};  // of the thread's outputs
    const float* map = static_cast<const float*>(p.level.data) + sample * p.level.strides[0];
    const int column = first_column + int(threadIdx.x) % kGeneralColumns, run = int(threadIdx.x) / kGeneralColumns * kRun;
#pragma unroll
    for (int sub = 0; sub < kGeneralSubRuns; ++sub)
#pragma unroll
      for (int r = 0; r < kRun; ++r) {
        const int row = first_row + sub * 4 * kRun + run + r;
        const bool inside = row < height && column < width;
        level[sub][r] = inside ? map[row * p.level.strides[1] + column * p.level.strides[2]] : -1.0f;
      }
#pragma unroll 1
    for (int k = 0; k < p.levels; ++k) {
      bool counts = false;
#pragma unroll
      for (int sub = 0; sub < kGeneralSubRuns; ++sub)
#pragma unroll
        for (int r = 0; r < kRun; ++r) counts = counts || fabsf(level[sub][r] - float(k)) < 1.0f;
      if (!__syncthreads_or(counts)) continue;
      const AxisTaps taps = make_axis_taps(float(p.sigma[k]), p.kernel_size[k], false, shared.partial);
      shared.hold(0, taps);
      shared.hold(1, taps);
      float sums[1][kGeneralSubRuns][kRun] = {};
      filter_general_tile<false>(Unprepared{source}, p.border, height, width, first_row, first_column, shared, sums);
#pragma unroll
      for (int sub = 0; sub < kGeneralSubRuns; ++sub)
#pragma unroll
        for (int r = 0; r < kRun; ++r) {
          const float weight = 1.0f - fabsf(level[sub][r] - float(k));
          if (weight > 0.0f) blended[sub][r] += weight * sums[0][sub][r];
        }
    }
    for_each_output<kGeneralThreads>(blended, height, width, first_row, first_column, shared.filtered[0],
                                 [&](int i, int j, float y) { target.store(i, j, y); });
    __syncthreads();
  }
}

}  // namespace

const char* blend_levels_cuda(const LevelParams& p, const Images& out, void* stream) {
  constexpr int64_t kLargestSide = INT32_MAX / 4;
  if (p.shape[2] > kLargestSide || p.shape[3] > kLargestSide)
    return "an image side above 536,870,911 pixels is not supported";
  const int64_t planes = p.shape[0] * p.shape[1];
  const int64_t tiles = planes * tiles_along(p.shape[2], kGeneralRows) * tiles_along(p.shape[3], kGeneralColumns);
  if (tiles == 0) return nullptr;
  constexpr int kBytes = int(sizeof(GeneralMemory<false>));
  const cudaError_t error = cudaFuncSetAttribute(blend_levels, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  return message(error != cudaSuccess ? error
                                      : launch(blend_levels, kGeneralThreads, tiles, kBytes, stream, p, out, tiles));
}

}  // namespace fovblur
