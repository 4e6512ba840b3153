// Planes filtered as products of small matrices on the tensor cores: Y = A_h X A_w^T, for 16-bit and uint8 pixels.
//
// A block makes up to 16 tiles of 16 columns, a warp each, for some channels of a sample, and walks down the rows, 16 at a
// time, from one channel into the next. Rows of pixels are copied to shared memory as they are, some steps ahead.
// The reflected border is folded into A: A[i, p] = tap(p - i) + tap(p + i) + tap(p + i - 2 (n - 1)), the last two for inner p
// only. Away from the border A_h is a Toeplitz band, whose tiles are the same for every step; near it, tiles of the mirrored
// terms are multiplied too.
// Rows are filtered first and transposed: A_w X^T leaves the tensor cores just as A_h (X A_w^T) wants its right operand, so
// the filtered rows of the last 2 D + 1 steps stay in registers, 16 D being the radius rounded up. Row m of a tile of A_w is
// column 4 (m / 2) + m % 2, and from m = 8 on two columns further, so that a lane ends up with four neighbouring outputs.
// The gradient of the images takes the transposes of the same matrices.
#pragma once

#include "../common/async_copy.cuh"
#include "cuda_operands.cuh"
#include "cuda_pixels.cuh"

namespace fovblur {

constexpr int kMostReach = 4;  // D, which is even: radii up to 64
constexpr int kMostStripThreads = 512;
constexpr int kStageRows = 2 * kTile, kMostChannels = 4;
constexpr int kMiddle = kTile * (kMostReach + 2);  // of the tables of taps

// A part of a plane, in tiles of 16 x 16 pixels.
struct Strip {
  int first_column, columns, first_row, end_row;
};

// What a block works on: a strip of some channels of a sample.
struct Work {
  int64_t sample, first_channel;
  int channels;
  Strip strip;
};

// Operands of a source type. The bits of a uint8 v are v 2^-24 in binary16; taps are scaled to keep filtered rows normal numbers.
template <class Source>
struct PixelsOf {
  using Operand = Source;
  static constexpr float kUnit = 1.0f, kTapScale = 1.0f;
};
template <>
struct PixelsOf<uint8_t> {
  using Operand = Half;
  static constexpr float kUnit = 16777216.0f, kTapScale = 16384.0f;
};

// Which rows of a tile of A a lane holds: from `first` on, and `step` further.
struct LaneRows {
  int first, step;
};
__device__ inline LaneRows rows_in_order(int lane) { return {lane / 4, 8}; }
__device__ inline LaneRows rows_as_columns(int lane) { return {lane / 8 * 4 + lane / 4 % 2, 2}; }

// Factors of a channel's output: of the sharp pixel and its acuity, of the filtered sum times that, and of the filtered sum.
struct alignas(16) FinishConstants {
  float sharp, sharp_sum, sum, minus_offset;
};

// What the filter reads of the images: stages of 32 rows, and the columns that taps reach.
struct Margins {
  int first_row, end_row;   // in stages
  int first_column, tiles;  // the first column, and tiles of columns
  int inverse;              // 2^16 / chunks of a row, rounded up
  int aligned;              // whether chunks are 16 aligned bytes
};

// What the warps of a block share. Registers are short, so its constants are read where they are needed.
struct TapTables {
  // Taps `offset` and `offset` + 1, 0 beyond the radius, at kMiddle + offset. Tiles of the Toeplitz band as left operands.
  uint32_t pairs[2 * kMiddle];
  uint4 rows[2 * kMostReach + 1][32], columns[2 * kMostReach + 1][32];  // of A_h and A_w
  FinishConstants finish[kMostChannels];
  Work work;
  Margins margins;
  int radius, steps;
  int inner_tile, end_inner_tile;      // tiles of rows whose taps mirror no pixel
  int64_t output_row, grad_row;        // bytes from a row to the next,
  int64_t output_plane, grad_plane;    // and from below a channel's last stage to the next one's first
  int moves_source, moves_target;      // whether four neighbours can be read, and written, at once
  Weight weight;
  uint8_t spoiled[kMostStripThreads];  // by thread, a bit for each channel of which it met a filtered row that is not finite
};

// Tiles of columns that a strip reads for a radius up to 16 `reach`.
FOVBLUR_HD int staged_tiles(int first_column, int columns, int image_columns, int reach) {
  const int first = first_column > reach ? first_column - reach : 0;
  const int end = first_column + columns + reach < image_columns ? first_column + columns + reach : image_columns;
  return end - first > 2 * reach + 1 ? end - first : 2 * reach + 1;
}

// The stages of 32 rows in shared memory: operands of the products, and pixels that have to be changed before they are.
template <class Source, bool kAdjoint, int D>
struct Stages {
  static constexpr bool kPrepared = kAdjoint || sizeof(Source) == 1, kHoldsPlaces = true;
  static constexpr int kAhead = D < kMostReach ? 2 : 1;
  // A step reads the stage that it filters, and the one that it finishes, which is kLag steps older.
  static constexpr int kLag = D / 2 + 1, kOperands = kLag + 1 + (kPrepared ? 1 : kAhead), kPixels = kPrepared ? kAhead : 0;
  FOVBLUR_HD static int stride(int tiles) { return kTile * tiles + 8; }  // of operands; eight rows meet different banks
  FOVBLUR_HD static int operand_bytes(int tiles) { return kOperands * kStageRows * stride(tiles) * 2; }
  FOVBLUR_HD static int bytes(int tiles) {
    return operand_bytes(tiles) + kPixels * kStageRows * kTile * tiles * int(sizeof(Source));
  }
};

__device__ inline float warp_sum(float x) {
  for (int distance = 16; distance > 0; distance /= 2)
    x += bit_cast<float>(uint32_t(__shfl_xor_sync(0xffffffffu, bit_cast<uint32_t>(x), distance)));
  return x;
}

__device__ inline int radius_of(const BlurParams& p, int64_t sample) {
  const int32_t* size = static_cast<const int32_t*>(p.kernel_size.data) + sample * p.kernel_size.stride;
  return gaussian_radius(per_sample(p.sigma, sample), *size);
}

// Writes the tables of a sample, times `scale`; returns the sum of the taps as rounded to the operand's type.
template <class Type>
__device__ float make_tables(const BlurParams& p, int64_t sample, float scale, TapTables& tables) {
  const int thread = recomputed(int(threadIdx.x)), lane = thread % 32, radius = radius_of(p, sample);
  const float sigma = per_sample(p.sigma, sample) >= 0.0f ? per_sample(p.sigma, sample) : NAN;
  auto window = [&](int offset) {
    if (radius == 0) return offset == 0 ? 1.0f : 0.0f;
    return offset >= -radius && offset <= radius ? gaussian_window(offset, sigma) : 0.0f;
  };
  float sum = 0.0f, rounded_sum = 0.0f;
#pragma unroll 1
  for (int offset = lane; offset <= kTile * kMostReach; offset += 32) sum += (offset == 0 ? 1.0f : 2.0f) * window(offset);
  const float factor = scale / warp_sum(sum);
#pragma unroll 1
  for (int offset = lane; offset <= kTile * kMostReach; offset += 32)
    rounded_sum += (offset == 0 ? 1.0f : 2.0f) * to_float(Convert<Type>::from(window(offset) * factor));
#pragma unroll 1
  for (int k = thread; k < 2 * kMiddle; k += int(blockDim.x))
    tables.pairs[k] = Mma16<Type>::pack(window(k - kMiddle) * factor, window(k - kMiddle + 1) * factor);
  __syncthreads();
  auto tile_of = [&](int d, const LaneRows& rows) {
    const uint32_t* own = tables.pairs + recomputed(kMiddle + kTile * d + lane % 4 * 2 - rows.first);
    return make_uint4(own[0], own[-rows.step], own[8], own[8 - rows.step]);
  };
#pragma unroll 1
  for (int k = thread / 32; k <= 2 * kMostReach; k += int(blockDim.x) / 32) {
    tables.rows[k][lane] = tile_of(k - kMostReach, rows_in_order(lane));
    tables.columns[k][lane] = tile_of(k - kMostReach, rows_as_columns(lane));
  }
  __syncthreads();
  return warp_sum(rounded_sum);
}

// The border that mirrors pixels.
struct Mirror {
  int last, radius;
  __device__ Mirror(int size, int radius) : last(size - 1), radius(radius) {}
  // Whether a tile whose first row and column add up to `sum` has mirrored terms at the first or at the last pixel.
  __device__ bool at_first(int sum) const { return sum <= radius; }
  __device__ bool at_last(int sum) const { return sum + 2 * (kTile - 1) >= 2 * last - radius; }
};

// A lane's part of the terms of the tile that starts at (row, column) that are mirrored at `pixel`.
template <bool kAdjoint>
__device__ uint4 mirrored_tile(const uint32_t* pairs, const LaneRows& rows, int lane, int pixel, int row, int column) {
  const int pair = lane % 4 * 2;
  const uint32_t* own = pairs + recomputed(kMiddle + row + column - 2 * pixel + rows.first + pair);
  uint4 a = make_uint4(own[0], own[rows.step], own[8], own[8 + rows.step]);
  if (kAdjoint) {  // the pixel itself is not mirrored
    if (pixel - row == rows.first) a.x = a.z = 0;
    if (pixel - row == rows.first + rows.step) a.y = a.w = 0;
  } else {
    const int place = pixel - column - pair;
    const uint32_t kept = place % 2 == 0 ? 0xffff0000u : 0x0000ffffu;
    if (place == 0 || place == 1) a.x &= kept, a.y &= kept;
    if (place == 8 || place == 9) a.z &= kept, a.w &= kept;
  }
  return a;
}

// Products with tiles of A, whose rows are arranged as `rows` says.
template <class Type, bool kAdjoint>
struct Multiply {
  const uint32_t* pairs;
  Mirror mirror;
  LaneRows rows;
  int lane;

  // c += the tile's Toeplitz band times b.
  __device__ static void band(const uint4 tile, float (&c)[2][4], const uint32_t (&b)[2][2]) {
#pragma unroll
    for (int n = 0; n < 2; ++n) Mma16<Type>::mma(c[n], {tile.x, tile.y, tile.z, tile.w}, b[n]);
  }
  // c += the mirrored terms of the tile that starts at (row, column), if any, times b.
  __device__ void mirrored(int row, int column, float (&c)[2][4], const uint32_t (&b)[2][2]) const {
    if (mirror.at_first(row + column)) mirrored_at(0, row, column, c, b);
    if (mirror.at_last(row + column)) mirrored_at(mirror.last, row, column, c, b);
  }

 private:
  __device__ void mirrored_at(int pixel, int row, int column, float (&c)[2][4], const uint32_t (&b)[2][2]) const {
    band(mirrored_tile<kAdjoint>(pairs, rows, lane, pixel, row, column), c, b);
  }
};

// Copies the rows of a strip to shared memory, 32 at a time and channel after channel. A thread changes only pixels that it
// has copied itself.
template <class Source, class S, class Tables, int D>
struct Feed {
  static constexpr int kPixels = 16 / int(sizeof(Source));  // of a chunk
  static constexpr int kSlots = S::kPrepared ? S::kPixels : S::kOperands;

  const BlurParams& p;
  const Images& images;
  const Tables& tables;
  int thread, next_row, slot = 0, prepared_slot = 0;
  unsigned char* operands;

  // The thread's first chunk of the upper half of a stage; it copies the chunk 16 rows below too. Held where registers suffice.
  int held_row, held_place, held_bytes;
  const Source* own_from;

  __device__ static Margins margins(const BlurParams& p, const Images& images, const Work& work) {
    const int height = int(p.shape[2]), width = int(p.shape[3]);
    Margins m;
    m.first_row = max(work.strip.first_row - D, 0) / 2;
    m.end_row = min((work.strip.end_row + D + 1) / 2, (height + kStageRows - 1) / kStageRows);
    m.first_column = kTile * max(work.strip.first_column - D, 0);
    m.tiles = staged_tiles(work.strip.first_column, work.strip.columns, (width + kTile - 1) / kTile, D);
    m.inverse = 65536 / (kTile / kPixels * m.tiles) + 1;
    const int64_t bytes = sizeof(Source), plane = images.plane(work.sample, work.first_channel);
    m.aligned = images.strides[3] == 1 && images.strides[2] * bytes % 16 == 0 && images.strides[1] * bytes % 16 == 0 &&
                (reinterpret_cast<uintptr_t>(images.data) + plane * bytes) % 16 == 0;
    return m;
  }

  __device__ Feed(const BlurParams& p, const Images& images, const Tables& tables, int thread, unsigned char* memory)
      : p(p), images(images), tables(tables), thread(thread), next_row(kStageRows * tables.margins.first_row),
        operands(memory) {
    if constexpr (S::kHoldsPlaces) {
      held_row = row_of(thread);
      held_place = place_of(thread, held_row, own_column());
      if (!S::kPrepared) held_place = recomputed(held_place);
      held_bytes = recomputed(first_bytes(thread));
    }
    own_from = static_cast<const Source*>(images.data) + images.plane(tables.work.sample, tables.work.first_channel) +
               (next_row + own_row()) * images.strides[2] + (tables.margins.first_column + own_column()) * images.strides[3];
  }

  __device__ int height() const { return int(p.shape[2]); }
  __device__ int tiles() const { return tables.margins.tiles; }
  __device__ unsigned char* pixels() const { return operands + S::operand_bytes(tiles()); }
  __device__ int row_chunks() const { return kTile / kPixels * tiles(); }
  __device__ int chunks() const { return kTile * row_chunks(); }  // of half a stage
  __device__ int half_bytes() const { return S::kPrepared ? 16 * chunks() : kTile * 2 * S::stride(tiles()); }
  __device__ int slot_bytes() const { return 2 * half_bytes(); }

  // Place of a chunk in half a stage: its first pixel, the bytes before it where it is copied to, those of it inside the image's
  // width, and its address in device memory for the next stage.
  __device__ int row_of(int chunk) const { return chunk * tables.margins.inverse >> 16; }
  __device__ int column_of(int chunk, int row) const { return (chunk - row * row_chunks()) * kPixels; }
  __device__ int own_row() const { return S::kHoldsPlaces ? held_row : row_of(recomputed(thread)); }
  __device__ int own_column() const { return column_of(thread, own_row()); }
  __device__ int operand_place(int row, int column) const { return 2 * (row * S::stride(tiles()) + column); }
  __device__ int place_of(int chunk, int row, int column) const {
    return S::kPrepared ? 16 * chunk : operand_place(row, column);
  }
  __device__ int bytes_inside(int column) const {
    return max(min(int(p.shape[3]) - tables.margins.first_column - column, kPixels), 0) * int(sizeof(Source));
  }
  __device__ int first_bytes(int chunk) const { return chunk < chunks() ? bytes_inside(own_column()) : -1; }
  __device__ const Source* from(int row, int column) const {
    return own_from + (row - own_row()) * images.strides[2] + (column - own_column()) * images.strides[3];
  }

  // Calls each(chunk, row, column, half) for the thread's chunks of both halves.
  template <class Each>
  __device__ void for_own_chunks(const Each& each) const {
    int row = own_row(), column = own_column();
#pragma unroll 1
    for (int chunk = recomputed(thread); chunk < chunks();) {
#pragma unroll 1
      for (int half = 0; half < 2; ++half) each(chunk, row, column, half);
      chunk += int(blockDim.x);
      row = row_of(chunk);
      column = column_of(chunk, row);
    }
  }

  // Begins to copy the next stage; what lies outside the image becomes 0.
  __device__ void copy() {
    unsigned char* target = (S::kPrepared ? pixels() : operands) + slot;
    auto both_halves = [&](int row, const auto& each) {
#pragma unroll
      for (int h = 0; h < 2; ++h) each(next_row + row + kTile * h < height(), h * half_bytes(), kTile * h * images.strides[2]);
    };
    if (tables.margins.aligned) {
      const int own_bytes = S::kHoldsPlaces ? held_bytes : first_bytes(recomputed(thread));
      const int own_place = S::kHoldsPlaces ? held_place : place_of(recomputed(thread), own_row(), own_column());
      if (own_bytes >= 0)
        both_halves(own_row(), [&](bool inside, int place, int64_t offset) {
          copy_async(target + own_place + place, own_from + offset, inside ? own_bytes : 0);
        });
#pragma unroll 1
      for (int chunk = recomputed(thread) + int(blockDim.x); chunk < chunks(); chunk += int(blockDim.x)) {
        const int row = row_of(chunk), column = column_of(chunk, row), first_place = place_of(chunk, row, column);
        const Source* source = from(row, column);
        both_halves(row, [&](bool inside, int place, int64_t offset) {
          copy_async(target + first_place + place, source + offset, inside ? bytes_inside(column) : 0);
        });
      }
    } else {
      for_own_chunks([&](int chunk, int row, int column, int half) {
        const int count = next_row + row + kTile * half < height() ? bytes_inside(column) / int(sizeof(Source)) : 0;
        const Source* source = from(row + kTile * half, column);
        struct alignas(16) {
          Source pixels[kPixels];
        } gathered = {};
#pragma unroll
        for (int k = 0; k < kPixels; ++k) {
          if (k < count) gathered.pixels[k] = *source;
          source += images.strides[3];
        }
        *reinterpret_cast<uint4*>(target + place_of(chunk, row, column) + half * half_bytes()) = bit_cast<uint4>(gathered);
      });
    }
    slot = slot + slot_bytes() == kSlots * slot_bytes() ? 0 : slot + slot_bytes();
    own_from += kStageRows * images.strides[2];
    next_row += kStageRows;
    const Margins& m = tables.margins;
    if (next_row < kStageRows * m.end_row) return;
    next_row = kStageRows * m.first_row;
    own_from += images.strides[1] - kStageRows * (m.end_row - m.first_row) * images.strides[2];
  }

  // Makes operands of the thread's oldest pixels, which begin in row `first`, for the stage at `stage` bytes.
  __device__ void prepare(int first, int stage) {
    for_own_chunks([&](int chunk, int row, int column, int half) {
      const unsigned char* own = pixels() + prepared_slot + 16 * (chunk + half * chunks());
      unsigned char* target = operands + stage + operand_place(row + kTile * half, column);
      if constexpr (sizeof(Source) == 1) {  // the bits of v are v 2^-24 in binary16
        const uint4 chunk = *reinterpret_cast<const uint4*>(own);
        auto pairs = [](uint32_t first, uint32_t second) {
          return make_uint4(__byte_perm(first, 0, 0x4140), __byte_perm(first, 0, 0x4342), __byte_perm(second, 0, 0x4140),
                            __byte_perm(second, 0, 0x4342));
        };
        reinterpret_cast<uint4*>(target)[0] = pairs(chunk.x, chunk.y);
        reinterpret_cast<uint4*>(target)[1] = pairs(chunk.z, chunk.w);
      } else {
        using Operand = Mma16<Source>;
#pragma unroll(D < kMostReach ? 2 : 1)
        for (int part = 0; part < kPixels; part += 4) {
          const Four<Source> four = *reinterpret_cast<const Four<Source>*>(own + 2 * part);
          float w[1][4], g[4];
          const Weight& weight = tables.weight;
          weight.acuity_of_rows(first + row + kTile * half, recomputed(tables.margins.first_column + column + part),
                                weight.gain, w);
#pragma unroll
          for (int k = 0; k < 4; ++k) g[k] = to_float(four.pixels[k]) - w[0][k] * to_float(four.pixels[k]);
          *reinterpret_cast<uint2*>(target + 2 * part) = make_uint2(Operand::pack(g[0], g[1]), Operand::pack(g[2], g[3]));
        }
      }
    });
    prepared_slot = prepared_slot + slot_bytes() == kSlots * slot_bytes() ? 0 : prepared_slot + slot_bytes();
  }
};

// The steps after the filter, with the constants of a channel: y = factor (w x + (1 - w) blurred) - offset, or
// factor (w g + blurred) for the adjoint, whose sharp pixels are (1 - w) g.
template <class Source, bool kAdjoint>
__device__ FinishConstants finish_constants(const BlurParams& p, const Weight& weight, int64_t channel, float taps_sum) {
  const Normalisation normalisation(p, channel);
  const float unit = PixelsOf<Source>::kUnit, scale = 1.0f / (taps_sum * taps_sum);  // which undoes that of the taps
  return {kAdjoint ? normalisation.factor : weight.gain * unit * normalisation.factor, -scale, unit * scale * normalisation.factor,
          -normalisation.offset};
}

// Outputs (i, j..j+3) and (i + 8, j..j+3).
template <class Source, bool kAdjoint, class Type>
__device__ void finish(const FinishConstants& constants, const Weight& weight, int i, int j, const Four<Type> (&sharp)[2],
                       const float (&sums)[2][4], const Four<Source> (&grads)[2], float (&y)[2][4]) {
  float w[2][4];
  if constexpr (!kAdjoint) weight.acuity_of_rows(i, j, constants.sharp, w);
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float x = to_float(sharp[h].pixels[k]), sum = sums[k / 2][2 * h + k % 2];
      if constexpr (kAdjoint) {
        y[h][k] = constants.sum * sum + constants.sharp * (to_float(grads[h].pixels[k]) - x);
      } else {
        y[h][k] = w[h][k] * x + ((w[h][k] * constants.sharp_sum + constants.sum) * sum + constants.minus_offset);
      }
    }
}

// Filters `tables.work` with taps that reach 16 D pixels, fewer than the image's sides less one. Returns the channels of
// which this thread met a filtered row that is not finite, a bit for each: a product spreads infinities over its tile, so
// these have to be filtered in the direct form.
template <class Source, bool kAdjoint, int D>
__device__ uint32_t filter_planes(const BlurParams& p, const Images& source, const Images& target, float taps_sum,
                                  TapTables& tables, unsigned char* memory) {
  using S = Stages<Source, kAdjoint, D>;
  using F = Feed<Source, S, TapTables, D>;
  using Type = typename PixelsOf<Source>::Operand;
  using Operand = Mma16<Type>;
  constexpr int kTiles = 2 * D + 1, kHeldTiles = kTiles + 1, kAhead = S::kAhead, kLag = S::kLag;
  const int thread = recomputed(int(threadIdx.x));  // so that nothing of it is kept in registers for other radii
  const int warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const Work& work = tables.work;
  const Margins& margins = tables.margins;
  const int height = int(p.shape[2]), width = int(p.shape[3]);
  if (thread == 0) {
    const Margins m = tables.margins = F::margins(p, source, work);
    const int stages = m.end_row - m.first_row;
    tables.steps = stages * work.channels;
    tables.inner_tile = max(2 * m.first_row + D, (tables.radius + kTile * D) / (2 * kTile) + 1);
    tables.end_inner_tile = min(2 * m.end_row - D, (2 * height - 1 - tables.radius - kTile * D) / (2 * kTile));
    tables.moves_source = can_move_four(source, work.sample, work.first_channel);
    tables.moves_target = can_move_four(target, work.sample, work.first_channel);
    tables.weight = Weight(p, work.sample);
    tables.output_row = target.strides[2] * size_of(target.dtype);
    tables.output_plane = target.strides[1] * size_of(target.dtype) - kStageRows * stages * tables.output_row;
    tables.grad_row = source.strides[2] * int(sizeof(Source));
    tables.grad_plane = source.strides[1] * int(sizeof(Source)) - kStageRows * stages * tables.grad_row;
  }
  if (thread < work.channels)
    tables.finish[thread] = finish_constants<Source, kAdjoint>(p, Weight(p, work.sample), work.first_channel + thread, taps_sum);
  tables.spoiled[thread] = 0;
  __syncthreads();
  F feed(p, source, tables, thread, memory);
  // The largest reach is short of registers, its gradient most: they compute or read again what others keep.
  constexpr bool kShort = D == kMostReach, kShortest = kShort && kAdjoint;
  const std::conditional_t<kShort, const int&, int> steps = tables.steps;
  const std::conditional_t<kShort || kAdjoint, const Weight&, Weight> weight = tables.weight;
  for (int k = 0; k < kAhead; ++k) {
    if (k < steps) feed.copy();
    commit_copies();
  }

  // The warp's tile, the first tile that is read, and products with A_w and A_h; made where they are used.
  const int held_tile = work.strip.first_column + warp;
  auto own_tile = [&] { return kShort ? work.strip.first_column + recomputed(thread) / 32 : held_tile; };
  auto first_column_tile = [&] { return margins.first_column / kTile; };
  auto own_lane = [&] { return kShortest ? recomputed(lane) : lane; };
  auto by_columns = [&] {
    const int l = own_lane();
    return Multiply<Type, kAdjoint>{tables.pairs, Mirror(width, tables.radius), rows_as_columns(l), l};
  };
  auto by_rows = [&] {
    const int l = own_lane();
    return Multiply<Type, kAdjoint>{tables.pairs, Mirror(height, tables.radius), rows_in_order(l), l};
  };
  const bool inner_column = own_tile() - D >= first_column_tile() && own_tile() + D < first_column_tile() + margins.tiles &&
                            !by_columns().mirror.at_first(kTile * (2 * own_tile() - D)) &&
                            !by_columns().mirror.at_last(kTile * (2 * own_tile() + D));

  // Bytes of stages, and the lane's places in one.
  const int held_half_bytes = recomputed(kTile * 2 * S::stride(margins.tiles));
  auto half_bytes = [&] { return kShortest ? kTile * 2 * S::stride(margins.tiles) : held_half_bytes; };
  const int own_column = kTile * (own_tile() - first_column_tile());
  const int tile_place = recomputed(feed.operand_place(lane / 16 * 8 + lane % 8, own_column - kTile * D + lane / 8 % 2 * 8));
  auto sharp_at = [&](int tile_column) { return feed.operand_place(g, tile_column + 4 * t); };
  const int held_sharp_place = recomputed(sharp_at(own_column));
  auto sharp_place = [&] {
    return kShortest ? sharp_at(recomputed(kTile * (own_tile() - first_column_tile()))) : held_sharp_place;
  };
  auto column = [&] { return kTile * own_tile() + 4 * t; };
  auto count = [&] { return width - column(); };
  const bool usual = count() >= 4 && tables.moves_target && target.dtype == dtype_of(Type{});
  constexpr int kUsual = 1, kInnerColumn = 2, kBusy = 4;
  const int is = recomputed((usual ? kUsual : 0) | (inner_column ? kInnerColumn : 0) | (warp < work.strip.columns ? kBusy : 0));
  // The lane's first pixel in the first tile.
  auto first_pixel = [&](const Images& images) {
    const int64_t offset = images.plane(work.sample, work.first_channel) +
                           (kStageRows * margins.first_row + g) * images.strides[2] + column() * images.strides[3];
    return static_cast<unsigned char*>(images.data) + offset * size_of(images.dtype);
  };
  unsigned char* output = first_pixel(target);
  const unsigned char* grad = kAdjoint ? first_pixel(source) : nullptr;

  uint32_t filtered[kHeldTiles][2][2] = {};  // the last tiles of rows, oldest first, as right operands of 8 columns each
  uint32_t not_finite = 0;
  int filtered_row = margins.first_row, filtered_channel = 0, filtered_at = 0;
  int finished_row = margins.first_row, finished_channel = 0, finished_at = 0;
  if (S::kPrepared) {
    wait_for_copies<kAhead - 1>();
    feed.prepare(kStageRows * filtered_row, 0);
    if (kAhead < steps) feed.copy();
    commit_copies();
  }
  // A step finishes the two tiles of outputs whose last filtered rows the step before has added, and filters the rows of one
  // stage; the last kLag steps filter the last stage again, which nothing reads.
  for (int step = 0; step < steps + kLag; ++step) {
    if (!S::kPrepared) wait_for_copies<kAhead - 1>();
    __syncthreads();
    if (!S::kPrepared) {
      if (step + kAhead < steps) feed.copy();
      commit_copies();
    }
    if ((is & kBusy) && step >= kLag && 2 * finished_row >= work.strip.first_row && 2 * finished_row < work.strip.end_row) {
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int tile = 2 * finished_row + u, row = kTile * tile + g;
        float sums[2][4] = {};  // [eight columns][rows g, g + 8 x columns 2t, 2t + 1]
        if (tile >= tables.inner_tile && tile < tables.end_inner_tile) {
#pragma unroll
          for (int d = 0; d < kTiles; ++d)
            Multiply<Type, kAdjoint>::band(tables.rows[d + kMostReach - D][lane], sums, filtered[u + d]);
        } else {
          const Multiply<Type, kAdjoint> multiply = by_rows();
          const int first = 2 * margins.first_row, end = 2 * margins.end_row;
#pragma unroll
          for (int d = 0; d < kTiles; ++d) {
            const int r = recomputed(tile), q = r - D + d;
            if (q < first || q >= end) continue;
            Multiply<Type, kAdjoint>::band(tables.rows[d + kMostReach - D][lane], sums, filtered[u + d]);
            multiply.mirrored(kTile * r, kTile * q, sums, filtered[u + d]);
          }
        }
        Four<Source> grads[2];
        if constexpr (kAdjoint)
#pragma unroll
          for (int h = 0; h < 2; ++h)
            grads[h] = load_four<Source>(grad + (kTile * u + 8 * h) * tables.grad_row, source.strides[3],
                                         row + 8 * h < height ? count() : 0, tables.moves_source && count() >= 4);
        Four<Type> sharp[2];
#pragma unroll
        for (int h = 0; h < 2; ++h)
          sharp[h] = *reinterpret_cast<const Four<Type>*>(feed.operands + finished_at + sharp_place() + u * half_bytes() +
                                                          h * (half_bytes() / 2));
        float y[2][4];
        finish<Source, kAdjoint>(tables.finish[finished_channel], weight, row, column(), sharp, sums, grads, y);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          unsigned char* four = output + (kTile * u + 8 * h) * tables.output_row;
          if ((is & kUsual) && row + 8 * h < height) {
            *reinterpret_cast<uint2*>(four) = make_uint2(Operand::pack(y[h][0], y[h][1]), Operand::pack(y[h][2], y[h][3]));
          } else if (row + 8 * h < height) {
            store_four(target.dtype, four, target.strides[3], count(), tables.moves_target && count() >= 4, y[h]);
          }
        }
      }
    }
#pragma unroll
    for (int d = 0; d < kHeldTiles - 2; ++d)
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int h = 0; h < 2; ++h) filtered[d][n][h] = filtered[d + 2][n][h];
    if (is & kBusy) {
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        float along[2][4] = {};  // [eight rows][columns g, g + 8 x rows 2t, 2t + 1]
        const unsigned char* tiles = feed.operands + filtered_at + tile_place + u * half_bytes();
        auto multiply = [&](int d, const auto& each) {
          uint32_t m[4];
          load_matrices(tiles + 2 * kTile * d, m);
          const uint32_t x[2][2] = {{m[0], m[1]}, {m[2], m[3]}};
          Multiply<Type, kAdjoint>::band(tables.columns[d + kMostReach - D][lane], along, x);
          each(x);
        };
        if (is & kInnerColumn) {
#pragma unroll
          for (int d = 0; d < kTiles; ++d) multiply(d, [](const auto&) {});
        } else {
          const Multiply<Type, kAdjoint> by = by_columns();
          const int first = first_column_tile(), end = first + margins.tiles, middle = own_tile();
#pragma unroll
          for (int d = 0; d < kTiles; ++d) {
            const int own = recomputed(middle), q = own - D + d;
            if (q < first || q >= end) continue;
            multiply(d, [&](const uint32_t(&x)[2][2]) { by.mirrored(kTile * own, kTile * q, along, x); });
          }
        }
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            uint32_t& pair = filtered[2 * D + u][n][h];
            pair = Operand::pack(along[h][2 * n], along[h][2 * n + 1]);
            if constexpr (sizeof(Source) > 1) not_finite = Operand::add_zeros(pair, not_finite);
          }
      }
    }
    const int stage_bytes = 2 * half_bytes(), all_stages = S::kOperands * stage_bytes;
    if (step >= kLag) {
      finished_at = finished_at + stage_bytes == all_stages ? 0 : finished_at + stage_bytes;
      output += kStageRows * tables.output_row;
      if (kAdjoint) grad += kStageRows * tables.grad_row;
      if (++finished_row == margins.end_row) {
        finished_row = margins.first_row;
        output += tables.output_plane;
        if (kAdjoint) grad += tables.grad_plane;
        ++finished_channel;
      }
    }
    if (++filtered_row == margins.end_row) {
      if (not_finite & 0x7fff7fffu) tables.spoiled[thread] |= 1u << filtered_channel;
      not_finite = 0;
      filtered_row = margins.first_row;
      ++filtered_channel;
    }
    if (step + 1 >= steps) continue;
    filtered_at = filtered_at + stage_bytes == all_stages ? 0 : filtered_at + stage_bytes;
    if (S::kPrepared) {
      wait_for_copies<kAhead - 1>();
      feed.prepare(kStageRows * filtered_row, filtered_at);
      if (step + 1 + kAhead < steps) feed.copy();
      commit_copies();
    }
  }
  return tables.spoiled[thread];
}

}  // namespace fovblur
