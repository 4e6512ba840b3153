// Launches the CUDA blur on `stream` of the current device. Returns null, or what went wrong.
#pragma once

#include "params.h"

namespace fovblur {

const char* foveated_blur_cuda(const BlurParams& params, void* stream);

}  // namespace fovblur
