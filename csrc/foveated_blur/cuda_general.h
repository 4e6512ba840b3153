// The form of the CUDA blur that takes every option, and lists of images. Functions return null or an error message.
#pragma once

#include "params.h"

namespace fovblur {

// Whether a call has options that the other forms do not take.
inline bool needs_general_form(const BlurParams& p) {
  return p.per_axis || p.tables || p.weight.data || p.border != Border::reflect;
}

const char* blur_in_general_form(const BlurParams& params, const Images& out, void* stream);
const char* gradients_in_general_form(const BlurParams& params, const BlurGradients& gradients, void* stream);
int64_t tiles_of_a_sample(const BlurParams& params);  // each with a partial sum of the gradients of sigma and gain

// Blurs `count` images in one launch. params.shape holds their number and largest sides, params.images their type.
const char* blur_of_a_list(const BlurParams& params, const ListedImage* images, int64_t tiles, DType result, void* stream);
int64_t tiles_of_an_image(int64_t channels, int64_t height, int64_t width);

}  // namespace fovblur
