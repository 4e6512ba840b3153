// A strip of one float32 plane filtered as products of small matrices on the tensor cores: Y = A_h X A_w^T, in tf32.
//
// A block of four warps makes 64 columns and walks down the rows, 16 at a time. With the border reflected when pixels are
// read, A_h and A_w are one Toeplitz band: A[i, p] = tap(p - i). So the left operands of both products, of every tile and
// every step, are the same 2 D + 1 tiles of taps in registers, 16 D being the radius rounded up. Rows are filtered first and
// transposed: A_w X^T leaves the tensor cores just as A_h (X A_w^T) wants its right operand, so the filtered rows of the last
// 2 D + 1 chunks stay in registers too. Only pixels pass through shared memory, and only the result is written to device
// memory.
#pragma once

#include "cuda_operands.cuh"
#include "cuda_pixels.cuh"

namespace fovblur {

constexpr int kStripThreads = 128;
constexpr int kStripColumns = 64;
constexpr int kTf32Reach = 4;  // D: radii up to 64
constexpr int kStagedStride = kStripColumns + 2 * kTile * kTf32Reach + 8;  // eight rows meet different banks
constexpr int kTf32Middle = kTile * (kTf32Reach + 1), kTapPairs = 2 * kTf32Middle;
constexpr int kSumsStride = kTile + 8;

struct ProductMemory {
  alignas(16) Operand32::Element staged[2][kTile * kStagedStride];
  alignas(16) float sums[kStripThreads / 32][kTile * kSumsStride];
  Operand32::Pair taps[kTapPairs];  // taps `offset` and `offset` + 1 at kTf32Middle + offset, 0 beyond the radius
  float partial[2][kStripThreads];
};

// Where a block works: rows [first_row, end_row) of 64 columns of an image.
struct Tf32Strip {
  int height, width, first_row, end_row, first_column;
};

// Writes the sample's taps, rounded to the operand's type and padded with zeros; returns 1 / the square of their sum, by
// which the result of both passes must be multiplied.
__device__ float stage_taps_tf32(const Taps& taps, ProductMemory& shared) {
  auto tap = [&](int offset) {
    const bool inside = taps.radius == 0 ? offset == 0 : taps.reaches(offset);
    return inside ? Operand32::round(taps.radius == 0 ? 1.0f : taps.tap(offset)) : 0.0f;
  };
  float sum = 0.0f;
  for (int k = int(threadIdx.x); k < kTapPairs; k += kStripThreads) {
    const float first = tap(k - kTf32Middle);
    shared.taps[k] = Operand32::pair(first, tap(k - kTf32Middle + 1));
    sum += first;
  }
  block_sum<kStripThreads>(sum, 0.0f, shared.partial);
  return 1.0f / (shared.partial[0][0] * shared.partial[0][0]);
}

// The pixels of a chunk of 16 rows, on their way from device memory through registers to shared memory.
template <int D>
struct Chunk {
  static constexpr int kRowGroups = (kStripColumns + 2 * kTile * D) / kVector;
  static constexpr int kGroups = kTile * kRowGroups, kOwn = (kGroups + kStripThreads - 1) / kStripThreads;
  Eight<float> pixels[kOwn];

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

  __device__ void fetch(const Plane& source, const Tf32Strip& strip, int row) {
    for_own_groups([&](Eight<float>& eight, int i, int j) {
      eight = source.load_eight<float>(row + i, strip.first_column - kTile * D + j, strip.height, strip.width);
    });
  }

  // Returns whether the operand type holds all of the thread's pixels; it holds no infinity and no NaN.
  template <class Pass>
  __device__ bool commit(const Pass& pass, const Tf32Strip& strip, int row, Operand32::Element* staged) {
    bool held = true;
    for_own_groups([&](const Eight<float>& eight, int i, int j) {
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
      for (int k = 0; k < kVector; ++k) held = held && fabsf(x[k]) <= Operand32::kLargest;
      Operand32::store_eight(x, staged + i * kStagedStride + j);
    });
    return held;
  }
};

// Rearranges a warp's 16 x 16 sums into rows; finishes and stores each lane's eight outputs of row i from column j on.
template <class Pass>
__device__ void finish_tile(const Pass& pass, const Tf32Strip& strip, const float (&sums)[2][4], float scale, int i, int j,
                            bool inside, const Eight<float>& sharp, float* memory) {
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
template <int D, class Pass>
__device__ bool filter_strip_tf32(const Pass& pass, const Tf32Strip& strip, float scale, ProductMemory& shared) {
  using Pair = Operand32::Pair;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int own_column = strip.first_column + warp * kTile;

  const Pair* middle = shared.taps + kTf32Middle + 2 * t - g;
  constexpr bool kHeld = D < kTf32Reach;  // whether the registers hold the taps
  Pair v[kHeld ? 4 * D + 3 : 1];
  if constexpr (kHeld)
#pragma unroll
    for (int m = 0; m < 4 * D + 3; ++m) v[m] = middle[8 * (m - 2 * D - 1)];
  auto multiply = [&](int d, float(&c)[2][4], const Pair(&b)[2][2]) {  // c[..] += tile d of the band times b[..]
    Pair own[3];
#pragma unroll
    for (int k = 0; k < 3; ++k) own[k] = kHeld ? v[kHeld ? 2 * (d + D) + k : 0] : middle[16 * d + 8 * (k - 1)];
#pragma unroll
    for (int k = 0; k < 2; ++k) Operand32::multiply(c[k], own, b[k]);
  };
  Pair filtered[2 * D + 1][2][2] = {};  // rows of the last chunks, oldest first, as right operands of 8 columns each
  Chunk<D> next;

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
      Eight<float> sharp = {};
      if (inside) sharp = pass.source.template load_eight<float>(i, j, strip.height, strip.width);

      float along[2][4] = {};  // [eight rows][columns g, g + 8 x rows 2t, 2t + 1]
#pragma unroll(kHeld ? 2 * D + 1 : 3)
      for (int d = -D; d <= D; ++d) {
        Pair x[2][2];
        Operand32::template load_tile<kStagedStride>(shared.staged[stage] + (warp + d + D) * kTile, x);
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
        for (int h = 0; h < 2; ++h) filtered[2 * D][n][h] = Operand32::pair(along[h][2 * n], along[h][2 * n + 1]);
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
