// A strip of one plane filtered as products of small matrices on the tensor cores: Y = A_h X A_w^T.
//
// A block of four warps makes 64 columns and walks down the rows, 16 at a time. With the border reflected when pixels are
// read, A_h and A_w are Toeplitz: A[i, p] = tap(p - i). So every operand the filters need, for both directions and all
// tiles, is one of 4 D + 3 register pairs of taps, where 16 D is the radius rounded up (v below): a lane's part of the 16 x 16
// tile d of A_h is {v(2d), v(2d - 1), v(2d + 1), v(2d)}, and its part of the 16 x 8 halves of the same tile of A_w^T
// {v(2d), v(2d + 1)} and {v(2d - 1), v(2d)}. A chunk of rows is filtered along x, and added to the 2 D + 1 tiles of outputs
// it reaches, which move up one place a chunk and leave when they are done. Nothing but pixels passes through shared memory.
#pragma once

#include "../common/mma.cuh"
#include "cuda_filter.cuh"

namespace fovblur {

constexpr int kStripThreads = 128;
constexpr int kStripColumns = 64;
constexpr int kTile = 16;
constexpr int kMostReach = 4;  // D: radii up to 64
constexpr int kFetchColumns = 8;
constexpr int kFetches = 3;  // 16 rows of kStripColumns + 32 kMostReach columns, by groups of 8, for 128 threads
constexpr int kSpan = kStripColumns + 2 * kTile * kMostReach;
constexpr int kSumsStride = kTile + 4;

// Half-precision operands, for uint8 and float16 images, whose pixels they hold exactly.
struct HalfOperand {
  using Element = uint16_t;
  static constexpr int kStride = kSpan + 8;  // rows of eight lanes meet different banks
  static constexpr int kTapRegisters = 1;
  static __device__ void store(const float (&x)[kFetchColumns], Element* target) {
    uint4 packed;
    packed.x = pack_halves(x[0], x[1]);
    packed.y = pack_halves(x[2], x[3]);
    packed.z = pack_halves(x[4], x[5]);
    packed.w = pack_halves(x[6], x[7]);
    *reinterpret_cast<uint4*>(target) = packed;
  }
  static __device__ float round(float x) { return to_float(Convert<Half>::from(x)); }

  // v(m) for the lane: taps 8 m + 2 t - g and the next.
  static __device__ void load_taps(const float* taps_at_zero, int m, int g, int t, uint32_t (&v)[kTapRegisters]) {
    v[0] = pack_halves(taps_at_zero[8 * m + 2 * t - g], taps_at_zero[8 * m + 2 * t + 1 - g]);
  }

  // along[n] += X A_w^T: the 16 x 16 pixels at `x` with tile d of A_w^T, m = 2 d; v is indexed from m - 1.
  static __device__ void filter_along(const Element* x, int g, int t, const uint32_t (*v)[kTapRegisters], float (&along)[2][4]) {
    uint32_t a[4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
      a[k] = *reinterpret_cast<const uint32_t*>(x + (g + k % 2 * 8) * kStride + 2 * t + k / 2 * 8);
    mma_half(along[0], a, v[1][0], v[2][0]);
    mma_half(along[1], a, v[0][0], v[1][0]);
  }

  // The filtered rows as the right operand of the second product.
  struct Filtered {
    uint32_t b[2][2];
  };
  static __device__ Filtered turn(const float (&along)[2][4], int, int, float*) {
    Filtered filtered;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int k = 0; k < 2; ++k) filtered.b[n][k] = transpose_8x8(pack_halves(along[n][2 * k], along[n][2 * k + 1]));
    return filtered;
  }

  // sums[n] += A_h T for tile d of A_h.
  static __device__ void filter_down(const uint32_t (*v)[kTapRegisters], const Filtered& filtered, float (&sums)[2][4]) {
    const uint32_t a[4] = {v[1][0], v[0][0], v[2][0], v[1][0]};
#pragma unroll
    for (int n = 0; n < 2; ++n) mma_half(sums[n], a, filtered.b[n][0], filtered.b[n][1]);
  }
};

// Operands of 10 mantissa bits, for float32 images where PyTorch's matmul precision is "high" or "medium".
struct Tf32Operand {
  using Element = float;
  static constexpr int kStride = kSpan + 4;
  static constexpr int kTapRegisters = 2;
  static __device__ void store(const float (&x)[kFetchColumns], Element* target) {
    reinterpret_cast<float4*>(target)[0] = make_float4(round(x[0]), round(x[1]), round(x[2]), round(x[3]));
    reinterpret_cast<float4*>(target)[1] = make_float4(round(x[4]), round(x[5]), round(x[6]), round(x[7]));
  }
  static __device__ float round(float x) { return bit_cast<float>(to_tf32(x)); }

  // Taps 8 m + t - g and 8 m + 4 + t - g.
  static __device__ void load_taps(const float* taps_at_zero, int m, int g, int t, uint32_t (&v)[kTapRegisters]) {
    v[0] = to_tf32(taps_at_zero[8 * m + t - g]);
    v[1] = to_tf32(taps_at_zero[8 * m + 4 + t - g]);
  }

  static __device__ void filter_along(const Element* x, int g, int t, const uint32_t (*v)[kTapRegisters], float (&along)[2][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) a[k] = bit_cast<uint32_t>(x[(g + k % 2 * 8) * kStride + half * 8 + t + k / 2 * 4]);
      mma_tf32(along[0], a, v[1 + half][0], v[1 + half][1]);
      mma_tf32(along[1], a, v[half][0], v[half][1]);
    }
  }

  struct Filtered {
    uint32_t b[2][2][2];  // [n][half of the rows][register]
  };
  // Through 16 x kSumsStride floats of the warp's own shared memory.
  static __device__ Filtered turn(const float (&along)[2][4], int g, int t, float* memory) {
    __syncwarp();
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int k = 0; k < 4; ++k) memory[(g + k / 2 * 8) * kSumsStride + n * 8 + 2 * t + k % 2] = round(along[n][k]);
    __syncwarp();
    Filtered filtered;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int k = 0; k < 2; ++k)
          filtered.b[n][half][k] = bit_cast<uint32_t>(memory[(half * 8 + k * 4 + t) * kSumsStride + n * 8 + g]);
    __syncwarp();
    return filtered;
  }

  static __device__ void filter_down(const uint32_t (*v)[kTapRegisters], const Filtered& filtered, float (&sums)[2][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t a[4] = {v[1 + half][0], v[half][0], v[1 + half][1], v[half][1]};
#pragma unroll
      for (int n = 0; n < 2; ++n) mma_tf32(sums[n], a, filtered.b[n][half][0], filtered.b[n][half][1]);
    }
  }
};

template <class Operand>
struct ProductMemory {
  alignas(16) typename Operand::Element staged[2][kTile * Operand::kStride];
  alignas(16) float sums[kStripThreads / 32][kTile * kSumsStride];
  float taps[2 * kTile * (kMostReach + 1) + 1];  // tap(offset) at the middle, 0 beyond the radius
  float partial[2][kStripThreads];
};

// Writes the sample's taps, rounded to the operand's type, with zeros around; returns 1 / the square of their sum, which
// both passes leave in the result.
template <class Operand>
__device__ float stage_taps(const Taps& taps, ProductMemory<Operand>& shared) {
  constexpr int kMiddle = kTile * (kMostReach + 1);
  float sum = 0.0f;
  for (int k = int(threadIdx.x); k <= 2 * kMiddle; k += kStripThreads) {
    const int offset = k - kMiddle;
    const float tap = taps.radius == 0 ? float(offset == 0) : (taps.reaches(offset) ? taps.tap(offset) : 0.0f);
    shared.taps[k] = Operand::round(tap);
    sum += shared.taps[k];
  }
  block_sum<kStripThreads>(sum, 0.0f, shared.partial);
  return 1.0f / (shared.partial[0][0] * shared.partial[0][0]);
}

// Filters rows [first_row, end_row) of the 64 columns from first_column on. fetch(i, j, x) gives the eight pixels (i, j..j+7)
// of the plane with the border reflected; finish(i, j, sums) takes eight outputs. Returns whether all pixels were finite: a
// product spreads others over its whole tile, so that the caller has to filter the strip again in another way.
template <class Operand, int D, class Fetch, class Finish>
__device__ bool filter_products(const Fetch& fetch, const Finish& finish, float scale, int height, int width, int first_row,
                                int end_row, int first_column, ProductMemory<Operand>& shared) {
  constexpr int kGroups = kTile * (kStripColumns + 2 * kTile * D) / kFetchColumns;
  constexpr int kGroupsOfRow = kGroups / kTile;
  constexpr int kOwnFetches = (kGroups + kStripThreads - 1) / kStripThreads;
  static_assert(kOwnFetches <= kFetches, "more to fetch than the registers are counted for");
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int columns_from = first_column - kTile * D;

  uint32_t v[4 * D + 3][Operand::kTapRegisters];  // v[m + 2 D + 1]
#pragma unroll
  for (int m = -2 * D - 1; m <= 2 * D + 1; ++m)
    Operand::load_taps(shared.taps + kTile * (kMostReach + 1), m, g, t, v[m + 2 * D + 1]);
  float sums[2 * D + 1][2][4] = {};  // of the output tiles that the next chunk reaches, the one that leaves first last

  float fetched[kOwnFetches][kFetchColumns];
  auto fetch_chunk = [&](int rows_from) {
#pragma unroll
    for (int k = 0; k < kOwnFetches; ++k) {
      const int group = int(threadIdx.x) + k * kStripThreads;
      if (kGroups % kStripThreads == 0 || group < kGroups)
        fetch(rows_from + group / kGroupsOfRow, columns_from + group % kGroupsOfRow * kFetchColumns, fetched[k]);
    }
  };
  auto commit_chunk = [&](typename Operand::Element* staged) {
    bool finite = true;
#pragma unroll
    for (int k = 0; k < kOwnFetches; ++k) {
      const int group = int(threadIdx.x) + k * kStripThreads;
      if (kGroups % kStripThreads != 0 && group >= kGroups) continue;
      Operand::store(fetched[k], staged + group / kGroupsOfRow * Operand::kStride + group % kGroupsOfRow * kFetchColumns);
#pragma unroll
      for (int c = 0; c < kFetchColumns; ++c) finite = finite && fabsf(fetched[k][c]) < INFINITY;
    }
    return finite;
  };

  const int rows_begin = first_row - kTile * D, rows_end = (end_row - first_row + kTile - 1) / kTile * kTile + first_row + kTile * D;
  fetch_chunk(rows_begin);
  bool finite = commit_chunk(shared.staged[0]);
  for (int chunk = rows_begin, stage = 0; chunk < rows_end; chunk += kTile, stage ^= 1) {
    if (__syncthreads_or(!finite)) return false;
    if (chunk + kTile < rows_end) fetch_chunk(chunk + kTile);  // in flight while this chunk is multiplied

    float along[2][4] = {};
#pragma unroll
    for (int d = -D; d <= D; ++d)
      Operand::filter_along(shared.staged[stage] + warp * kTile + (d + D) * kTile, g, t, v + 2 * d + 2 * D, along);
    const typename Operand::Filtered filtered = Operand::turn(along, g, t, shared.sums[warp]);
#pragma unroll
    for (int d = -D; d <= D; ++d) Operand::filter_down(v + 2 * d + 2 * D, filtered, sums[d + D]);

    const int done = chunk - kTile * D;  // first row of the tile that no later chunk reaches
    if (done >= first_row) {
      float* memory = shared.sums[warp];
      __syncwarp();
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int k = 0; k < 4; ++k) memory[(g + k / 2 * 8) * kSumsStride + n * 8 + 2 * t + k % 2] = sums[2 * D][n][k] * scale;
      __syncwarp();
      const int i = done + lane / 2, j = first_column + warp * kTile + lane % 2 * 8;
      if (i < end_row && j < width) finish(i, j, memory + lane / 2 * kSumsStride + lane % 2 * 8);
      __syncwarp();
    }
#pragma unroll
    for (int s = 2 * D; s > 0; --s)
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int k = 0; k < 4; ++k) sums[s][n][k] = sums[s - 1][n][k];
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int k = 0; k < 4; ++k) sums[0][n][k] = 0.0f;
    finite = chunk + kTile >= rows_end || commit_chunk(shared.staged[stage ^ 1]);
  }
  __syncthreads();
  return true;
}

}  // namespace fovblur
