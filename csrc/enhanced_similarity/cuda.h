// Launches the CUDA similarity on `stream` of the current device. Both return null, or what went wrong. float64 is not served.
#pragma once

#include "params.h"

namespace fovblur {

// out [N, M] is contiguous, of the dtype of the embeddings or float32.
const char* enhanced_similarity_cuda(const SimilarityParams& params, void* out, DType out_dtype, void* stream);

// For k up to most_fused() and fewer than 2^32 - 1 images, which are cut in `slices`; keys is room for [N, slices, k].
const char* enhanced_topk_cuda(const SimilarityParams& params, const TopK& best, uint64_t* keys, int64_t slices, void* stream);
int64_t most_fused();

// The fewest slices that keep the current device's multiprocessors nine tenths busy, a block each at a time.
int64_t topk_slices(const SimilarityParams& params);

}  // namespace fovblur
