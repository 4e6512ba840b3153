// Launches the CUDA similarity on `stream` of the current device. Both return null or an error message. No float64.
#pragma once

#include "params.h"

namespace fovblur {

// out [N, M] is contiguous, of the dtype of the embeddings or float32.
const char* enhanced_similarity_cuda(const SimilarityParams& params, void* out, DType out_dtype, void* stream);

// For k up to most_fused() and fewer than 2^32 - 1 images, cut into `slices` of whole tiles; keys is a buffer [N, slices, k].
const char* enhanced_topk_cuda(const SimilarityParams& params, const TopK& best, uint64_t* keys, int64_t slices, void* stream);
int64_t most_fused();

// Recordings, and images, of the tiles that a block scores, and how many blocks the current device runs at once.
int64_t score_tile();
int64_t multiprocessors();

}  // namespace fovblur
