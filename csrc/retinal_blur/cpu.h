// The CPU blend of levels is compiled once per instruction set; each variant is a namespace with the same entry.
#pragma once

#include "params.h"

namespace fovblur {

#define FOVBLUR_DECLARE_VARIANT(variant)                                        \
  namespace variant {                                                           \
  void blend_levels(const LevelParams& params, const Images& out, int threads); \
  }

FOVBLUR_DECLARE_VARIANT(baseline)
FOVBLUR_DECLARE_VARIANT(avx2)
FOVBLUR_DECLARE_VARIANT(avx512)
#undef FOVBLUR_DECLARE_VARIANT

}  // namespace fovblur
