// A strip of one plane filtered as products of small matrices on the tensor cores: Y = A_h X A_w^T.
//
// A block of four warps makes 64 columns and walks down the rows, 16 at a time. With the border reflected when pixels are
// read, A_h and A_w are one Toeplitz band: A[i, p] = tap(p - i). So the left operands of both products, of every tile and
// every step, are the same 2 D + 1 tiles of taps in registers, 16 D being the radius rounded up. Rows are filtered first and
// transposed: A_w X^T leaves the tensor cores just as A_h (X A_w^T) wants its right operand, so the filtered rows of the last
// 2 D + 1 chunks stay in registers too. Only pixels pass through shared memory, and only the result is written to device
// memory.
//
// Counts for 1024 x 3 x 224 x 224 and D = 2 (radii 17 to 32), and the times they imply. Estimates: nothing here is measured.
//                                                                           H200              RTX 3080
//   16-bit   0.62 GB: a pixel is read once, its halo and sharp value from L2   0.14 ms           0.8 ms
//            20 mma of 16 x 8 x 16 for 256 outputs, with the halo 56 GFLOP     0.1 ms            0.95 ms
//            590 instructions a warp for 256 outputs, with the halo 85 each    0.45 ms           0.9 ms
//   float32  1.23 GB                                                           0.29 ms           1.6 ms
//            40 mma of 16 x 8 x 8 in tf32, 56 GFLOP                            0.2 ms            1.9 ms
//            830 instructions, with the halo 120 each                          0.65 ms           1.2 ms
// (mma.sync at 60 % of the H200's dense peak.) So issuing instructions limits on the H200, products on GeForce cards, where
// tf32 does not pay: the direct form has as many multiply-adds a clock there and wastes none outside the band.
#pragma once

#include "cuda_operands.cuh"
#include "cuda_pixels.cuh"

namespace fovblur {

constexpr int kStripThreads = 128;
constexpr int kStripColumns = 64;
constexpr int kMostReach = 4;  // D: radii up to 64
constexpr int kStagedStride = kStripColumns + 2 * kTile * kMostReach + 8;  // eight rows meet different banks
constexpr int kMiddle = kTile * (kMostReach + 1), kTapPairs = 2 * kMiddle;
constexpr int kSumsStride = kTile + 8;

template <class Operand>
struct ProductMemory {
  alignas(16) typename Operand::Element staged[2][kTile * kStagedStride];
  alignas(16) float sums[kStripThreads / 32][kTile * kSumsStride];
  typename Operand::Pair taps[kTapPairs];  // taps `offset` and `offset` + 1 at kMiddle + offset, 0 beyond the radius
  float partial[2][kStripThreads];
};

// Where a block works: rows [first_row, end_row) of 64 columns of an image.
struct Strip {
  int height, width, first_row, end_row, first_column;
};

// Writes the sample's taps, rounded to the operand's type and padded with zeros; returns 1 / the square of their sum, by
// which the result of both passes must be multiplied.
template <class Operand>
__device__ float stage_taps(const Taps& taps, ProductMemory<Operand>& shared) {
  auto tap = [&](int offset) {
    const bool inside = taps.radius == 0 ? offset == 0 : taps.reaches(offset);
    return inside ? Operand::round(taps.radius == 0 ? 1.0f : taps.tap(offset)) : 0.0f;
  };
  float sum = 0.0f;
  for (int k = int(threadIdx.x); k < kTapPairs; k += kStripThreads) {
    const float first = tap(k - kMiddle);
    shared.taps[k] = Operand::pair(first, tap(k - kMiddle + 1));
    sum += first;
  }
  block_sum<kStripThreads>(sum, 0.0f, shared.partial);
  return 1.0f / (shared.partial[0][0] * shared.partial[0][0]);
}

// The pixels of a chunk of 16 rows, on their way from device memory through registers to shared memory.
template <class Operand, class Source, int D>
struct Chunk {
  static constexpr int kRowGroups = (kStripColumns + 2 * kTile * D) / kVector;
  static constexpr int kGroups = kTile * kRowGroups, kOwn = (kGroups + kStripThreads - 1) / kStripThreads;
  Eight<Source> pixels[kOwn];

  // Calls each(pixels, row, column) for the thread's groups of eight.
  template <class Each>
  __device__ void for_own_groups(const Each& each) {
    const int thread = recomputed(int(threadIdx.x));
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int group = thread + k * kStripThreads;
      if (kGroups % kStripThreads == 0 || group < kGroups) each(pixels[k], group / kRowGroups, group % kRowGroups * kVector);
    }
  }

  __device__ void fetch(const Plane& source, const Strip& strip, int row) {
    for_own_groups([&](Eight<Source>& eight, int i, int j) {
      eight = source.load_eight<Source>(row + i, strip.first_column - kTile * D + j, strip.height, strip.width);
    });
  }

  // Returns whether the operand type holds all of the thread's pixels; it holds no infinity and no NaN.
  template <class Pass>
  __device__ bool commit(const Pass& pass, const Strip& strip, int row, typename Operand::Element* staged) {
    bool held = true;
    for_own_groups([&](const Eight<Source>& eight, int i, int j) {
      float x[kVector], w[kVector];
#pragma unroll
      for (int k = 0; k < kVector; ++k) x[k] = eight.get(k);
      if constexpr (Pass::kPrepares) {
        const int from_row = reflect(row + i, strip.height), from_column = strip.first_column - kTile * D + j;
        pass.weight.of_run(from_row, from_column, strip.width, w);
#pragma unroll
        for (int k = 0; k < kVector; ++k)
          x[k] = pass.prepare(from_row, reflect(from_column + k, strip.width), strip.height, strip.width, w[k], x[k]);
      }
#pragma unroll
      for (int k = 0; k < kVector; ++k) held = held && fabsf(x[k]) <= Operand::kLargest;
      Operand::store_eight(x, staged + i * kStagedStride + j);
    });
    return held;
  }
};

// Rearranges a warp's 16 x 16 sums into rows; finishes and stores each lane's eight outputs of row i from column j on.
template <class Pass, class Source>
__device__ void finish_tile(const Pass& pass, const Strip& strip, const float (&sums)[2][4], float scale, int i, int j,
                            bool inside, const Eight<Source>& sharp, float* memory) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float2 both = make_float2(sums[n][2 * k], sums[n][2 * k + 1]);
      *reinterpret_cast<float2*>(memory + (g + 8 * k) * kSumsStride + 8 * n + 2 * t) = both;
    }
  __syncwarp();
  if (!inside) return;
  float w[kVector], y[kVector];
  pass.weight.of_run(i, j, strip.width, w);
  const float* own = memory + lane / 2 * kSumsStride + lane % 2 * kVector;
#pragma unroll
  for (int k = 0; k < kVector; ++k)
    y[k] = pass.finish(i, j + k, strip.height, strip.width, w[k], sharp.get(k), own[k] * scale);
  pass.target.store_eight(i, j, strip.width, y);
}

// Filters a strip with taps that reach 16 D pixels. Returns whether the operands held all pixels; if not, a product
// has spread an infinity over its tile, and the caller must filter the strip in the direct form.
template <class Operand, class Source, int D, class Pass>
__device__ bool filter_strip(const Pass& pass, const Strip& strip, float scale, ProductMemory<Operand>& shared) {
  using Pair = typename Operand::Pair;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int own_column = strip.first_column + warp * kTile;

  const Pair* middle = shared.taps + kMiddle + 2 * t - g;
  constexpr bool kHeld = D < kMostReach;  // whether the registers hold the taps
  Pair v[kHeld ? 4 * D + 3 : 1];
  if constexpr (kHeld)
#pragma unroll
    for (int m = 0; m < 4 * D + 3; ++m) v[m] = middle[8 * (m - 2 * D - 1)];
  auto multiply = [&](int d, float(&c)[2][4], const Pair(&b)[2][2]) {  // c[..] += tile d of the band times b[..]
    Pair own[3];
#pragma unroll
    for (int k = 0; k < 3; ++k) own[k] = kHeld ? v[kHeld ? 2 * (d + D) + k : 0] : middle[16 * d + 8 * (k - 1)];
#pragma unroll
    for (int k = 0; k < 2; ++k) Operand::multiply(c[k], own, b[k]);
  };
  Pair filtered[2 * D + 1][2][2] = {};  // rows of the last chunks, oldest first, as right operands of 8 columns each
  Chunk<Operand, Source, D> next;

  const int rows = (strip.end_row - strip.first_row + kTile - 1) / kTile * kTile;
  const int begin = strip.first_row - kTile * D, end = strip.first_row + rows + kTile * D;
  bool held = true;
  for (int row = begin - kTile, stage = 0; row < end; row += kTile, stage ^= 1) {
    if (__syncthreads_or(!held)) return false;
    const bool more = row + kTile < end;
    if (more) next.fetch(pass.source, strip, row + kTile);  // in flight while this chunk is multiplied
    if (row >= begin && own_column < strip.width) {
      const int done = row - kTile * D, i = done + lane / 2;  // of the outputs
      const int j = recomputed(own_column + lane % 2 * kVector);
      const bool inside = done >= strip.first_row && i < strip.end_row && j < strip.width;
      Eight<Source> sharp = {};
      if (inside) sharp = pass.source.template load_eight<Source>(i, j, strip.height, strip.width);

      float along[2][4] = {};  // [eight rows][columns g, g + 8 x rows 2t, 2t + 1]
#pragma unroll(kHeld ? 2 * D + 1 : 3)
      for (int d = -D; d <= D; ++d) {
        Pair x[2][2];
        Operand::template load_tile<kStagedStride>(shared.staged[stage] + (warp + d + D) * kTile, x);
        multiply(d, along, x);
      }
#pragma unroll
      for (int d = 0; d < 2 * D; ++d)
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int h = 0; h < 2; ++h) filtered[d][n][h] = filtered[d + 1][n][h];
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int h = 0; h < 2; ++h) filtered[2 * D][n][h] = Operand::pair(along[h][2 * n], along[h][2 * n + 1]);
      if (done >= strip.first_row) {
        float sums[2][4] = {};  // [eight columns][rows g, g + 8 x columns 2t, 2t + 1]
#pragma unroll
        for (int d = -D; d <= D; ++d) multiply(d, sums, filtered[d + D]);
        finish_tile(pass, strip, sums, scale, i, j, inside, sharp, shared.sums[warp]);
      }
    }
    if (more) held = next.commit(pass, strip, row + kTile, shared.staged[stage ^ 1]);
  }
  return true;
}

}  // namespace fovblur
