// Scores of 128 recordings x 128 images: both products in one pipeline, one tile of sums each, modulated in registers.
//
// Eight warps make 64 x 32 scores each, 64 of either product a lane: 128 registers, so that a multiprocessor holds one block.
// Three steps are on their way while one is multiplied. The steps of the texts follow those of the images, and the next tile's
// first steps are fetched before a tile's scores are stored, so that nothing waits in between.
#pragma once

#include "../common/mma.cuh"
#include "cuda_fetch.cuh"

namespace fovblur {

constexpr int kWarpRows = 64, kWarpColumns = 32;
constexpr int kLaneColumns = 8;  // neighbours, of each of a lane's rows

// A lane's sums: of 16 rows x 8 columns [m][n] those that mma.cuh gives it.
using Sums = float[kWarpRows / 16][kWarpColumns / 8][4];

struct ScoreMemory {
  Stage stages[kScoreStages];
  float scores[kWarpRows * kScoreTile];  // see cuda_best.cuh for this and what follows but the gates
  float gates[2][2][kScoreTile];         // of the tiles in turn: recordings and images
  float threshold[kScoreTile];
  uint32_t candidates[2][kWarpRows / 8][kScoreTile / kWarpColumns];
};

// Row and first column, within a tile, of a lane's sums. A matrix instruction's column 2t + e of the n-th eight is column
// 8t + 2n + e of the warp's, so that a lane has eight neighbours of each of its rows g + 8i.
__device__ inline int row_of_lane() {
  const int thread = recomputed(int(threadIdx.x));
  return thread / 128 * kWarpRows + thread % 32 / 4;
}
__device__ inline int column_of_lane() {
  const int thread = recomputed(int(threadIdx.x));
  return thread / 32 % 4 * kWarpColumns + thread % 4 * kLaneColumns;
}

// ---- products of a step ----
//
// `begin` and `before` read a stage; `after` may run when it is overwritten already.

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
class MatrixProducts {
 public:
  using Element = Type;

  __device__ MatrixProducts() {
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    recording_ = 16 * place_of_recording(warp / 4 * kWarpRows + lane % 16, lane / 16);
    // Matrices of the first eight columns for both chunks, then of the second eight.
    const int column = lane % 8 / 2 * kLaneColumns + lane % 2 + lane / 16 * 2;
    image_ = 16 * place_of_image(warp % 4 * kWarpColumns + column, lane / 8 % 2);
  }

  __device__ void begin(const Stage& stage) { load(stage, 0, first_); }
  __device__ void before(const Stage& stage, Sums& sums) {
    load(stage, 2, second_);
    multiply(first_, sums);
  }
  __device__ void after(Sums& sums) { multiply(second_, sums); }

 private:
  using Cores = TensorCores<Type>;

  struct Operands {  // two chunks of the warp's rows
    uint32_t a[kWarpRows / 16][4], b[kWarpColumns / 16][4];
  };

  __device__ __forceinline__ void load(const Stage& stage, int chunk, Operands& to) const {
    const char* recordings = reinterpret_cast<const char*>(stage[0]) + (recording_ ^ 16 * chunk);
    const char* images = reinterpret_cast<const char*>(stage[1]) + (image_ ^ 16 * chunk);
#pragma unroll
    for (int m = 0; m < kWarpRows / 16; ++m) load_matrices(recordings + 16 * m * kRowBytes, to.a[m]);
#pragma unroll
    for (int n = 0; n < kWarpColumns / 16; ++n) load_matrices(images + 4 * n * kRowBytes, to.b[n]);
  }

  static __device__ __forceinline__ void multiply(Operands& with, Sums& sums) {
#pragma unroll
    for (auto& fragment : with.a)
#pragma unroll
      for (uint32_t& x : fragment) x = Cores::rounded(x);
#pragma unroll
    for (auto& fragment : with.b)
#pragma unroll
      for (uint32_t& x : fragment) x = Cores::rounded(x);
#pragma unroll
    for (int m = 0; m < kWarpRows / 16; ++m)
#pragma unroll
      for (int n = 0; n < kWarpColumns / 8; ++n)
        Cores::mma(sums[m][n], with.a[m], {with.b[n / 2][n % 2 * 2], with.b[n / 2][n % 2 * 2 + 1]});
  }

  static constexpr int kRowBytes = 16 * kRowChunks;

  int recording_, image_;  // bytes before the lane's rows in a stage
  Operands first_, second_;
};

// Every product in float32, for the same sums of a lane.
class ExactProducts {
 public:
  using Element = float;

  __device__ void begin(const Stage&) {}
  __device__ void before(const Stage& stage, Sums& sums) {
    const int row = row_of_lane(), column = column_of_lane();
#pragma unroll 1
    for (int chunk = 0; chunk < kRowChunks; ++chunk) {
      const float4* recordings = reinterpret_cast<const float4*>(stage[0] + place_of_recording(row, chunk));
      const float4* images = reinterpret_cast<const float4*>(stage[1] + place_of_image(column, chunk));
      float4 of_image[kLaneColumns];
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) of_image[j] = images[j * kRowChunks];
#pragma unroll
      for (int i = 0; i < kWarpRows / 8; ++i) {
        const float4 of_recording = recordings[8 * i * kRowChunks];
#pragma unroll
        for (int j = 0; j < kLaneColumns; ++j) {
          float& sum = sums[i / 2][j / 2][i % 2 * 2 + j % 2];
          sum = fmaf(of_recording.x, of_image[j].x, sum);
          sum = fmaf(of_recording.y, of_image[j].y, sum);
          sum = fmaf(of_recording.z, of_image[j].z, sum);
          sum = fmaf(of_recording.w, of_image[j].w, sum);
        }
      }
    }
  }
  __device__ void after(Sums&) {}
};

// ---- scores ----

// Returns the thread's gate of a tile: those of the recordings, then those of the images.
__device__ inline float gate_of_thread(const SimilarityParams& p, const ScoreTile& tile) {
  static_assert(2 * kScoreTile == kScoreThreads, "a thread holds one gate");
  const bool of_image = int(threadIdx.x) >= kScoreTile;
  const int place = int(threadIdx.x) % kScoreTile;
  if (place >= (of_image ? tile.columns(p) : tile.rows(p))) return 0.0f;
  const void* data = of_image ? p.column_gate.data : p.row_gate.data;
  const int64_t at = (of_image ? tile.first_column() : tile.first_row()) + place;
  return data ? static_cast<const float*>(data)[at * (of_image ? p.column_gate.stride : p.row_gate.stride)] : 1.0f;
}

// Shares the threads' gates; returns whether a recording's gate and an image's gate are open. Its votes are barriers.
__device__ inline bool hold_gates(float gate, float (&gates)[2][kScoreTile]) {
  const bool of_image = int(threadIdx.x) >= kScoreTile;
  gates[of_image][int(threadIdx.x) % kScoreTile] = gate;
  const bool recordings_open = __syncthreads_or(!of_image && gate != 0.0f);
  const bool images_open = __syncthreads_or(of_image && gate != 0.0f);
  return recordings_open && images_open;
}

// Starts the first steps of a tile; `stage` is the next one to be multiplied.
template <class Fetcher>
__device__ __forceinline__ void begin_scores(const SimilarityParams& p, const ScoreTile& tile, bool texts, unsigned stage,
                                             ScoreMemory& shared, Fetcher& fetcher) {
  fetcher.begin(p, tile, texts);
#pragma unroll 1
  for (int step = 0; step < kScoreStages - 1; ++step) fetcher.fetch(p, tile, shared.stages[(stage + step) % kScoreStages]);
}

// scores = M_bi * (1 + r_i c_j M_bt) for a tile that was begun. The order of a score's sums does not depend on its place in a
// tile. No stage is read after it.
template <class Products, class Fetcher>
__device__ __forceinline__ void make_scores(const SimilarityParams& p, const ScoreTile& tile,
                                            const float (&gates)[2][kScoreTile], unsigned& stage, ScoreMemory& shared,
                                            Fetcher& fetcher, Sums& scores) {
  const int row = row_of_lane(), column = column_of_lane();
  const bool busy = row / kWarpRows * kWarpRows < tile.rows(p) && column / kWarpColumns * kWarpColumns < tile.columns(p);
  int left = fetcher.image_steps() + fetcher.text_steps();
  auto wait_for_next = [&] {
    wait_for_copies<kScoreStages - 2>();
    __syncthreads();  // all threads' copies of the next step have arrived, and none reads the last step's any more
  };
  Products products;
  Sums sums = {};
  wait_for_next();
  if (busy && left > 0) products.begin(shared.stages[stage]);
#pragma unroll 1
  for (int product = 0; product < 2; ++product) {
#pragma unroll
    for (int m = 0; m < kWarpRows / 16; ++m)
#pragma unroll
      for (int n = 0; n < kWarpColumns / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) scores[m][n][e] = sums[m][n][e], sums[m][n][e] = 0.0f;
#pragma unroll 1
    for (int step = product == 0 ? fetcher.image_steps() : fetcher.text_steps(); step > 0; --step) {
      if (busy) products.before(shared.stages[stage], sums);
      fetcher.fetch(p, tile, shared.stages[(stage + kScoreStages - 1) % kScoreStages]);
      stage = (stage + 1) % kScoreStages;
      wait_for_next();
      if (!busy) continue;
      if (--left > 0) products.begin(shared.stages[stage]);
      products.after(sums);
    }
  }
#pragma unroll
  for (int m = 0; m < kWarpRows / 16; ++m)
#pragma unroll
    for (int n = 0; n < kWarpColumns / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float r = gates[0][row + 16 * m + e / 2 * 8], c = gates[1][column + 2 * n + e % 2];
        // a closed gate lets no NaN through
        scores[m][n][e] *= r == 0.0f || c == 0.0f ? 1.0f : fmaf(r * c, sums[m][n][e], 1.0f);
      }
}

}  // namespace fovblur
