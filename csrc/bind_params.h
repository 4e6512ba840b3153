// The kernels' parameters as Python sees them; both extension modules bind them, each for itself.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include "foveated_blur/params.h"

namespace fovblur {

using ImageArgument = std::tuple<uintptr_t, int, std::array<int64_t, 4>>;  // address, DType, strides
using PerSampleArgument = std::tuple<uintptr_t, int64_t>;                  // address, stride

inline PerSample per_sample(const PerSampleArgument& argument) {
  return {reinterpret_cast<const void*>(std::get<0>(argument)), std::get<1>(argument)};
}

inline BlurParams make_blur_params(const std::array<int64_t, 4>& shape, const ImageArgument& images, const ImageArgument& out,
                                   const PerSampleArgument& sigma, const PerSampleArgument& kernel_size,
                                   const PerSampleArgument& gain, const PerSampleArgument& fixation, int falloff, double decay,
                                   uintptr_t mean, uintptr_t std, double scale) {
  BlurParams p{};
  p.images = reinterpret_cast<const void*>(std::get<0>(images));
  p.out = reinterpret_cast<void*>(std::get<0>(out));
  p.in_dtype = DType(std::get<1>(images));
  p.out_dtype = DType(std::get<1>(out));
  for (int i = 0; i < 4; ++i) {
    p.shape[i] = shape[i];
    p.in_strides[i] = std::get<2>(images)[i];
    p.out_strides[i] = std::get<2>(out)[i];
  }
  p.sigma = per_sample(sigma);
  p.kernel_size = per_sample(kernel_size);
  p.gain = per_sample(gain);
  p.fixation = per_sample(fixation);
  p.falloff = Falloff(falloff);
  p.decay = decay;
  p.mean = reinterpret_cast<const void*>(mean);
  p.std = reinterpret_cast<const void*>(std);
  p.scale = scale;
  return p;
}

inline void bind_blur_params(pybind11::module_& m) {
  using pybind11::arg;
  pybind11::class_<BlurParams>(m, "BlurParams", pybind11::module_local())
      .def(pybind11::init(&make_blur_params), pybind11::kw_only(), arg("shape"), arg("images"), arg("out"), arg("sigma"),
           arg("kernel_size"), arg("gain"), arg("fixation"), arg("falloff"), arg("decay"), arg("mean"), arg("std"),
           arg("scale"));
}

}  // namespace fovblur
