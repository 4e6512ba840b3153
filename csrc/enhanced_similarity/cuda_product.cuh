// Scores of 128 recordings x 128 images: both products in one pipeline, one tile of sums each, modulated in registers.
//
// Eight warps make 64 x 32 scores each, 64 of either product a lane: 128 registers, so that a multiprocessor holds one block.
// Each step takes 64 bytes of every row, 32 halves or 16 floats, through shared memory; three steps are on their way while
// one is multiplied. The steps of the texts follow those of the images in one loop, so that nothing waits between them.
#pragma once

#include "../common/async_copy.cuh"
#include "../common/launch.cuh"
#include "../common/mma.cuh"
#include "params.h"

namespace fovblur {

constexpr int kScoreTile = 128;  // recordings, and images
constexpr int kScoreThreads = 256, kScoreStages = 4;
constexpr int kRowChunks = 4;  // of 16 bytes, a row and step
constexpr int kWarpRows = 64, kWarpColumns = 32;

// A lane's sums: of 16 rows x 8 columns [m][n] those that mma.cuh gives it.
using Sums = float[kWarpRows / 16][kWarpColumns / 8][4];

struct ScoreMemory {
  union {
    uint4 stages[kScoreStages][2][kScoreTile * kRowChunks];  // recordings and images
    float scores[kScoreTile * kScoreTile];
  };
  float gates[2][kScoreTile];
  uint64_t worst[kScoreTile];  // the k-th best key of a recording, see cuda_best.cuh
};

// Returns the place of chunk `chunk` of a row. One chunk from each of eight rows lies in different banks; the place of a row
// 8 i further on, or of the odd row after an even one, lies as many rows of chunks further on.
__device__ inline int place_of_chunk(int row, int chunk) { return row * kRowChunks + (chunk ^ (row / 2 % kRowChunks)); }

// Returns the place of a score; eight columns from a multiple of eight on are neighbours.
__device__ inline int place_of_score(int row, int column) { return row * kScoreTile + (column ^ (row % 8 * 8)); }

// The tile's part of the matrix.
struct ScoreTile {
  int64_t first_row, first_column;
  int rows, columns;  // that exist, up to kScoreTile

  __device__ ScoreTile(const SimilarityParams& p, int64_t row_tile, int64_t column_tile)
      : first_row(row_tile * kScoreTile),
        first_column(column_tile * kScoreTile),
        rows(int(min(p.recordings - first_row, int64_t(kScoreTile)))),
        columns(int(min(p.images - first_column, int64_t(kScoreTile)))) {}
};

// Calls each(m, n, e, row, column) for the places of the lane's sums.
template <class Each>
__device__ __forceinline__ void for_each_sum(const Each& each) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int row = warp / 4 * kWarpRows + lane / 4, column = warp % 4 * kWarpColumns + lane % 4 * 2;
#pragma unroll
  for (int m = 0; m < kWarpRows / 16; ++m)
#pragma unroll
    for (int n = 0; n < kWarpColumns / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) each(m, n, e, row + 16 * m + e / 2 * 8, column + 8 * n + e % 2);
}

// ---- from device to shared memory ----

template <class Element>
struct alignas(16) Chunk16 {
  static constexpr int kWidth = 16 / int(sizeof(Element));
  Element at[kWidth];
};

// 64 bytes of the tile's rows from column `begin` on, with zeros beyond the embeddings. Rows that are aligned are copied as
// they are; others element by element, neighbouring threads taking neighbouring rows, as transposed embeddings have them.
template <class Element>
__device__ void fetch_rows(const Embeddings& from, int64_t first_row, int rows, int64_t begin, int64_t width, uint4* target) {
  using Chunk = Chunk16<Element>;
  const Element* data = static_cast<const Element*>(from.data) + first_row * from.row_stride + begin * from.column_stride;
  const int thread = recomputed(int(threadIdx.x));
  const int left = int(min(width - begin, int64_t(kRowChunks * Chunk::kWidth)));
  const bool aligned = reinterpret_cast<uintptr_t>(from.data) % 16 == 0 && from.row_stride % Chunk::kWidth == 0;
  if (from.column_stride == 1 && aligned) {
#pragma unroll
    for (int i = 0; i < kScoreTile * kRowChunks / kScoreThreads; ++i) {
      const int place = thread + i * kScoreThreads, row = place / kRowChunks, chunk = place % kRowChunks;
      const int inside = row < rows ? max(0, min(left - chunk * Chunk::kWidth, Chunk::kWidth)) : 0;
      const Element* source = inside ? data + row * from.row_stride + chunk * Chunk::kWidth : data;
      copy_async(target + place_of_chunk(row, chunk), source, inside * int(sizeof(Element)));
    }
    return;
  }
#pragma unroll 1
  for (int place = thread; place < kScoreTile * kRowChunks; place += kScoreThreads) {
    const int row = place % kScoreTile, chunk = place / kScoreTile;
    Chunk elements;
#pragma unroll
    for (int j = 0; j < Chunk::kWidth; ++j) {
      const int column = chunk * Chunk::kWidth + j;
      const bool inside = row < rows && column < left;
      elements.at[j] = inside ? data[row * from.row_stride + column * from.column_stride] : Element{};
    }
    *reinterpret_cast<Chunk*>(target + place_of_chunk(row, chunk)) = elements;
  }
}

// ---- products of a step ----

template <class Type>
struct TensorCores;  // 16 bytes of each row hold the operands' columns as the matrix instructions take them
template <>
struct TensorCores<Half> {
  static __device__ uint32_t rounded(uint32_t pair) { return pair; }
  static __device__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_half(c, a, b); }
};
template <>
struct TensorCores<BFloat16> {
  static __device__ uint32_t rounded(uint32_t pair) { return pair; }
  static __device__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_bfloat16(c, a, b); }
};
template <>
struct TensorCores<float> {
  static __device__ uint32_t rounded(uint32_t x) { return to_tf32(bit_cast<float>(x)); }
  static __device__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_tf32(c, a, b); }
};

// Halves are multiplied as they are, floats rounded to tf32.
template <class Type>
struct MatrixProducts {
  using Element = Type;

  static __device__ void add(const uint4 (&stage)[2][kScoreTile * kRowChunks], Sums& sums) {
    using Cores = TensorCores<Type>;
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    const int row = warp / 4 * kWarpRows + lane % 16, column = warp % 4 * kWarpColumns + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int chunk = 0; chunk < kRowChunks; chunk += 2) {
      uint32_t a[kWarpRows / 16][4], b[kWarpColumns / 16][4];
      const uint4* recordings = stage[0] + place_of_chunk(row, chunk + lane / 16);
      const uint4* images = stage[1] + place_of_chunk(column, chunk + lane / 8 % 2);
#pragma unroll
      for (int m = 0; m < kWarpRows / 16; ++m) load_matrices(recordings + 16 * m * kRowChunks, a[m]);
#pragma unroll
      for (int n = 0; n < kWarpColumns / 16; ++n) load_matrices(images + 16 * n * kRowChunks, b[n]);
#pragma unroll
      for (auto& fragment : a)
#pragma unroll
        for (uint32_t& x : fragment) x = Cores::rounded(x);
#pragma unroll
      for (auto& fragment : b)
#pragma unroll
        for (uint32_t& x : fragment) x = Cores::rounded(x);
#pragma unroll
      for (int m = 0; m < kWarpRows / 16; ++m)
#pragma unroll
        for (int n = 0; n < kWarpColumns / 8; ++n)
          Cores::mma(sums[m][n], a[m], {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]});
    }
  }
};

// Every product in float32, for the same sums of a lane.
struct ExactProducts {
  using Element = float;

  static __device__ void add(const uint4 (&stage)[2][kScoreTile * kRowChunks], Sums& sums) {
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    const int row = warp / 4 * kWarpRows + lane / 4, column = warp % 4 * kWarpColumns + lane % 4 * 2;
#pragma unroll 1
    for (int chunk = 0; chunk < kRowChunks; ++chunk) {
      const float4* recordings = reinterpret_cast<const float4*>(stage[0] + place_of_chunk(row, chunk));
      const float4* images = reinterpret_cast<const float4*>(stage[1] + place_of_chunk(column, chunk));
      float4 of_image[kWarpColumns / 8][2];
#pragma unroll
      for (int n = 0; n < kWarpColumns / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) of_image[n][e] = images[(8 * n + e) * kRowChunks];
#pragma unroll
      for (int i = 0; i < kWarpRows / 8; ++i) {
        const float4 of_recording = recordings[8 * i * kRowChunks];
#pragma unroll
        for (int n = 0; n < kWarpColumns / 8; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& sum = sums[i / 2][n][i % 2 * 2 + e];
            sum = fmaf(of_recording.x, of_image[n][e].x, sum);
            sum = fmaf(of_recording.y, of_image[n][e].y, sum);
            sum = fmaf(of_recording.z, of_image[n][e].z, sum);
            sum = fmaf(of_recording.w, of_image[n][e].w, sum);
          }
      }
    }
  }
};

// ---- scores ----

// Loads the tile's gates; returns whether a recording's gate and an image's gate are open. Its votes are barriers, after which
// no thread reads the scores of the previous tile.
__device__ inline bool hold_gates(const SimilarityParams& p, const ScoreTile& tile, ScoreMemory& shared) {
  const bool of_image = int(threadIdx.x) >= kScoreTile;
  const int place = int(threadIdx.x) % kScoreTile;
  const Gate& gate = of_image ? p.column_gate : p.row_gate;
  float value = 0.0f;
  if (place < (of_image ? tile.columns : tile.rows)) {
    const int64_t at = (of_image ? tile.first_column : tile.first_row) + place;
    value = gate.data ? static_cast<const float*>(gate.data)[at * gate.stride] : 1.0f;
  }
  shared.gates[of_image][place] = value;
  const bool recordings_open = __syncthreads_or(!of_image && value != 0.0f);
  const bool images_open = __syncthreads_or(of_image && value != 0.0f);
  return recordings_open && images_open;
}

// scores = M_bi * (1 + r_i c_j M_bt). The order of a score's sums does not depend on its place in a tile. Until the next
// barrier other threads may still read shared.stages and shared.gates.
template <class Products>
__device__ __forceinline__ void score_tile(const SimilarityParams& p, const ScoreTile& tile, ScoreMemory& shared,
                                           Sums& scores) {
  using Element = typename Products::Element;
  constexpr int kStepWidth = kRowChunks * Chunk16<Element>::kWidth;
  static_assert(2 * kScoreTile == kScoreThreads, "a thread holds one gate");
  const bool open = hold_gates(p, tile, shared);
  const int image_steps = int((p.image_width + kStepWidth - 1) / kStepWidth);
  const int steps = image_steps + (open ? int((p.text_width + kStepWidth - 1) / kStepWidth) : 0);
  auto fetch = [&](int step) {
    if (step < steps) {
      const bool of_text = step >= image_steps;
      const int64_t begin = int64_t(of_text ? step - image_steps : step) * kStepWidth;
      const int64_t width = of_text ? p.text_width : p.image_width;
      uint4(&stage)[2][kScoreTile * kRowChunks] = shared.stages[step % kScoreStages];
      fetch_rows<Element>(of_text ? p.brain_text : p.brain_image, tile.first_row, tile.rows, begin, width, stage[0]);
      fetch_rows<Element>(of_text ? p.text : p.image, tile.first_column, tile.columns, begin, width, stage[1]);
    }
    commit_copies();
  };
#pragma unroll 1
  for (int step = 0; step < kScoreStages - 1; ++step) fetch(step);

  const int warp = int(threadIdx.x) / 32;
  const bool busy = warp / 4 * kWarpRows < tile.rows && warp % 4 * kWarpColumns < tile.columns;
  Sums sums = {};
  int step = 0;
#pragma unroll 1
  for (int product = 0; product < 2; ++product) {
    for_each_sum([&](int m, int n, int e, int, int) { scores[m][n][e] = sums[m][n][e], sums[m][n][e] = 0.0f; });
#pragma unroll 1
    for (const int end = product == 0 ? image_steps : steps; step < end; ++step) {
      wait_for_copies<kScoreStages - 2>();
      __syncthreads();  // all copies of this step have arrived, and no thread reads the last step's any more
      fetch(step + kScoreStages - 1);
      if (busy) Products::add(shared.stages[step % kScoreStages], sums);
    }
  }
  for_each_sum([&](int m, int n, int e, int row, int column) {
    const float r = shared.gates[0][row], c = shared.gates[1][column];
    scores[m][n][e] *= r == 0.0f || c == 0.0f ? 1.0f : fmaf(r * c, sums[m][n][e], 1.0f);  // a closed gate lets no NaN through
  });
}

// Writes the scores to shared memory, once no thread reads its old content.
__device__ __forceinline__ void hold_scores(const Sums& scores, ScoreMemory& shared) {
  for_each_sum([&](int m, int n, int e, int row, int column) {
    if (e % 2 != 0) return;
    float2& both = *reinterpret_cast<float2*>(shared.scores + place_of_score(row, column));
    both = make_float2(scores[m][n][e], scores[m][n][e + 1]);
  });
  __syncthreads();
}

}  // namespace fovblur
