// Launches the CUDA blur on `stream` of the current device. Both functions return null or an error message.
#pragma once

#include "params.h"

namespace fovblur {

const char* foveated_blur_cuda(const BlurParams& params, const Images& out, void* stream);

// grad_sigma and grad_gain get one partial sum for each tile of a sample, [B, parameter_gradient_tiles]; float32. How many
// there are depends on the type of `grad` too.
const char* foveated_blur_backward_cuda(const BlurParams& params, const BlurGradients& gradients, void* stream);
int64_t parameter_gradient_tiles(const BlurParams& params, DType grad);

}  // namespace fovblur
