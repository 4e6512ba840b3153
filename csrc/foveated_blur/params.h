// Arguments of a kernel for one call of the op. Pointers are borrowed for the call (CUDA: for the launch on its stream).
#pragma once

#include <cstdint>

#include "../common/dtype.h"
#include "blur_math.h"

namespace fovblur {

// Images [B, C, H, W] of any strides, in elements; the elements of an output do not overlap.
struct Images {
  void* data;
  DType dtype;
  int64_t strides[4];

  FOVBLUR_HD int64_t plane(int64_t sample, int64_t channel) const { return sample * strides[0] + channel * strides[1]; }
};

// A per-sample parameter: data[i * stride] belongs to sample i, and stride 0 shares one value. The element type is int32 for
// kernel sizes, else the one the blur accumulates in (float, or double for float64 images).
struct PerSample {
  const void* data;
  int64_t stride;
};

// A value for every pixel [B, H, W], of any strides, in elements of the type the blur accumulates in; stride 0 shares.
struct Map {
  const void* data;
  int64_t strides[3];
};

// One image [C, H, W] of a list. Strides are in elements.
struct ListedImage {
  const void* data;
  int64_t strides[3];
  void* target;  // of the result
  int64_t target_strides[3];
  int64_t channels, height, width;
  const void* weight;  // a map [H, W] in place of the falloff; may be null
  int64_t weight_strides[2];
  int64_t first_tile;  // of CUDA: the tiles of the images before it
};

struct BlurParams {
  int64_t shape[4];  // [B, C, H, W]
  Images images;
  PerSample sigma;        // [B] pixels, or [B, 2] (y, x) if per_axis
  PerSample kernel_size;  // [B] odd, or [B, 2] if per_axis
  bool per_axis;
  bool tables;  // kernel sizes 3 to 9 take OpenCV's tables
  Border border;
  PerSample gain;      // [B]
  PerSample fixation;  // [B, 2] (y, x) pixels
  Falloff falloff;
  double decay;
  Map weight;  // in place of the falloff; data may be null
  // y -> (y * scale - mean[c]) / std[c]; null pointers: y is not normalised.
  const void* mean;
  const void* std;
  double scale;
  bool allow_tf32;  // uint8 images may be multiplied in half precision for float32 results too
};

// Gradients of a call; null pointers: not needed. Those of sigma and gain are as sigma and gain, contiguous.
struct BlurGradients {
  Images grad;         // of the result
  Images grad_images;  // data may be null
  void* grad_sigma;
  void* grad_gain;
};

}  // namespace fovblur
