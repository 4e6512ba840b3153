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

// Returns the larger, or the smaller, of this lane's key and that of the lane whose number differs in the bit `distance`.
__device__ inline uint64_t larger_of(uint64_t key, int distance, bool larger) {
  const uint64_t other = __shfl_xor_sync(0xffffffffu, key, distance);
  return (key > other) == larger ? key : other;
}

// A warp's k best keys, descending: the (32 i + l)-th is keys[i] of lane l.
class WarpBest {
 public:
  __device__ explicit WarpBest(int k) : k_(k), slots_(k <= 32 ? 1 : k <= 64 ? 2 : 4) {}

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

  // One key a lane, 0 for none: sorts them and merges them in, both bitonically.
  __device__ void offer(uint64_t key) {
#pragma unroll 1
    for (int size = 2; size <= 32; size *= 2)
#pragma unroll 1
      for (int distance = size / 2; distance > 0; distance /= 2)
        key = larger_of(key, distance, ((lane() & distance) == 0) == ((lane() & size) == 0));
    key = __shfl_xor_sync(0xffffffffu, key, 31);  // ascending now; against the last 32, the larger of each two stay
#pragma unroll
    for (int i = 0; i < kSlots; ++i) keys_[i] = max(keys_[i], i == slots_ - 1 ? key : 0);
    if (slots_ == 4) exchange(0, 2), exchange(1, 3), exchange(2, 3);
    if (slots_ >= 2) exchange(0, 1);
#pragma unroll
    for (int i = 0; i < kSlots; ++i)
      if (i < slots_)
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) keys_[i] = larger_of(keys_[i], distance, (lane() & distance) == 0);
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

  __device__ void exchange(int i, int j) {
    const uint64_t larger = max(keys_[i], keys_[j]);
    keys_[j] = min(keys_[i], keys_[j]);
    keys_[i] = larger;
  }

  int k_, slots_;
  uint64_t keys_[kSlots] = {};
};

// The best of each slice of the gallery, [N, slices, k] keys.
struct SliceBest {
  uint64_t* keys;
  int64_t slices;
  int k;

  __device__ uint64_t* of(int64_t recording, int64_t slice) const { return keys + (recording * slices + slice) * k; }

  __device__ void clear(const ScoreTile& tile, int64_t slice, ScoreMemory& shared) const {
    for (int i = int(threadIdx.x); i < tile.rows * k; i += kScoreThreads) of(tile.first_row + i / k, slice)[i % k] = 0;
    if (int(threadIdx.x) < kScoreTile) shared.worst[threadIdx.x] = 0;
    __syncthreads();
  }

  // Merges scores better than a recording's k-th best; if there are none, the scores stay in registers.
  template <class>
  __device__ void take(const SimilarityParams&, const ScoreTile& tile, int64_t slice, const Sums& scores,
                       ScoreMemory& shared) const {
    bool any = false;
    for_each_sum([&](int m, int n, int e, int row, int column) {
      if (row < tile.rows && column < tile.columns) any |= order_of(scores[m][n][e]) >= shared.worst[row] >> 32;
    });
    if (!__syncthreads_or(any)) return;
    hold_scores(scores, shared);
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    for (int row = warp; row < tile.rows; row += kScoreThreads / 32) {
      uint64_t* list = of(tile.first_row + row, slice);
      uint64_t worst = shared.worst[row];
      WarpBest best(k);
      bool loaded = false;
      for (int column = lane; column < kScoreTile; column += 32) {
        const float score = shared.scores[place_of_score(row, column)];
        const uint64_t key = column < tile.columns ? key_of(score, tile.first_column + column) : 0;
        if (!__any_sync(0xffffffffu, key > worst)) continue;
        if (!loaded) best.load(list);
        loaded = true;
        best.offer(key > worst ? key : 0);
        worst = best.worst();
      }
      if (!loaded) continue;
      best.store(list);
      if (lane == 0) shared.worst[row] = worst;
    }
  }
};

}  // namespace fovblur
