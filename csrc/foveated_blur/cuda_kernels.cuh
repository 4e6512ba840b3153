// The kernels of the blur and of its gradients, in each form.
#pragma once

#include <type_traits>

#include "cuda_filter.cuh"
#include "cuda_pixels.cuh"
#include "cuda_strips.cuh"
#include "cuda_streamed.cuh"

namespace fovblur {

// ---- tiles ----

// One tile of the direct form; `pass` is Forward or Adjoint.
template <int kThreads, int kSubRuns, class Pass>
__device__ void direct_tile(const Pass& pass, const Taps& taps, int height, int width, int first_row, int first_column,
                            FilterMemory<kThreads, 1>& shared) {
  float blurred[kSubRuns][kRun] = {}, unused[1][kRun];
  auto load = [&](int i, int j) { return pass.prepare(i, j, height, width, pass.weight.at(i, j), pass.source.load(i, j)); };
  filter_tile<kThreads, kSubRuns, 1>(load, taps, height, width, first_row, first_column, shared, blurred, unused);
  for_each_output<kThreads>(blurred, height, width, first_row, first_column, shared.filtered[0], [&](int i, int j, float y) {
    pass.target.store(i, j, pass.finish(i, j, height, width, pass.weight.at(i, j), pass.source.load(i, j), y));
  });
}

constexpr int kFallbackSubRuns = 2;

template <int kThreads, int kFilters = 1>
__device__ FilterMemory<kThreads, kFilters>& filter_memory() {
  return *reinterpret_cast<FilterMemory<kThreads, kFilters>*>(dynamic_shared);
}

// Filters a region directly, tile by tile: if shared memory cannot hold the rows of a radius, or products cannot be used.
template <int kThreads, class Pass>
__device__ void direct_tiles(const Pass& pass, const Taps& taps, const Region& region, FilterMemory<kThreads, 1>& shared) {
  hold_taps(taps, shared);
  for (int row = region.first_row; row < region.end_row; row += 4 * kRun * kFallbackSubRuns)
    for (int column = region.first_column; column < region.end_column; column += Shape<kThreads>::kColumns) {
      direct_tile<kThreads, kFallbackSubRuns>(pass, taps, region.height, region.width, row, column, shared);
      __syncthreads();
    }
}

template <int kThreads, class Pass>
__device__ void direct_region(const Pass& pass, const Taps& taps, const Region& region, int shared_floats) {
  const Walk<kThreads, 1> walk(region, taps.radius, shared_floats);
  if (walk.columns == 0) return direct_tiles(pass, taps, region, filter_memory<kThreads>());
  walk.hold(taps);
  Stream(pass, walk, region).run(StoredOutput(pass, region));
}

template <int kThreads, int kSubRuns>
__device__ void parameter_sums_of_region(const ParameterSums& sums, const Taps& taps, const Region& region, float& of_sigma,
                                         float& of_gain, FilterMemory<kThreads, 2>& shared) {
  hold_taps(taps, shared);
  for (int row = region.first_row; row < region.end_row; row += 4 * kRun * kSubRuns)
    for (int column = region.first_column; column < region.end_column; column += Shape<kThreads>::kColumns) {
      float blurred[kSubRuns][kRun] = {}, slope[kSubRuns][kRun] = {};
      filter_tile<kThreads, kSubRuns, 2>([&](int i, int j) { return sums.source.load(i, j); }, taps, region.height, region.width,
                                         row, column, shared, blurred, slope);
      auto each_output = [&](const float(&filtered)[kSubRuns][kRun], const auto& each) {
        for_each_output<kThreads>(filtered, region.height, region.width, row, column, shared.filtered[0], each);
      };
      each_output(slope, [&](int i, int j, float y) {
        of_sigma += sums.grad.load(i, j) * (1.0f - sums.weight.at(i, j)) * y;
      });
      each_output(blurred, [&](int i, int j, float y) {
        of_gain += sums.grad.load(i, j) * sums.weight.acuity(i, j) * (sums.source.load(i, j) - y);
      });
      __syncthreads();
    }
}

// ---- kernels; `Destination` is Images for the blur and BlurGradients for the gradient of the images ----

template <class Destination>
struct PassOf;
template <>
struct PassOf<Images> {
  using Type = Forward;
};
template <>
struct PassOf<BlurGradients> {
  using Type = Adjoint;
};

// The part of the plane that a tile is.
__device__ inline Region region_of(const BlurParams& p, const Tiling& tiling, int row, int column) {
  const int height = int(p.shape[2]), width = int(p.shape[3]);
  return {height, width, row, min(row + tiling.tile_rows, height), column, min(column + tiling.tile_columns, width)};
}

__device__ inline Region region_of(const BlurParams& p, const Strip& strip) {
  const int height = int(p.shape[2]), width = int(p.shape[3]);
  return {height,
          width,
          kTile * strip.first_row,
          min(kTile * strip.end_row, height),
          kTile * strip.first_column,
          min(kTile * (strip.first_column + strip.columns), width)};
}

__device__ inline const Images& source_of(const BlurParams& p, const Images&) { return p.images; }
__device__ inline const Images& source_of(const BlurParams&, const BlurGradients& gradients) { return gradients.grad; }
__device__ inline const Images& target_of(const Images& out) { return out; }
__device__ inline const Images& target_of(const BlurGradients& gradients) { return gradients.grad_images; }

constexpr int kSmallThreads = 128, kDirectThreads = 256;

template <int kThreads, class Destination>
__global__ void __launch_bounds__(kThreads, 512 / kThreads)
    blur_direct(const BlurParams p, const Destination destination, const Tiling tiling, const int shared_floats) {
  __shared__ float partial[2][kThreads];
  tiling.for_own_tiles([&](int64_t sample, int64_t channel, int row, int column, int64_t) {
    const Taps taps = make_taps<kThreads>(p, sample, partial);
    const typename PassOf<Destination>::Type pass(p, destination, sample, channel, taps.radius == 0);
    direct_region<kThreads>(pass, taps, region_of(p, tiling, row, column), shared_floats);
  });
}

__global__ void __launch_bounds__(kDirectThreads, 2)
    blur_parameter_gradient(const BlurParams p, const BlurGradients gradients, const Tiling tiling, const int shared_floats) {
  __shared__ float partial[2][kDirectThreads];
  tiling.for_own_tiles([&](int64_t sample, int64_t channel, int row, int column, int64_t tile) {
    const Taps taps = make_taps<kDirectThreads>(p, sample, partial);
    const Weight weight(p, sample);
    const ParameterSums sums(p, gradients, sample, channel, weight);
    const Region region = region_of(p, tiling, row, column);
    const Walk<kDirectThreads, 2> walk(region, taps.radius, shared_floats);
    float of_sigma = 0.0f, of_gain = 0.0f;
    if (walk.columns == 0) {
      parameter_sums_of_region<kDirectThreads, kFallbackSubRuns>(sums, taps, region, of_sigma, of_gain,
                                                                 filter_memory<kDirectThreads, 2>());
    } else {
      walk.hold(taps);
      Stream(sums, walk, region).run(SummedOutput(sums, region, of_sigma, of_gain));
    }
    block_sum<kDirectThreads>(of_sigma, of_gain, partial);
    if (threadIdx.x != 0) return;
    const float factor = taps.radius == 0 ? 0.0f : Normalisation(p, channel).factor;
    auto store = [&](void* target, float sum) {
      if (target) static_cast<float*>(target)[tile] = factor == 0.0f ? 0.0f : factor * sum;
    };
    store(gradients.grad_sigma, partial[0][0]);
    store(gradients.grad_gain, partial[1][0]);
  });
}

// A strip of one plane in the direct form.
template <int kThreads, class Pass, class Destination>
__device__ void direct_strip(const BlurParams& p, const Destination& destination, int64_t sample, int64_t channel,
                             const Strip& strip) {
  auto& shared = filter_memory<kThreads>();
  const Taps taps = make_taps<kThreads>(p, sample, shared.partial);
  const Pass pass(p, destination, sample, channel, taps.radius == 0);
  direct_tiles(pass, taps, region_of(p, strip), shared);
}

template <class Source, class Destination>
using StripsOf = Strips<std::conditional_t<std::is_same_v<Source, float>, SplitMemory,
                                           BlurMemory<Source, std::is_same_v<Destination, BlurGradients>>>>;

// Images as products of 16-bit operands, and directly where those cannot compute them: a radius beyond their reach or as
// large as the image, non-finite pixels.
template <class Source, class Destination>
__global__ void __launch_bounds__(kMostStripThreads, 1)
    blur_products(const BlurParams p, const Destination destination, const StripsOf<Source, Destination> strips) {
  using Pixels = PixelsOf<Source>;
  using Pass = typename PassOf<Destination>::Type;
  unsigned char* memory = reinterpret_cast<unsigned char*>(dynamic_shared);
  TapTables& tables = *reinterpret_cast<TapTables*>(memory);
  uint32_t left = 0xffffffffu;  // the channels that are not done
  if (threadIdx.x == 0) {
    tables.work = strips.work(blockIdx.x);
    tables.radius = radius_of(p, tables.work.sample);
  }
  __syncthreads();
  const int radius = tables.radius;
  if (radius <= kTile * kMostReach && radius < p.shape[2] - 1 && radius < p.shape[3] - 1) {
    const float sum = make_tables<typename Pixels::Operand>(p, tables.work.sample, Pixels::kTapScale, tables);
    const Images &source = source_of(p, destination), &target = target_of(destination);
    unsigned char* stages = memory + sizeof(TapTables);
    left = radius <= 2 * kTile ? filter_planes<Source, Pass::kPrepares, 2>(p, source, target, sum, tables, stages)
                               : filter_planes<Source, Pass::kPrepares, kMostReach>(p, source, target, sum, tables, stages);
  }
  for (int k = 0; k < strips.channels_together; ++k) {
    if (!__syncthreads_or(left >> k & 1)) continue;
    const Work work = strips.work(blockIdx.x);
    if (k >= work.channels) break;
    if (blockDim.x == kMostStripThreads) {
      direct_strip<kMostStripThreads, Pass>(p, destination, work.sample, work.first_channel + k, work.strip);
    } else {
      direct_strip<kMostStripThreads / 2, Pass>(p, destination, work.sample, work.first_channel + k, work.strip);
    }
  }
}

// Filters a strip by split products if they reach far enough; `left` gets the channels of which this thread met a filtered row
// that is not finite, a bit for each.
template <class Destination>
__device__ void split_planes(const BlurParams& p, const Destination& destination, const Work& work, const Taps& taps,
                             uint8_t& left) {
  constexpr bool kAdjoint = PassOf<Destination>::Type::kPrepares;
  SplitTables& tables = *reinterpret_cast<SplitTables*>(dynamic_shared);
  const int radius = uniform(taps.radius);
  if (radius == 0 || radius > kTile * kSplitReach || radius >= p.shape[2] - 1 || radius >= p.shape[3] - 1) return;
  if (threadIdx.x == 0) tables.weight = Weight(p, work.sample);
  make_split_tables(taps, tables);
  const Images &source = source_of(p, destination), &target = target_of(destination);
#pragma unroll 1
  for (int sampled = kSampledRows;; sampled = 1) {
    if (radius <= kTile) {
      SplitStrip<kAdjoint, 1>(p, source, target, work, radius, tables).run(sampled, left);
    } else {
      SplitStrip<kAdjoint, 2>(p, source, target, work, radius, tables).run(sampled, left);
    }
    if (sampled == 1 || !__syncthreads_or(left != 0)) return;
  }
}

// Float32 as split products, and directly where those cannot compute it: a radius beyond their reach or as large as the image,
// non-finite pixels.
template <class Destination>
__global__ void __launch_bounds__(kSplitThreads, 2) blur_split(const BlurParams p, const Destination destination,
                                                               const StripsOf<float, Destination> strips,
                                                               const int shared_floats) {
  __shared__ float partial[2][kSplitThreads];
  __shared__ uint8_t left[kSplitThreads];  // by thread, a bit for each channel that is not done
  __shared__ Work work;
  __shared__ int channel;  // shared because registers are short
  left[threadIdx.x] = 0xff;
  if (threadIdx.x == 0) {
    channel = 0;
    work = strips.work(blockIdx.x);
  }
  __syncthreads();
  split_planes(p, destination, work, make_taps<kSplitThreads>(p, work.sample, partial), left[threadIdx.x]);
#pragma unroll 1
  while (channel < work.channels) {
    if (__syncthreads_or(left[threadIdx.x] >> channel & 1)) {
      const Taps taps = make_taps<kSplitThreads>(p, work.sample, partial);
      const int64_t its_channel = work.first_channel + channel;
      const typename PassOf<Destination>::Type pass(p, destination, work.sample, its_channel, taps.radius == 0);
      direct_region<kSplitThreads>(pass, taps, region_of(p, work.strip), shared_floats);
    }
    __syncthreads();
    if (threadIdx.x == 0) ++channel;
    __syncthreads();
  }
}

// Adds the sums of the channels of tables.work to the block's partial sums in device memory, in the direct form. What it needs
// lies in shared memory, since registers are short.
template <int kThreads>
__device__ void add_channels_directly(const BlurParams& p, const BlurGradients& gradients, SumTables& tables,
                                      int64_t first_place) {
  auto& shared = *reinterpret_cast<FilterMemory<kThreads, 2>*>(&tables + 1);
  for (;;) {
    __syncthreads();
    if (tables.work.channels == 0) return;
    const Taps taps = make_taps<kThreads>(p, tables.work.sample, shared.partial);
    if (threadIdx.x == 0) tables.taps = taps;
    __syncthreads();
    float of_sigma = 0.0f, of_gain = 0.0f;
    parameter_sums_of_region<kThreads, 1>(
        ParameterSums(p, gradients, tables.work.sample, tables.work.first_channel, tables.weight), tables.taps, tables.region,
        of_sigma, of_gain, shared);
    block_sum<kThreads>(of_sigma, of_gain, shared.partial);
    if (threadIdx.x != 0) continue;
    const float factor = Normalisation(p, tables.work.first_channel).factor;
    const int64_t place = first_place + recomputed(int(blockIdx.x));
    if (gradients.grad_sigma) static_cast<float*>(gradients.grad_sigma)[place] += factor * shared.partial[0][0];
    if (gradients.grad_gain) static_cast<float*>(gradients.grad_gain)[place] += factor * shared.partial[1][0];
    ++tables.work.first_channel;
    --tables.work.channels;
  }
}

// The gradients of sigma and gain as products of 16-bit operands, and directly where those cannot compute them: a radius beyond
// their reach or as large as the image, operands that are not finite. A block writes one partial sum of each.
template <class Source>
__global__ void __launch_bounds__(kMostStripThreads, 1)
    parameter_products(const BlurParams p, const BlurGradients gradients, const Strips<SumMemory<Source>> strips,
                       const int shared_bytes) {
  unsigned char* memory = reinterpret_cast<unsigned char*>(dynamic_shared);
  SumTables& tables = *reinterpret_cast<SumTables*>(memory);
  if (threadIdx.x == 0) {
    tables.work = strips.work(blockIdx.x);
    tables.radius = radius_of(p, tables.work.sample);
  }
  if (threadIdx.x < kMostStripThreads / 32) tables.sums[threadIdx.x][0] = tables.sums[threadIdx.x][1] = 0.0f;
  __syncthreads();
  const int radius = tables.radius;
  const bool multiplies = radius <= kTile * kMostReach && radius < p.shape[2] - 1 && radius < p.shape[3] - 1;
  if (radius > 0 && multiplies) {
    make_tables<Source>(p, tables.work.sample, PixelsOf<Source>::kTapScale, tables);
    unsigned char* stages = memory + sizeof(SumTables);
    const int bytes = shared_bytes - int(sizeof(SumTables));
    if (radius <= 2 * kTile)
      add_strip<Source, 2>(p, gradients.grad, tables, stages, bytes);
    else
      add_strip<Source, kMostReach>(p, gradients.grad, tables, stages, bytes);
  }
  __syncthreads();
  float of_sigma = 0.0f, of_gain = 0.0f;
  for (const auto& of_warp : tables.sums) of_sigma += of_warp[0], of_gain += of_warp[1];
  const bool done = radius == 0 || (multiplies && isfinite(of_sigma) && isfinite(of_gain));
  if (threadIdx.x == 0) {
    const int64_t place = strips.first + blockIdx.x;
    if (gradients.grad_sigma) static_cast<float*>(gradients.grad_sigma)[place] = done ? of_sigma : 0.0f;
    if (gradients.grad_gain) static_cast<float*>(gradients.grad_gain)[place] = done ? of_gain : 0.0f;
    tables.region = region_of(p, strips.work(blockIdx.x).strip);
    tables.weight = Weight(p, tables.work.sample);
  }
  if (done) return;
  if (blockDim.x == kMostStripThreads) {
    add_channels_directly<kMostStripThreads>(p, gradients, tables, strips.first);
  } else {
    add_channels_directly<kMostStripThreads / 2>(p, gradients, tables, strips.first);
  }
}

}  // namespace fovblur
