// Bindings of the blur's parameters, included by both extension modules.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include "params.h"

namespace fovblur {

using PerSampleArgument = std::tuple<uintptr_t, int64_t>;           // address, stride
using MapArgument = std::tuple<uintptr_t, std::array<int64_t, 3>>;  // address, strides

inline Images make_images(uintptr_t data, int dtype, const std::array<int64_t, 4>& strides) {
  return {reinterpret_cast<void*>(data), DType(dtype), {strides[0], strides[1], strides[2], strides[3]}};
}

inline PerSample make_per_sample(const PerSampleArgument& argument) {
  return {reinterpret_cast<const void*>(std::get<0>(argument)), std::get<1>(argument)};
}

inline Map make_map(const MapArgument& argument) {
  const auto& strides = std::get<1>(argument);
  return {reinterpret_cast<const void*>(std::get<0>(argument)), {strides[0], strides[1], strides[2]}};
}

inline BlurParams make_blur_params(const std::array<int64_t, 4>& shape, const Images& images, const PerSampleArgument& sigma,
                                   const PerSampleArgument& kernel_size, bool per_axis, bool tables, int border,
                                   const PerSampleArgument& gain, const PerSampleArgument& fixation, int falloff, double decay,
                                   const MapArgument& weight, uintptr_t mean, uintptr_t std, double scale, bool allow_tf32) {
  BlurParams p{};
  for (int i = 0; i < 4; ++i) p.shape[i] = shape[i];
  p.images = images;
  p.sigma = make_per_sample(sigma);
  p.kernel_size = make_per_sample(kernel_size);
  p.per_axis = per_axis;
  p.tables = tables;
  p.border = Border(border);
  p.gain = make_per_sample(gain);
  p.fixation = make_per_sample(fixation);
  p.falloff = Falloff(falloff);
  p.decay = decay;
  p.weight = make_map(weight);
  p.mean = reinterpret_cast<const void*>(mean);
  p.std = reinterpret_cast<const void*>(std);
  p.scale = scale;
  p.allow_tf32 = allow_tf32;
  return p;
}

inline BlurGradients make_blur_gradients(const Images& grad, const Images& grad_images, uintptr_t grad_sigma,
                                         uintptr_t grad_gain) {
  return {grad, grad_images, reinterpret_cast<void*>(grad_sigma), reinterpret_cast<void*>(grad_gain)};
}

inline void bind_blur(pybind11::module_& m) {
  using namespace pybind11;
  class_<Images>(m, "Images", module_local()).def(init(&make_images), arg("data"), arg("dtype"), arg("strides"));
  class_<BlurParams>(m, "BlurParams", module_local())
      .def(init(&make_blur_params), kw_only(), arg("shape"), arg("images"), arg("sigma"), arg("kernel_size"),
           arg("per_axis"), arg("tables"), arg("border"), arg("gain"), arg("fixation"), arg("falloff"), arg("decay"),
           arg("weight"), arg("mean"), arg("std"), arg("scale"), arg("allow_tf32"));
  class_<BlurGradients>(m, "BlurGradients", module_local())
      .def(init(&make_blur_gradients), kw_only(), arg("grad"), arg("grad_images"), arg("grad_sigma"), arg("grad_gain"));
}

}  // namespace fovblur
