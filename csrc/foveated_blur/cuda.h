// Launches the CUDA blur on `stream` of the current device. The functions return null or an error message.
#pragma once

#include "cuda_general.h"
#include "params.h"

namespace fovblur {

const char* foveated_blur_cuda(const BlurParams& params, const Images& out, void* stream);

// Blurs `count` images in one launch; as blur_of_a_list.
const char* foveated_blur_list_cuda(const BlurParams& params, const ListedImage* images, int64_t tiles, DType result,
                                    void* stream);

// grad_sigma and grad_gain get one partial sum for each tile of a sample, [B, parameter_gradient_tiles], grad_sigma [B, 2,
// parameter_gradient_tiles] if the axes differ; float32. How many there are depends on the type of `grad` too.
const char* foveated_blur_backward_cuda(const BlurParams& params, const BlurGradients& gradients, void* stream);
int64_t parameter_gradient_tiles(const BlurParams& params, DType grad);

}  // namespace fovblur
