// Foveated Gaussian blur on CUDA and its gradients, one launch a batch.

#include "cuda.h"

#include <algorithm>
#include <type_traits>

#include "../common/launch.cuh"
#include "cuda_general.h"
#include "cuda_filter.cuh"
#include "cuda_pixels.cuh"
#include "cuda_products.cuh"
#include "cuda_products_gradient.cuh"
#include "cuda_split.cuh"
#include "cuda_streamed.cuh"

namespace fovblur {
namespace {

// ---- tiles and strips of the planes ----

// Tiles of one sample are consecutive; a block takes tiles until none is left.
struct Tiling {
  int row_tiles, column_tiles, tile_rows, tile_columns;
  int64_t channels, tiles;

  Tiling(const int64_t (&shape)[4], int tile_rows, int tile_columns)
      : row_tiles(int((shape[2] + tile_rows - 1) / tile_rows)),
        column_tiles(int((shape[3] + tile_columns - 1) / tile_columns)),
        tile_rows(tile_rows),
        tile_columns(tile_columns),
        channels(shape[1]),
        tiles(shape[0] * shape[1] * row_tiles * column_tiles) {}

  // Calls each(sample, channel, first_row, first_column, tile) for the tiles of this block.
  template <class Each>
  __device__ void for_own_tiles(const Each& each) const {
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const int64_t plane = tile / (int64_t(row_tiles) * column_tiles);
      const int within = int(tile - plane * row_tiles * column_tiles);
      each(plane / channels, plane % channels, within / column_tiles * tile_rows, within % column_tiles * tile_columns, tile);
      __syncthreads();
    }
  }
};

constexpr int kBlockBytes = 99 * 1024;  // the latter on sm_86

// Threads of a block whose warps make up to 16 tiles of columns, and bytes of the direct form that such a block falls back to.
constexpr int threads_of_products(int columns) {
  return columns <= kMostStripThreads / 64 ? kMostStripThreads / 2 : kMostStripThreads;
}
template <int kFilters>
constexpr int direct_bytes(int threads) {
  return int(threads == kMostStripThreads ? sizeof(FilterMemory<kMostStripThreads, kFilters>)
                                          : sizeof(FilterMemory<kMostStripThreads / 2, kFilters>));
}

// Tiles of columns that are staged for the strip that reads the most.
template <int D>
int most_staged_tiles(int columns, int column_strips, int image_columns) {
  const bool inner = column_strips > 1;
  return staged_tiles(inner ? D : 0, columns, inner ? columns + 2 * D : image_columns, D);
}

// Shared memory of a block by the tiles of columns of its strip, how many strips an image has, and the tiles of the image: for
// the blur and the gradient of images as products of 16-bit operands; for the gradients of sigma and gain, which can do a strip
// in parts; and for products that float is split into.
template <class Source, bool kAdjoint>
struct BlurMemory {
  static constexpr int kMostColumns = kMostStripThreads / 32, kMostBytes = kBlockBytes;
  static int threads(int columns) { return threads_of_products(columns); }
  static int bytes(int columns, int column_strips, int image_columns) {
    const int near = Stages<Source, kAdjoint, 2>::bytes(most_staged_tiles<2>(columns, column_strips, image_columns));
    const int far =
        Stages<Source, kAdjoint, kMostReach>::bytes(most_staged_tiles<kMostReach>(columns, column_strips, image_columns));
    return std::max(int(sizeof(TapTables)) + std::max(near, far), direct_bytes<1>(threads(columns)));
  }
};

template <class Source>
struct SumMemory {
  static constexpr int kMostColumns = kMostStripThreads / 32, kMostBytes = kBlockBytes;
  static int threads(int columns) { return threads_of_products(columns); }
  static int bytes(int columns, int column_strips, int image_columns) {
    const int near = SumStages<Source, 2>::bytes(most_staged_tiles<2>(columns, column_strips, image_columns));
    const int far = SumStages<Source, kMostReach>::bytes(most_staged_tiles<kMostReach>(columns, column_strips, image_columns));
    const int tables = int(sizeof(SumTables));
    return std::max({tables + near, std::min(tables + far, kBlockBytes), tables + direct_bytes<2>(threads(columns))});
  }
};

struct SplitMemory {
  static constexpr int kMostColumns = kSplitColumns, kMostBytes = kSplitBytes;
  static int threads(int) { return kSplitThreads; }
  static int bytes(int columns, int column_strips, int image_columns) {
    auto read = [&](int reach) { return std::min(columns + std::min(column_strips - 1, 2) * reach, image_columns); };
    const int stages =
        std::max(SplitStages<1>::bytes(columns, read(1)), SplitStages<kSplitReach>::bytes(columns, read(kSplitReach)));
    return std::max(int(sizeof(SplitTables)) + stages, int(sizeof(FilterMemory<kSplitThreads, 1>)));
  }
};

// Strips of the planes for products: as wide as their rows fit into shared memory, up to 16 or 8 tiles; all rows, or a part of
// them if there are few planes.
template <class Memory>
struct Strips {
  int height, width, columns, column_strips, rows, row_strips, channels_together;  // columns and rows in tiles
  int64_t channels, channel_groups, count;
  int64_t first = 0;  // of a launch

  explicit Strips(const int64_t (&shape)[4]) : height(int(shape[2])), width(int(shape[3])), channels(shape[1]) {
    const int row_tiles = (height + kTile - 1) / kTile, column_tiles = (width + kTile - 1) / kTile;
    for (column_strips = (column_tiles + Memory::kMostColumns - 1) / Memory::kMostColumns;; ++column_strips) {
      columns = (column_tiles + column_strips - 1) / column_strips;
      if (shared_bytes() <= Memory::kMostBytes) break;
    }
    column_strips = (column_tiles + columns - 1) / columns;
    const int64_t enough = 512;  // blocks for every multiprocessor
    channels_together = shape[0] * column_strips >= enough ? int(std::min<int64_t>(channels, kMostChannels)) : 1;
    channel_groups = (channels + channels_together - 1) / channels_together;
    const int64_t planes = shape[0] * channel_groups * column_strips;
    rows = std::min(row_tiles, planes >= enough ? 256 : 4);
    row_strips = (row_tiles + rows - 1) / rows;
    count = planes * row_strips;
  }

  int threads() const { return Memory::threads(columns); }
  int shared_bytes() const { return Memory::bytes(columns, column_strips, (width + kTile - 1) / kTile); }

  __device__ Work work(int64_t block) const {
    const int64_t place = first + block;
    const int row_tiles = (height + kTile - 1) / kTile, column_tiles = (width + kTile - 1) / kTile;
    const int64_t group = place / (int64_t(row_strips) * column_strips), sample = group / channel_groups;
    const int within = int(place - group * row_strips * column_strips);
    const int64_t channel = (group - sample * channel_groups) * channels_together;
    const int first_row = within / column_strips * rows, first_column = within % column_strips * columns;
    const int together = int(channels - channel < channels_together ? channels - channel : channels_together);
    return {sample, channel, together,
            {first_column, min(columns, column_tiles - first_column), first_row, min(first_row + rows, row_tiles)}};
  }
};

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

// The direct form of a region, tile by tile, for radii whose ring does not fit and where 16-bit products fail.
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

// ---- launches ----

enum class Form { direct, split_products, products };

bool is_half(DType dtype) { return dtype == DType::float16 || dtype == DType::bfloat16; }

// Whether exact float32 is computed by split products, where three of float16 are faster than one of float32: on tensor cores
// float16 has 16 times the rate of float32 on 8.0 and 9.0, and 2 to 4 times on GeForce cards.
bool splits_float32() {
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return minor == 0 && (major == 8 || major == 9);
}

// Chooses the form by the types of source and result: products of 16-bit operands if they lose less than rounding to either type
// does, or if PyTorch's matmul precision allows as much. Only the device knows the radii; regions of radii beyond the reach of
// products are filtered directly.
Form choose_form(DType source, DType result, const BlurParams& p) {
  const bool multiplies = is_half(source) || (source == DType::uint8 && (result != DType::float32 || p.allow_tf32));
  if (multiplies) return Form::products;
  return source == DType::float32 && splits_float32() ? Form::split_products : Form::direct;
}

// Calls each(strips, bytes of shared memory) to launch as many strips as a grid holds, until all are.
template <class Kernel, class Memory, class Each>
cudaError_t launch_strips(Kernel kernel, Strips<Memory> strips, const Each& each) {
  const int bytes = strips.shared_bytes();
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  for (; error == cudaSuccess && strips.first < strips.count; strips.first += INT32_MAX) error = each(strips, bytes);
  return error;
}

template <class Source, class Destination>
cudaError_t launch_products(const BlurParams& p, const Destination& destination, void* stream) {
  const auto kernel = blur_products<Source, Destination>;
  return launch_strips(kernel, StripsOf<Source, Destination>(p.shape), [&](const auto& strips, int bytes) {
    return launch(kernel, strips.threads(), strips.count - strips.first, bytes, stream, p, destination, strips);
  });
}

template <class Source>
cudaError_t launch_parameter_products(const BlurParams& p, const BlurGradients& gradients, void* stream) {
  const auto kernel = parameter_products<Source>;
  return launch_strips(kernel, Strips<SumMemory<Source>>(p.shape), [&](const auto& strips, int bytes) {
    return launch(kernel, strips.threads(), strips.count - strips.first, bytes, stream, p, gradients, strips, bytes);
  });
}

template <class Destination>
cudaError_t launch_split(const BlurParams& p, const Destination& destination, void* stream) {
  const auto kernel = blur_split<Destination>;
  return launch_strips(kernel, StripsOf<float, Destination>(p.shape), [&](const auto& strips, int bytes) {
    return launch(kernel, kSplitThreads, strips.count - strips.first, bytes, stream, p, destination, strips, bytes / 4);
  });
}

// Planes as tiles of the exact forms, cut so that every multiprocessor has some, in multiples of the last resort's tiles.
Tiling exact_tiling(const int64_t (&shape)[4]) {
  constexpr int kSmallest = 64;
  constexpr int64_t kEnough = 512;
  int rows = int(shape[2]), columns = int(shape[3]);
  auto enough = [&] { return Tiling(shape, rows, columns).tiles >= kEnough; };
  while (!enough() && columns > kSmallest) columns = round_up((columns + 1) / 2, kSmallest);
  while (!enough() && rows > kSmallest) rows = round_up((rows + 1) / 2, kSmallest);
  return Tiling(shape, rows, columns);
}

// Launches an exact form with as much shared memory as its walk uses up to kernels of 65 pixels, within a block's of sm_86.
template <int kThreads, int kFilters, class Destination>
cudaError_t launch_walk(void (*kernel)(BlurParams, Destination, Tiling, int), const BlurParams& p,
                        const Destination& destination, const Tiling& tiling, void* stream) {
  constexpr int kMostBytes = 99 * 1024 - int(sizeof(float)) * 2 * kThreads;
  constexpr int kFewestBytes = int(sizeof(FilterMemory<kThreads, kFilters>));
  const int rows = std::min(tiling.tile_rows, int(p.shape[2])), columns = std::min(tiling.tile_columns, int(p.shape[3]));
  const Walk<kThreads, kFilters> usual({rows, columns, 0, rows, 0, columns}, 32, INT32_MAX);
  const int bytes = std::max(std::min(4 * usual.floats(), kMostBytes), kFewestBytes);
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  return launch(kernel, kThreads, tiling.tiles, bytes, stream, p, destination, tiling, bytes / 4);
}

template <class Destination>
cudaError_t launch_pass(const BlurParams& p, const Destination& destination, DType source, DType result, void* stream) {
  const Form form = choose_form(source, result, p);
  if (form == Form::split_products) return launch_split(p, destination, stream);
  if (form == Form::direct) {
    const Tiling tiling = exact_tiling(p.shape);
    if (int64_t(tiling.tile_rows) * tiling.tile_columns <= kSmallThreads * kLines * kRun)
      return launch_walk<kSmallThreads, 1>(blur_direct<kSmallThreads, Destination>, p, destination, tiling, stream);
    return launch_walk<kDirectThreads, 1>(blur_direct<kDirectThreads, Destination>, p, destination, tiling, stream);
  }
  if constexpr (std::is_same_v<Destination, Images>)  // a gradient is never uint8
    if (source == DType::uint8) return launch_products<uint8_t>(p, destination, stream);
  if (source == DType::float16) return launch_products<Half>(p, destination, stream);
  return launch_products<BFloat16>(p, destination, stream);
}

cudaError_t launch_parameters(const BlurParams& p, const BlurGradients& gradients, void* stream) {
  if (choose_form(p.images.dtype, gradients.grad.dtype, p) != Form::products)
    return launch_walk<kDirectThreads, 2>(blur_parameter_gradient, p, gradients, exact_tiling(p.shape), stream);
  if (p.images.dtype == DType::uint8) return launch_parameter_products<uint8_t>(p, gradients, stream);
  if (p.images.dtype == DType::float16) return launch_parameter_products<Half>(p, gradients, stream);
  return launch_parameter_products<BFloat16>(p, gradients, stream);
}

bool is_empty(const int64_t (&shape)[4]) { return shape[0] * shape[1] * shape[2] * shape[3] == 0; }

const char* why_not(const int64_t (&shape)[4]) {
  constexpr int64_t kLargestSide = INT32_MAX / 4;
  const bool fits = shape[2] <= kLargestSide && shape[3] <= kLargestSide;
  return fits ? nullptr : "an image side above 536,870,911 pixels is not supported";
}

}  // namespace

const char* foveated_blur_cuda(const BlurParams& p, const Images& out, void* stream) {
  if (is_empty(p.shape)) return nullptr;
  if (const char* reason = why_not(p.shape)) return reason;
  if (needs_general_form(p)) return blur_in_general_form(p, out, stream);
  return message(launch_pass(p, out, p.images.dtype, out.dtype, stream));
}

const char* foveated_blur_backward_cuda(const BlurParams& p, const BlurGradients& gradients, void* stream) {
  if (is_empty(p.shape)) return nullptr;
  if (const char* reason = why_not(p.shape)) return reason;
  if (needs_general_form(p)) return gradients_in_general_form(p, gradients, stream);
  cudaError_t error = cudaSuccess;
  if (gradients.grad_images.data)
    error = launch_pass(p, gradients, gradients.grad.dtype, gradients.grad_images.dtype, stream);
  if (error == cudaSuccess && (gradients.grad_sigma || gradients.grad_gain)) error = launch_parameters(p, gradients, stream);
  return message(error);
}

const char* foveated_blur_list_cuda(const BlurParams& p, const ListedImage* images, int64_t tiles, DType result,
                                    void* stream) {
  if (const char* reason = why_not(p.shape)) return reason;
  return blur_of_a_list(p, images, tiles, result, stream);
}

int64_t parameter_gradient_tiles(const BlurParams& p, DType grad) {
  if (is_empty(p.shape)) return 0;
  if (needs_general_form(p)) return tiles_of_a_sample(p);
  if (choose_form(p.images.dtype, grad, p) != Form::products) return exact_tiling(p.shape).tiles / p.shape[0];
  if (p.images.dtype == DType::uint8) return Strips<SumMemory<uint8_t>>(p.shape).count / p.shape[0];
  return Strips<SumMemory<Half>>(p.shape).count / p.shape[0];
}

}  // namespace fovblur
