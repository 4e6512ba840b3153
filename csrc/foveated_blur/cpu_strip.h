// A strip of rows of one sample, filtered in both directions: the task of a thread of the CPU blur.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/cpu_parallel.h"
#include "blur_math.h"
#include "cpu_filter.h"
#include "params.h"

namespace fovblur {
namespace FOVBLUR_VARIANT {

template <class T>
struct Workspace {
  Scratch<T> taps, slopes, end_taps, acuity, zeros, staged, turned, turned_slope, group, group_slope[2], block, block_slope[2], row;
  Scratch<const T*> rows, acuity_rows;
};

template <class T>
T value_of(const PerSample& parameter, int64_t sample, int64_t element = 0) {
  return static_cast<const T*>(parameter.data)[sample * parameter.stride + element];
}

// Acuity f(u) in the rows [begin, end) of an image, [end - begin, width].
template <class T>
void acuity_map(const BlurParams& p, int64_t sample, int64_t begin, int64_t end, T* map) {
  const int64_t width = p.shape[3];
  const T cy = value_of<T>(p.fixation, sample, 0), cx = value_of<T>(p.fixation, sample, 1);
  const T distance = falloff_distance(cy, cx, T(p.shape[2]), T(width));
  const T decay = T(p.decay);
  for (int64_t i = begin; i < end; ++i, map += width) {
    const T dy = T(i) - cy;
    if (p.falloff == Falloff::exp) {  // a loop of its own, which vectorises
      for (int j = 0; j < int(width); ++j) map[j] = exp_of_negative(-decay * eccentricity(dy, T(j) - cx, distance));
    } else {
      for (int j = 0; j < int(width); ++j) map[j] = falloff(p.falloff, decay, eccentricity(dy, T(j) - cx, distance));
    }
  }
}

// Normalised taps t_i along one axis and, on request, their slopes dt_i / dsigma = t_i (i^2 - sum_j t_j j^2) / sigma^3.
template <class T>
void make_taps(double sigma, int64_t radius, bool tables, T* taps, T* slopes) {
  const bool table = tables && radius <= kMostTableRadius;
  if (radius == 0 || table) {  // taps that do not depend on sigma
    for (int64_t t = -radius; t <= radius; ++t) {
      taps[radius + t] = radius == 0 ? T(1) : table_tap<T>(int(radius), int(t));
      if (slopes) slopes[radius + t] = T(0);
    }
    return;
  }
  double sum = 1.0, moment = 0.0;
  for (int64_t t = 1; t <= radius; ++t) {
    const double weight = 2.0 * gaussian_window(int(t), sigma);
    sum += weight;
    moment += weight * double(t) * double(t);
  }
  moment /= sum;
  for (int64_t t = 0; t <= radius; ++t) {
    const double tap = gaussian_window(int(t), sigma) / sum;
    taps[radius + t] = taps[radius - t] = T(tap);
    if (slopes) slopes[radius + t] = slopes[radius - t] = T(tap * (double(t) * double(t) - moment) / (sigma * sigma * sigma));
  }
}

// A strip of rows [begin, end) of one sample, with its taps and buffers. Axis 0 is y, axis 1 is x.
template <class T>
struct Strip {
  static constexpr int64_t L = kLanes<T>;
  const BlurParams& p;
  Workspace<T>& ws;
  int64_t sample, begin, end;
  int64_t height, width, count;
  int64_t radius[2];
  Border border;
  bool identity;        // the sample is not blurred
  int64_t first, last;  // rows that the strip's outputs reach; under Border::circular they go on beyond the image's ends
  int64_t padded_width, padded_count;
  T gain;
  const T* taps[2];
  const T* slopes[2];
  const T* end_taps[2] = {};  // taps of the first and last pixel along an axis, if they have their own; else null

  Strip(const BlurParams& p, Workspace<T>& ws, int64_t sample, int64_t begin, int64_t end, bool with_slopes)
      : p(p), ws(ws), sample(sample), begin(begin), end(end), height(p.shape[2]), width(p.shape[3]), count(end - begin) {
    border = p.border;
    gain = value_of<T>(p.gain, sample);
    padded_width = round_up(width, L);
    padded_count = round_up(count, L);
    double sigma[2];
    for (int axis = 0; axis < 2; ++axis) {
      const int element = p.per_axis ? axis : 0;
      sigma[axis] = double(value_of<T>(p.sigma, sample, element));
      radius[axis] = gaussian_radius(sigma[axis], value_of<int32_t>(p.kernel_size, sample, element));
    }
    identity = radius[0] == 0 && radius[1] == 0;
    T* own_taps = ws.taps.get(2 * (radius[0] + radius[1] + 1));
    T* own_slopes = with_slopes ? ws.slopes.get(2 * (radius[0] + radius[1] + 1)) : nullptr;
    for (int axis = 0; axis < (p.per_axis ? 2 : 1); ++axis) {
      const int64_t offset = axis * (2 * radius[0] + 1);
      taps[axis] = own_taps + offset;
      slopes[axis] = with_slopes ? own_slopes + offset : nullptr;
      make_taps(sigma[axis], radius[axis], p.tables, own_taps + offset, with_slopes ? own_slopes + offset : nullptr);
    }
    if (!p.per_axis) taps[1] = taps[0], slopes[1] = slopes[0];
    first = begin - radius[0];
    last = end + radius[0];
    if (border == Border::circular && last - first > height) {
      first = 0;
      last = height;
    } else if (border != Border::circular) {
      first = std::max<int64_t>(0, first);
      last = std::min(height, last);
    }
  }

  // Makes the blur its transpose, up to the E of Border::reflect. Under Border::replicate the first and the last pixel have
  // all the weight that falls before and behind them, and those between what they have under Border::constant.
  void transpose() {
    if (border != Border::replicate) return;
    border = Border::constant;
    T* own = ws.end_taps.get(4 * (radius[0] + radius[1] + 1));
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t r = radius[axis], size = 2 * r + 1;
      if (r == 0) continue;
      double sum = 0.0;
      for (int64_t t = size - 1; t >= 0; --t) {  // tap t is that of pixel t - r, and there are none before the first
        sum += double(taps[axis][t]);
        own[t] = own[2 * size - 1 - t] = t >= r ? T(sum) : T(0);
      }
      if (p.shape[2 + axis] == 1) own[r] = own[size + r] = T(1);
      end_taps[axis] = own;
      own += 2 * size;
    }
  }

  // Place of row i of the image among the rows [first, last).
  int64_t place(int64_t i) const {
    const int64_t k = i - first;
    return k < 0 ? k + height : (k < height ? k : k - height);
  }

  // Returns pointers to acuity, or to the weights in its place, in the rows [from, to), which are among [first, last).
  // `shared`, if any, is the acuity that all samples share.
  const T* const* acuity(const T* shared, int64_t from, int64_t to) {
    const int64_t(&strides)[3] = p.weight.strides;
    const T* weight = p.weight.data ? static_cast<const T*>(p.weight.data) + sample * strides[0] : nullptr;
    const bool lies_ready = weight ? strides[2] == 1 : shared != nullptr;
    T* own = lies_ready ? nullptr : ws.acuity.get((to - from) * width);
    const T** rows = ws.acuity_rows.get(to - from);
    for (int64_t s = 0; s < to - from; ++s) {
      const int64_t i = border_index(border, from + s, height);
      if (lies_ready) {
        rows[s] = weight ? weight + i * strides[1] : shared + i * width;
        continue;
      }
      T* row = own + s * width;
      rows[s] = row;
      if (weight)
        for (int64_t j = 0; j < width; ++j) row[j] = weight[i * strides[1] + j * strides[2]];
      else
        acuity_map(p, sample, i, i + 1, row);
    }
    return rows;
  }

  // Stages rows [first, last), each written by load(i, row) for row i of the image, padded to whole vectors.
  template <class Load>
  T* stage(const Load& load) {
    T* staged = ws.staged.get((last - first) * padded_width);
    for (int64_t s = first; s < last; ++s) {
      T* row = staged + (s - first) * padded_width;
      load(border_index(border, s, height), row);
      std::fill(row + width, row + padded_width, T(0));
    }
    return staged;
  }

  // A row of zeros, which lies beyond the image under Border::constant, or null.
  const T* zeros(int64_t size) {
    if (border != Border::constant) return nullptr;
    T* row = ws.zeros.get(size);
    std::fill_n(row, size, T(0));
    return row;
  }

  // Filters down `rows`. With `from_start` the first output is the first pixel along the axis, with `to_end` the last is the
  // last; both may have taps of their own.
  void filter_axis(int axis, int vectors, const T* const* rows, int64_t outputs, int64_t lane, const T* weights,
                   bool from_start, bool to_end, bool add, T* out) const {
    const int64_t r = radius[axis], last = outputs - 1;
    filter_columns(vectors, rows, outputs, lane, weights, r, add, out);
    if (!end_taps[axis]) return;
    if (from_start) filter_columns(vectors, rows, 1, lane, end_taps[axis], r, add, out);
    if (to_end) filter_columns(vectors, rows + last, 1, lane, end_taps[axis] + 2 * r + 1, r, add, out + last * vectors * L);
  }

  // Filters the staged rows down their columns and transposes them: [padded_width, padded_count], a row for each image column.
  const T* down(const T* staged, const T* weights, Scratch<T>& scratch) {
    const T** rows = ws.rows.get(count + 2 * radius[0]);
    const T* beyond = zeros(padded_width);
    for (int64_t s = 0; s < count + 2 * radius[0]; ++s) {
      const int64_t i = border_index(border, begin - radius[0] + s, height);
      rows[s] = i < 0 ? beyond : staged + place(i) * padded_width;
    }
    T* turned = scratch.get(padded_width * padded_count);
    T* group = ws.group.get(padded_count * kVecs * L);
    for (int64_t lane = 0; lane < padded_width; lane += kVecs * L) {
      const int vectors = int(std::min<int64_t>(kVecs, (padded_width - lane) / L));
      const int64_t stride = vectors * L;
      filter_axis(0, vectors, rows, count, lane, weights, begin == 0, end == height, false, group);
      std::fill(group + count * stride, group + padded_count * stride, T(0));
      for (int64_t i = 0; i < padded_count; i += L)
        for (int64_t v = 0; v < stride; v += L)
          transpose_block(group + i * stride + v, stride, turned + (lane + v) * padded_count + i, padded_count);
    }
    return turned;
  }

  // Filters the transposed rows along the image's rows, for the image rows of the lanes [lane, lane + vectors * L).
  void along(const T* turned, const T* weights, int vectors, int64_t lane, bool add, T* group) {
    const T** rows = ws.rows.get(width + 2 * radius[1]);
    const T* beyond = zeros(padded_count);
    for (int64_t s = 0; s < width + 2 * radius[1]; ++s) {
      const int64_t j = border_index(border, s - radius[1], width);
      rows[s] = j < 0 ? beyond : turned + j * padded_count;
    }
    filter_axis(1, vectors, rows, width, lane, weights, true, true, add, group);
  }

  // Transposes one vector of lanes of a group back: [L, padded_width], a row for each image row.
  T* turn_back(const T* group, int64_t stride, int64_t v, Scratch<T>& scratch) {
    T* block = scratch.get(L * padded_width);
    for (int64_t j = 0; j < padded_width; j += L) transpose_block(group + j * stride + v, stride, block + j, padded_width);
    return block;
  }

  // Calls each(vectors, lane) for the lane groups of the strip's rows.
  template <class Each>
  void for_lane_groups(const Each& each) {
    for (int64_t lane = 0; lane < padded_count; lane += kVecs * L)
      each(int(std::min<int64_t>(kVecs, (padded_count - lane) / L)), lane);
  }

  // Filters the rows that load(i, row) writes in both directions; store(i, row) takes the result, row by row.
  template <class Load, class Store>
  void filter(const Load& load, const Store& store) {
    const T* staged = stage(load);
    if (identity) {
      T* row = ws.block.get(padded_width);
      for (int64_t i = begin; i < end; ++i) {
        std::copy_n(staged + (i - first) * padded_width, width, row);
        store(i, row);
      }
      return;
    }
    const T* turned = down(staged, taps[0], ws.turned);
    T* group = ws.group.get(padded_width * kVecs * L);
    for_lane_groups([&](int vectors, int64_t lane) {
      along(turned, taps[1], vectors, lane, false, group);
      for (int64_t v = 0; v < vectors * L; v += L) {
        T* block = turn_back(group, vectors * L, v, ws.block);
        const int64_t i = begin + lane + v;
        for (int64_t k = 0; k < L && i + k < end; ++k) store(i + k, block + k * padded_width);
      }
    });
  }
};

}  // namespace FOVBLUR_VARIANT
}  // namespace fovblur
