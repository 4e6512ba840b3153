// Enhanced similarity on CUDA: M_bi * (1 + r_i c_j M_bt), tile by tile, stored or ranked.

#include "cuda.h"

#include "../common/launch.cuh"
#include "cuda_best.cuh"
#include "cuda_product.cuh"

namespace fovblur {
namespace {

int64_t tiles(int64_t rows) { return (rows + kScoreTile - 1) / kScoreTile; }

// ---- tiles and slices of the matrix ----

// A block takes 128 recordings and a slice of the images. Blocks that run side by side share the slices of eight tiles of
// recordings, which the L2 cache then holds.
struct Slices {
  int64_t row_tiles, column_tiles, slices;

  Slices(const SimilarityParams& p, int64_t slices)
      : row_tiles(tiles(p.recordings)), column_tiles(tiles(p.images)), slices(slices) {}

  int64_t blocks() const { return row_tiles * slices; }

  // Calls each(row_tile, slice) for those of this block.
  template <class Each>
  __device__ void for_own(const Each& each) const {
    constexpr int64_t kGroup = 8;
    for (int64_t block = blockIdx.x; block < row_tiles * slices; block += gridDim.x) {
      const int64_t first = block / (kGroup * slices) * kGroup, group = min(row_tiles - first, kGroup);
      const int64_t within = block - first * slices;
      each(first + within % group, within / group);
      __syncthreads();
    }
  }

  __device__ int64_t first_tile(int64_t slice) const { return slice * column_tiles / slices; }
};

// ---- outputs of the scores ----

// The matrix [N, M], of float or Element.
struct Matrix {
  void* data;
  DType dtype;

  __device__ void clear(const ScoreTile&, int64_t, ScoreMemory&) const {}

  template <class Element>
  __device__ void take(const SimilarityParams& p, const ScoreTile& tile, int64_t, const Sums& scores,
                       ScoreMemory& shared) const {
    __syncthreads();
    hold_scores(scores, shared);
    if (dtype == DType::float32)
      store<float>(p.images, tile, shared.scores);
    else
      store<Element>(p.images, tile, shared.scores);
  }

 private:
  template <class Out>
  __device__ void store(int64_t images, const ScoreTile& tile, const float* scores) const {
    constexpr int kWidth = Chunk16<Out>::kWidth, kRowChunks = kScoreTile / kWidth;
    const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && images % kWidth == 0;
    for (int i = int(threadIdx.x); i < tile.rows * kRowChunks; i += kScoreThreads) {
      const int row = i / kRowChunks, column = i % kRowChunks * kWidth, count = min(tile.columns - column, kWidth);
      if (count <= 0) continue;
      Out* target = static_cast<Out*>(data) + (tile.first_row + row) * images + tile.first_column + column;
      const float* source = scores + place_of_score(row, column);
      Chunk16<Out> chunk;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) chunk.at[j] = Convert<Out>::from(source[j]);
      if (aligned && count == kWidth) {
        *reinterpret_cast<Chunk16<Out>*>(target) = chunk;
      } else {
#pragma unroll
        for (int j = 0; j < kWidth; ++j)
          if (j < count) target[j] = chunk.at[j];
      }
    }
  }
};

// ---- kernels ----

template <class Products, class Destination>
__global__ void __launch_bounds__(kScoreThreads, 1)
    similarity_scores(const SimilarityParams p, const Destination destination, const Slices slices) {
  ScoreMemory& shared = *reinterpret_cast<ScoreMemory*>(dynamic_shared);
  slices.for_own([&](int64_t row_tile, int64_t slice) {
    destination.clear(ScoreTile(p, row_tile, 0), slice, shared);
    for (int64_t column_tile = slices.first_tile(slice); column_tile < slices.first_tile(slice + 1); ++column_tile) {
      const ScoreTile tile(p, row_tile, column_tile);
      Sums scores;
      score_tile<Products>(p, tile, shared, scores);
      destination.template take<typename Products::Element>(p, tile, slice, scores, shared);
    }
  });
}

constexpr int kMergeThreads = 128;

// A warp merges the slices of a recording.
__global__ void __launch_bounds__(kMergeThreads) merge_slices(const SliceBest best, const TopK out, int64_t recordings) {
  constexpr int kWarps = kMergeThreads / 32;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int64_t all_warps = int64_t(gridDim.x) * kWarps;
  for (int64_t recording = int64_t(blockIdx.x) * kWarps + warp; recording < recordings; recording += all_warps) {
    WarpBest merged(best.k);
    const uint64_t* keys = best.of(recording, 0);
    const int64_t count = best.slices * best.k;
    for (int64_t first = 0; first < count; first += 32) {
      const uint64_t key = first + lane < count ? keys[first + lane] : 0;
      if (__any_sync(0xffffffffu, key > merged.worst())) merged.offer(key);
    }
    merged.for_each_own([&](uint64_t key, int place) {
      static_cast<float*>(out.values)[recording * out.k + place] = score_of<float>(uint32_t(key >> 32));
      out.indices[recording * out.k + place] = uint32_t(~key);
    });
  }
}

// ---- launches ----

template <class Products, class Destination>
cudaError_t launch_scores(const SimilarityParams& p, const Destination& destination, int64_t slices, void* stream) {
  static_assert(sizeof(ScoreMemory) <= 99 * 1024, "a block of sm_86 has no more shared memory");
  const auto kernel = similarity_scores<Products, Destination>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(ScoreMemory)));
  if (error != cudaSuccess) return error;
  const Slices cut(p, slices);
  return launch(kernel, kScoreThreads, cut.blocks(), sizeof(ScoreMemory), stream, p, destination, cut);
}

template <class Destination>
cudaError_t score(const SimilarityParams& p, const Destination& destination, int64_t slices, void* stream) {
  switch (p.dtype) {
    case DType::float16:
      return launch_scores<MatrixProducts<Half>>(p, destination, slices, stream);
    case DType::bfloat16:
      return launch_scores<MatrixProducts<BFloat16>>(p, destination, slices, stream);
    default:
      return p.allow_tf32 ? launch_scores<MatrixProducts<float>>(p, destination, slices, stream)
                          : launch_scores<ExactProducts>(p, destination, slices, stream);
  }
}

}  // namespace

const char* enhanced_similarity_cuda(const SimilarityParams& p, void* out, DType out_dtype, void* stream) {
  if (p.recordings == 0 || p.images == 0) return nullptr;
  return message(score(p, Matrix{out, out_dtype}, tiles(p.images), stream));
}

const char* enhanced_topk_cuda(const SimilarityParams& p, const TopK& out, uint64_t* keys, int64_t slices, void* stream) {
  if (p.recordings == 0) return nullptr;
  const SliceBest best{keys, slices, int(out.k)};
  cudaError_t error = score(p, best, slices, stream);
  constexpr int64_t kWarps = kMergeThreads / 32;
  if (error == cudaSuccess)
    error = launch(merge_slices, kMergeThreads, (p.recordings + kWarps - 1) / kWarps, 0, stream, best, out, p.recordings);
  return message(error);
}

int64_t most_fused() { return kMostFused; }

int64_t topk_slices(const SimilarityParams& p) {
  int device = 0, multiprocessors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  for (int64_t slices = 1; slices < tiles(p.images); ++slices) {
    const int64_t blocks = tiles(p.recordings) * slices, rounds = (blocks + multiprocessors - 1) / multiprocessors;
    if (10 * blocks >= 9 * rounds * multiprocessors) return slices;
  }
  return tiles(p.images);
}

}  // namespace fovblur
