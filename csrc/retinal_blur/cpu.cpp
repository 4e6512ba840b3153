// Blend of Gaussian levels on the CPU: y = sum_k w_k G_k x, where w_k(p) = max(0, 1 - |level(p) - k|).
//
// A thread takes a strip of rows of one sample and stages what all its levels reach. Each level is filtered only at the
// columns of the strip where it has weight, down the columns and, transposed, along the rows, and added to the sum, which is
// stored once.
//
// Compiled once per instruction set with FOVBLUR_VARIANT and FOVBLUR_VECTOR_BYTES; see setup.py.

#include "cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../common/cpu_parallel.h"
#include "../common/cpu_rows.h"
#include "../foveated_blur/cpu_filter.h"
#include "../foveated_blur/cpu_strip.h"
#include "../foveated_blur/huge_pages.h"

namespace fovblur {
namespace FOVBLUR_VARIANT {
namespace {

constexpr int64_t kStripRows = 48;  // whole groups of lanes in every variant

template <class T>
struct BlendWorkspace {
  Scratch<T> level, variance, least, most, staged, sum, turned, group, block, zeros;
  Scratch<const T*> rows;
};

// The taps of all levels, and their variances with the inverses of the steps between them.
template <class T>
struct Gaussians {
  std::vector<T> variance, slope;
  std::vector<int64_t> radius;
  std::vector<std::vector<T>> taps;

  explicit Gaussians(const LevelParams& p) {
    for (int k = 0; k < p.levels; ++k) {
      const double step = k + 1 < p.levels ? p.variance[k + 1] - p.variance[k] : 0.0;
      variance.push_back(T(p.variance[k]));
      slope.push_back(step > 0 ? T(1 / step) : T(0));
      radius.push_back(gaussian_radius(p.sigma[k], p.kernel_size[k]));
      taps.emplace_back(size_t(2 * radius[size_t(k)] + 1));
      make_taps<T>(p.sigma[k], radius[size_t(k)], false, taps[size_t(k)].data(), nullptr);
    }
  }
};

// A range [begin, end) of rows or columns.
struct Range {
  int64_t begin, end;

  // The pixels, of n, that a blur of this range reads.
  Range reached(int64_t radius, Border border, int64_t n) const {
    if (border == Border::circular && (begin < radius || end + radius > n)) return {0, n};
    return {std::max<int64_t>(0, begin - radius), std::min(n, end + radius)};
  }
};

template <class T>
struct BlendStrip {
  static constexpr int64_t L = kLanes<T>;
  const LevelParams& p;
  const Gaussians<T>& gaussians;
  BlendWorkspace<T>& ws;
  int64_t sample, height, width, padded_width;
  Range rows, staged_rows;
  int lowest, highest;  // levels with weight in the strip
  const T *level, *least, *most, *zeros;
  T *staged, *sum;

  BlendStrip(const LevelParams& p, const Gaussians<T>& gaussians, BlendWorkspace<T>& ws, int64_t sample, Range rows)
      : p(p), gaussians(gaussians), ws(ws), sample(sample), height(p.shape[2]), width(p.shape[3]), rows(rows) {
    padded_width = round_up(width, L);
    load_levels();
    staged_rows = rows.reached(gaussians.radius[size_t(highest)], p.border, height);
    staged = ws.staged.get((staged_rows.end - staged_rows.begin) * padded_width);
    sum = ws.sum.get(count() * width);
    const int64_t longest = std::max(padded_width, round_up(count(), L));
    T* none = ws.zeros.get(longest);
    std::fill_n(none, longest, T(0));
    zeros = none;
  }

  int64_t count() const { return rows.end - rows.begin; }

  // Loads the strip's level map, with the least and the largest value of each column.
  void load_levels() {
    T* map = ws.level.get(count() * width);
    T *low = ws.least.get(width), *high = ws.most.get(width);
    std::fill_n(low, width, std::numeric_limits<T>::infinity());
    std::fill_n(high, width, T(0));
    const DType dtype = sizeof(T) == 8 ? DType::float64 : DType::float32;
    for (int64_t i = 0; i < count(); ++i) {
      T* row = map + i * width;
      const int64_t offset = sample * p.level.strides[0] + (rows.begin + i) * p.level.strides[1];
      T* loaded = p.has_variances ? ws.variance.get(width) : row;
      load_row(dtype, p.level.data, offset, p.level.strides[2], width, loaded);
      if (p.has_variances) place_variances(loaded, row);
      for (int64_t j = 0; j < width; ++j) low[j] = row[j] < low[j] ? row[j] : low[j];
      for (int64_t j = 0; j < width; ++j) high[j] = row[j] > high[j] ? row[j] : high[j];
    }
    const T last = T(p.levels - 1);
    lowest = int(std::min(last, *std::min_element(low, low + width)));
    highest = int(std::min(last, std::ceil(*std::max_element(high, high + width))));
    level = map, least = low, most = high;
  }

  // Places a row of variances between those of the levels: the number of the level below, and the share of the next.
  void place_variances(const T* variance, T* level) const {
    std::fill_n(level, width, T(0));
    for (size_t k = 0; k + 1 < size_t(p.levels); ++k) {
      const T start = gaussians.variance[k], slope = gaussians.slope[k];
      for (int64_t j = 0; j < width; ++j) {
        const T share = (variance[j] - start) * slope;
        level[j] += share < T(0) ? T(0) : (share > T(1) ? T(1) : share);  // NaN stays
      }
    }
  }

  bool counts(int k, int64_t column) const { return least[column] < T(k + 1) && most[column] > T(k - 1); }

  // Calls each(columns) for the runs of columns where level k has weight; those closer than its radius are joined.
  template <class Each>
  void for_runs(int k, const Each& each) {
    const int64_t gap = 2 * gaussians.radius[size_t(k)] + L;
    Range run{0, 0};
    for (int64_t j = 0; j < width; ++j) {
      if (!counts(k, j)) continue;
      if (run.end > run.begin && j - run.end >= gap) {
        each(run);
        run.begin = j;
      } else if (run.end == run.begin) {
        run.begin = j;
      }
      run.end = j + 1;
    }
    if (run.end > run.begin) each(run);
  }

  // Adds the blurred columns [columns.begin, ...) of row i, weighted, to the sum.
  void add(int k, int64_t i, Range columns, const T* blurred) {
    const T* map = level + i * width;
    T* total = sum + i * width;
    for (int64_t j = columns.begin; j < columns.end; ++j) {
      const T weight = T(1) - std::abs(map[j] - T(k));
      total[j] += weight > T(0) ? weight * blurred[j - columns.begin] : T(0);
    }
  }

  void add_level(int k, Range columns) {
    const int64_t radius = gaussians.radius[size_t(k)];
    if (radius == 0) {
      for (int64_t i = 0; i < count(); ++i)
        add(k, i, columns, staged + (rows.begin + i - staged_rows.begin) * padded_width + columns.begin);
      return;
    }
    const T* taps = gaussians.taps[size_t(k)].data();
    const Range source = columns.reached(radius, p.border, width);
    const int64_t from = source.begin / L * L, to = round_up(source.end, L);
    const int64_t padded_count = round_up(count(), L);
    const T* turned = down(taps, radius, from, to, padded_count);
    along(k, taps, radius, columns, turned, from, padded_count);
  }

  // Filters the columns [from, to) down the strip's rows and transposes them: [to - from, padded_count].
  const T* down(const T* taps, int64_t radius, int64_t from, int64_t to, int64_t padded_count) {
    const T** sources = ws.rows.get(count() + 2 * radius);
    for (int64_t s = 0; s < count() + 2 * radius; ++s) {
      const int64_t row = border_index(p.border, rows.begin - radius + s, height);
      sources[s] = row < 0 ? zeros : staged + (row - staged_rows.begin) * padded_width;
    }
    T* turned = ws.turned.get((to - from) * padded_count);
    T* group = ws.group.get(padded_count * kVecs * L);
    for (int64_t lane = from; lane < to; lane += kVecs * L) {
      const int vectors = int(std::min<int64_t>(kVecs, (to - lane) / L));
      const int64_t stride = vectors * L;
      filter_columns(vectors, sources, count(), lane, taps, radius, false, group);
      std::fill(group + count() * stride, group + padded_count * stride, T(0));
      for (int64_t i = 0; i < padded_count; i += L)
        for (int64_t v = 0; v < stride; v += L)
          transpose_block(group + i * stride + v, stride, turned + (lane - from + v) * padded_count + i, padded_count);
    }
    return turned;
  }

  // Filters the transposed columns along the rows, transposes them back and adds them to the sum.
  void along(int k, const T* taps, int64_t radius, Range columns, const T* turned, int64_t from, int64_t padded_count) {
    const int64_t length = columns.end - columns.begin, padded_length = round_up(length, L);
    const T** sources = ws.rows.get(length + 2 * radius);
    for (int64_t s = 0; s < length + 2 * radius; ++s) {
      const int64_t column = border_index(p.border, columns.begin - radius + s, width);
      sources[s] = column < 0 ? zeros : turned + (column - from) * padded_count;
    }
    T* group = ws.group.get(padded_length * kVecs * L);
    T* block = ws.block.get(L * padded_length);
    for (int64_t lane = 0; lane < padded_count; lane += kVecs * L) {
      const int vectors = int(std::min<int64_t>(kVecs, (padded_count - lane) / L));
      const int64_t stride = vectors * L;
      filter_columns(vectors, sources, length, lane, taps, radius, false, group);
      std::fill(group + length * stride, group + padded_length * stride, T(0));
      for (int64_t v = 0; v < stride && lane + v < count(); v += L) {
        for (int64_t j = 0; j < padded_length; j += L)
          transpose_block(group + j * stride + v, stride, block + j, padded_length);
        for (int64_t i = 0; i < L && lane + v + i < count(); ++i) add(k, lane + v + i, columns, block + i * padded_length);
      }
    }
  }

  void blend(const Images& out, int64_t channel) {
    for (int64_t i = staged_rows.begin; i < staged_rows.end; ++i) {
      T* row = staged + (i - staged_rows.begin) * padded_width;
      const int64_t offset = p.images.plane(sample, channel) + i * p.images.strides[2];
      load_row(p.images.dtype, p.images.data, offset, p.images.strides[3], width, row);
      std::fill(row + width, row + padded_width, T(0));
    }
    for (int64_t j = 0; j < count() * width; ++j) sum[j] = T(0) * level[j];  // NaN where the level is NaN
    for (int k = lowest; k <= highest; ++k) for_runs(k, [&](Range columns) { add_level(k, columns); });
    for (int64_t i = 0; i < count(); ++i) {
      const int64_t offset = out.plane(sample, channel) + (rows.begin + i) * out.strides[2];
      store_row(out.dtype, sum + i * width, width, out.data, offset, out.strides[3]);
    }
  }
};

template <class T>
void blend(const LevelParams& p, const Images& out, int available_threads) {
  const int64_t batch = p.shape[0], height = p.shape[2], elements = batch * p.shape[1] * height * p.shape[3];
  if (elements == 0) return;
  advise_huge_pages(out, p.shape);
  constexpr int64_t kThreadElements = 16 * 1024;
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(available_threads, elements / kThreadElements)));
  const int64_t strips = (height + kStripRows - 1) / kStripRows;
  const Gaussians<T> gaussians(p);
  parallel_for<BlendWorkspace<T>>(batch * strips, threads, [&](int64_t task, BlendWorkspace<T>& ws) {
    const int64_t begin = task % strips * kStripRows;
    BlendStrip<T> strip(p, gaussians, ws, task / strips, {begin, std::min(height, begin + kStripRows)});
    for (int64_t channel = 0; channel < p.shape[1]; ++channel) strip.blend(out, channel);
  });
}

}  // namespace

void blend_levels(const LevelParams& params, const Images& out, int threads) {
  if (params.images.dtype == DType::float64)
    blend<double>(params, out, threads);
  else
    blend<float>(params, out, threads);
}

}  // namespace FOVBLUR_VARIANT
}  // namespace fovblur
