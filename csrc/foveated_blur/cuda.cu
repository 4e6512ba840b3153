// Foveated Gaussian blur on CUDA and its gradients, one launch a batch.

#include "cuda.h"

#include "cuda_filter.cuh"

namespace fovblur {
namespace {

__device__ float load_element(const Images& images, int64_t offset) {
  switch (images.dtype) {
    case DType::uint8:
      return to_float(static_cast<const uint8_t*>(images.data)[offset]);
    case DType::float16:
      return to_float(static_cast<const Half*>(images.data)[offset]);
    case DType::bfloat16:
      return to_float(static_cast<const BFloat16*>(images.data)[offset]);
    default:
      return static_cast<const float*>(images.data)[offset];
  }
}

__device__ void store_element(const Images& images, int64_t offset, float y) {
  switch (images.dtype) {
    case DType::uint8:
      static_cast<uint8_t*>(images.data)[offset] = Convert<uint8_t>::from(y);
      break;
    case DType::float16:
      static_cast<Half*>(images.data)[offset] = Convert<Half>::from(y);
      break;
    case DType::bfloat16:
      static_cast<BFloat16*>(images.data)[offset] = Convert<BFloat16>::from(y);
      break;
    default:
      static_cast<float*>(images.data)[offset] = y;
  }
}

// One plane of a batch of images.
struct Plane {
  const Images& images;
  int64_t offset;
  __device__ Plane(const Images& images, int64_t sample, int64_t channel)
      : images(images), offset(images.plane(sample, channel)) {}
  __device__ int64_t at(int i, int j) const { return offset + i * images.strides[2] + j * images.strides[3]; }
  __device__ float load(int i, int j) const { return load_element(images, at(i, j)); }
  __device__ void store(int i, int j, float y) const { store_element(images, at(i, j), y); }
};

// Weight of the sharp image at each pixel of one sample.
struct Weight {
  Falloff kind;
  float gain, decay, cy, cx, distance;
  __device__ Weight(const BlurParams& p, int64_t sample)
      : kind(p.falloff), gain(per_sample(p.gain, sample)), decay(float(p.decay)), cy(per_sample(p.fixation, sample, 0)),
        cx(per_sample(p.fixation, sample, 1)), distance(falloff_distance(cy, cx, float(p.shape[2]), float(p.shape[3]))) {}
  __device__ float acuity(int i, int j) const {
    return falloff(kind, decay, eccentricity(float(i) - cy, float(j) - cx, distance));
  }
};

// y -> y * factor - offset: the normalisation of one channel.
struct Normalisation {
  float factor = 1.0f, offset = 0.0f;
  __device__ Normalisation(const BlurParams& p, int64_t channel) {
    if (!p.mean) return;
    const float inverse_std = 1.0f / static_cast<const float*>(p.std)[channel];
    factor = float(p.scale) * inverse_std;
    offset = static_cast<const float*>(p.mean)[channel] * inverse_std;
  }
};

// A border pixel's share: under REFLECT_101 the blur is symmetric once border pixels count half, A^T = E A E^-1.
__device__ float border_share(int i, int n) { return i == 0 || i == n - 1 ? 0.5f : 1.0f; }

// The sums pass through shared memory, so that what follows the blur, with every falloff and type, is compiled once:
// each(i, j, sum) for every pixel of the tile inside the image.
template <int kSubRuns, class Each>
__device__ void for_each_output(const float (&sums)[kSubRuns][kRun], int height, int width, int first_row, int first_column,
                                float* memory, const Each& each) {
  const int column = int(threadIdx.x) % kTileColumns, group = int(threadIdx.x) / kTileColumns;
#pragma unroll
  for (int sub = 0; sub < kSubRuns; ++sub) {
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRun; ++r) memory[(group * kRun + r) * kFilteredStride + column] = sums[sub][r];
    __syncthreads();
#pragma unroll 1
    for (int r = group; r < 4 * kRun; r += kThreads / kTileColumns) {
      const int i = first_row + sub * 4 * kRun + r, j = first_column + column;
      if (i < height && j < width) each(i, j, memory[r * kFilteredStride + column]);
    }
  }
}

// ---- tiles ----

template <int kSubRuns>
__device__ void forward_tile(const BlurParams& p, const Images& out, int64_t sample, int64_t channel, int first_row,
                             int first_column, FilterMemory<1>& shared) {
  const int height = int(p.shape[2]), width = int(p.shape[3]);
  const Plane source(p.images, sample, channel), target(out, sample, channel);
  const Taps taps = make_taps(p, sample, shared);
  float blurred[kSubRuns][kRun] = {}, unused[1][kRun];
  filter_tile<kSubRuns, 1>([&](int i, int j) { return source.load(i, j); }, taps, height, width, first_row, first_column,
                           shared, blurred, unused);
  const Weight weight(p, sample);
  const Normalisation normalisation(p, channel);
  for_each_output(blurred, height, width, first_row, first_column, shared.filtered[0], [&](int i, int j, float y) {
    const float x = source.load(i, j);
    const float w = weight.gain * weight.acuity(i, j);
    if (w != 0.0f) y = w * x + (1.0f - w) * y;  // an infinite pixel under weight 0 is not NaN
    if (taps.radius == 0) y = x;
    if (p.mean) y = y * normalisation.factor - normalisation.offset;
    target.store(i, j, y);
  });
}

// The gradient of the images: w g + A^T (1 - w) g A, with the normalisation's factor in g.
template <int kSubRuns>
__device__ void image_gradient_tile(const BlurParams& p, const BlurGradients& gradients, int64_t sample, int64_t channel,
                                    int first_row, int first_column, FilterMemory<1>& shared) {
  const int height = int(p.shape[2]), width = int(p.shape[3]);
  const Plane source(gradients.grad, sample, channel), target(gradients.grad_images, sample, channel);
  const Taps taps = make_taps(p, sample, shared);
  const Weight weight(p, sample);
  const float factor = Normalisation(p, channel).factor;
  auto load = [&](int i, int j) {
    const float through_blur = 1.0f - weight.gain * weight.acuity(i, j);
    return through_blur * source.load(i, j) / (border_share(i, height) * border_share(j, width));
  };
  float blurred[kSubRuns][kRun] = {}, unused[1][kRun];
  filter_tile<kSubRuns, 1>(load, taps, height, width, first_row, first_column, shared, blurred, unused);
  for_each_output(blurred, height, width, first_row, first_column, shared.filtered[0], [&](int i, int j, float y) {
    const float g = source.load(i, j);
    y = border_share(i, height) * border_share(j, width) * y + weight.gain * weight.acuity(i, j) * g;
    target.store(i, j, factor * (taps.radius == 0 ? g : y));
  });
}

// The tile's part of dL/dsigma = sum g (1 - w) (A' x A^T + A x A'^T) and of dL/dgain = sum g f (x - A x A^T).
template <int kSubRuns>
__device__ void parameter_gradient_tile(const BlurParams& p, const BlurGradients& gradients, int64_t sample, int64_t channel,
                                        int first_row, int first_column, int64_t place, FilterMemory<2>& shared) {
  const int height = int(p.shape[2]), width = int(p.shape[3]);
  const Plane source(p.images, sample, channel), grad(gradients.grad, sample, channel);
  const Taps taps = make_taps(p, sample, shared);
  float blurred[kSubRuns][kRun] = {}, slope[kSubRuns][kRun] = {};
  filter_tile<kSubRuns, 2>([&](int i, int j) { return source.load(i, j); }, taps, height, width, first_row, first_column,
                           shared, blurred, slope);
  const Weight weight(p, sample);
  const float factor = taps.radius == 0 ? 0.0f : Normalisation(p, channel).factor;
  float of_sigma = 0.0f, of_gain = 0.0f;
  for_each_output(slope, height, width, first_row, first_column, shared.filtered[0], [&](int i, int j, float y) {
    of_sigma += grad.load(i, j) * (1.0f - weight.gain * weight.acuity(i, j)) * y;
  });
  for_each_output(blurred, height, width, first_row, first_column, shared.filtered[0], [&](int i, int j, float y) {
    of_gain += grad.load(i, j) * weight.acuity(i, j) * (source.load(i, j) - y);
  });
  __syncthreads();
  block_sum(of_sigma, of_gain, shared.partial);
  if (threadIdx.x != 0) return;
  if (gradients.grad_sigma) static_cast<float*>(gradients.grad_sigma)[place] = factor == 0.0f ? 0.0f : factor * shared.partial[0][0];
  if (gradients.grad_gain) static_cast<float*>(gradients.grad_gain)[place] = factor == 0.0f ? 0.0f : factor * shared.partial[1][0];
}

// ---- kernels: a block takes tiles of planes until none is left ----

// How an image is cut; tiles of one sample are consecutive.
struct Tiling {
  int row_tiles, column_tiles, tile_rows;
  int64_t channels, tiles;

  Tiling(const int64_t (&shape)[4], int sub_runs)
      : row_tiles(int((shape[2] + 4 * kRun * sub_runs - 1) / (4 * kRun * sub_runs))),
        column_tiles(int((shape[3] + kTileColumns - 1) / kTileColumns)),
        tile_rows(4 * kRun * sub_runs),
        channels(shape[1]),
        tiles(shape[0] * shape[1] * row_tiles * column_tiles) {}

  // Calls each(sample, channel, first_row, first_column, tile) for the tiles of this block.
  template <class Each>
  __device__ void for_own_tiles(const Each& each) const {
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const int64_t plane = tile / (int64_t(row_tiles) * column_tiles);
      const int within = int(tile - plane * row_tiles * column_tiles);
      each(plane / channels, plane % channels, within / column_tiles * tile_rows, within % column_tiles * kTileColumns, tile);
      __syncthreads();
    }
  }
};

template <int kSubRuns>
__global__ void __launch_bounds__(kThreads, 2) blur_forward(const BlurParams p, const Images out, const Tiling tiling) {
  __shared__ FilterMemory<1> shared;
  tiling.for_own_tiles([&](int64_t sample, int64_t channel, int row, int column, int64_t) {
    forward_tile<kSubRuns>(p, out, sample, channel, row, column, shared);
  });
}

template <int kSubRuns>
__global__ void __launch_bounds__(kThreads, 2)
    blur_image_gradient(const BlurParams p, const BlurGradients gradients, const Tiling tiling) {
  __shared__ FilterMemory<1> shared;
  tiling.for_own_tiles([&](int64_t sample, int64_t channel, int row, int column, int64_t) {
    image_gradient_tile<kSubRuns>(p, gradients, sample, channel, row, column, shared);
  });
}

constexpr int kParameterSubRuns = 2;

__global__ void __launch_bounds__(kThreads, 2)
    blur_parameter_gradient(const BlurParams p, const BlurGradients gradients, const Tiling tiling) {
  __shared__ FilterMemory<2> shared;
  tiling.for_own_tiles([&](int64_t sample, int64_t channel, int row, int column, int64_t tile) {
    parameter_gradient_tile<kParameterSubRuns>(p, gradients, sample, channel, row, column, tile, shared);
  });
}

template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), int64_t tiles, void* stream, Parameters... parameters) {
  void* arguments[] = {const_cast<void*>(static_cast<const void*>(&parameters))...};
  const dim3 grid(static_cast<unsigned>(tiles < INT32_MAX ? tiles : INT32_MAX));
  return cudaLaunchKernel(kernel, grid, dim3(kThreads), arguments, 0, static_cast<cudaStream_t>(stream));
}

bool is_empty(const int64_t (&shape)[4]) { return shape[0] * shape[1] * shape[2] * shape[3] == 0; }

const char* why_not(const int64_t (&shape)[4]) {
  constexpr int64_t kLargestSide = INT32_MAX / 4;
  return shape[2] > kLargestSide || shape[3] > kLargestSide ? "an image side above 536,870,911 pixels is not supported" : nullptr;
}

const char* message(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

}  // namespace

const char* foveated_blur_cuda(const BlurParams& p, const Images& out, void* stream) {
  if (is_empty(p.shape)) return nullptr;
  if (const char* reason = why_not(p.shape)) return reason;
  const bool low = p.shape[2] <= 32;
  const Tiling tiling(p.shape, low ? 1 : 4);
  return message(launch(low ? blur_forward<1> : blur_forward<4>, tiling.tiles, stream, p, out, tiling));
}

const char* foveated_blur_backward_cuda(const BlurParams& p, const BlurGradients& gradients, void* stream) {
  if (is_empty(p.shape)) return nullptr;
  if (const char* reason = why_not(p.shape)) return reason;
  cudaError_t error = cudaSuccess;
  if (gradients.grad_images.data) {
    const bool low = p.shape[2] <= 32;
    const Tiling tiling(p.shape, low ? 1 : 4);
    error = launch(low ? blur_image_gradient<1> : blur_image_gradient<4>, tiling.tiles, stream, p, gradients, tiling);
  }
  if (error == cudaSuccess && (gradients.grad_sigma || gradients.grad_gain)) {
    const Tiling tiling(p.shape, kParameterSubRuns);
    error = launch(blur_parameter_gradient, tiling.tiles, stream, p, gradients, tiling);
  }
  return message(error);
}

int64_t parameter_gradient_tiles(const int64_t (&shape)[4]) {
  return shape[0] == 0 ? 0 : Tiling(shape, kParameterSubRuns).tiles / shape[0];
}

}  // namespace fovblur
