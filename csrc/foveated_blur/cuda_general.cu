// The blur with every option: other borders, a sigma along each axis, weight maps, OpenCV's tables, lists of images.

#include "cuda_general.h"

#include "../common/async_copy.cuh"
#include "../common/launch.cuh"
#include "cuda_general_filter.cuh"

namespace fovblur {
namespace {

// The weight of the sharp image: the falloff, or a map in place of it.
struct GeneralWeight {
  Weight falloff;
  const float* map;  // of the sample; may be null
  int64_t strides[2];
  __device__ float acuity(int i, int j) const {
    return map ? map[i * strides[0] + j * strides[1]] : falloff.acuity(i, j);
  }
  __device__ float at(int i, int j) const { return falloff.gain * acuity(i, j); }
};

// The images of a call: a batch of [B, C, H, W], or a list of `count`.
struct Batch {
  Images source, other;  // what is filtered; what is written, or the gradient that the sums multiply
  const ListedImage* list;
  int64_t count, tiles;
};

// A tile of a plane.
struct Place {
  Images source, other;  // one sample
  GeneralWeight weight;
  int64_t sample, channel, within;  // `within` counts the tiles of the sample
  int height, width, row, column;
};

__device__ inline Images sample_of(const Images& images, int64_t sample) {
  Images one = images;
  one.data = static_cast<char*>(images.data) + sample * images.strides[0] * size_of(images.dtype);
  return one;
}

__device__ inline Images listed(const void* data, DType dtype, const int64_t (&strides)[3]) {
  return {const_cast<void*>(data), dtype, {0, strides[0], strides[1], strides[2]}};
}

__device__ inline Place place_of(const BlurParams& p, const Batch& batch, int64_t tile) {
  int64_t sample = 0, first_tile, channels = p.shape[1], height = p.shape[2], width = p.shape[3];
  const float* map = static_cast<const float*>(p.weight.data);
  int64_t map_strides[2] = {p.weight.strides[1], p.weight.strides[2]};
  Images source, other;
  if (batch.list) {
    for (int64_t end = batch.count; end - sample > 1;) {
      const int64_t middle = (sample + end) / 2;
      (batch.list[middle].first_tile <= tile ? sample : end) = middle;
    }
    const ListedImage& image = batch.list[sample];
    channels = image.channels, height = image.height, width = image.width, first_tile = image.first_tile;
    source = listed(image.data, batch.source.dtype, image.strides);
    other = listed(image.target, batch.other.dtype, image.target_strides);
    map = static_cast<const float*>(image.weight);
    map_strides[0] = image.weight_strides[0], map_strides[1] = image.weight_strides[1];
  } else {
    const int64_t of_sample = channels * tiles_along(height, kGeneralRows) * tiles_along(width, kGeneralColumns);
    sample = tile / of_sample, first_tile = sample * of_sample;
    source = sample_of(batch.source, sample), other = sample_of(batch.other, sample);
    if (map) map += sample * p.weight.strides[0];
  }
  const int64_t columns = tiles_along(width, kGeneralColumns), of_plane = tiles_along(height, kGeneralRows) * columns;
  const int64_t within = tile - first_tile, of_its_plane = within % of_plane;
  const GeneralWeight weight{Weight(p, sample, height, width), map, {map_strides[0], map_strides[1]}};
  return {source, other, weight, sample, within / of_plane, within, int(height), int(width),
          int(of_its_plane / columns) * kGeneralRows, int(of_its_plane % columns) * kGeneralColumns};
}

// What a block knows of its tile, in shared memory, since registers are short.
template <bool kSlopes>
struct BlockMemory {
  GeneralMemory<kSlopes> filter;
  Place place;
};

// Finds the tile and makes its taps; all threads of the block take part.
template <bool kSlopes>
__device__ void begin_tile(const BlurParams& p, const Batch& batch, int64_t tile, BlockMemory<kSlopes>& shared) {
  __syncthreads();  // the readers of the tile before are done
  if (threadIdx.x == 0) shared.place = place_of(p, batch, tile);
  __syncthreads();
  const int64_t sample = shared.place.sample;
#pragma unroll 1
  for (int axis = 0; axis < 2; ++axis) {
    const int its_axis = p.per_axis ? axis : 0;
    shared.filter.hold(axis, make_axis_taps(per_sample(p.sigma, sample, its_axis), kernel_size_of(p, sample, its_axis),
                                            p.tables, shared.filter.partial));
  }
}

// The gradient through the blur: (1 - w) g. Under Border::reflect A^T = E A E^-1; under the others A is symmetric.
struct ThroughBlur {
  static constexpr bool kPrepares = true;
  Plane source;
  const Place& place;
  bool reflects;
  __device__ float prepare(int i, int j, float g) const {
    const float through = (1.0f - place.weight.at(i, j)) * g;
    return reflects ? through * inverse_share(i, j, place.height, place.width) : through;
  }
};

// Writes the blur of batch.source to batch.other, or, with kAdjoint, the gradient of the images for that of the result.
template <bool kAdjoint>
__global__ void __launch_bounds__(kGeneralThreads, 2) blur_general(const BlurParams p, const Batch batch) {
  auto& shared = *reinterpret_cast<BlockMemory<false>*>(dynamic_shared);
  for (int64_t tile = blockIdx.x; tile < batch.tiles; tile += gridDim.x) {
    begin_tile(p, batch, tile, shared);
    const Place& place = shared.place;
    const Plane source(place.source, 0, place.channel), target(place.other, 0, place.channel);
    float sums[1][kGeneralSubRuns][kRun] = {};
    auto filter = [&](const auto& input) {
      filter_general_tile<false>(input, p.border, place.height, place.width, place.row, place.column, shared.filter, sums);
    };
    const bool reflects = p.border == Border::reflect;
    if constexpr (kAdjoint)
      filter(ThroughBlur{source, place, reflects});
    else
      filter(Unprepared{source});
    const bool identity = shared.filter.taps[0].radius == 0 && shared.filter.taps[1].radius == 0;
    for_each_output<kGeneralThreads>(
        sums[0], place.height, place.width, place.row, place.column, shared.filter.filtered[0], [&](int i, int j, float y) {
          const float w = place.weight.at(i, j), x = source.load(i, j);
          const Normalisation normalisation(p, place.channel);
          if constexpr (kAdjoint) {
            const float through = reflects ? share(i, j, place.height, place.width) * y : y;
            y = normalisation.factor * (identity ? x : through + w * x);
          } else {
            if (w != 0.0f) y = w * x + (1.0f - w) * y;  // an infinite pixel under weight 0 is not NaN
            if (identity) y = x;
            y = y * normalisation.factor - normalisation.offset;
          }
          target.store(i, j, y);
        });
  }
}

// Writes each tile's part of the gradients of sigma, sum g (1 - w) (A' x), and gain, sum g f (x - A x); `of_sigma` is
// [B, tiles of a sample], or [B, 2, tiles of a sample] if the axes differ. batch.other is the gradient of the result.
__global__ void __launch_bounds__(kGeneralThreads, 2)
    parameter_gradient_general(const BlurParams p, const Batch batch, float* const of_sigma, float* const of_gain) {
  auto& shared = *reinterpret_cast<BlockMemory<true>*>(dynamic_shared);
  for (int64_t tile = blockIdx.x; tile < batch.tiles; tile += gridDim.x) {
    begin_tile(p, batch, tile, shared);
    const Place& place = shared.place;
    const Plane source(place.source, 0, place.channel), grad(place.other, 0, place.channel);
    float sums[3][kGeneralSubRuns][kRun] = {};
    filter_general_tile<true>(Unprepared{source}, p.border, place.height, place.width, place.row, place.column, shared.filter,
                          sums);
    float along_y = 0.0f, along_x = 0.0f, gain = 0.0f, unused = 0.0f;
    auto each_output = [&](const float(&filtered)[kGeneralSubRuns][kRun], const auto& each) {
      for_each_output<kGeneralThreads>(filtered, place.height, place.width, place.row, place.column, shared.filter.filtered[0],
                                   each);
    };
    each_output(sums[0], [&](int i, int j, float y) {
      gain += grad.load(i, j) * place.weight.acuity(i, j) * (source.load(i, j) - y);
    });
    each_output(sums[1], [&](int i, int j, float y) { along_y += grad.load(i, j) * (1.0f - place.weight.at(i, j)) * y; });
    each_output(sums[2], [&](int i, int j, float y) { along_x += grad.load(i, j) * (1.0f - place.weight.at(i, j)) * y; });
    float(&partial)[2][kGeneralThreads] = shared.filter.partial;
    auto total = [&](float first, float second) {
      block_sum<kGeneralThreads>(first, second, partial);
      return make_float2(partial[0][0], partial[1][0]);
    };
    const float2 of_axes = total(along_y, along_x);
    __syncthreads();
    const float of_its_gain = total(gain, unused).x;
    if (threadIdx.x != 0) continue;
    const float factor = Normalisation(p, place.channel).factor;
    const int64_t of_sample = batch.tiles / p.shape[0];
    const AxisTaps(&taps)[2] = shared.filter.taps;
    const float y = taps[0].has_slope() ? factor * of_axes.x : 0.0f, x = taps[1].has_slope() ? factor * of_axes.y : 0.0f;
    if (of_sigma && p.per_axis) {
      of_sigma[2 * place.sample * of_sample + place.within] = y;
      of_sigma[(2 * place.sample + 1) * of_sample + place.within] = x;
    } else if (of_sigma) {
      of_sigma[tile] = y + x;
    }
    const bool identity = taps[0].radius == 0 && taps[1].radius == 0;
    if (of_gain) of_gain[tile] = identity ? 0.0f : factor * of_its_gain;
  }
}

template <bool kSlopes, class... Parameters, class... Arguments>
cudaError_t launch_general(void (*kernel)(BlurParams, Batch, Parameters...), void* stream, const BlurParams& p,
                           const Batch& batch, Arguments... arguments) {
  constexpr int kBytes = int(sizeof(BlockMemory<kSlopes>));
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  return error != cudaSuccess ? error : launch(kernel, kGeneralThreads, batch.tiles, kBytes, stream, p, batch, arguments...);
}

Batch batch_of(const BlurParams& p, const Images& source, const Images& other) {
  return {source, other, nullptr, p.shape[0], p.shape[0] * tiles_of_a_sample(p)};
}

}  // namespace

int64_t tiles_of_an_image(int64_t channels, int64_t height, int64_t width) {
  return channels * tiles_along(height, kGeneralRows) * tiles_along(width, kGeneralColumns);
}

int64_t tiles_of_a_sample(const BlurParams& p) { return tiles_of_an_image(p.shape[1], p.shape[2], p.shape[3]); }

const char* blur_in_general_form(const BlurParams& p, const Images& out, void* stream) {
  return message(launch_general<false>(blur_general<false>, stream, p, batch_of(p, p.images, out)));
}

const char* blur_of_a_list(const BlurParams& p, const ListedImage* images, int64_t tiles, DType result, void* stream) {
  if (tiles == 0) return nullptr;
  const Batch batch = {p.images, {nullptr, result, {}}, images, p.shape[0], tiles};
  return message(launch_general<false>(blur_general<false>, stream, p, batch));
}

const char* gradients_in_general_form(const BlurParams& p, const BlurGradients& gradients, void* stream) {
  cudaError_t error = cudaSuccess;
  if (gradients.grad_images.data)
    error = launch_general<false>(blur_general<true>, stream, p, batch_of(p, gradients.grad, gradients.grad_images));
  if (error == cudaSuccess && (gradients.grad_sigma || gradients.grad_gain))
    error = launch_general<true>(parameter_gradient_general, stream, p, batch_of(p, p.images, gradients.grad),
                             static_cast<float*>(gradients.grad_sigma), static_cast<float*>(gradients.grad_gain));
  return message(error);
}

}  // namespace fovblur
