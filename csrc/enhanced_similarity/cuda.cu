// Enhanced similarity on CUDA: M_bi * (1 + r_i c_j M_bt), tile by tile, stored or ranked.

#include "cuda.h"

#include "../common/launch.cuh"
#include "cuda_best.cuh"
#include "cuda_product.cuh"

namespace fovblur {
namespace {

int64_t tiles(int64_t rows) { return (rows + kScoreTile - 1) / kScoreTile; }

// ---- tiles and slices of the matrix ----

// Pairs of 128 recordings and a slice of the images. Pairs that run side by side share the slices of eight tiles of
// recordings, which the L2 cache then holds.
struct Slices {
  int row_tiles, slices;
  int tiles_of_slice, longer_slices;  // the first slices have one more

  // A matrix whose pairs number more than 2^31 does not fit into memory.
  Slices(const SimilarityParams& p, int64_t slices)
      : row_tiles(int(tiles(p.recordings))),
        slices(int(slices)),
        tiles_of_slice(int(tiles(p.images) / slices)),
        longer_slices(int(tiles(p.images) % slices)) {}

  FOVBLUR_HD int pairs() const { return row_tiles * slices; }
  __device__ int first_tile(int slice) const { return slice * tiles_of_slice + min(slice, longer_slices); }
};

// The tiles of a block, one after the other.
class Walk {
 public:
  __device__ explicit Walk(const Slices& slices) : slices_(slices), pair_(int(blockIdx.x)) { begin_slice(); }

  __device__ const ScoreTile& tile() const { return tile_; }

  // Goes on to the next tile; returns whether there is one.
  __device__ bool next() {
    tile_.first_of_slice = false;
    if (++tile_.column_tile < end_) return true;
    if (slices_.pairs() - pair_ <= int(gridDim.x)) return false;
    pair_ += int(gridDim.x);
    begin_slice();
    return true;
  }

 private:
  __device__ void begin_slice() {
    constexpr int kGroup = 8;
    const int first = pair_ / (kGroup * slices_.slices) * kGroup, group = min(slices_.row_tiles - first, kGroup);
    const int within = pair_ - first * slices_.slices, slice = within / group;
    tile_ = {first + within % group, slices_.first_tile(slice), slice, true};
    end_ = slices_.first_tile(slice + 1);
  }

  const Slices& slices_;
  int pair_, end_;
  ScoreTile tile_;
};

// ---- outputs of the scores ----

// The matrix [N, M], of float or Element.
struct Matrix {
  void* data;
  DType dtype;

  template <class Element>
  __device__ void take(const SimilarityParams& p, const ScoreTile& tile, const Sums& scores, ScoreMemory&) const {
    if (dtype == DType::float32)
      store<float>(p, tile, scores);
    else
      store<Element>(p, tile, scores);
  }

 private:
  template <class Out>
  __device__ void store(const SimilarityParams& p, const ScoreTile& tile, const Sums& scores) const {
    constexpr int kWidth = Chunk16<Out>::kWidth;
    const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && p.images % kWidth == 0;
    const int row = row_of_lane(), column = column_of_lane();
    const int rows = tile.rows(p) - row, columns = tile.columns(p) - column;
    Out* target = static_cast<Out*>(data) + (tile.first_row() + row) * p.images + tile.first_column() + column;
#pragma unroll
    for (int i = 0; i < kWarpRows / 8; ++i, target += 8 * p.images) {
      if (8 * i >= rows) break;
#pragma unroll
      for (int first = 0; first < kLaneColumns; first += kWidth) {
        Chunk16<Out> chunk;
#pragma unroll
        for (int j = 0; j < kWidth; ++j)
          chunk.at[j] = Convert<Out>::from(scores[i / 2][(first + j) / 2][i % 2 * 2 + j % 2]);
        if (aligned && first + kWidth <= columns) {
          *reinterpret_cast<Chunk16<Out>*>(target + first) = chunk;
        } else {
#pragma unroll
          for (int j = 0; j < kWidth; ++j)
            if (first + j < columns) target[first + j] = chunk.at[j];
        }
      }
    }
  }
};

// ---- kernels ----

// A block makes the scores of its tiles; the first steps of a tile are fetched before the scores of the one before are taken.
template <class Products, bool kWide, class Destination>
__global__ void __launch_bounds__(kScoreThreads, 1)
    similarity_scores(const SimilarityParams p, const Destination destination, const Slices slices) {
  using Element = typename Products::Element;
  ScoreMemory& shared = *reinterpret_cast<ScoreMemory*>(dynamic_shared);
  Fetcher<Element, kWide> fetcher;
  Walk walk(slices);
  ScoreTile made = {};
  Sums scores;
  float gate = gate_of_thread(p, walk.tile());
  bool more = true;
  unsigned stage = 0;
#pragma unroll 1
  for (int round = 0;; ++round) {
    float(&gates)[2][kScoreTile] = shared.gates[round % 2];
    if (more) begin_scores(p, walk.tile(), hold_gates(gate, gates), stage, shared, fetcher);
    if (round > 0) destination.template take<Element>(p, made, scores, shared);
    if (!more) return;
    made = walk.tile();
    more = walk.next();
    if (more) gate = gate_of_thread(p, walk.tile());
    make_scores<Products>(p, made, gates, stage, shared, fetcher, scores);
  }
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
    for (int64_t first = 0; first < count; first += 32) merged.offer(first + lane < count ? keys[first + lane] : 0);
    merged.for_each_own([&](uint64_t key, int place) {
      static_cast<float*>(out.values)[recording * out.k + place] = score_of<float>(uint32_t(key >> 32));
      out.indices[recording * out.k + place] = uint32_t(~key);
    });
  }
}

// ---- launches ----

template <class Products, bool kWide, class Destination>
cudaError_t launch_scores(const SimilarityParams& p, const Destination& destination, int64_t slices, void* stream) {
  static_assert(sizeof(ScoreMemory) <= 99 * 1024, "a block of sm_86 has no more shared memory");
  const auto kernel = similarity_scores<Products, kWide, Destination>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(ScoreMemory)));
  if (error != cudaSuccess) return error;
  const Slices cut(p, slices);
  const int64_t blocks = cut.pairs() < multiprocessors() ? cut.pairs() : multiprocessors();
  return launch(kernel, kScoreThreads, blocks, sizeof(ScoreMemory), stream, p, destination, cut);
}

// Rows that can be copied by 16 bytes are; others are read element by element.
template <class Products, class Destination>
cudaError_t score_rows(const SimilarityParams& p, const Destination& destination, int64_t slices, void* stream) {
  using Element = typename Products::Element;
  const bool wide = has_wide_rows<Element>(p.brain_image, p.image_width) && has_wide_rows<Element>(p.image, p.image_width) &&
                    has_wide_rows<Element>(p.brain_text, p.text_width) && has_wide_rows<Element>(p.text, p.text_width);
  return wide ? launch_scores<Products, true>(p, destination, slices, stream)
              : launch_scores<Products, false>(p, destination, slices, stream);
}

template <class Destination>
cudaError_t score(const SimilarityParams& p, const Destination& destination, int64_t slices, void* stream) {
  switch (p.dtype) {
    case DType::float16:
      return score_rows<MatrixProducts<Half>>(p, destination, slices, stream);
    case DType::bfloat16:
      return score_rows<MatrixProducts<BFloat16>>(p, destination, slices, stream);
    default:
      return p.allow_tf32 ? score_rows<MatrixProducts<float>>(p, destination, slices, stream)
                          : score_rows<ExactProducts>(p, destination, slices, stream);
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

int64_t score_tile() { return kScoreTile; }

int64_t multiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

}  // namespace fovblur
