// The Gaussian of one sample, computed by a block from its sigma and kernel size.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

#include "blur_math.h"
#include "params.h"

namespace fovblur {

__device__ inline float per_sample(const PerSample& parameter, int64_t sample, int element = 0) {
  return static_cast<const float*>(parameter.data)[sample * parameter.stride + element];
}

// The normalised Gaussian of one sample and its derivative in sigma.
struct Taps {
  float sigma, inverse_sum, moment, inverse_cube;
  int radius;
  __device__ bool reaches(int offset) const { return offset >= -radius && offset <= radius; }
  __device__ float tap(int offset) const { return gaussian_window(offset, sigma) * inverse_sum; }
  __device__ float slope(int offset) const { return tap(offset) * (float(offset) * float(offset) - moment) * inverse_cube; }
};

// Sums of `first` and `second` over the block, in partial[0][0] and partial[1][0]; starts and ends with a barrier.
template <int kThreads>
__device__ void block_sum(float first, float second, float (&partial)[2][kThreads]) {
  __syncthreads();
  partial[0][threadIdx.x] = first;
  partial[1][threadIdx.x] = second;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half) {
      partial[0][threadIdx.x] += partial[0][threadIdx.x + half];
      partial[1][threadIdx.x] += partial[1][threadIdx.x + half];
    }
  }
  __syncthreads();
}

// Returns the taps of a Gaussian; all threads of the block take part.
template <int kThreads>
__device__ Taps make_taps(float sigma, int kernel_size, float (&partial)[2][kThreads]) {
  Taps taps;
  taps.sigma = sigma >= 0.0f ? sigma : NAN;  // a bad value on the device shows in the result
  taps.radius = gaussian_radius(sigma, kernel_size);
  float sum = 0.0f, moment = 0.0f;
  for (int t = 1 + int(threadIdx.x); t <= taps.radius; t += kThreads) {
    const float weight = 2.0f * gaussian_window(t, taps.sigma);
    sum += weight;
    moment += weight * float(t) * float(t);
  }
  block_sum<kThreads>(sum, moment, partial);
  taps.inverse_sum = 1.0f / (1.0f + partial[0][0]);
  taps.moment = partial[1][0] * taps.inverse_sum;
  taps.inverse_cube = 1.0f / (taps.sigma * taps.sigma * taps.sigma);
  return taps;
}

__device__ inline int kernel_size_of(const BlurParams& p, int64_t sample, int axis = 0) {
  return static_cast<const int32_t*>(p.kernel_size.data)[sample * p.kernel_size.stride + axis];
}

// Returns the taps of a sample; all threads of the block take part.
template <int kThreads>
__device__ Taps make_taps(const BlurParams& p, int64_t sample, float (&partial)[2][kThreads]) {
  return make_taps<kThreads>(per_sample(p.sigma, sample), kernel_size_of(p, sample), partial);
}

}  // namespace fovblur
