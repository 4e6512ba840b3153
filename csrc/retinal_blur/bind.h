// Bindings of the retinal blur's parameters, included by both extension modules after those of the foveated blur.
#pragma once

#include <stdexcept>
#include <vector>

#include "../foveated_blur/bind.h"
#include "params.h"

namespace fovblur {

inline LevelParams make_level_params(const std::array<int64_t, 4>& shape, const Images& images, const MapArgument& level,
                                     int border, const std::vector<double>& sigma, const std::vector<int32_t>& kernel_size,
                                     const std::vector<double>& variance) {
  if (sigma.size() < 2 || sigma.size() > kMostLevels || kernel_size.size() != sigma.size() ||
      (!variance.empty() && variance.size() != sigma.size()))
    throw std::invalid_argument("there must be 2 to 32 levels, each with a sigma and a kernel size");
  LevelParams p{};
  for (int i = 0; i < 4; ++i) p.shape[i] = shape[i];
  p.images = images;
  p.level = make_map(level);
  p.border = Border(border);
  p.levels = int(sigma.size());
  p.has_variances = !variance.empty();
  for (int k = 0; k < p.levels; ++k) {
    p.sigma[k] = sigma[k];
    p.kernel_size[k] = kernel_size[k];
    if (!variance.empty()) p.variance[k] = variance[k];
  }
  return p;
}

inline void bind_levels(pybind11::module_& m) {
  using namespace pybind11;
  class_<LevelParams>(m, "LevelParams", module_local())
      .def(init(&make_level_params), kw_only(), arg("shape"), arg("images"), arg("level"), arg("border"), arg("sigma"),
           arg("kernel_size"), arg("variance"));
}

}  // namespace fovblur
