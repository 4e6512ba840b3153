// Embeddings of a tile of recordings and a tile of images on their way from device to shared memory, in steps of 64 bytes a
// row: 32 halves or 16 floats.
#pragma once

#include "../common/async_copy.cuh"
#include "../common/launch.cuh"
#include "params.h"

namespace fovblur {

constexpr int kScoreTile = 128;  // recordings, and images
constexpr int kScoreThreads = 256, kScoreStages = 4;
constexpr int kRowChunks = 4;  // of 16 bytes, a row and step

// A step's chunks of the recordings, then of the images.
using Stage = uint4[2][kScoreTile * kRowChunks];

template <class Element>
struct alignas(16) Chunk16 {
  static constexpr int kWidth = 16 / int(sizeof(Element));
  Element at[kWidth];
};

// Return the place of chunk `chunk` of a row in a stage. Threads that read one chunk of each of the eight rows of a matrix, see
// cuda_product.cuh, read different banks; so do threads that write all chunks of two neighbouring rows.
__device__ inline int place_of_recording(int row, int chunk) { return row * kRowChunks + (chunk ^ (row / 2 % kRowChunks)); }
__device__ inline int place_of_image(int row, int chunk) { return row * kRowChunks + (chunk ^ (row / 8 % kRowChunks)); }

// A tile of the matrix, and the slice of the images that it belongs to.
struct ScoreTile {
  int row_tile, column_tile, slice;
  bool first_of_slice;

  __device__ int64_t first_row() const { return int64_t(row_tile) * kScoreTile; }
  __device__ int64_t first_column() const { return int64_t(column_tile) * kScoreTile; }
  // How many exist.
  __device__ int rows(const SimilarityParams& p) const { return int(min(p.recordings - first_row(), int64_t(kScoreTile))); }
  __device__ int columns(const SimilarityParams& p) const { return int(min(p.images - first_column(), int64_t(kScoreTile))); }
};

// Whether rows consist of aligned chunks of 16 bytes.
template <class Element>
bool has_wide_rows(const Embeddings& from, int64_t width) {
  constexpr int kWidth = Chunk16<Element>::kWidth;
  const bool aligned = reinterpret_cast<uintptr_t>(from.data) % 16 == 0 && from.row_stride % kWidth == 0 && width % kWidth == 0;
  return width == 0 || (aligned && from.column_stride == 1);
}

// Fetches a tile step by step: first the embeddings of the images, then those of the texts. Elements beyond the embeddings
// become 0, rows beyond the last one are copies of it.
template <class Element, bool kWide>
class Fetcher {
 public:
  // Begins a tile; without `texts` it has steps of the images only.
  __device__ void begin(const SimilarityParams& p, const ScoreTile& tile, bool texts) {
    image_steps_ = steps_of(p.image_width);
    text_steps_ = texts ? steps_of(p.text_width) : 0;
    of_texts_ = false;
    begin_product(p, tile);
  }

  __device__ int image_steps() const { return image_steps_; }
  __device__ int text_steps() const { return text_steps_; }

  // Starts the copies of the next step as one group, which is empty after the last step.
  __device__ void fetch(const SimilarityParams& p, const ScoreTile& tile, Stage& stage) {
    if (left_ > 0 || begin_texts(p, tile)) {
      if constexpr (kWide)
        copy(stage);
      else
        load(p, tile, stage);
      ++step_, --left_;
    }
    commit_copies();
  }

 private:
  static constexpr int kChunkWidth = Chunk16<Element>::kWidth, kStepWidth = kRowChunks * kChunkWidth;
  static constexpr int kRowsAtOnce = kScoreThreads / kRowChunks, kRowsOfThread = kScoreTile / kRowsAtOnce;

  static __device__ int steps_of(int64_t width) { return int((width + kStepWidth - 1) / kStepWidth); }

  // Field by field, so that the compiler sees where the data lie.
  static __device__ Embeddings choose(bool second, const Embeddings& a, const Embeddings& b) {
    return {second ? b.data : a.data, second ? b.row_stride : a.row_stride, second ? b.column_stride : a.column_stride};
  }

  // Returns false if the texts were begun before, or have no steps.
  __device__ bool begin_texts(const SimilarityParams& p, const ScoreTile& tile) {
    if (of_texts_) return false;
    of_texts_ = true;
    begin_product(p, tile);
    return left_ > 0;
  }

  __device__ void begin_product(const SimilarityParams& p, const ScoreTile& tile) {
    step_ = 0, left_ = of_texts_ ? text_steps_ : image_steps_;
    if (!kWide || left_ == 0) return;
    const int thread = recomputed(int(threadIdx.x));  // otherwise the texts' sources would be kept in registers as well
    const int row = thread / kRowChunks, chunk = thread % kRowChunks;
    point(choose(of_texts_, p.brain_image, p.brain_text), tile.first_row(), tile.rows(p) - 1, row, chunk, source_[0]);
    point(choose(of_texts_, p.image, p.text), tile.first_column(), tile.columns(p) - 1, row, chunk, source_[1]);
    const int64_t width = of_texts_ ? p.text_width : p.image_width;
    last_chunks_ = int(width - int64_t(left_ - 1) * kStepWidth) / kChunkWidth;
  }

  // Lets `source` point to the thread's chunk of the first step in each of its rows.
  static __device__ void point(const Embeddings& from, int64_t first, int last, int row, int chunk,
                               const Element* (&source)[kRowsOfThread]) {
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i)
      source[i] = static_cast<const Element*>(from.data) + (first + min(row + i * kRowsAtOnce, last)) * from.row_stride +
                  chunk * kChunkWidth;
  }

  __device__ void copy(Stage& stage) {
    const int row = int(threadIdx.x) / kRowChunks, chunk = int(threadIdx.x) % kRowChunks;
    uint4* const targets[2] = {stage[0] + place_of_recording(row, chunk), stage[1] + place_of_image(row, chunk)};
    const int bytes = left_ > 1 || chunk < last_chunks_ ? 16 : 0;
#pragma unroll
    for (int side = 0; side < 2; ++side)
#pragma unroll
      for (int i = 0; i < kRowsOfThread; ++i)
        copy_async(targets[side] + i * kRowsAtOnce * kRowChunks, source_[side][i] + step_ * kStepWidth, bytes);
  }

  // Element by element; neighbouring threads take neighbouring rows, as transposed embeddings have them.
  __device__ void load(const SimilarityParams& p, const ScoreTile& tile, Stage& stage) const {
    const int64_t width = of_texts_ ? p.text_width : p.image_width;
    const int64_t begin = int64_t(step_) * kStepWidth;
#pragma unroll 1
    for (int side = 0; side < 2; ++side) {
      const Embeddings from = choose(side == 1, choose(of_texts_, p.brain_image, p.brain_text), choose(of_texts_, p.image, p.text));
      const int64_t first = side == 0 ? tile.first_row() : tile.first_column();
      const int last = (side == 0 ? tile.rows(p) : tile.columns(p)) - 1;
#pragma unroll 1
      for (int place = int(threadIdx.x); place < kScoreTile * kRowChunks; place += kScoreThreads) {
        const int row = place % kScoreTile, chunk = place / kScoreTile;
        const Element* source = static_cast<const Element*>(from.data) + (first + min(row, last)) * from.row_stride;
        Chunk16<Element> elements;
#pragma unroll
        for (int j = 0; j < kChunkWidth; ++j) {
          const int64_t column = begin + chunk * kChunkWidth + j;
          elements.at[j] = column < width ? source[column * from.column_stride] : Element{};
        }
        const int target = side == 0 ? place_of_recording(row, chunk) : place_of_image(row, chunk);
        *reinterpret_cast<Chunk16<Element>*>(stage[side] + target) = elements;
      }
    }
  }

  int image_steps_, text_steps_;
  bool of_texts_;
  int step_, left_;                          // the next step of the product, and how many are left
  const Element* source_[2][kRowsOfThread];  // the thread's chunk of the first step, in each of its rows
  int last_chunks_;                          // of the last step
};

}  // namespace fovblur
