// Arguments of a kernel for one call of the retinal blur. Pointers are borrowed for the call (CUDA: for the launch).
#pragma once

#include <cstdint>

#include "../foveated_blur/params.h"

namespace fovblur {

constexpr int kMostLevels = 32;

// y(p) = (1 - a) G_k x + a G_(k + 1) x at the pixel p, where k + a is its value of the level map and G_k the Gaussian of
// level k. Sigmas grow from level to level; at 0 a Gaussian is the identity. A Gaussian of weight 0 does not count: a pixel
// that is not finite reaches only as far as those whose weight is not 0.
struct LevelParams {
  int64_t shape[4];  // [B, C, H, W]
  Images images;
  Map level;  // [B, H, W] from 0 to levels - 1
  Border border;
  int levels;  // from 2 to kMostLevels
  double sigma[kMostLevels];
  int32_t kernel_size[kMostLevels];
  bool has_variances;  // CPU: the level map holds variances, which lie between those of the levels
  double variance[kMostLevels];
};

// The level k, at most levels - 2, whose weight is 1 - a at a value of the level map; a = value - k is NaN for NaN.
template <class Real>
FOVBLUR_HD int lower_level(Real value, int levels) {
  return value > Real(0) ? (value < Real(levels - 2) ? int(value) : levels - 2) : 0;
}

}  // namespace fovblur
