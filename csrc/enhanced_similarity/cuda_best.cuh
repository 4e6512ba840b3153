// The best scores of a recording so far, by keys that order them: larger first, NaN last, then the lower index.
#pragma once

#include "cuda_product.cuh"
#include "ranking.h"

namespace fovblur {

constexpr int kMostFused = 128;  // k up to which the gallery is streamed in one pass
constexpr int kSlots = kMostFused / 32;

// The order of the score above the complement of the index. No image has the key 0.
__device__ inline uint64_t key_of(float score, int64_t index) {
  return uint64_t(order_of(score)) << 32 | uint32_t(~index);
}

// A warp's k best keys, descending: the (32 i + l)-th is keys[i] of lane l.
class WarpBest {
 public:
  __device__ explicit WarpBest(int k) : k_(k) {}

  __device__ void load(const uint64_t* list) {
    for_each_own([&](uint64_t& key, int place) { key = list[place]; });
  }
  __device__ void store(uint64_t* list) {
    for_each_own([&](uint64_t& key, int place) { list[place] = key; });
  }

  // Calls each(key, place) for the lane's keys among the k best.
  template <class Each>
  __device__ void for_each_own(const Each& each) {
#pragma unroll
    for (int i = 0; i < kSlots; ++i)
      if (32 * i + lane() < k_) each(keys_[i], 32 * i + lane());
  }

  // Merges one key a lane, 0 for none.
  __device__ void offer(uint64_t key) {
#pragma unroll 1
    for (uint32_t better = __ballot_sync(0xffffffffu, key > worst()); better != 0; better &= better - 1)
      insert(__shfl_sync(0xffffffffu, key, __ffs(int(better)) - 1));
  }

  // The k-th best, 0 while there are fewer.
  __device__ uint64_t worst() const {
    uint64_t key = 0;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) key = 32 * i < k_ ? keys_[i] : key;
    return __shfl_sync(0xffffffffu, key, (k_ - 1) % 32);
  }

 private:
  static __device__ int lane() { return int(threadIdx.x) % 32; }

  // Lower keys move on by one place.
  __device__ void insert(uint64_t key) {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      if (32 * i >= k_) break;
      const uint64_t own = keys_[i], before = __shfl_sync(0xffffffffu, own, (lane() + 31) % 32);
      keys_[i] = own > key ? own : lane() > 0 && before < key ? before : key;
      key = min(key, __shfl_sync(0xffffffffu, own, 31));
    }
  }

  int k_;
  uint64_t keys_[kSlots] = {};
};

// The best of each slice of the gallery, [N, slices, k] keys.
struct SliceBest {
  uint64_t* keys;
  int64_t slices;
  int k;

  __device__ uint64_t* of(int64_t recording, int64_t slice) const { return keys + (recording * slices + slice) * k; }

  // Merges scores better than a recording's k-th best. Recordings without one cost a comparison of each score.
  template <class>
  __device__ void take(const SimilarityParams& p, const ScoreTile& tile, const Sums& scores, ScoreMemory& shared) const {
    const int warp = int(threadIdx.x) / 32, half = warp / 4, rows = tile.rows(p);
    if (tile.first_of_slice) clear(tile, rows, shared);
    const bool found = find_candidates(scores, shared);
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      if (!__syncthreads_or(found && half == i)) continue;
      if (half == i) hold_scores(scores, shared);
      __syncthreads();
      const uint32_t* of_columns = shared.candidates[i][warp];
      const uint32_t lanes = of_columns[0] | of_columns[1] | of_columns[2] | of_columns[3];
#pragma unroll 1
      for (int row = 8 * warp; row < 8 * warp + 8 && i * kWarpRows + row < rows; ++row)
        if (lanes >> (row % 8 * 4) & 15) merge_row(tile, i, row, tile.columns(p), shared);
      __syncthreads();
    }
  }

 private:
  __device__ void clear(const ScoreTile& tile, int rows, ScoreMemory& shared) const {
    for (int i = int(threadIdx.x); i < rows * k; i += kScoreThreads) of(tile.first_row() + i / k, tile.slice)[i % k] = 0;
    if (int(threadIdx.x) < kScoreTile) shared.threshold[threadIdx.x] = int(threadIdx.x) < rows ? NAN : INFINITY;
    __syncthreads();
  }

  // Marks the lanes with scores that may be better than the k-th best: indices ascend within a slice, so an equal one is not.
  // Rows and columns beyond the last ones are copies of these.
  __device__ bool find_candidates(const Sums& scores, ScoreMemory& shared) const {
    const int warp = int(threadIdx.x) / 32, first_row = row_of_lane();
    bool any = false;
#pragma unroll
    for (int i = 0; i < kWarpRows / 8; ++i) {
      const float threshold = shared.threshold[first_row + 8 * i];
      bool found = false;
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) found |= !(scores[i / 2][j / 2][i % 2 * 2 + j % 2] <= threshold);
      any |= found;
      const uint32_t lanes = __ballot_sync(0xffffffffu, found);
      if (threadIdx.x % 32 == 0) shared.candidates[warp / 4][i][warp % 4] = lanes;
    }
    return any;
  }

  // Writes the scores of a warp's rows to shared memory.
  __device__ void hold_scores(const Sums& scores, ScoreMemory& shared) const {
    const int first_row = row_of_lane() % kWarpRows, column = column_of_lane();
#pragma unroll
    for (int i = 0; i < kWarpRows / 8; ++i)
#pragma unroll
      for (int j = 0; j < kLaneColumns; j += 4) {
        const int m = i / 2, e = i % 2 * 2, n = j / 2;
        float4& four = *reinterpret_cast<float4*>(shared.scores + place_of_score(first_row + 8 * i, column + j));
        four = make_float4(scores[m][n][e], scores[m][n][e + 1], scores[m][n + 1][e], scores[m][n + 1][e + 1]);
      }
  }

  // A warp merges the scores of a row of a half of the tile.
  __device__ void merge_row(const ScoreTile& tile, int half, int row, int columns, ScoreMemory& shared) const {
    const int lane = int(threadIdx.x) % 32, row_of_tile = half * kWarpRows + row;
    uint64_t* list = of(tile.first_row() + row_of_tile, tile.slice);
    WarpBest best(k);
    best.load(list);
#pragma unroll 1
    for (int column = lane; column < kScoreTile; column += 32) {
      const float score = shared.scores[place_of_score(row, column)];
      best.offer(column < columns ? key_of(score, tile.first_column() + column) : 0);
    }
    best.store(list);
    const uint64_t worst = best.worst();
    if (lane == 0) shared.threshold[row_of_tile] = score_of<float>(uint32_t(worst >> 32));
  }

  // The place of a score; threads that write four columns of each of two rows, and those that read a row, use different banks.
  static __device__ int place_of_score(int row, int column) { return row * kScoreTile + (column ^ (row % 2 * 4)); }
};

}  // namespace fovblur
