// What one call of the op hands to a kernel. Pointers are borrowed for the call (CUDA: for the launch on its stream).
#pragma once

#include <cstdint>

#include "../common/dtype.h"
#include "../common/falloff.h"

namespace fovblur {

// A per-sample parameter: element i of the batch is at data[i * stride]; stride 0 shares one value.
// Its element type is the one the blur accumulates in (float, or double for float64 images), int32 for kernel sizes.
struct PerSample {
  const void* data;
  int64_t stride;
};

struct BlurParams {
  const void* images;  // [B, C, H, W], any strides (in elements)
  void* out;           // [B, C, H, W], any strides without overlap
  DType in_dtype, out_dtype;
  int64_t shape[4];
  int64_t in_strides[4], out_strides[4];
  PerSample sigma;        // [B] pixels
  PerSample kernel_size;  // [B] odd
  PerSample gain;         // [B]
  PerSample fixation;     // [B, 2] (y, x) pixels
  Falloff falloff;
  double decay;
  // y -> (y * scale - mean[c]) / std[c]; null pointers leave y as it is.
  const void* mean;
  const void* std;
  double scale;
};

}  // namespace fovblur
