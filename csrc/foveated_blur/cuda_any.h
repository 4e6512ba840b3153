// The form of the CUDA blur that takes every option, and lists of images. Functions return null or an error message.
#pragma once

#include "params.h"

namespace fovblur {

// An image [C, H, W] of a list, whose strides are in elements, in device memory.
struct ListedImage {
  const void* data;
  int64_t strides[3];
  void* target;  // of the result
  int64_t target_strides[3];
  int64_t channels, height, width;
  const void* weight;  // a map [H, W] in place of the falloff; may be null
  int64_t weight_strides[2];
  int64_t first_tile;  // the tiles of the images before it
};

// Whether a call has options that the other forms do not take.
inline bool takes_any_form(const BlurParams& p) {
  return p.per_axis || p.tables || p.weight.data || p.border != Border::reflect;
}

const char* blur_in_any_form(const BlurParams& params, const Images& out, void* stream);
const char* gradients_in_any_form(const BlurParams& params, const BlurGradients& gradients, void* stream);
int64_t tiles_of_a_sample(const BlurParams& params);  // each with a partial sum of the gradients of sigma and gain

// Blurs `count` images in one launch. params.shape holds their number and largest sides, params.images their type.
const char* blur_of_a_list(const BlurParams& params, const ListedImage* images, int64_t tiles, DType result, void* stream);
int64_t tiles_of_an_image(int64_t channels, int64_t height, int64_t width);

}  // namespace fovblur
