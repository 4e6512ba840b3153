// How planes are divided among blocks: into tiles for the direct form, and for products into strips that fit shared memory.
#pragma once

#include <algorithm>

#include "cuda_filter.cuh"
#include "cuda_products.cuh"
#include "cuda_products_gradient.cuh"
#include "cuda_split.cuh"

namespace fovblur {

// Tiles of one sample are consecutive; a block takes tiles until none is left.
struct Tiling {
  int row_tiles, column_tiles, tile_rows, tile_columns;
  int64_t channels, tiles;

  Tiling(const int64_t (&shape)[4], int tile_rows, int tile_columns)
      : row_tiles(int((shape[2] + tile_rows - 1) / tile_rows)),
        column_tiles(int((shape[3] + tile_columns - 1) / tile_columns)),
        tile_rows(tile_rows),
        tile_columns(tile_columns),
        channels(shape[1]),
        tiles(shape[0] * shape[1] * row_tiles * column_tiles) {}

  // Calls each(sample, channel, first_row, first_column, tile) for the tiles of this block.
  template <class Each>
  __device__ void for_own_tiles(const Each& each) const {
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const int64_t plane = tile / (int64_t(row_tiles) * column_tiles);
      const int within = int(tile - plane * row_tiles * column_tiles);
      each(plane / channels, plane % channels, within / column_tiles * tile_rows, within % column_tiles * tile_columns, tile);
      __syncthreads();
    }
  }
};

constexpr int kBlockBytes = 99 * 1024;  // of shared memory, that a block can have on sm_86

// Threads of a block for a strip of so many tiles, and the shared memory that the direct form needs with these threads.
constexpr int threads_of_products(int columns) {
  return columns <= kMostStripThreads / 64 ? kMostStripThreads / 2 : kMostStripThreads;
}
template <int kFilters>
constexpr int direct_bytes(int threads) {
  return int(threads == kMostStripThreads ? sizeof(FilterMemory<kMostStripThreads, kFilters>)
                                          : sizeof(FilterMemory<kMostStripThreads / 2, kFilters>));
}

// Tiles of columns that are staged for the strip that reads the most.
template <int D>
int most_staged_tiles(int columns, int column_strips, int image_columns) {
  const bool inner = column_strips > 1;
  return staged_tiles(inner ? D : 0, columns, inner ? columns + 2 * D : image_columns, D);
}

// Shared memory of a block by the tiles of columns of its strip, how many strips an image has, and the tiles of the image: for
// the blur and the gradient of images as products of 16-bit operands; for the gradients of sigma and gain, which can do a strip
// in parts; and for products that float is split into.
template <class Source, bool kAdjoint>
struct BlurMemory {
  static constexpr int kMostColumns = kMostStripThreads / 32, kMostBytes = kBlockBytes;
  static int threads(int columns) { return threads_of_products(columns); }
  static int bytes(int columns, int column_strips, int image_columns) {
    const int near = Stages<Source, kAdjoint, 2>::bytes(most_staged_tiles<2>(columns, column_strips, image_columns));
    const int far =
        Stages<Source, kAdjoint, kMostReach>::bytes(most_staged_tiles<kMostReach>(columns, column_strips, image_columns));
    return std::max(int(sizeof(TapTables)) + std::max(near, far), direct_bytes<1>(threads(columns)));
  }
};

template <class Source>
struct SumMemory {
  static constexpr int kMostColumns = kMostStripThreads / 32, kMostBytes = kBlockBytes;
  static int threads(int columns) { return threads_of_products(columns); }
  static int bytes(int columns, int column_strips, int image_columns) {
    const int near = SumStages<Source, 2>::bytes(most_staged_tiles<2>(columns, column_strips, image_columns));
    const int far = SumStages<Source, kMostReach>::bytes(most_staged_tiles<kMostReach>(columns, column_strips, image_columns));
    const int tables = int(sizeof(SumTables));
    return std::max({tables + near, std::min(tables + far, kBlockBytes), tables + direct_bytes<2>(threads(columns))});
  }
};

struct SplitMemory {
  static constexpr int kMostColumns = kSplitColumns, kMostBytes = kSplitBytes;
  static int threads(int) { return kSplitThreads; }
  static int bytes(int columns, int column_strips, int image_columns) {
    auto read = [&](int reach) { return std::min(columns + std::min(column_strips - 1, 2) * reach, image_columns); };
    const int stages =
        std::max(SplitStages<1>::bytes(columns, read(1)), SplitStages<kSplitReach>::bytes(columns, read(kSplitReach)));
    return std::max(int(sizeof(SplitTables)) + stages, int(sizeof(FilterMemory<kSplitThreads, 1>)));
  }
};

// Strips of the planes for products: as wide as their rows fit into shared memory, up to 16 or 8 tiles; all rows, or a part of
// them if there are few planes.
template <class Memory>
struct Strips {
  int height, width, columns, column_strips, rows, row_strips, channels_together;  // columns and rows in tiles
  int64_t channels, channel_groups, count;
  int64_t first = 0;  // of a launch

  explicit Strips(const int64_t (&shape)[4]) : height(int(shape[2])), width(int(shape[3])), channels(shape[1]) {
    const int row_tiles = (height + kTile - 1) / kTile, column_tiles = (width + kTile - 1) / kTile;
    for (column_strips = (column_tiles + Memory::kMostColumns - 1) / Memory::kMostColumns;; ++column_strips) {
      columns = (column_tiles + column_strips - 1) / column_strips;
      if (shared_bytes() <= Memory::kMostBytes) break;
    }
    column_strips = (column_tiles + columns - 1) / columns;
    const int64_t enough = 512;  // blocks for every multiprocessor
    channels_together = shape[0] * column_strips >= enough ? int(std::min<int64_t>(channels, kMostChannels)) : 1;
    channel_groups = (channels + channels_together - 1) / channels_together;
    const int64_t planes = shape[0] * channel_groups * column_strips;
    rows = std::min(row_tiles, planes >= enough ? 256 : 4);
    row_strips = (row_tiles + rows - 1) / rows;
    count = planes * row_strips;
  }

  int threads() const { return Memory::threads(columns); }
  int shared_bytes() const { return Memory::bytes(columns, column_strips, (width + kTile - 1) / kTile); }

  __device__ Work work(int64_t block) const {
    const int64_t place = first + block;
    const int row_tiles = (height + kTile - 1) / kTile, column_tiles = (width + kTile - 1) / kTile;
    const int64_t group = place / (int64_t(row_strips) * column_strips), sample = group / channel_groups;
    const int within = int(place - group * row_strips * column_strips);
    const int64_t channel = (group - sample * channel_groups) * channels_together;
    const int first_row = within / column_strips * rows, first_column = within % column_strips * columns;
    const int together = int(channels - channel < channels_together ? channels - channel : channels_together);
    return {sample, channel, together,
            {first_column, min(columns, column_tiles - first_column), first_row, min(first_row + rows, row_tiles)}};
  }
};

}  // namespace fovblur
