// Planes of float32 filtered as products of small matrices, exact to about 2^-21 of their largest pixel.
//
// Pixels and taps are sums of two binary16 numbers, x = h + l and t = u + v; u h + u l + v h are three products on the tensor
// cores with float32 sums. Pixels are scaled by a power of two for that. The scale comes from every 16th row; pixels that are
// then too large for binary16 show as infinite, and the strip is filtered again with the scale of its largest pixel.
// A block makes up to 8 tiles of 16 columns, a warp each, for some channels of a sample, and walks down the rows, 16 at a
// time, from one channel into the next. Rows are copied to shared memory as they are; a step later they become operands, with
// the columns beyond the border reflected, and some steps later they are the sharp pixels of the results.
// Away from the upper and lower border both filters are one Toeplitz band, A[i, p] = tap(p - i), whose tiles are the same for
// every step; near it, the mirrored taps are multiplied too. Rows are filtered first and transposed, as in
// cuda_products.cuh, and the filtered rows of the last 2 D + 1 steps stay in registers, 16 D being the radius rounded up.
#pragma once

#include "../common/async_copy.cuh"
#include "../common/mma.cuh"
#include "cuda_products.cuh"
#include "cuda_streamed.cuh"

namespace fovblur {

constexpr int kSplitThreads = 256, kSplitColumns = kSplitThreads / 32;  // the latter in tiles
constexpr int kSplitBytes = 80 * 1024;  // of shared memory, so that two blocks share a multiprocessor of sm_80
constexpr int kSplitReach = 2;          // D at most: radii up to 32
constexpr int kSplitMiddle = kTile * (kSplitReach + 2);  // of the table of taps
constexpr float kSplitLargest = 4.0f;   // scaled pixels; binary16 holds 250 times more after the first filter
constexpr float kTapScale = 64.0f;      // so that the low parts of taps are not subnormal
constexpr int kSampledRows = 16;        // of which one gives the scale

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

// The pixels of a channel, and what is done to them before and after the filter.
struct alignas(16) SplitChannel {
  float scale, inverse;   // of pixels; of sums
  float factor, offset;   // of results
  const float* source;    // the first column that is read,
  unsigned char* target;  // and the strip's first one
};

// What the filter reads of the images, in tiles of rows and from a column on.
struct SplitMargins {
  int first_tile, end_tile, first_column, tiles;
  int inner_tile, end_inner_tile;  // tiles of rows whose taps mirror no pixel
  int steps;
  int aligned;       // whether four pixels are 16 aligned bytes
  int moves_target;  // whether four neighbours can be written at once
  int end_of_fours;  // the column, counted from the strip's first, from which on they are not four of float32 in one piece
};

// What the warps of a block share. Registers are short, so its constants are read where they are needed.
struct alignas(16) SplitTables {
  uint4 band[2 * kSplitReach + 1][2][32];  // tiles of the Toeplitz band as left operands, high and low parts
  SplitPair pairs[2 * kSplitMiddle];       // taps `offset` and `offset` + 1 at kSplitMiddle + offset, 0 beyond the radius
  SplitChannel channels[kMostChannels];
  uint32_t largest[kMostChannels][kSplitThreads / 32];
  SplitMargins margins;
  Weight weight;
};

__device__ inline void make_split_tables(const Taps& gaussian, SplitTables& tables) {
  auto tap = [&](int offset) { return gaussian.reaches(offset) ? gaussian.tap(offset) * kTapScale : 0.0f; };
#pragma unroll 1
  for (int k = int(threadIdx.x); k < 2 * kSplitMiddle; k += kSplitThreads)
    tables.pairs[k] = split_pair(tap(k - kSplitMiddle), tap(k - kSplitMiddle + 1));
  __syncthreads();
  const int lane = int(threadIdx.x) % 32;
  const LaneRows rows = rows_as_columns(lane);
#pragma unroll 1
  for (int k = int(threadIdx.x) / 32; k <= 2 * kSplitReach; k += kSplitThreads / 32) {
    const SplitPair* own = tables.pairs + kSplitMiddle + kTile * (k - kSplitReach) + lane % 4 * 2 - rows.first;
    const SplitPair a[4] = {own[0], own[-rows.step], own[8], own[8 - rows.step]};
    tables.band[k][0][lane] = make_uint4(a[0].high, a[1].high, a[2].high, a[3].high);
    tables.band[k][1][lane] = make_uint4(a[0].low, a[1].low, a[2].low, a[3].low);
  }
}

// Bits of a float's magnitude grow with it, and those of infinities and NaN are larger than any number's.
__device__ inline uint32_t larger_magnitude(uint32_t bits, float x) { return max(bits, bit_cast<uint32_t>(x) & 0x7fffffffu); }

// The largest power of two by which numbers up to `bound` may be multiplied; that of tiny numbers is one that float holds.
__device__ inline float split_scale(float bound) {
  const int exponent = min(int(bit_cast<uint32_t>(bound) >> 23), 254) + 1;  // 2^(exponent - 127) > bound
  const int of_scale = min(int(bit_cast<uint32_t>(kSplitLargest) >> 23) + 127 - exponent, 252);
  return bit_cast<float>(uint32_t(of_scale) << 23);
}

// Shared memory of a strip of `columns` tiles that reads `tiles` tiles of columns: slots of 16 rows as they are, from the rows
// that are finished to those that become operands and those on their way, and two slots of operands in two parts.
template <int D>
struct SplitStages {
  static constexpr int kSlots = D + 3;
  FOVBLUR_HD static int stride(int tiles) { return kTile * tiles + 4; }  // in both, eight rows meet different banks
  FOVBLUR_HD static int slot_bytes(int tiles) { return kTile * stride(tiles) * 4; }
  FOVBLUR_HD static int operand_stride(int columns) { return kTile * (columns + 2 * D) + 8; }
  FOVBLUR_HD static int part_bytes(int columns) { return kTile * operand_stride(columns) * 2; }
  FOVBLUR_HD static int bytes(int columns, int tiles) { return kSlots * slot_bytes(tiles) + 4 * part_bytes(columns); }
};

// A tile of rows of a channel of a strip, and what moves with it.
struct SplitPlace {
  int tile, channel, slot;
};

template <bool kAdjoint, int D>
class SplitStrip {
  using S = SplitStages<D>;
  static constexpr int kTiles = 2 * D + 1;

 public:
  __device__ SplitStrip(const BlurParams& p, const Images& source, const Images& target, const Work& work, int radius,
                        SplitTables& tables)
      : p_(p), source_(source), target_(target), work_(work), tables_(tables), radius_(radius) {
    if (threadIdx.x != 0) return;
    const Strip& strip = work.strip;
    SplitMargins m;
    m.first_tile = max(strip.first_row - D, 0);
    m.end_tile = min(strip.end_row + D, (height() + kTile - 1) / kTile);
    m.first_column = kTile * max(strip.first_column - D, 0);
    m.tiles = min(strip.first_column + strip.columns + D, (width() + kTile - 1) / kTile) - m.first_column / kTile;
    m.inner_tile = max(m.first_tile + D, (radius + kTile * D) / (2 * kTile) + 1);
    m.end_inner_tile = min(m.end_tile - D, (2 * height() - 1 - radius - kTile * D) / (2 * kTile));
    m.steps = (m.end_tile - m.first_tile) * work.channels;
    const int64_t plane = source.plane(work.sample, work.first_channel);
    m.aligned = source.strides[3] == 1 && source.strides[2] % 4 == 0 && source.strides[1] % 4 == 0 &&
                (reinterpret_cast<uintptr_t>(source.data) + plane * 4) % 16 == 0;
    m.moves_target = can_move_four(target, work.sample, work.first_channel);
    m.end_of_fours = m.moves_target && target.dtype == DType::float32 ? width() - kTile * strip.first_column - 3 : 0;
    tables.margins = m;
  }

  // Filters the strip, with scales from every `sampled`-th row. `spoiled` gets the channels of which this thread met a
  // filtered row that is not finite, a bit for each.
  __device__ void run(int sampled, uint8_t& spoiled) {
    spoiled = 0;
    measure(sampled);
    const int warp = uniform(own_thread() / 32);
    const SplitMargins& margins = tables_.margins;
    const Strip& strip = work_.strip;
    const bool busy = warp < strip.columns;

    uint32_t high[kTiles][2][2] = {}, low[kTiles][2][2] = {};  // filtered rows of a step, of eight columns and rows each
    uint32_t not_finite = 0;
    SplitPlace next = {margins.first_tile, 0, 0}, finished = next;
    int newest = 0;  // place of the newest filtered rows
    copy(next);
    commit_copies();
    SplitPlace second = next;
    advance(second);
    if (margins.steps > 1) copy(second);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();
    prepare(next, 1 - (margins.steps + D) % 2);
    next = second;
    // A step makes operands of the next rows, filters the rows of its own, and finishes the rows D steps before.
    for (int left = margins.steps + D; left > 0; --left) {
      wait_for_copies<0>();
      __syncthreads();
      const bool last = next.tile == margins.first_tile;  // of the channel's steps
      const int channel = next.channel - 1;
      if (left > D + 1) prepare(next, left % 2);
      advance(next);
      if (left > D + 2) copy(next);
      commit_copies();
      if (busy && left > D) {
        float along[2][4] = {};  // [eight rows][columns g, g + 8 x rows 2t, 2t + 1]
        const int lane = own_thread() % 32, row = lane / 16 * 8 + lane % 8, column = kTile * warp + lane / 8 % 2 * 8;
        const unsigned char* own =
            operand_memory(1 - left % 2) + 2 * (row * S::operand_stride(strip.columns) + column);
#pragma unroll
        for (int d = 0; d < kTiles; ++d) {
          uint32_t h[4], l[4];
          load_matrices(own + 2 * kTile * d, h);
          load_matrices(own + S::part_bytes(strip.columns) + 2 * kTile * d, l);
          multiply_band(d, along, {{h[0], h[1]}, {h[2], h[3]}}, {{l[0], l[1]}, {l[2], l[3]}});
        }
#pragma unroll
        for (int slot = 0; slot < kTiles; ++slot) {
          if (slot != newest) continue;
#pragma unroll
          for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int k = 0; k < 2; ++k) {
              const SplitPair pair = split_pair(along[k][2 * n], along[k][2 * n + 1]);
              high[slot][n][k] = pair.high, low[slot][n][k] = pair.low;
              not_finite = add_zeros_half(pair.high, not_finite);
            }
        }
      }
      if (last) {
        spoiled |= uint8_t(((not_finite & 0x7fff7fffu) != 0) << channel);
        not_finite = 0;
      }
      if (left <= margins.steps) {
        finished.slot = next.slot == S::kSlots - 1 ? 0 : next.slot + 1;
        const int tile = finished.tile;
        if (busy && tile >= strip.first_row && tile < strip.end_row) {
          float sums[2][4] = {};  // [eight columns][rows g, g + 8 x columns 2t, 2t + 1]
          // The slot behind the newest holds the rows of tile 0 of the band.
          auto for_each_slot = [&](const auto& each) {
#pragma unroll
            for (int slot = 0; slot < kTiles; ++slot) each(slot, slot - newest - 1 + (slot > newest ? 0 : kTiles));
          };
          if (tile >= margins.inner_tile && tile < margins.end_inner_tile) {
            for_each_slot([&](int slot, int d) { multiply_band(d, sums, high[slot], low[slot]); });
          } else {
            for_each_slot([&](int slot, int d) {
              const int q = tile - D + d;
              if (q < margins.first_tile || q >= margins.end_tile) return;
              multiply_band(d, sums, high[slot], low[slot]);
              multiply_mirrored(kTile * tile, kTile * q, sums, high[slot], low[slot]);
            });
          }
          finish(finished, sums);
        }
        if (++finished.tile == margins.end_tile) finished.tile = margins.first_tile, ++finished.channel;
      }
      newest = newest + 1 == kTiles ? 0 : newest + 1;
    }
  }

 private:
  static constexpr int kGroup = kAdjoint ? 4 : 8;       // columns that a thread prepares at a time
  static constexpr int kLanes = kSplitThreads / kTile;  // threads of a row of a stage

  const BlurParams& p_;
  const Images &source_, &target_;
  const Work& work_;
  SplitTables& tables_;
  int radius_;

  // Recomputed where it is needed, so that nothing that follows from it is kept in registers.
  __device__ static int own_thread() { return int(unsigned(recomputed(int(threadIdx.x))) % kSplitThreads); }
  __device__ int height() const { return int(p_.shape[2]); }
  __device__ int width() const { return int(p_.shape[3]); }
  __device__ float* staged_memory() const { return reinterpret_cast<float*>(&tables_ + 1); }
  __device__ unsigned char* operand_memory(int slot) const {
    return reinterpret_cast<unsigned char*>(&tables_ + 1) + S::kSlots * S::slot_bytes(tables_.margins.tiles) +
           2 * slot * S::part_bytes(work_.strip.columns);
  }
  __device__ void advance(SplitPlace& place) const {
    place.slot = place.slot == S::kSlots - 1 ? 0 : place.slot + 1;
    if (++place.tile == tables_.margins.end_tile) place.tile = tables_.margins.first_tile, ++place.channel;
  }
  __device__ int inside(int column) const { return min(max(width() - tables_.margins.first_column - column, 0), 4); }
  // Sets the scale of each channel by the largest pixel of every `sampled`-th row, and what follows from it.
  __device__ void measure(int sampled) {
    const int own_row = int(threadIdx.x) / kLanes, own_column = int(threadIdx.x) % kLanes * 4;
    __syncthreads();
    const SplitMargins& margins = tables_.margins;
    const int end_row = min(kTile * margins.end_tile, height()), thread = int(threadIdx.x), lane = thread % 32;
    if (thread < work_.channels) {
      const int64_t channel = work_.first_channel + thread;
      const Normalisation normalisation(p_, channel);
      SplitChannel& own = tables_.channels[thread];
      own.factor = normalisation.factor;
      own.offset = kAdjoint ? 0.0f : normalisation.offset;
      own.source = static_cast<const float*>(source_.data) + source_.plane(work_.sample, channel) +
                   margins.first_column * source_.strides[3];
      const int64_t target = target_.plane(work_.sample, channel) + kTile * work_.strip.first_column * target_.strides[3];
      own.target = static_cast<unsigned char*>(target_.data) + target * size_of(target_.dtype);
    }
    __syncthreads();
#pragma unroll 1
    for (int channel = 0; channel < work_.channels; ++channel) {
      uint32_t bits = 0;
#pragma unroll 1
      for (int row = kTile * margins.first_tile + own_row * sampled; row < end_row; row += kTile * sampled) {
        const float* x = tables_.channels[channel].source + row * source_.strides[2] + own_column * source_.strides[3];
#pragma unroll
        for (int k = own_column; k < kTile * (kSplitColumns + 2 * D); k += 4 * kLanes) {
          const int count = inside(k);
          if (margins.aligned && count == 4) {
            float quad[4];
            read_four(x, quad);
#pragma unroll
            for (int e = 0; e < 4; ++e) bits = larger_magnitude(bits, quad[e]);
          } else {
#pragma unroll 1
            for (int e = 0; e < count; ++e) bits = larger_magnitude(bits, x[e * source_.strides[3]]);
          }
          x += 4 * kLanes * source_.strides[3];
        }
      }
      for (int distance = 16; distance > 0; distance /= 2)
        bits = max(bits, uint32_t(__shfl_xor_sync(0xffffffffu, bits, distance)));
      if (lane == 0) tables_.largest[channel][thread / 32] = bits;
    }
    __syncthreads();
    if (thread < work_.channels) {
      uint32_t bits = 0;
      for (int k = 0; k < kSplitThreads / 32; ++k) bits = max(bits, tables_.largest[thread][k]);
      const float scale = split_scale(bit_cast<float>(bits));
      tables_.channels[thread].scale = scale;
      tables_.channels[thread].inverse = 1.0f / scale * (1.0f / (kTapScale * kTapScale));
    }
    __syncthreads();
  }

  // Begins to copy 16 rows; what lies outside the image becomes 0.
  __device__ void copy(const SplitPlace& place) const {
    const int thread = own_thread(), own_row = thread / kLanes, own_column = thread % kLanes * 4;
    const int end = kTile * tables_.margins.tiles, row = kTile * place.tile + own_row;
    const int end_inside = row < height() ? width() - tables_.margins.first_column : 0;
    float* to = staged_memory() + (kTile * place.slot + own_row) * (end + 4) + own_column;
    const float* from = tables_.channels[place.channel].source + row * source_.strides[2] + own_column * source_.strides[3];
    if (tables_.margins.aligned) {
      if (end <= end_inside) {
#pragma unroll
        for (int k = 0; k < kTile * (kSplitColumns + 2 * D); k += 4 * kLanes)
          if (own_column + k < end) copy_async(to + k, from + k);
      } else {
#pragma unroll 1
        for (int k = 0; own_column + k < end; k += 4 * kLanes)
          copy_async(to + k, from + k, 4 * min(max(end_inside - own_column - k, 0), 4));
      }
    } else {
#pragma unroll 1
      for (int k = own_column; k < end; k += 4 * kLanes) {
#pragma unroll 1
        for (int e = 0; e < 4; ++e) {
          if (k + e < end_inside) {
            copy_async_float(to + e, from + e * source_.strides[3]);
          } else {
            to[e] = 0.0f;
          }
        }
        to += 4 * kLanes;
        from += 4 * kLanes * source_.strides[3];
      }
    }
  }

  // Makes operands of 16 rows: a thread of one row, and of every 16th group of columns.
  __device__ void prepare(const SplitPlace& place, int operand_slot) const {
    const int thread = own_thread(), own_row = thread % kTile, own_column = thread / kTile * kGroup;
    const Strip& strip = work_.strip;
    const SplitMargins& margins = tables_.margins;
    const float* staged = staged_memory() + (kTile * place.slot + own_row) * S::stride(margins.tiles) - margins.first_column;
    const float scale = tables_.channels[place.channel].scale;
    unsigned char* to = operand_memory(operand_slot) + 2 * own_row * S::operand_stride(strip.columns);
    const int columns = kTile * (strip.columns + 2 * D), first = kTile * (strip.first_column - D);
#pragma unroll(kAdjoint ? 1 : 2)
    for (int k = own_column; k < columns; k += kGroup * kLanes) {
      const int j = first + k;
      float x[kGroup];
      if (j >= 0 && j + kGroup <= width()) {
#pragma unroll
        for (int part = 0; part < kGroup; part += 4) {
          float four[4];
          read_four(staged + j + part, four);
#pragma unroll
          for (int e = 0; e < 4; ++e) x[part + e] = four[e];
        }
      } else {
#pragma unroll
        for (int e = 0; e < kGroup; ++e) x[e] = staged[reflected(j + e)];
      }
      if constexpr (kAdjoint) weigh(kTile * place.tile + own_row, j, x);
      struct alignas(2 * kGroup) Pairs {
        uint32_t pairs[kGroup / 2];
      } high, low;
#pragma unroll
      for (int e = 0; e < kGroup / 2; ++e) {
        const SplitPair both = split_pair(x[2 * e] * scale, x[2 * e + 1] * scale);
        high.pairs[e] = both.high, low.pairs[e] = both.low;
      }
      *reinterpret_cast<Pairs*>(to + 2 * k) = high;
      *reinterpret_cast<Pairs*>(to + S::part_bytes(strip.columns) + 2 * k) = low;
    }
  }
  // Multiplies pixels (i, j..j + kGroup - 1), the border reflected, by what their weight and the adjoint of the border ask for.
  __device__ void weigh(int i, int j, float (&x)[kGroup]) const {
    const Weight& weight = tables_.weight;
    const float of_row = i == 0 || i == height() - 1 ? 2.0f : 1.0f;
    float w[1][kGroup];
    if (j >= 0 && j + kGroup <= width()) {
      weight.template acuity_of_rows<1, kGroup>(i, j, weight.gain, w);
#pragma unroll
      for (int e = 0; e < kGroup; ++e) x[e] *= of_row - of_row * w[0][e];
      if (j == 0) x[0] *= 2.0f;
      if (j + kGroup == width()) x[kGroup - 1] *= 2.0f;
      return;
    }
#pragma unroll 1
    for (int k = 0; k < kGroup; ++k) {
      const int column = reflected(j + k);
      const float factor = (1.0f - weight.at(i, column)) * inverse_share(i, column, height(), width());
#pragma unroll
      for (int e = 0; e < kGroup; ++e) x[e] *= e == k ? factor : 1.0f;
    }
  }
  // The column that one beyond the border mirrors; beyond the reach of taps any that is staged.
  __device__ int reflected(int j) const {
    const SplitMargins& margins = tables_.margins;
    const int mirrored = min(abs(j), 2 * (width() - 1) - abs(j));
    return min(max(mirrored, margins.first_column), min(margins.first_column + kTile * margins.tiles, width()) - 1);
  }

  // c += a b in two parts each.
  __device__ static void multiply(uint4 high_taps, uint4 low_taps, float (&c)[2][4], const uint32_t (&high)[2][2],
                                  const uint32_t (&low)[2][2]) {
#pragma unroll
    for (int n = 0; n < 2; ++n) mma_half(c[n], {high_taps.x, high_taps.y, high_taps.z, high_taps.w}, low[n]);
#pragma unroll
    for (int n = 0; n < 2; ++n) mma_half(c[n], {low_taps.x, low_taps.y, low_taps.z, low_taps.w}, high[n]);
#pragma unroll
    for (int n = 0; n < 2; ++n) mma_half(c[n], {high_taps.x, high_taps.y, high_taps.z, high_taps.w}, high[n]);
  }
  // c += tile d of the Toeplitz band times b.
  __device__ void multiply_band(int d, float (&c)[2][4], const uint32_t (&high)[2][2], const uint32_t (&low)[2][2]) const {
    const uint4(&band)[2][32] = tables_.band[d + kSplitReach - D];
    multiply(band[0][threadIdx.x % 32], band[1][threadIdx.x % 32], c, high, low);
  }
  // c += the mirrored terms of the tile that starts at (row, column), if any, times b.
  __device__ void multiply_mirrored(int row, int column, float (&c)[2][4], const uint32_t (&high)[2][2],
                                    const uint32_t (&low)[2][2]) const {
    const Mirror mirror(height(), radius_);
    const int lane = int(threadIdx.x) % 32, pair = lane % 4 * 2;
    const LaneRows rows = rows_as_columns(lane);
    const bool at_first = mirror.at_first(row + column), at_last = mirror.at_last(row + column);
    if (!at_first && !at_last) return;
#pragma unroll 1
    for (int side = at_first ? 0 : 1; side < (at_last ? 2 : 1); ++side) {
      const int pixel = side == 0 ? 0 : mirror.last, place = pixel - column - pair;
      const SplitPair* own = tables_.pairs + recomputed(kSplitMiddle + row + column - 2 * pixel + rows.first + pair);
      SplitPair a[4] = {own[0], own[rows.step], own[8], own[8 + rows.step]};
      const uint32_t kept = place % 2 == 0 ? 0xffff0000u : 0x0000ffffu;  // the pixel itself is not mirrored
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (place == k / 2 * 8 || place == k / 2 * 8 + 1) a[k].high &= kept, a[k].low &= kept;
      multiply(make_uint4(a[0].high, a[1].high, a[2].high, a[3].high), make_uint4(a[0].low, a[1].low, a[2].low, a[3].low), c,
               high, low);
    }
  }

  // Finishes and stores a lane's outputs, four neighbours in two rows of a tile.
  __device__ void finish(const SplitPlace& place, const float (&sums)[2][4]) const {
    const int thread = own_thread(), lane = thread % 32;
    const LaneRows rows = rows_as_columns(lane);
    const int i = kTile * place.tile + rows.first, own_column = thread / 32 * kTile + lane % 4 * 4;
    const int j = kTile * work_.strip.first_column + own_column, stride = S::stride(tables_.margins.tiles);
    const SplitChannel& channel = tables_.channels[place.channel];
    const float* sharp = staged_memory() + (kTile * place.slot + rows.first) * stride + j - tables_.margins.first_column;
    float w[2][4], y[2][4];
    const float factor = channel.factor, inverse = channel.inverse, offset = channel.offset;
    tables_.weight.template acuity_of_rows<2, 4, 2>(i, j, tables_.weight.gain * factor, w);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float x[4];
      read_four(sharp + 2 * h * stride, x);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float blurred = sums[k / 2][2 * h + k % 2] * inverse;
        if constexpr (kAdjoint) {
          y[h][k] = w[h][k] * x[k] + factor * share(i + 2 * h, j + k, height(), width()) * blurred;
        } else {
          y[h][k] = w[h][k] * x[k] + ((factor - w[h][k]) * blurred - offset);
        }
      }
    }
    if (own_column < tables_.margins.end_of_fours) {
      float* to = reinterpret_cast<float*>(channel.target) + i * target_.strides[2] + own_column;
#pragma unroll
      for (int h = 0; h < 2; ++h, to += 2 * target_.strides[2])
        if (i + 2 * h < height()) *reinterpret_cast<float4*>(to) = make_float4(y[h][0], y[h][1], y[h][2], y[h][3]);
    } else {
      const int count = width() - j;
      const bool whole = count >= 4 && tables_.margins.moves_target;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t first = (i + 2 * h) * target_.strides[2] + own_column * target_.strides[3];
        if (i + 2 * h < height())
          store_four(target_.dtype, channel.target + first * size_of(target_.dtype), target_.strides[3], count, whole, y[h]);
      }
    }
  }
};

}  // namespace fovblur
