// Gradients of sigma and gain as products of small matrices on the tensor cores, for 16-bit and uint8 pixels.
//
// With B = dA / dsigma, the blur's derivative is B_h X A_w^T + A_h X B_w^T. A block makes up to 16 columns of tiles of some
// channels and walks down the rows, 32 at a time. Columns are filtered first, straight from the copied pixels: each warp makes
// tiles of A_h X and B_h X, which share the right operand. They pass through shared memory, as operands of the products with
// A_w and B_w, where the other filtered columns come from. Results stay in the accumulators and are summed there.
// What rounding adds to the sum of B's taps is taken back by A's, so that a constant image has no derivative in sigma.
#pragma once

#include "cuda_products.cuh"
#include "cuda_streamed.cuh"

namespace fovblur {

// Factors of the sums: of the taps' sums, and what the products lack.
struct alignas(16) SumConstants {
  float minus_inverse, correction, of_sigma, of_gain;
};

// What the warps of a block share. Registers are short, so its constants are read where they are needed.
struct alignas(16) SumTables {
  Work work;
  Margins margins;
  Weight weight;
  uint32_t pairs[2][2 * kMiddle];             // as those of TapTables: of A, and of B times a unit
  SumConstants constants;
  float factors[kMostChannels];               // of the normalisation
  int radius, steps;
  int inner_tile, end_inner_tile;             // tiles of rows whose taps mirror no pixel
  int first_tile, end_tile;                   // of columns that are filtered
  int all_stages;                             // bytes
  int part, end_column;                       // columns of a part of the strip, and the end of the strip
  int moves_grad;                             // whether four neighbours of the gradient can be read at once
  int64_t grad_row, grad_column, grad_plane;  // bytes from a row and a column of it to the next, and between channels
  float sums[kMostStripThreads / 32][2];      // of sigma and gain, by warp
  Region region;                              // of the direct form, and its taps
  Taps taps;
};

// The Gaussian window of a sample; 0 beyond the radius, NaN if sigma is negative or NaN.
struct Window {
  float sigma;
  int radius;
  __device__ Window(const BlurParams& p, int64_t sample)
      : sigma(per_sample(p.sigma, sample) >= 0.0f ? per_sample(p.sigma, sample) : NAN), radius(radius_of(p, sample)) {}
  __device__ float operator()(int offset) const {
    if (radius == 0) return offset == 0 ? 1.0f : 0.0f;
    return offset >= -radius && offset <= radius ? gaussian_window(offset, sigma) : 0.0f;
  }
};

// A lane's part of the tile of a Toeplitz band that lies `offset` columns to the right of its rows, from a table of taps.
__device__ inline uint4 band_tile(const uint32_t* pairs, int offset, const LaneRows& rows) {
  const uint32_t* own = pairs + recomputed(kMiddle + offset + recomputed(int(threadIdx.x)) % 4 * 2 - rows.first);
  return make_uint4(own[0], own[-rows.step], own[8], own[8 - rows.step]);
}

// Tiles of the Toeplitz bands of A and of B, as left and as right operands.
template <int D>
struct BandTiles {
  static constexpr int kTiles = 2 * D + 1;
  uint4 left[kTiles][2][32], right[kTiles][2][32];

  __device__ void make(const uint32_t (&pairs)[2][2 * kMiddle]) {
    const int thread = recomputed(int(threadIdx.x)), lane = thread % 32;
#pragma unroll 1
    for (int k = thread / 32; k < 2 * kTiles; k += int(blockDim.x) / 32) {
      const uint32_t* own = pairs[k % 2];
      const int offset = kTile * (k / 2 - D);
      left[k / 2][k % 2][lane] = band_tile(own, offset, rows_in_order(lane));
      const uint4 tile = band_tile(own, offset, rows_as_columns(lane));
      right[k / 2][k % 2][lane] = make_uint4(tile.x, tile.z, tile.y, tile.w);
    }
  }
};

// Shared memory of a strip: tiles of taps, stages of 32 rows as operands, pixels that are not yet, and filtered columns.
template <class Source, int D>
struct SumStages {
  static constexpr bool kPrepared = sizeof(Source) == 1, kHoldsPlaces = false;
  static constexpr int kOperands = D + 1, kPixels = kPrepared ? 1 : 0;
  static constexpr int kTogether = D < kMostReach ? 2 : 1;  // tiles of a column that are filtered between two barriers
  FOVBLUR_HD static int stride(int tiles) { return kTile * tiles + 8; }  // of operands; eight rows meet different banks
  FOVBLUR_HD static int half_bytes(int tiles) { return kTile * 2 * stride(tiles); }
  FOVBLUR_HD static int operand_bytes(int tiles) { return kOperands * 2 * half_bytes(tiles); }
  FOVBLUR_HD static int filtered_at(int tiles) {
    return operand_bytes(tiles) + kPixels * kStageRows * kTile * tiles * int(sizeof(Source));
  }
  FOVBLUR_HD static int bytes(int tiles) {
    return int(sizeof(BandTiles<D>)) + filtered_at(tiles) + kTogether * 2 * half_bytes(tiles);
  }
};

// Writes the tables of a sample, times `scale`.
template <class Source>
__device__ void make_tables(const BlurParams& p, int64_t sample, float scale, SumTables& tables) {
  using Type = typename PixelsOf<Source>::Operand;
  const int thread = recomputed(int(threadIdx.x)), lane = thread % 32;
  const Window window(p, sample);
  const float sigma = window.sigma, farthest = float(window.radius) * float(window.radius);
  float sum = 0.0f, squares = 0.0f;
  auto for_offsets = [&](const auto& each) {
#pragma unroll 1
    for (int offset = lane; offset <= kTile * kMostReach; offset += 32) each(offset, offset == 0 ? 1.0f : 2.0f);
  };
  for_offsets([&](int offset, float count) {
    sum += count * window(offset);
    squares += count * window(offset) * float(offset * offset);
  });
  sum = warp_sum(sum);
  const float moment = warp_sum(squares) / sum, factor = scale / sum;
  // In this unit B's taps are as large as A's at most. Below the least sigma they are 0.
  constexpr float kLeastSigma = 1e-3f;
  const float unit = fmaxf(fminf(sigma * sigma, farthest), kLeastSigma * kLeastSigma);
  auto tap = [&](int filter, int offset) {
    const float a = window(offset) * factor;
    return filter == 0 ? a : a * (float(offset * offset) - moment) / unit;
  };
  float rounded[2] = {};
  for_offsets([&](int offset, float count) {
#pragma unroll
    for (int filter = 0; filter < 2; ++filter) rounded[filter] += count * to_float(Convert<Type>::from(tap(filter, offset)));
  });
#pragma unroll 1
  for (int k = thread; k < 2 * kMiddle; k += int(blockDim.x))
#pragma unroll
    for (int filter = 0; filter < 2; ++filter)
      tables.pairs[filter][k] = Mma16<Type>::pack(tap(filter, k - kMiddle), tap(filter, k - kMiddle + 1));
  __syncthreads();
  const float taps = warp_sum(rounded[0]), slopes = warp_sum(rounded[1]), inverse = 1.0f / (taps * taps);
  const float per_sigma = sigma < kLeastSigma ? 0.0f : unit / (sigma * sigma * sigma);
  const float unit_of_pixels = PixelsOf<Source>::kUnit;
  if (thread == 0)
    tables.constants = {-inverse, -2.0f * slopes / taps, unit_of_pixels * inverse * per_sigma, unit_of_pixels};
}

// Products with the same tile of A and of B, to sums[filter][eight columns].
template <class Type>
struct Sums {
  using Operand = Mma16<Type>;
  float of[2][2][4] = {};

  // Columns are filtered: taps times right operands of eight columns each.
  __device__ void add_left(const uint4 (&taps)[2], const uint32_t (&x)[4]) {
#pragma unroll
    for (int filter = 0; filter < 2; ++filter)
#pragma unroll
      for (int n = 0; n < 2; ++n)
        Operand::mma(of[filter][n], {taps[filter].x, taps[filter].y, taps[filter].z, taps[filter].w},
                     {x[2 * n], x[2 * n + 1]});
  }
  // Rows are filtered: what A_h and B_h made, times taps as right operands of eight columns each.
  __device__ void add_right(const uint32_t (&by_taps)[4], const uint32_t (&by_slopes)[4], const uint4 (&taps)[2]) {
    const uint4 a = taps[0], b = taps[1];
    Operand::mma(of[0][0], by_taps, {a.x, a.y});
    Operand::mma(of[0][1], by_taps, {a.z, a.w});
    Operand::mma(of[1][0], by_taps, {b.x, b.y});
    Operand::mma(of[1][1], by_taps, {b.z, b.w});
    Operand::mma(of[1][0], by_slopes, {a.x, a.y});
    Operand::mma(of[1][1], by_slopes, {a.z, a.w});
  }
};

// The terms of tiles of A and of B that are mirrored at the border of one dimension.
struct MirroredTaps {
  const SumTables& tables;
  Mirror mirror;
  int lane;

  // Calls each(taps) with those of the tile that starts at (row, column), if any, as left or as right operands.
  template <bool kRight, class Each>
  __device__ void for_tile(int row, int column, const Each& each) const {
    if (mirror.at_first(row + column)) at<kRight>(0, row, column, each);
    if (mirror.at_last(row + column)) at<kRight>(mirror.last, row, column, each);
  }

 private:
  template <bool kRight, class Each>
  __device__ void at(int pixel, int row, int column, const Each& each) const {
    const LaneRows rows = kRight ? rows_as_columns(lane) : rows_in_order(lane);
    uint4 taps[2];
#pragma unroll
    for (int filter = 0; filter < 2; ++filter) {
      const uint4 tile = mirrored_tile<false>(tables.pairs[filter], rows, lane, pixel, row, column);
      taps[filter] = kRight ? make_uint4(tile.x, tile.z, tile.y, tile.w) : tile;
    }
    each(taps);
  }
};

// A lane's pixels of the gradient in a tile, two rows of four neighbours. Those of the operand's type are unpacked at their use,
// so that no thread waits for them earlier.
template <class Type>
struct GradientPixels {
  uint2 pairs[2];

  // `first` is that of the upper row, the other is eight rows below; `upper` and `lower` of their pixels are inside the image.
  __device__ void read(const Images& grad, const unsigned char* first, const SumTables& tables, int upper, int lower) {
    if (grad.dtype != dtype_of(Type{})) return;
    const bool moves = tables.moves_grad;
    pairs[0] = bit_cast<uint2>(load_four<Type>(first, grad.strides[3], upper, moves && upper >= 4));
    pairs[1] = bit_cast<uint2>(load_four<Type>(first + 8 * tables.grad_row, grad.strides[3], lower, moves && lower >= 4));
  }

  __device__ void get(const Images& grad, const unsigned char* first, const SumTables& tables, int upper, int lower,
                      float (&g)[2][4]) const {
    if (grad.dtype == dtype_of(Type{})) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const Four<Type> four = bit_cast<Four<Type>>(pairs[h]);
#pragma unroll
        for (int k = 0; k < 4; ++k) g[h][k] = to_float(four.pixels[k]);
      }
      return;
    }
    Images row = grad;
#pragma unroll 1
    for (int place = 0; place < 8; ++place) {
      const int h = place / 4, k = place % 4;
      row.data = const_cast<unsigned char*>(first + h * 8 * tables.grad_row);
      const float pixel = k < (h == 0 ? upper : lower) ? load_element(row, k * grad.strides[3]) : 0.0f;
#pragma unroll
      for (int other = 0; other < 8; ++other) g[other / 4][other % 4] = place == other ? pixel : g[other / 4][other % 4];
    }
  }
};

// Columns of a strip that are done at a time, so that their stages fit into `bytes` of shared memory.
template <class Source, int D>
__device__ int columns_of_part(const Strip& strip, int image_columns, int bytes) {
  for (int parts = 1;; ++parts) {
    const int own = (strip.columns + parts - 1) / parts;
    int tiles = 0;  // that a part reads
    for (int column = 0; column < strip.columns; column += own)
      tiles = max(tiles, staged_tiles(strip.first_column + column, min(own, strip.columns - column), image_columns, D));
    if (own == 1 || SumStages<Source, D>::bytes(tiles) <= bytes) return own;
  }
}

// Adds the parts of `tables.work` to the sums, with taps that reach 16 D pixels, fewer than the image's sides less one. The sums
// are not finite if operands were not.
template <class Source, int D>
__device__ void add_planes(const BlurParams& p, const Images& grad, SumTables& tables, unsigned char* memory) {
  using S = SumStages<Source, D>;
  using F = Feed<Source, S, SumTables, D>;
  using Type = typename PixelsOf<Source>::Operand;
  using Operand = Mma16<Type>;
  constexpr int kTiles = 2 * D + 1, kBefore = D / 2 + 1;  // kBefore stages are copied before the first step
  constexpr int kTogether = S::kTogether;
  const int thread = recomputed(int(threadIdx.x));
  const Work& work = tables.work;
  const Margins& margins = tables.margins;
  const int height = int(p.shape[2]), width = int(p.shape[3]);
  if (thread == 0) {
    const Margins m = tables.margins = F::margins(p, p.images, work);
    tables.steps = (m.end_row - m.first_row) * work.channels;
    tables.inner_tile = max(2 * m.first_row + D, (tables.radius + kTile * D) / (2 * kTile) + 1);
    tables.end_inner_tile = min(2 * m.end_row - D, (2 * height - 1 - tables.radius - kTile * D) / (2 * kTile));
    tables.first_tile = m.first_column / kTile;
    tables.end_tile = min(tables.first_tile + m.tiles, (width + kTile - 1) / kTile);
    tables.grad_row = grad.strides[2] * size_of(grad.dtype);
    tables.grad_column = grad.strides[3] * size_of(grad.dtype);
    tables.grad_plane =
        grad.strides[1] * size_of(grad.dtype) - kStageRows * (m.end_row - m.first_row) * grad.strides[2] * size_of(grad.dtype);
    tables.all_stages = S::operand_bytes(m.tiles);
    tables.moves_grad = can_move_four(grad, work.sample, work.first_channel);
    tables.weight = Weight(p, work.sample);
  }
  if (thread < work.channels) tables.factors[thread] = Normalisation(p, work.first_channel + thread).factor;
  __syncthreads();
  const BandTiles<D>& tiles = *reinterpret_cast<const BandTiles<D>*>(memory);
  unsigned char* const stages = memory + sizeof(BandTiles<D>);
  F feed(p, p.images, tables, thread, stages);
  const int half_bytes = recomputed(S::half_bytes(margins.tiles));
  auto filtered = [&] { return stages + S::filtered_at(margins.tiles); };
  auto mirrored_along = [&](int size) {
    return MirroredTaps{tables, Mirror(size, tables.radius), recomputed(thread) % 32};
  };
  // Places of the lane in a tile: the row that it names of four matrices, and the first of the pairs that it stores.
  const int matrix_place = recomputed(feed.operand_place(thread / 8 % 2 * 8 + thread % 8, thread / 16 % 2 * 8));
  const int pair_place = recomputed(feed.operand_place(thread / 4 % 8, thread % 4 * 2));

  int row_stage = margins.first_row;
  int oldest_at = kBefore * 2 * half_bytes;  // of the stages that the step reads, D / 2 before and after its own
  const unsigned char* own_grad = static_cast<const unsigned char*>(grad.data) +  // the lane's first pixel in the step
                                  grad.plane(work.sample, work.first_channel) * size_of(grad.dtype) +
                                  (kStageRows * row_stage + thread / 4 % 8) * tables.grad_row + thread % 4 * 4 * tables.grad_column;
  auto wrapped = [&](int place) { return place >= tables.all_stages ? place - tables.all_stages : place; };

  // Filters the columns of the upper or lower tile of the step, and stores them as operands.
  auto filter_columns = [&](int u, int column) {
    const int tile = 2 * row_stage + u, lane = recomputed(thread) % 32, all_stages = tables.all_stages;
    const int own_place = 2 * kTile * (column - tables.first_tile);
    const unsigned char* pixels = stages + matrix_place + own_place;
    Sums<Type> sums;
    auto multiply = [&](int d, const auto& each) {
      const int place = oldest_at + (u + d) * half_bytes;
      uint32_t x[4];
      load_transposed_matrices(pixels + (place >= all_stages ? place - all_stages : place), x);
      const uint4 taps[2] = {tiles.left[d][0][lane], tiles.left[d][1][lane]};
      sums.add_left(taps, x);
      each(x);
    };
    if (tile >= tables.inner_tile && tile < tables.end_inner_tile) {
#pragma unroll
      for (int d = 0; d < kTiles; ++d) multiply(d, [](const auto&) {});
    } else {
      const int end = min(kTiles, 2 * margins.end_row - tile + D);
#pragma unroll 1
      for (int d = max(0, 2 * margins.first_row - tile + D); d < end; ++d)
        multiply(d, [&](const uint32_t(&x)[4]) {
          mirrored_along(height).template for_tile<false>(kTile * tile, kTile * (tile - D + d),
                                                          [&](const uint4(&taps)[2]) { sums.add_left(taps, x); });
        });
    }
    unsigned char* to = filtered() + 2 * (u % kTogether) * half_bytes + pair_place + own_place;
#pragma unroll
    for (int filter = 0; filter < 2; ++filter, to += half_bytes)
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int n = 0; n < 2; ++n)
          *reinterpret_cast<uint32_t*>(to + h * (half_bytes / 2) + 16 * n) =
              Operand::pack(sums.of[filter][n][2 * h], sums.of[filter][n][2 * h + 1]);
  };

  // Filters the rows of that tile, and adds up what its pixels give.
  float of_sigma = 0.0f, of_gain = 0.0f;  // of a channel
  auto add_pixels = [&](int u, int tile_column) {
    const int lane = recomputed(thread) % 32, first_tile = tables.first_tile, end_tile = tables.end_tile;
    const int own_place = 2 * kTile * (tile_column - first_tile);
    const int row = kTile * (2 * row_stage + u) + lane / 4, column = kTile * tile_column + lane % 4 * 4;
    auto inside = [&](int h) { return row + 8 * h < height ? width - column : 0; };
    const unsigned char* own = own_grad + kTile * u * tables.grad_row + kTile * tile_column * tables.grad_column;
    GradientPixels<Type> pixels;
    pixels.read(grad, own, tables, inside(0), inside(1));

    Sums<Type> sums;
    const unsigned char* columns = filtered() + 2 * (u % kTogether) * half_bytes + matrix_place + own_place - 2 * kTile * D;
    auto multiply = [&](int d, const auto& each) {
      uint32_t by_taps[4], by_slopes[4];
      load_matrices(columns + 2 * kTile * d, by_taps);
      load_matrices(columns + half_bytes + 2 * kTile * d, by_slopes);
      const uint4 taps[2] = {tiles.right[d][0][lane], tiles.right[d][1][lane]};
      sums.add_right(by_taps, by_slopes, taps);
      each(by_taps, by_slopes);
    };
    const Mirror mirror(width, tables.radius);
    if (tile_column - D >= first_tile && tile_column + D < end_tile && !mirror.at_first(kTile * (2 * tile_column - D)) &&
        !mirror.at_last(kTile * (2 * tile_column + D))) {
#pragma unroll
      for (int d = 0; d < kTiles; ++d) multiply(d, [](const auto&, const auto&) {});
    } else {
      const int end = min(kTiles, end_tile - tile_column + D);
#pragma unroll 1
      for (int d = max(0, first_tile - tile_column + D); d < end; ++d)
        multiply(d, [&](const uint32_t(&by_taps)[4], const uint32_t(&by_slopes)[4]) {
          mirrored_along(width).template for_tile<true>(
              kTile * tile_column, kTile * (tile_column - D + d),
              [&](const uint4(&taps)[2]) { sums.add_right(by_taps, by_slopes, taps); });
        });
    }
    const Weight& weight = tables.weight;
    float acuities[2][4], gradients[2][4];
    weight.acuity_of_rows(row, column, 1.0f, acuities);
    pixels.get(grad, own, tables, inside(0), inside(1), gradients);
    const unsigned char* sharp_at =
        stages + wrapped(oldest_at + D * half_bytes) + u * half_bytes + pair_place + lane % 4 * 4 + own_place;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Four<Type> sharp = *reinterpret_cast<const Four<Type>*>(sharp_at + h * (half_bytes / 2));
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float blurred = sums.of[0][k / 2][2 * h + k % 2], slope = sums.of[1][k / 2][2 * h + k % 2];
        const float by_acuity = gradients[h][k] * acuities[h][k];
        of_sigma += (gradients[h][k] - weight.gain * by_acuity) * (tables.constants.correction * blurred + slope);
        of_gain += by_acuity * (tables.constants.minus_inverse * blurred + to_float(sharp.pixels[k]));
      }
    }
  };

  // Begins to copy a stage; or makes operands, at `stage`, of one that has been copied and begins to copy the next.
  auto fetch = [&](int number, int stage) {
    if (S::kPrepared) {
      wait_for_copies<0>();
      feed.prepare(0, stage);
      ++number;
    }
    if (number < tables.steps) feed.copy();
    commit_copies();
  };
  if (S::kPrepared) {
    feed.copy();
    commit_copies();
  }
  for (int k = 0; k < kBefore && k < tables.steps; ++k) fetch(k, k * 2 * half_bytes);

  // Calls each(u, column) for the warp's tiles of kTogether rows of tiles.
  auto for_own_tiles = [&](int first_u, int first, int columns, const auto& each) {
    for (int k = recomputed(thread) / 32; k < kTogether * columns; k += int(blockDim.x) / 32) {
      const int lower = kTogether == 2 && k >= columns;
      each(first_u + lower, first + k - lower * columns);
    }
  };
  for (int step = 0; step < tables.steps; ++step) {
    if (!S::kPrepared) wait_for_copies<0>();
#pragma unroll 1
    for (int u = 0; u < 2; u += kTogether) {
      // A strip that ends in an odd number of tiles ends with the image: the tile below has no pixels, and adds nothing.
      const bool results = 2 * row_stage >= work.strip.first_row && 2 * row_stage < work.strip.end_row;
      __syncthreads();  // the stages are there, and the readers of the last filtered columns are done
      if (results) for_own_tiles(u, tables.first_tile, tables.end_tile - tables.first_tile, filter_columns);
      __syncthreads();  // the columns are filtered, and after the last of them the readers of the oldest stage are done
      if (u + kTogether == 2 && step + kBefore < tables.steps) fetch(step + kBefore, oldest_at);
      if (results) for_own_tiles(u, work.strip.first_column, work.strip.columns, add_pixels);
    }
    oldest_at = wrapped(oldest_at + 2 * half_bytes);
    own_grad += kStageRows * tables.grad_row;
    if (++row_stage < margins.end_row) continue;
    const float factor = tables.factors[step / (margins.end_row - margins.first_row)];
    of_sigma = warp_sum(of_sigma), of_gain = warp_sum(of_gain);
    if (thread % 32 == 0) {
      tables.sums[thread / 32][0] += factor * tables.constants.of_sigma * of_sigma;
      tables.sums[thread / 32][1] += factor * tables.constants.of_gain * of_gain;
    }
    of_sigma = of_gain = 0.0f;
    row_stage = margins.first_row;
    own_grad += tables.grad_plane;
  }
}

// The same for the strip of a block, part by part, with `bytes` of shared memory.
template <class Source, int D>
__device__ void add_strip(const BlurParams& p, const Images& grad, SumTables& tables, unsigned char* memory, int bytes) {
  reinterpret_cast<BandTiles<D>*>(memory)->make(tables.pairs);
  Strip& strip = tables.work.strip;
  auto next_part = [&](int first_column) {
    strip.first_column = first_column;
    strip.columns = min(tables.part, tables.end_column - first_column);
  };
  if (threadIdx.x == 0) {
    tables.part = columns_of_part<Source, D>(strip, (int(p.shape[3]) + kTile - 1) / kTile, bytes);
    tables.end_column = strip.first_column + strip.columns;
    next_part(strip.first_column);
  }
  __syncthreads();
  while (strip.columns > 0) {
    add_planes<Source, D>(p, grad, tables, memory);
    __syncthreads();  // the readers of the strip are done
    if (threadIdx.x == 0) next_part(strip.first_column + strip.columns);
    __syncthreads();
  }
}

}  // namespace fovblur
