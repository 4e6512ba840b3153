// Foveated Gaussian blur on CUDA and its gradients, one launch a batch.

#include "cuda.h"

#include "cuda_filter.cuh"
#include "cuda_pixels.cuh"
#include "cuda_products.cuh"

namespace fovblur {
namespace {

// ---- how the planes are cut ----

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
  auto load = [&](int i, int j) { return pass.prepare(i, j, height, width, pass.source.load(i, j)); };
  filter_tile<kThreads, kSubRuns, 1>(load, taps, height, width, first_row, first_column, shared, blurred, unused);
  for_each_output<kThreads>(blurred, height, width, first_row, first_column, shared.filtered[0], [&](int i, int j, float y) {
    pass.target.store(i, j, pass.finish(i, j, height, width, pass.source.load(i, j), y));
  });
}

template <class Operand>
union StripMemory {
  ProductMemory<Operand> products;
  FilterMemory<kStripThreads, 1> direct;
};

// A strip of 64 columns by matrix products; where they do not serve (a radius beyond their reach, pixels that are not
// finite), in the direct form.
template <class Operand, class Pass>
__device__ void product_strip(const Pass& pass, const Taps& taps, int height, int width, int first_row, int end_row,
                              int first_column, StripMemory<Operand>& shared) {
  bool done = false;
  if (taps.radius <= kTile * kMostReach) {
    const float scale = stage_taps(taps, shared.products);
    auto fetch = [&](int i, int j, float(&x)[kVector]) {
      pass.source.load_eight(i, j, height, width, x);
#pragma unroll
      for (int k = 0; k < kVector; ++k) x[k] = pass.prepare(reflect(i, height), reflect(j + k, width), height, width, x[k]);
    };
    auto finish = [&](int i, int j, const float* sums) {
      float x[kVector], y[kVector];
      pass.source.load_eight(i, j, height, width, x);
#pragma unroll
      for (int k = 0; k < kVector; ++k) y[k] = pass.finish(i, j + k, height, width, x[k], sums[k]);
      pass.target.store_eight(i, j, width, y);
    };
    auto filter = [&](auto reach) {
      return filter_products<Operand, decltype(reach)::value>(fetch, finish, scale, height, width, first_row, end_row,
                                                              first_column, shared.products);
    };
    if (taps.radius <= kTile) {
      done = filter(std::integral_constant<int, 1>());
    } else if (taps.radius <= 2 * kTile) {
      done = filter(std::integral_constant<int, 2>());
    } else {
      done = filter(std::integral_constant<int, kMostReach>());
    }
  }
  if (done) return;
  __syncthreads();
  hold_taps(taps, shared.direct);
  for (int row = first_row; row < end_row; row += 4 * kRun)
    for (int column = first_column; column < min(first_column + kStripColumns, width); column += Shape<kStripThreads>::kColumns)
      direct_tile<kStripThreads, 1>(pass, taps, min(height, end_row), width, row, column, shared.direct);
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
  __syncthreads();
  block_sum<kThreads>(of_sigma, of_gain, shared.partial);
  if (threadIdx.x != 0) return;
  if (gradients.grad_sigma) static_cast<float*>(gradients.grad_sigma)[place] = factor == 0.0f ? 0.0f : factor * shared.partial[0][0];
  if (gradients.grad_gain) static_cast<float*>(gradients.grad_gain)[place] = factor == 0.0f ? 0.0f : factor * shared.partial[1][0];
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

template <int kSubRuns, class Destination>
__global__ void __launch_bounds__(kDirectThreads, 2)
    blur_direct(const BlurParams p, const Destination destination, const Tiling tiling) {
  __shared__ FilterMemory<kDirectThreads, 1> shared;
  tiling.for_own_tiles([&](int64_t sample, int64_t channel, int row, int column, int64_t) {
    const Taps taps = make_taps<kDirectThreads>(p, sample, shared.partial);
    hold_taps(taps, shared);
    const typename PassOf<Destination>::Type pass(p, destination, sample, channel, taps.radius == 0);
    direct_tile<kDirectThreads, kSubRuns>(pass, taps, int(p.shape[2]), int(p.shape[3]), row, column, shared);
  });
}

template <class Operand, class Destination>
__global__ void __launch_bounds__(kStripThreads, 3)
    blur_products(const BlurParams p, const Destination destination, const Tiling tiling) {
  __shared__ StripMemory<Operand> shared;
  tiling.for_own_tiles([&](int64_t sample, int64_t channel, int row, int column, int64_t) {
    const Taps taps = make_taps<kStripThreads>(p, sample, shared.products.partial);
    const typename PassOf<Destination>::Type pass(p, destination, sample, channel, taps.radius == 0);
    const int height = int(p.shape[2]);
    product_strip<Operand>(pass, taps, height, int(p.shape[3]), row, min(row + tiling.tile_rows, height), column, shared);
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

template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), int threads, int64_t tiles, void* stream, std::decay_t<Parameters>... parameters) {
  void* arguments[] = {static_cast<void*>(&parameters)...};
  const dim3 grid(static_cast<unsigned>(tiles < INT32_MAX ? tiles : INT32_MAX));
  return cudaLaunchKernel(kernel, grid, dim3(static_cast<unsigned>(threads)), arguments, 0, static_cast<cudaStream_t>(stream));
}

enum class Form { direct, half_products, tf32_products };

// Which form serves a source: products where they lose nothing that the result would show. bfloat16's range and float32's
// precision are beyond half operands; float32 takes tf32 ones where PyTorch's matmul precision allows it.
Form choose_form(const Images& source, DType result, const BlurParams& p) {
  const bool rounds = result == DType::uint8 || result == DType::float16 || result == DType::bfloat16;
  if ((source.dtype == DType::uint8 || source.dtype == DType::float16) && rounds) return Form::half_products;
  if (source.dtype == DType::float32 && p.allow_tf32) return Form::tf32_products;
  return Form::direct;
}

template <class Destination>
cudaError_t launch_pass(const BlurParams& p, const Destination& destination, Form form, void* stream) {
  if (form == Form::direct) {
    const bool low = p.shape[2] <= 32;
    const Tiling tiling(p.shape, low ? 32 : 128, Shape<kDirectThreads>::kColumns);
    const auto kernel = low ? blur_direct<1, Destination> : blur_direct<4, Destination>;
    return launch(kernel, kDirectThreads, tiling.tiles, stream, p, destination, tiling);
  }
  const int64_t columns = (p.shape[3] + kStripColumns - 1) / kStripColumns;
  const bool few = p.shape[0] * p.shape[1] * columns < 512;  // strips: cut them, so that every multiprocessor has some
  const int tile_rows = few ? 64 : 256;
  const Tiling tiling(p.shape, tile_rows, kStripColumns);
  const auto kernel = form == Form::half_products ? blur_products<HalfOperand, Destination> : blur_products<Tf32Operand, Destination>;
  return launch(kernel, kStripThreads, tiling.tiles, stream, p, destination, tiling);
}

bool is_empty(const int64_t (&shape)[4]) { return shape[0] * shape[1] * shape[2] * shape[3] == 0; }

const char* why_not(const int64_t (&shape)[4]) {
  constexpr int64_t kLargestSide = INT32_MAX / 4;
  return shape[2] > kLargestSide || shape[3] > kLargestSide ? "an image side above 536,870,911 pixels is not supported" : nullptr;
}

Tiling parameter_tiling(const int64_t (&shape)[4]) {
  return Tiling(shape, 4 * kRun * kParameterSubRuns, Shape<kDirectThreads>::kColumns);
}

const char* message(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

}  // namespace

const char* foveated_blur_cuda(const BlurParams& p, const Images& out, void* stream) {
  if (is_empty(p.shape)) return nullptr;
  if (const char* reason = why_not(p.shape)) return reason;
  return message(launch_pass(p, out, choose_form(p.images, out.dtype, p), stream));
}

const char* foveated_blur_backward_cuda(const BlurParams& p, const BlurGradients& gradients, void* stream) {
  if (is_empty(p.shape)) return nullptr;
  if (const char* reason = why_not(p.shape)) return reason;
  cudaError_t error = cudaSuccess;
  if (gradients.grad_images.data)
    error = launch_pass(p, gradients, choose_form(gradients.grad, gradients.grad_images.dtype, p), stream);
  if (error == cudaSuccess && (gradients.grad_sigma || gradients.grad_gain)) {
    const Tiling tiling = parameter_tiling(p.shape);
    error = launch(blur_parameter_gradient, kDirectThreads, tiling.tiles, stream, p, gradients, tiling);
  }
  return message(error);
}

int64_t parameter_gradient_tiles(const int64_t (&shape)[4]) {
  return shape[0] == 0 ? 0 : parameter_tiling(shape).tiles / shape[0];
}

}  // namespace fovblur
