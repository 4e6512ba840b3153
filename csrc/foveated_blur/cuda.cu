// Foveated Gaussian blur on CUDA, direct form: exact in float32 for every image type, any radius, one launch.
//
// A block of 256 threads makes a tile of kTileRows x kTileColumns outputs of one plane. It walks down the rows the
// tile's outputs reach, kChunk at a time: a chunk is staged in shared memory, filtered along its rows (a thread makes
// eight neighbours), and added to the vertical sums, which stay in registers until the tile is done. So shared memory
// does not grow with the radius, and nothing but the result is written to device memory.

#include <cuda_runtime.h>

#include "../common/gaussian.h"
#include "../common/reflect.h"
#include "cuda.h"

namespace fovblur {
namespace {

constexpr int kThreads = 256;
constexpr int kTileColumns = 64;
constexpr int kChunk = 32;      // rows filtered along x at a time
constexpr int kSegment = 64;    // taps of the horizontal filter staged at a time
constexpr int kRun = 8;         // neighbouring outputs of a thread, in either direction
constexpr int kStagedColumns = kTileColumns + kSegment;
constexpr int kStagedStride = kStagedColumns + 4;  // 16-byte loads of eight lanes meet 32 different banks
constexpr int kFilteredStride = kTileColumns + 4;
constexpr int kTapsHeld = 1088;  // taps of a radius up to 500 stay in shared memory; beyond that they are recomputed
constexpr int kMargin = 32;      // zeros around them, so that blocks of taps may overhang the band

struct Tap {
  float sigma, inverse_sum;
  int radius;
  __device__ bool reaches(int offset) const { return offset >= -radius && offset <= radius; }
  __device__ float at(int offset) const { return gaussian_window(offset, sigma) * inverse_sum; }
};

struct SharedMemory {
  alignas(16) float staged[kChunk * kStagedStride];
  alignas(16) float filtered[kChunk * kFilteredStride];
  alignas(16) float taps[kTapsHeld];  // taps[kMargin + radius + offset]
  float partial[kThreads];
};

__device__ float load_element(const BlurParams& p, int64_t offset) {
  switch (p.in_dtype) {
    case DType::uint8:
      return to_float(static_cast<const uint8_t*>(p.images)[offset]);
    case DType::float16:
      return to_float(static_cast<const Half*>(p.images)[offset]);
    case DType::bfloat16:
      return to_float(static_cast<const BFloat16*>(p.images)[offset]);
    default:
      return static_cast<const float*>(p.images)[offset];
  }
}

__device__ void store_element(const BlurParams& p, int64_t offset, float y) {
  switch (p.out_dtype) {
    case DType::uint8:
      static_cast<uint8_t*>(p.out)[offset] = Convert<uint8_t>::from(y);
      break;
    case DType::float16:
      static_cast<Half*>(p.out)[offset] = Convert<Half>::from(y);
      break;
    case DType::bfloat16:
      static_cast<BFloat16*>(p.out)[offset] = Convert<BFloat16>::from(y);
      break;
    default:
      static_cast<float*>(p.out)[offset] = y;
  }
}

__device__ float per_sample(const PerSample& parameter, int64_t sample, int element = 0) {
  return static_cast<const float*>(parameter.data)[sample * parameter.stride + element];
}

// The sample's taps, normalised, with zero margins; all threads of the block take part.
__device__ Tap make_taps(const BlurParams& p, int64_t sample, SharedMemory& shared) {
  Tap tap;
  tap.sigma = per_sample(p.sigma, sample);
  tap.radius = gaussian_radius(tap.sigma, static_cast<const int32_t*>(p.kernel_size.data)[sample * p.kernel_size.stride]);
  float sum = 0.0f;
  for (int t = 1 + int(threadIdx.x); t <= tap.radius; t += kThreads) sum += 2.0f * gaussian_window(t, tap.sigma);
  shared.partial[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half) shared.partial[threadIdx.x] += shared.partial[threadIdx.x + half];
  }
  __syncthreads();
  tap.inverse_sum = 1.0f / (1.0f + shared.partial[0]);
  for (int k = int(threadIdx.x); k < kTapsHeld; k += kThreads) {
    const int offset = k - kMargin - tap.radius;
    shared.taps[k] = offset == 0 ? tap.inverse_sum : (tap.reaches(offset) ? tap.at(offset) : 0.0f);
  }
  return tap;
}

// What follows the blur at one pixel: the blend with the sharp image, then the normalisation.
struct Finish {
  Falloff kind;
  bool normalise;
  float gain, decay, cy, cx, distance, scale, mean, inverse_std;

  __device__ Finish(const BlurParams& p, int64_t sample, int64_t channel, bool identity)
      : kind(p.falloff), normalise(p.mean != nullptr), gain(identity ? 0.0f : per_sample(p.gain, sample)), decay(float(p.decay)),
        cy(per_sample(p.fixation, sample, 0)), cx(per_sample(p.fixation, sample, 1)),
        distance(falloff_distance(cy, cx, float(p.shape[2]), float(p.shape[3]))), scale(float(p.scale)),
        mean(normalise ? static_cast<const float*>(p.mean)[channel] : 0.0f),
        inverse_std(normalise ? 1.0f / static_cast<const float*>(p.std)[channel] : 1.0f) {}

  __device__ float operator()(int i, int j, float x, float y) const {
    const float w = gain * falloff(kind, decay, eccentricity(float(i) - cy, float(j) - cx, distance));
    if (w != 0.0f) y = w * x + (1.0f - w) * y;
    return normalise ? (y * scale - mean) * inverse_std : y;
  }
};

// Vertical sums of one run of rows: adds kRun filtered rows, the first of them `distance` below the run's first row.
// The fast form multiplies by the zero margins too, which is only right while every filtered value is finite.
__device__ void add_rows_fast(const float* taps, const float* filtered, float (&sums)[kRun]) {
  float w[2 * kRun];
#pragma unroll
  for (int k = 0; k < 2 * kRun - 1; ++k) w[k] = taps[k];
#pragma unroll
  for (int s = 0; s < kRun; ++s) {
    const float x = filtered[s * kFilteredStride];
#pragma unroll
    for (int i = 0; i < kRun; ++i) sums[i] += w[s - i + kRun - 1] * x;
  }
}

__device__ void add_rows_careful(const Tap& tap, int distance, const float* filtered, float (&sums)[kRun]) {
#pragma unroll 1
  for (int s = 0; s < kRun; ++s) {
    const float x = filtered[s * kFilteredStride];
#pragma unroll
    for (int i = 0; i < kRun; ++i)
      if (tap.reaches(distance + s - i)) sums[i] += tap.at(distance + s - i) * x;
  }
}

// kSubRuns runs of eight rows to a thread: tiles of 32 kSubRuns rows.
template <int kSubRuns>
__device__ void blur_tile(const BlurParams& p, int64_t sample, int64_t channel, int first_row, int first_column,
                          SharedMemory& shared) {
  constexpr int kTileRows = 4 * kRun * kSubRuns;
  const int height = int(p.shape[2]), width = int(p.shape[3]);
  const int64_t in_plane = sample * p.in_strides[0] + channel * p.in_strides[1];
  const int64_t out_plane = sample * p.out_strides[0] + channel * p.out_strides[1];
  const Tap tap = make_taps(p, sample, shared);
  const bool taps_held = 2 * (tap.radius + kMargin) < kTapsHeld;

  // Horizontal: eight lanes of a warp cover two rows and four runs.
  const int run_row = int(threadIdx.x) / 4 % kChunk;
  const int run_column = (int(threadIdx.x) % 4 + int(threadIdx.x) / (4 * kChunk) * 4) * kRun;
  // Vertical: a thread owns one column and kSubRuns runs of rows, 32 apart.
  const int column = int(threadIdx.x) % kTileColumns, run = int(threadIdx.x) / kTileColumns * kRun;
  float sums[kSubRuns][kRun] = {};

  const int rows_end = min(first_row + kTileRows, height) + tap.radius;
  for (int chunk = first_row - tap.radius; chunk < rows_end; chunk += kChunk) {
    float along[kRun] = {};
    bool finite = true;
    for (int segment = -tap.radius; segment <= tap.radius; segment += kSegment) {
      __syncthreads();  // the previous chunk's or segment's readers are done
      {
        const int k = int(threadIdx.x) % kStagedColumns;
        const int64_t j = in_plane + reflect(first_column + segment + k, width) * p.in_strides[3];
        for (int s = int(threadIdx.x) / kStagedColumns; s < kChunk; s += kThreads / kStagedColumns) {
          const float x = load_element(p, j + reflect(chunk + s, height) * p.in_strides[2]);
          shared.staged[s * kStagedStride + k] = x;
          finite = finite && isfinite(x);
        }
      }
      finite = !__syncthreads_or(!finite);
      const float* x = shared.staged + run_row * kStagedStride + run_column;
      if (finite && taps_held) {
        const int taps = min(kSegment, tap.radius - segment + 1);
        const float* w = shared.taps + kMargin + tap.radius + segment;
        float4 low = *reinterpret_cast<const float4*>(x), high = *reinterpret_cast<const float4*>(x + 4);
#pragma unroll 4
        for (int t = 0; t < taps; t += 4) {
          const float4 next = *reinterpret_cast<const float4*>(x + t + kRun);
          const float window[12] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w, next.x, next.y, next.z, next.w};
#pragma unroll
          for (int u = 0; u < 4; ++u)
#pragma unroll
            for (int i = 0; i < kRun; ++i) along[i] += w[t + u] * window[i + u];
          low = high;
          high = next;
        }
      } else {
        for (int t = 0; t < kSegment && segment + t <= tap.radius; ++t) {
          const float weight = tap.at(segment + t);
#pragma unroll
          for (int i = 0; i < kRun; ++i) along[i] += weight * x[t + i];
        }
      }
    }
    float4* filtered = reinterpret_cast<float4*>(shared.filtered + run_row * kFilteredStride + run_column);
    filtered[0] = make_float4(along[0], along[1], along[2], along[3]);
    filtered[1] = make_float4(along[4], along[5], along[6], along[7]);
    __syncthreads();
#pragma unroll
    for (int sub = 0; sub < kSubRuns; ++sub) {
      const int own = first_row + sub * 4 * kRun + run;
      for (int s = 0; s < kChunk; s += kRun) {
        const int distance = chunk + s - own;
        if (distance + kRun <= -tap.radius || distance - kRun >= tap.radius) continue;
        const float* rows = shared.filtered + s * kFilteredStride + column;
        if (finite && taps_held)
          add_rows_fast(shared.taps + kMargin + tap.radius + distance - (kRun - 1), rows, sums[sub]);
        else
          add_rows_careful(tap, distance, rows, sums[sub]);
      }
    }
  }

  // The sums pass through shared memory, so that blending and storing, with every falloff and type, is compiled once.
  const Finish finish(p, sample, channel, tap.radius == 0);
#pragma unroll
  for (int sub = 0; sub < kSubRuns; ++sub) {
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRun; ++r) shared.filtered[(run + r) * kFilteredStride + column] = sums[sub][r];
    __syncthreads();
    const int j = first_column + column;
#pragma unroll 1
    for (int r = run / kRun; r < 4 * kRun; r += kThreads / kTileColumns) {
      const int i = first_row + sub * 4 * kRun + r;
      if (i >= height || j >= width) break;
      const float x = load_element(p, in_plane + i * p.in_strides[2] + j * p.in_strides[3]);
      const float blurred = tap.radius == 0 ? x : shared.filtered[r * kFilteredStride + column];
      store_element(p, out_plane + i * p.out_strides[2] + j * p.out_strides[3], finish(i, j, x, blurred));
    }
  }
}

template <int kSubRuns>
__global__ void __launch_bounds__(kThreads, 2) blur_direct(const BlurParams p, int row_tiles, int column_tiles, int64_t tiles) {
  __shared__ SharedMemory shared;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t plane = tile / (row_tiles * int64_t(column_tiles));
    const int within = int(tile - plane * row_tiles * column_tiles);
    const int row = within / column_tiles * (4 * kRun * kSubRuns), column = within % column_tiles * kTileColumns;
    blur_tile<kSubRuns>(p, plane / p.shape[1], plane % p.shape[1], row, column, shared);
    __syncthreads();
  }
}

template <int kSubRuns>
cudaError_t launch(const BlurParams& p, cudaStream_t stream) {
  constexpr int kTileRows = 4 * kRun * kSubRuns;
  int row_tiles = int((p.shape[2] + kTileRows - 1) / kTileRows);
  int column_tiles = int((p.shape[3] + kTileColumns - 1) / kTileColumns);
  int64_t tiles = p.shape[0] * p.shape[1] * row_tiles * column_tiles;
  const dim3 grid(static_cast<unsigned>(tiles < INT32_MAX ? tiles : INT32_MAX));
  BlurParams params = p;
  void* arguments[] = {&params, &row_tiles, &column_tiles, &tiles};
  return cudaLaunchKernel(blur_direct<kSubRuns>, grid, dim3(kThreads), arguments, 0, stream);
}

}  // namespace

const char* foveated_blur_cuda(const BlurParams& p, void* stream) {
  if (p.shape[0] * p.shape[1] * p.shape[2] * p.shape[3] == 0) return nullptr;
  if (p.shape[2] > INT32_MAX / 4 || p.shape[3] > INT32_MAX / 4) return "an image side above 536,870,911 pixels is not supported";
  const auto on = static_cast<cudaStream_t>(stream);
  const cudaError_t error = p.shape[2] <= 32 ? launch<1>(p, on) : launch<4>(p, on);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace fovblur
