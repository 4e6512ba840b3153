// Foveated Gaussian blur on CUDA and its gradients, one launch a batch.

#include "cuda.h"

#include <type_traits>

#include "../common/launch.cuh"
#include "cuda_filter.cuh"
#include "cuda_pixels.cuh"
#include "cuda_products.cuh"

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

template <class Operand>
union StripMemory {
  ProductMemory<Operand> products;
  FilterMemory<kStripThreads, 1> direct;
};

// A strip by matrix products, or directly if they cannot compute it (a radius beyond their reach, non-finite pixels).
template <class Source, class Pass>
__device__ void product_strip(const Pass& pass, const Taps& taps, const Strip& strip,
                              StripMemory<typename OperandOf<Source>::Type>& shared) {
  using Operand = typename OperandOf<Source>::Type;
  bool done = false;
  if (taps.radius <= kTile * kMostReach) {
    const float scale = stage_taps(taps, shared.products);
    if (taps.radius <= kTile) {
      done = filter_strip<Operand, Source, 1>(pass, strip, scale, shared.products);
    } else if (taps.radius <= 2 * kTile) {
      done = filter_strip<Operand, Source, 2>(pass, strip, scale, shared.products);
    } else {
      done = filter_strip<Operand, Source, kMostReach>(pass, strip, scale, shared.products);
    }
  }
  if (done) return;
  __syncthreads();
  hold_taps(taps, shared.direct);
  const int end_column = min(strip.first_column + kStripColumns, strip.width);
  for (int row = strip.first_row; row < strip.end_row; row += 4 * kRun * kFallbackSubRuns)
    for (int column = strip.first_column; column < end_column; column += Shape<kStripThreads>::kColumns) {
      direct_tile<kStripThreads, kFallbackSubRuns>(pass, taps, strip.height, strip.width, row, column, shared.direct);
      __syncthreads();
    }
}

// The tile's part of dL/dsigma = sum g (1 - w) (A' x A^T + A x A'^T) and of dL/dgain = sum g f (x - A x A^T).
template <int kThreads, int kSubRuns>
__device__ void parameter_gradient_tile(const BlurParams& p, const BlurGradients& gradients, int64_t sample, int64_t channel,
                                        int first_row, int first_column, int64_t place, FilterMemory<kThreads, 2>& shared) {
  const int height = int(p.shape[2]), width = int(p.shape[3]);
  const Plane source(p.images, sample, channel), grad(gradients.grad, sample, channel);
  const Taps taps = make_taps<kThreads>(p, sample, shared.partial);
  hold_taps(taps, shared);
  float blurred[kSubRuns][kRun] = {}, slope[kSubRuns][kRun] = {};
  filter_tile<kThreads, kSubRuns, 2>([&](int i, int j) { return source.load(i, j); }, taps, height, width, first_row,
                                     first_column, shared, blurred, slope);
  const Weight weight(p, sample);
  const float factor = taps.radius == 0 ? 0.0f : Normalisation(p, channel).factor;
  float of_sigma = 0.0f, of_gain = 0.0f;
  for_each_output<kThreads>(slope, height, width, first_row, first_column, shared.filtered[0], [&](int i, int j, float y) {
    of_sigma += grad.load(i, j) * (1.0f - weight.gain * weight.acuity(i, j)) * y;
  });
  for_each_output<kThreads>(blurred, height, width, first_row, first_column, shared.filtered[0], [&](int i, int j, float y) {
    of_gain += grad.load(i, j) * weight.acuity(i, j) * (source.load(i, j) - y);
  });
  block_sum<kThreads>(of_sigma, of_gain, shared.partial);
  if (threadIdx.x != 0) return;
  auto store = [&](void* target, float sum) {
    if (target) static_cast<float*>(target)[place] = factor == 0.0f ? 0.0f : factor * sum;
  };
  store(gradients.grad_sigma, shared.partial[0][0]);
  store(gradients.grad_gain, shared.partial[1][0]);
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

constexpr int kDirectThreads = 256;

// Three blocks of a multiprocessor, for which ptxas keeps 80 registers with the same loads and multiplications as with 112.
template <int kSubRuns, class Destination>
__global__ void __launch_bounds__(kDirectThreads, 3)
    blur_direct(const BlurParams p, const Destination destination, const Tiling tiling) {
  __shared__ FilterMemory<kDirectThreads, 1> shared;
  tiling.for_own_tiles([&](int64_t sample, int64_t channel, int row, int column, int64_t) {
    const Taps taps = make_taps<kDirectThreads>(p, sample, shared.partial);
    hold_taps(taps, shared);
    const typename PassOf<Destination>::Type pass(p, destination, sample, channel, taps.radius == 0);
    direct_tile<kDirectThreads, kSubRuns>(pass, taps, int(p.shape[2]), int(p.shape[3]), row, column, shared);
  });
}

template <class Source, class Destination>
__global__ void __launch_bounds__(kStripThreads, OperandOf<Source>::Type::kBlocks)
    blur_products(const BlurParams p, const Destination destination, const Tiling tiling) {
  __shared__ StripMemory<typename OperandOf<Source>::Type> shared;
  tiling.for_own_tiles([&](int64_t sample, int64_t channel, int row, int column, int64_t) {
    const Taps taps = make_taps<kStripThreads>(p, sample, shared.products.partial);
    const typename PassOf<Destination>::Type pass(p, destination, sample, channel, taps.radius == 0);
    const int height = int(p.shape[2]), width = int(p.shape[3]);
    product_strip<Source>(pass, taps, {height, width, row, min(row + tiling.tile_rows, height), column}, shared);
  });
}

constexpr int kParameterSubRuns = 2;

__global__ void __launch_bounds__(kDirectThreads, 2)
    blur_parameter_gradient(const BlurParams p, const BlurGradients gradients, const Tiling tiling) {
  __shared__ FilterMemory<kDirectThreads, 2> shared;
  tiling.for_own_tiles([&](int64_t sample, int64_t channel, int row, int column, int64_t tile) {
    parameter_gradient_tile<kDirectThreads, kParameterSubRuns>(p, gradients, sample, channel, row, column, tile, shared);
  });
}

// ---- launches ----

enum class Form { direct, products };

bool is_half(DType dtype) { return dtype == DType::float16 || dtype == DType::bfloat16; }

// Chooses the form by the types of source and result: products if they lose less than rounding to either type does, or if
// PyTorch's matmul precision allows tf32. Only the device knows the radii; product_strip filters those beyond its reach
// directly.
Form choose_form(DType source, DType result, const BlurParams& p) {
  const bool exact_enough = is_half(source) || (source == DType::uint8 && is_half(result));
  return exact_enough || p.allow_tf32 ? Form::products : Form::direct;
}

template <class Destination>
using Kernel = void (*)(BlurParams, Destination, Tiling);

template <class Destination>
Kernel<Destination> products_kernel(DType source) {
  if constexpr (std::is_same_v<Destination, Images>)  // a gradient is never uint8
    if (source == DType::uint8) return blur_products<uint8_t, Images>;
  switch (source) {
    case DType::float16:
      return blur_products<Half, Destination>;
    case DType::bfloat16:
      return blur_products<BFloat16, Destination>;
    default:
      return blur_products<float, Destination>;
  }
}

template <class Destination>
cudaError_t launch_pass(const BlurParams& p, const Destination& destination, DType source, DType result, void* stream) {
  if (choose_form(source, result, p) == Form::direct) {
    const bool low = p.shape[2] <= 32;
    const Tiling tiling(p.shape, low ? 32 : 128, Shape<kDirectThreads>::kColumns);
    const auto kernel = low ? blur_direct<1, Destination> : blur_direct<4, Destination>;
    return launch(kernel, kDirectThreads, tiling.tiles, 0, stream, p, destination, tiling);
  }
  const int64_t columns = (p.shape[3] + kStripColumns - 1) / kStripColumns;
  const bool few = p.shape[0] * p.shape[1] * columns < 512;  // cut strips, so that every multiprocessor has some
  const Tiling tiling(p.shape, few ? 64 : 256, kStripColumns);
  return launch(products_kernel<Destination>(source), kStripThreads, tiling.tiles, 0, stream, p, destination, tiling);
}

bool is_empty(const int64_t (&shape)[4]) { return shape[0] * shape[1] * shape[2] * shape[3] == 0; }

const char* why_not(const int64_t (&shape)[4]) {
  constexpr int64_t kLargestSide = INT32_MAX / 4;
  const bool fits = shape[2] <= kLargestSide && shape[3] <= kLargestSide;
  return fits ? nullptr : "an image side above 536,870,911 pixels is not supported";
}

Tiling parameter_tiling(const int64_t (&shape)[4]) {
  return Tiling(shape, 4 * kRun * kParameterSubRuns, Shape<kDirectThreads>::kColumns);
}

}  // namespace

const char* foveated_blur_cuda(const BlurParams& p, const Images& out, void* stream) {
  if (is_empty(p.shape)) return nullptr;
  if (const char* reason = why_not(p.shape)) return reason;
  return message(launch_pass(p, out, p.images.dtype, out.dtype, stream));
}

const char* foveated_blur_backward_cuda(const BlurParams& p, const BlurGradients& gradients, void* stream) {
  if (is_empty(p.shape)) return nullptr;
  if (const char* reason = why_not(p.shape)) return reason;
  cudaError_t error = cudaSuccess;
  if (gradients.grad_images.data)
    error = launch_pass(p, gradients, gradients.grad.dtype, gradients.grad_images.dtype, stream);
  if (error == cudaSuccess && (gradients.grad_sigma || gradients.grad_gain)) {
    const Tiling tiling = parameter_tiling(p.shape);
    error = launch(blur_parameter_gradient, kDirectThreads, tiling.tiles, 0, stream, p, gradients, tiling);
  }
  return message(error);
}

int64_t parameter_gradient_tiles(const int64_t (&shape)[4]) {
  return shape[0] == 0 ? 0 : parameter_tiling(shape).tiles / shape[0];
}

}  // namespace fovblur
