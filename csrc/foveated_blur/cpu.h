// The CPU blur is compiled once per instruction set; each variant is a namespace with the same entries.
#pragma once

#include "params.h"

namespace fovblur {

// For a list, params.shape[0] is the number of images and params.images.dtype their type; other fields are read as for a batch.
#define FOVBLUR_DECLARE_VARIANT(variant)                                                                           \
  namespace variant {                                                                                              \
  void foveated_blur(const BlurParams& params, const Images& out, int threads);                                    \
  void foveated_blur_list(const BlurParams& params, const ListedImage* images, DType result, int threads);         \
  void foveated_blur_backward(const BlurParams& params, const BlurGradients& gradients, int threads);              \
  }

FOVBLUR_DECLARE_VARIANT(baseline)
FOVBLUR_DECLARE_VARIANT(avx2)
FOVBLUR_DECLARE_VARIANT(avx512)
#undef FOVBLUR_DECLARE_VARIANT

}  // namespace fovblur
