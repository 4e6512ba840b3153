// A strip of one float32 plane filtered as products of small matrices, exact to about 2^-21 of its largest pixel.
// For gradients of images, which would have to be prepared twice for margins, the direct form takes fewer instructions.
//
// Pixels and taps are sums of two binary16 numbers, x = h + l and t = u + v; u h + u l + v h are three products on the tensor
// cores with float32 sums. Pixels are scaled by a power of two so that the strip's largest fits.
// A warp makes 16 columns and walks down the rows, 16 at a time. With the border reflected when rows are staged, both
// filters are one Toeplitz band, A[i, p] = tap(p - i). Rows are filtered first and transposed: A X^T leaves the tensor cores
// just as A (X A^T) wants its right operand, so the filtered rows of the last 2 D + 1 steps stay in registers, 16 D being the
// radius rounded up.
#pragma once

#include "../common/async_copy.cuh"
#include "../common/mma.cuh"
#include "cuda_streamed.cuh"

namespace fovblur {

constexpr int kSplitThreads = 128;
constexpr int kSplitSide = 16;                                   // of a tile, and rows of a step
constexpr int kSplitColumns = kSplitSide * kSplitThreads / 32;   // of the widest strip
constexpr int kSplitReach = 2;                                   // D at most: radii up to 32; registers hold no more
constexpr int kSplitMargin = kSplitSide * kSplitReach;
constexpr int kSplitMiddle = kSplitMargin + kSplitSide;          // of the table of taps
constexpr float kSplitLargest = 256.0f;                          // scaled pixels; times kTapScale well inside binary16
constexpr float kTapScale = 64.0f;                               // so that the low parts of taps are not subnormal

// Two neighbours along the dimension that a product sums over, in two parts.
struct SplitPair {
  uint32_t high, low;
};
// The high part is cut off after ten bits of mantissa, so the low one has the next eleven, rounded.
__device__ inline float high_part(float x) { return bit_cast<float>(bit_cast<uint32_t>(x) & 0xffffe000u); }
__device__ inline SplitPair split_pair(float first, float second) {
  const float high_of_first = high_part(first), high_of_second = high_part(second);
  return {pack_half(high_of_first, high_of_second), pack_half(first - high_of_first, second - high_of_second)};
}

struct SplitMemory {
  static constexpr int kStride = kSplitColumns + 2 * kSplitMargin + 4, kHalfStride = kStride + 4;  // rows meet different banks
  alignas(16) float staged[kSplitSide * kStride];
  alignas(16) uint16_t high[kSplitSide * kHalfStride], low[kSplitSide * kHalfStride];
  SplitPair taps[2 * kSplitMiddle];  // taps `offset` and `offset` + 1 at kSplitMiddle + offset, 0 beyond the radius
  uint32_t largest[kSplitThreads / 32];
};

// Bits of a float's magnitude grow with it, and those of infinities and NaN are larger than any number's.
__device__ inline uint32_t larger_magnitude(uint32_t bits, float x) { return max(bits, bit_cast<uint32_t>(x) & 0x7fffffffu); }

// The largest power of two by which numbers up to `bound` may be multiplied; that of tiny numbers is one that float holds.
__device__ inline float split_scale(float bound) {
  const int exponent = int(bit_cast<uint32_t>(bound) >> 23) + 1;                  // 2^(exponent - 127) > bound
  const int of_scale = min(int(bit_cast<uint32_t>(kSplitLargest) >> 23) + 127 - exponent, 252);
  return bit_cast<float>(uint32_t(of_scale) << 23);
}

class SplitStrip {
 public:
  // `region` is at most kSplitColumns wide.
  __device__ SplitStrip(const Forward& pass, const Taps& gaussian, const Region& region, SplitMemory& shared)
      : pass_(pass), region_(region), shared_(shared), q_(int(threadIdx.x) % kSplitSide) {
    const Plane& source = pass.source;
    aligned_ = source.has_pairs() && source.images.strides[2] % 4 == 0 && region.width % 4 == 0 &&
               (reinterpret_cast<uintptr_t>(source.images.data) + source.offset * 4) % 16 == 0;
    for (int k = int(threadIdx.x); k < 2 * kSplitMiddle; k += kSplitThreads) {
      auto tap = [&](int offset) {
        if (gaussian.radius == 0) return offset == 0 ? kTapScale : 0.0f;
        return gaussian.reaches(offset) ? gaussian.tap(offset) * kTapScale : 0.0f;
      };
      shared.taps[k] = split_pair(tap(k - kSplitMiddle), tap(k - kSplitMiddle + 1));
    }
  }

  // Returns whether the strip was filtered; it was not if a pixel is not finite, which a product would spread.
  template <int D>
  __device__ bool run(const StoredOutput<Forward>& output) const {
    const float largest = largest_pixel<D>();
    if (!(largest <= FLT_MAX)) return false;
    const float scale = split_scale(largest);
    const float inverse = 1.0f / scale * (1.0f / (kTapScale * kTapScale));
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
    const int own_column = region_.first_column + warp * kSplitSide;
    const bool works = own_column < region_.end_column;
    const int place = (lane / 16 * 8 + lane % 8) * SplitMemory::kHalfStride + lane / 8 % 2 * 8 + warp * kSplitSide;
    const SplitPair* middle = shared_.taps + kSplitMiddle + 2 * t - g;
    constexpr int kRing = 2 * D + 1;
    SplitPair taps[4 * D + 3];
#pragma unroll
    for (int m = 0; m < 4 * D + 3; ++m) taps[m] = middle[8 * (m - 2 * D - 1)];
    auto multiply = [&](int d, float(&sums)[4], const uint32_t(&high)[2], const uint32_t(&low)[2]) {  // += tile d times b
      const SplitPair* own = taps + 2 * (d + D);
      const uint32_t high_taps[4] = {own[1].high, own[0].high, own[2].high, own[1].high};
      mma_half(sums, high_taps, low);
      mma_half(sums, {own[1].low, own[0].low, own[2].low, own[1].low}, high);
      mma_half(sums, high_taps, high);
    };
    uint32_t high[kRing][2][2] = {}, low[kRing][2][2] = {};  // filtered rows of a step, of eight columns and eight rows each

    const int begin = region_.first_row - kSplitSide * D, end = region_.end_row + kSplitSide * D;
    int newest = 0;  // place of the newest rows in the ring
    stage<D>(begin);
    for (int row = begin; row < end; row += kSplitSide) {
      wait_for_copies<0>();
      __syncthreads();  // the rows are staged, and the readers of the last operands are done
      make_operands<D>(scale);
      __syncthreads();
      if (row + kSplitSide < end) stage<D>(row + kSplitSide);
      const int done = row - kSplitSide * D;  // of the outputs
      const bool results = works && done >= region_.first_row;
      float along[2][4] = {};  // [eight rows][columns g, g + 8 x rows 2t, 2t + 1]
      if (works)
#pragma unroll
        for (int d = -D; d <= D; ++d) {
          uint32_t h[4], l[4];
          load_matrices(shared_.high + place + (d + D) * kSplitSide, h);
          load_matrices(shared_.low + place + (d + D) * kSplitSide, l);
#pragma unroll
          for (int n = 0; n < 2; ++n) multiply(d, along[n], {h[2 * n], h[2 * n + 1]}, {l[2 * n], l[2 * n + 1]});
        }
      float sums[2][4] = {};  // [eight columns][rows g, g + 8 x columns 2t, 2t + 1]
#pragma unroll
      for (int slot = 0; slot < kRing; ++slot) {
        if (slot != newest) continue;
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            const SplitPair pair = split_pair(along[k][2 * n], along[k][2 * n + 1]);
            high[slot][n][k] = pair.high, low[slot][n][k] = pair.low;
          }
        if (results)
#pragma unroll
          for (int d = -D; d <= D; ++d)
#pragma unroll
            for (int n = 0; n < 2; ++n)
              multiply(d, sums[n], high[(slot + 1 + d + D) % kRing][n], low[(slot + 1 + d + D) % kRing][n]);
      }
      newest = newest + 1 == kRing ? 0 : newest + 1;
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int k = 0; k < 4; ++k) sums[n][k] *= inverse;
      if (results) output.store_tile(done + g, own_column + 2 * t, sums);
    }
    return true;
  }

 private:
  static constexpr int kPass = kSplitThreads / kSplitSide * 4;  // columns of the quads that the block handles at a time

  const Forward& pass_;
  const Region& region_;
  SplitMemory& shared_;
  const int q_;   // the row of a step that the thread stages and makes operands of
  bool aligned_;  // whether quads of columns are aligned to 16 bytes, and whole

  // Calls each(k, j) for the thread's quads: columns k.. of the staged ones, j.. of the image, which may lie outside.
  template <int D, class Each>
  __device__ void for_own_quads(const Each& each) const {
    const int columns = round_up(region_.end_column - region_.first_column, kSplitSide) + 2 * kSplitSide * D;
    const int first = int(threadIdx.x) / kSplitSide * 4, offset = region_.first_column - kSplitSide * D;
#pragma unroll
    for (int k = 0; k < kSplitColumns + 2 * kSplitSide * D; k += kPass)
      if (first + k < columns) each(first + k, offset + first + k);
  }

  // The largest magnitude of the pixels that are staged, and of some beyond.
  template <int D>
  __device__ float largest_pixel() const {
    constexpr int kMargin = kSplitSide * (D + 1);
    const int first_row = max(region_.first_row - kMargin, 0), end_row = min(region_.end_row + kMargin, region_.height);
    const int64_t row_step = pass_.source.images.strides[2] * kSplitSide, column_step = pass_.source.images.strides[3];
    uint32_t bits = 0;
    for_own_quads<D>([&](int, int j) {
      const int first = max(j, 0), end = min(j + 4, region_.width);
      if (first >= end) return;
      const float* x = pass_.source.floats(first_row + q_, first);
#pragma unroll 4
      for (int i = first_row + q_; i < end_row; i += kSplitSide, x += row_step) {
        if (aligned_) {
          float quad[4];
          read_four(x, quad);
#pragma unroll
          for (int e = 0; e < 4; ++e) bits = larger_magnitude(bits, quad[e]);
        } else {
          for (int e = 0; e < end - first; ++e) bits = larger_magnitude(bits, x[e * column_step]);
        }
      }
    });
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    for (int distance = 16; distance > 0; distance /= 2) bits = max(bits, uint32_t(__shfl_xor_sync(0xffffffffu, bits, distance)));
    if (lane == 0) shared_.largest[warp] = bits;
    __syncthreads();
    for (int k = 0; k < kSplitThreads / 32; ++k) bits = max(bits, shared_.largest[k]);
    return bit_cast<float>(bits);
  }

  // Begins to read the pixels inside the image of 16 rows; above and below it, rows are reflected.
  template <int D>
  __device__ void stage(int row) const {
    const int64_t column_step = pass_.source.images.strides[3];
    const float* from = pass_.source.floats(reflect(row + q_, region_.height), 0);
    float* to = shared_.staged + q_ * SplitMemory::kStride;
    for_own_quads<D>([&](int k, int j) {
      if (aligned_) {
        if (j >= 0 && j < region_.width) copy_async(to + k, from + j, 16);
      } else {
        for (int e = max(-j, 0); e < min(4, region_.width - j); ++e) copy_async_float(to + k + e, from + (j + e) * column_step);
      }
    });
    commit_copies();
  }

  // Scales and splits the staged rows; left and right of the image, columns are reflected.
  template <int D>
  __device__ void make_operands(float scale) const {
    const float* staged = shared_.staged + q_ * SplitMemory::kStride;
    for_own_quads<D>([&](int k, int j) {
      float x[4];
      if (j >= 0 && j + 4 <= region_.width) {
        read_four(staged + k, x);
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e)  // beyond the reach of the taps, any column that is staged
          x[e] = staged[max(reflect(j + e, region_.width) - j + k, 0)];
      }
      const SplitPair first = split_pair(x[0] * scale, x[1] * scale), second = split_pair(x[2] * scale, x[3] * scale);
      const int place = q_ * SplitMemory::kHalfStride + k;
      *reinterpret_cast<uint2*>(shared_.high + place) = make_uint2(first.high, second.high);
      *reinterpret_cast<uint2*>(shared_.low + place) = make_uint2(first.low, second.low);
    });
  }
};

}  // namespace fovblur
