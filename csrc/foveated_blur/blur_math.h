// The mathematics of the blur that the CPU and the CUDA kernels share: the Gaussian, the border, and the falloff of acuity.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/dtype.h"

namespace fovblur {

// How acuity falls from 1 at the fixation (u = 0) to its value at the farthest pixel (u = 1).
enum class Falloff : int { exp = 0, linear = 1, quadratic = 2, log = 3, brachistochrone = 4 };

// What lies beyond the image: as in NumPy's pad, reflect repeats no edge pixel, symmetric does.
enum class Border : int { reflect = 0, symmetric = 1, replicate = 2, constant = 3, circular = 4 };

#ifdef __CUDACC__
// 2^x in one instruction, with an absolute error below 2e-7 for x <= 0.
__device__ __forceinline__ float power_of_two(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}
#else
inline float power_of_two(float x) { return std::exp2(x); }
#endif

// exp(x) for x <= 0. On CUDA two instructions with an absolute error below 3e-7; on the host a polynomial (2 ulp) that
// compilers vectorise, unlike a call of libm.
FOVBLUR_HD float exp_of_negative(float x) {
#ifdef __CUDA_ARCH__
  return power_of_two(x * 1.44269504f);
#else
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const uint32_t power = (bit_cast<uint32_t>(shifted) + 127u) << 23;
  return p * bit_cast<float>(power);
#endif
}
FOVBLUR_HD double exp_of_negative(double x) { return ::exp(x); }

// s - sin s and 1 - cos s for s in [0, 2.5] by their series, which are exact near 0, where the closed forms cancel.
template <class Real>
FOVBLUR_HD Real cycloid_series(Real z, int first) {  // 1 - z / (first (first + 1)) (1 - z / ((first + 2) (first + 3)) (...))
  Real sum = 1;
  for (int k = 11; k >= 0; --k) sum = Real(1) - z * (Real(1) / Real((first + 2 * k) * (first + 2 * k + 1))) * sum;
  return sum;
}
template <class Real>
FOVBLUR_HD Real s_minus_sin(Real s) {
  return s * s * s / Real(6) * cycloid_series(s * s, 4);
}
template <class Real>
FOVBLUR_HD Real one_minus_cos(Real s) {
  return s * s / Real(2) * cycloid_series(s * s, 3);
}

// The cycloid from (0, 1) to (1, 0): x = r (s - sin s), y = 1 - r (1 - cos s).
template <class Real>
FOVBLUR_HD Real brachistochrone(Real u) {
  const Real r = Real(0.5729);
  const Real target = u / r;
  Real s = cbrt(Real(6) * target);  // exact as s -> 0, and at most 10 % below the root on [0, 1]
  for (int i = 0; i < 5 && s > Real(0); ++i) s -= (s_minus_sin(s) - target) / one_minus_cos(s);  // Newton
  return Real(1) - r * one_minus_cos(s);
}

template <class Real>
FOVBLUR_HD Real falloff(Falloff kind, Real decay, Real u) {
  switch (kind) {
    case Falloff::exp:
      return exp_of_negative(-decay * u);
    case Falloff::linear:
      return Real(1) - u;
    case Falloff::quadratic:
      return Real(1) - u * u;
    case Falloff::log: {
      const Real b = Real(0.58197670686932642438);  // 1 / (e - 1): the curve ends in 0
      const Real acuity = Real(1) - ::log1p(u / b);
      return acuity < Real(0) ? Real(0) : acuity;  // below 0, its rounded end would turn the sign of an infinity
    }
    default:
      return brachistochrone(u);
  }
}

// Distance over which acuity falls, for a fixation in an H x W image: to the last pixel for the default fixation, as in the
// published formula, and to the farthest pixel for any other.
template <class Real>
FOVBLUR_HD Real falloff_distance(Real cy, Real cx, Real height, Real width) {
  Real dy = height - Real(1) - cy, dx = width - Real(1) - cx;
  if (cy != floor(height / 2) || cx != floor(width / 2)) {
    dy = fmax(fabs(cy), fabs(dy));
    dx = fmax(fabs(cx), fabs(dx));
  }
  return sqrt(dy * dy + dx * dx);
}

// u = min(1, d / D), with 0 / 0 = 0 (a 1 x 1 image).
template <class Real>
FOVBLUR_HD Real eccentricity(Real dy, Real dx, Real distance) {
  const Real d = sqrt(dy * dy + dx * dx);
  return d < distance ? d / distance : (d > Real(0) ? Real(1) : Real(0));
}

// The Gaussian window, before it is normalised to sum 1 over -radius .. radius.
// It is never quite 0: an infinite pixel stays infinite all over the support, where 0 * infinity would be NaN.
template <class Real>
FOVBLUR_HD Real gaussian_window(int offset, Real sigma) {
  const Real u = Real(offset) / sigma;
  const Real window = exp(Real(-0.5) * u * u);
  return window < Real(1.17549435e-38) ? Real(1.17549435e-38) : window;
}

// A sigma of 0 is the identity, whatever the kernel size. A negative or NaN sigma, which only tensors on a GPU can hold, gets
// one tap on each side, so that its NaN reaches every pixel.
template <class Real>
FOVBLUR_HD int gaussian_radius(Real sigma, int kernel_size) {
  return sigma > Real(0) ? kernel_size / 2 : (sigma == Real(0) ? 0 : 1);
}

// The border rule REFLECT_101: ... 2 1 | 0 1 2 ... n-2 n-1 | n-2 n-3 ...
// Returns the index in [0, n) of the pixel at position i, for any i (period 2n - 2).
template <class Int>
FOVBLUR_HD Int reflect(Int i, Int n) {
  const Int last = n - 1;
  i = i < 0 ? -i : i;
  if (i <= last) return i;
  if (last == 0) return 0;
  const Int period = 2 * last;
  i %= period;
  return i <= last ? i : period - i;
}

// The index in [0, n) of the pixel at position i, for any i, or -1 for the zeros of Border::constant.
template <class Int>
FOVBLUR_HD Int border_index(Border border, Int i, Int n) {
  if (i >= 0 && i < n) return i;
  switch (border) {
    case Border::reflect:
      return reflect(i, n);
    case Border::symmetric: {
      const Int folded = (i < 0 ? -1 - i : i) % (2 * n);
      return folded < n ? folded : 2 * n - 1 - folded;
    }
    case Border::replicate:
      return i < 0 ? 0 : n - 1;
    case Border::circular: {
      const Int wrapped = i % n;
      return wrapped < 0 ? wrapped + n : wrapped;
    }
    default:
      return -1;
  }
}

// The taps of OpenCV's tables for kernels of 3 to 9 pixels, which it uses where no sigma is given. Each table is one
// integer, with a byte for every tap from the middle on, in units of 1/256: an array would lie in a GPU's local memory.
constexpr int kMostTableRadius = 4;
template <class Real>
FOVBLUR_HD Real table_tap(int radius, int offset) {
  const uint64_t taps = radius == 1 ? 0x4080 : radius == 2 ? 0x104060 : radius == 3 ? 0x081c3848 : 0x040d1e333cull;
  return Real(int(taps >> 8 * (offset < 0 ? -offset : offset) & 0xff)) / Real(256);
}

}  // namespace fovblur
