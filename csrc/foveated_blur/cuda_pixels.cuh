// Pixels of the CUDA kernels: loads, stores, weights and normalisation.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>
#include <cmath>
#include <type_traits>

#include "../common/launch.cuh"
#include "../common/mma.cuh"
#include "blur_math.h"
#include "cuda_taps.cuh"
#include "params.h"

namespace fovblur {

__device__ inline float load_element(const Images& images, int64_t offset) {
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

__device__ inline void store_element(const Images& images, int64_t offset, float y) {
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

  // Whether two neighbours from an even column on are float32 in aligned pairs.
  __device__ bool has_pairs() const {
    return images.dtype == DType::float32 && images.strides[3] == 1 && images.strides[2] % 2 == 0 &&
           (reinterpret_cast<uintptr_t>(images.data) + offset * 4) % sizeof(float2) == 0;
  }
  __device__ float* floats(int i, int j) const { return static_cast<float*>(images.data) + at(i, j); }  // from (i, j) on
};

// Four neighbouring pixels of a row.
template <class Element>
struct alignas(4 * sizeof(Element)) Four {
  Element pixels[4];
};

// Whether all planes of a sample from a channel on can be read and written by four pixels from columns that are multiples of 4.
__device__ inline bool can_move_four(const Images& images, int64_t sample, int64_t channel) {
  const int64_t bytes = size_of(images.dtype), offset = images.plane(sample, channel);
  return images.strides[3] == 1 && images.strides[2] % 4 == 0 && images.strides[1] % 4 == 0 &&
         (reinterpret_cast<uintptr_t>(images.data) + offset * bytes) % (4 * bytes) == 0;
}

// Reads four neighbours from `first` on, or the first `count` of them and 0 for the others.
template <class Element>
__device__ Four<Element> load_four(const void* first, int64_t stride, int count, bool whole) {
  const Element* pixels = static_cast<const Element*>(first);
  if (whole && count > 0) return *reinterpret_cast<const Four<Element>*>(pixels);
  Four<Element> four = {};
#pragma unroll
  for (int k = 0; k < 4; ++k)
    if (k < count) four.pixels[k] = pixels[k * stride];
  return four;
}

// Writes four neighbours from `first` on, or the first `count` of them.
template <class Element>
__device__ void store_four_of(void* first, int64_t stride, int count, bool whole, const float (&y)[4]) {
  Element* pixels = static_cast<Element*>(first);
  if (whole) {
    Four<Element> four;
#pragma unroll
    for (int k = 0; k < 4; ++k) four.pixels[k] = Convert<Element>::from(y[k]);
    *reinterpret_cast<Four<Element>*>(pixels) = four;
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k)
    if (k < count) pixels[k * stride] = Convert<Element>::from(y[k]);
}
__device__ inline void store_four(DType dtype, void* first, int64_t stride, int count, bool whole, const float (&y)[4]) {
  switch (dtype) {
    case DType::uint8:
      return store_four_of<uint8_t>(first, stride, count, whole, y);
    case DType::float16:
      return store_four_of<Half>(first, stride, count, whole, y);
    case DType::bfloat16:
      return store_four_of<BFloat16>(first, stride, count, whole, y);
    default:
      return store_four_of<float>(first, stride, count, whole, y);
  }
}

// Square root, within 2 ulp on the device; the correctly rounded one takes ten times as long.
__device__ inline float square_root(float x) {
#ifdef __CUDA_ARCH__
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
#else
  return sqrtf(x);
#endif
}

// Weight of the sharp image at each pixel of one sample.
struct Weight {
  Falloff kind;
  float gain, cy, cx;
  // Eccentricity at the farthest pixel, and that of one pixel of distance: in halvings of acuity for the falloff exp.
  float most, rate;
  __device__ Weight(const BlurParams& p, int64_t sample) : Weight(p, sample, p.shape[2], p.shape[3]) {}
  __device__ Weight(const BlurParams& p, int64_t sample, int64_t height, int64_t width)
      : kind(p.falloff), gain(per_sample(p.gain, sample)), cy(per_sample(p.fixation, sample, 0)),
        cx(per_sample(p.fixation, sample, 1)), most(p.falloff == Falloff::exp ? float(p.decay) * 1.44269504f : 1.0f) {
    const float distance = falloff_distance(cy, cx, float(height), float(width));
    rate = distance > 0.0f ? most / distance : FLT_MAX;  // of a 1 x 1 image
  }
  __device__ float acuity(int i, int j) const {
    return kind == Falloff::exp ? exponential_acuity(i, j) : falloff(kind, 0.0f, eccentricity_of(i, j));
  }
  __device__ float at(int i, int j) const { return gain * acuity(i, j); }
  // The same for the exponential falloff alone, without code for the others.
  __device__ float exponential_acuity(int i, int j) const { return power_of_two(-eccentricity_of(i, j)); }
  __device__ float exponential_at(int i, int j) const { return gain * exponential_acuity(i, j); }

  // Computes `factor` times the acuity at (i, j..j+kCount-1) and as many pixels of every kStep-th row below.
  template <int kRows, int kCount, int kStep = 8>
  __device__ void acuity_of_rows(int i, int j, float factor, float (&acuities)[kRows][kCount]) const {
    if (kind == Falloff::exp) {
      const float first_dx = (float(j) - cx) * rate;
#pragma unroll
      for (int h = 0; h < kRows; ++h) {
        const float dy = (float(i + kStep * h) - cy) * rate;
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          const float dx = float(k) * rate + first_dx;
          acuities[h][k] = factor * power_of_two(-fminf(square_root(dx * dx + dy * dy), most));
        }
      }
      return;
    }
#pragma unroll 1
    for (int place = 0; place < kRows * kCount; ++place) {
      const float acuity = factor * this->acuity(i + place / kCount * kStep, j + place % kCount);
#pragma unroll
      for (int h = 0; h < kRows; ++h)
#pragma unroll
        for (int k = 0; k < kCount; ++k) acuities[h][k] = place == h * kCount + k ? acuity : acuities[h][k];
    }
  }

 private:
  __device__ float eccentricity_of(int i, int j) const {
    const float dy = float(i) - cy, dx = float(j) - cx;
    return fminf(square_root(dy * dy + dx * dx) * rate, most);
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

// Diagonal of E: under REFLECT_101 the blur is symmetric once border pixels count half, A^T = E A E^-1.
__device__ inline float share(int i, int j, int height, int width) {
  return (i == 0 || i == height - 1 ? 0.5f : 1.0f) * (j == 0 || j == width - 1 ? 0.5f : 1.0f);
}
__device__ inline float inverse_share(int i, int j, int height, int width) {
  return (i == 0 || i == height - 1 ? 2.0f : 1.0f) * (j == 0 || j == width - 1 ? 2.0f : 1.0f);
}

// The input of the filter and the steps after it, for the blur: y = w x + (1 - w) blurred, normalised.
struct Forward {
  static constexpr bool kPrepares = false;  // filters the unchanged source
  Plane source, target;
  Weight weight;
  Normalisation normalisation;
  bool identity;
  __device__ Forward(const BlurParams& p, const Images& out, int64_t sample, int64_t channel, bool identity)
      : source(p.images, sample, channel), target(out, sample, channel), weight(p, sample), normalisation(p, channel),
        identity(identity) {}

  __device__ float prepare(int, int, int, int, float, float x) const { return x; }
  __device__ float finish(int, int, int, int, float w, float x, float blurred) const {
    float y = blurred;
    if (w != 0.0f) y = w * x + (1.0f - w) * y;  // an infinite pixel under weight 0 is not NaN
    if (identity) y = x;
    return y * normalisation.factor - normalisation.offset;
  }
};

// The same for the gradient of the images: w g + A^T (1 - w) g A, with the normalisation's factor.
struct Adjoint {
  static constexpr bool kPrepares = true;
  Plane source, target;
  Weight weight;
  float factor;
  bool identity;
  __device__ Adjoint(const BlurParams& p, const BlurGradients& gradients, int64_t sample, int64_t channel, bool identity)
      : source(gradients.grad, sample, channel), target(gradients.grad_images, sample, channel), weight(p, sample),
        factor(Normalisation(p, channel).factor), identity(identity) {}

  __device__ float prepare(int i, int j, int height, int width, float w, float g) const {
    return (1.0f - w) * g * inverse_share(i, j, height, width);
  }
  __device__ float finish(int i, int j, int height, int width, float w, float g, float blurred) const {
    return factor * (identity ? g : share(i, j, height, width) * blurred + w * g);
  }
};

}  // namespace fovblur
