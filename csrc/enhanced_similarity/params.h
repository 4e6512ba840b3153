// Arguments of a kernel for one call of the ops. Pointers are borrowed for the call; strides are in elements.
#pragma once

#include <cstdint>

#include "../common/dtype.h"

namespace fovblur {

// Embeddings [rows, width] of any strides.
struct Embeddings {
  const void* data;
  int64_t row_stride;
  int64_t column_stride;
};

// One value a row, float (double for float64 embeddings); a null pointer: all 1.
struct Gate {
  const void* data;
  int64_t stride;
};

struct SimilarityParams {
  int64_t recordings;   // N
  int64_t images;       // M
  int64_t image_width;  // D
  int64_t text_width;   // E
  DType dtype;
  Embeddings brain_image;  // [N, D]
  Embeddings image;        // [M, D]
  Embeddings brain_text;   // [N, E]
  Embeddings text;         // [M, E]
  Gate row_gate;           // [N]
  Gate column_gate;        // [M]
  bool allow_tf32;         // whether a GPU may round float32 operands to tf32
};

// [N, k], contiguous; values are float, or double for float64 embeddings.
struct TopK {
  int64_t k;
  void* values;
  int64_t* indices;
};

}  // namespace fovblur
