// Launches the CUDA blend of levels on `stream` of the current device. It returns null or an error message.
#pragma once

#include "params.h"

namespace fovblur {

const char* blend_levels_cuda(const LevelParams& params, const Images& out, void* stream);

}  // namespace fovblur
