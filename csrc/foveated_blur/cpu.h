// The CPU blur is compiled once per instruction set; each variant is a namespace with the same entry.
#pragma once

#include "params.h"

namespace fovblur {

namespace baseline {
void foveated_blur(const BlurParams& params, int threads);
}
namespace avx2 {
void foveated_blur(const BlurParams& params, int threads);
}
namespace avx512 {
void foveated_blur(const BlurParams& params, int threads);
}

}  // namespace fovblur
