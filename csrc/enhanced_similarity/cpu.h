// The CPU similarity is compiled once per instruction set; each variant is a namespace with the same entries.
#pragma once

#include "params.h"

namespace fovblur {

// out [N, M] is contiguous, in the dtype of the embeddings.
#define FOVBLUR_DECLARE_VARIANT(variant)                                             \
  namespace variant {                                                                \
  void enhanced_similarity(const SimilarityParams& params, void* out, int threads);  \
  void enhanced_topk(const SimilarityParams& params, const TopK& best, int threads); \
  }

FOVBLUR_DECLARE_VARIANT(baseline)
FOVBLUR_DECLARE_VARIANT(avx2)
FOVBLUR_DECLARE_VARIANT(avx512)
#undef FOVBLUR_DECLARE_VARIANT

}  // namespace fovblur
