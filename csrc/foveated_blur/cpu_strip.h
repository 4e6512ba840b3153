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
  Scratch<T> taps, slopes, acuity, staged, turned, turned_slope, group, group_slope, block, block_slope, row;
  Scratch<const T*> rows;
};

template <class T>
T value_of(const PerSample& parameter, int64_t sample, int64_t element = 0) {
  return static_cast<const T*>(parameter.data)[sample * parameter.stride + element];
}

// Acuity f(u) of the rows [begin, end) of an image, [end - begin, width].
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

// Normalised taps t_i of one sample and, on request, their slopes dt_i / dsigma = t_i (i^2 - sum_j t_j j^2) / sigma^3.
template <class T>
void make_taps(double sigma, int64_t radius, T* taps, T* slopes) {
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

// A strip of rows [begin, end) of one sample, with its taps and buffers.
template <class T>
struct Strip {
  static constexpr int64_t L = kLanes<T>;
  const BlurParams& p;
  Workspace<T>& ws;
  int64_t sample, begin, end;
  int64_t height, width, count, radius;
  int64_t first, last;  // rows of the image that the strip's outputs reach
  int64_t padded_width, padded_count;
  T gain;
  const T *taps, *slopes;

  Strip(const BlurParams& p, Workspace<T>& ws, int64_t sample, int64_t begin, int64_t end, bool with_slopes)
      : p(p), ws(ws), sample(sample), begin(begin), end(end), height(p.shape[2]), width(p.shape[3]), count(end - begin) {
    const double sigma = double(value_of<T>(p.sigma, sample));
    radius = gaussian_radius(sigma, value_of<int32_t>(p.kernel_size, sample));
    gain = value_of<T>(p.gain, sample);
    first = std::max<int64_t>(0, begin - radius);
    last = std::min(height, end + radius);
    padded_width = round_up(width, L);
    padded_count = round_up(count, L);
    T* own_taps = ws.taps.get(2 * radius + 1);
    T* own_slopes = with_slopes ? ws.slopes.get(2 * radius + 1) : nullptr;
    make_taps(sigma, radius, own_taps, own_slopes);
    taps = own_taps;
    slopes = own_slopes;
  }

  // Returns the acuity of rows [from, to), [to - from, width]; `shared`, if any, is the map that all samples share.
  const T* acuity(const T* shared, int64_t from, int64_t to) {
    if (shared) return shared + from * width;
    T* own = ws.acuity.get((to - from) * width);
    acuity_map(p, sample, from, to, own);
    return own;
  }

  // Stages rows [first, last), each written by load(i, row), padded to whole vectors.
  template <class Load>
  T* stage(const Load& load) {
    T* staged = ws.staged.get((last - first) * padded_width);
    for (int64_t i = first; i < last; ++i) {
      T* row = staged + (i - first) * padded_width;
      load(i, row);
      std::fill(row + width, row + padded_width, T(0));
    }
    return staged;
  }

  // Filters the staged rows down their columns and transposes them: [padded_width, padded_count], a row for each image column.
  const T* down(const T* staged, const T* weights, Scratch<T>& scratch) {
    const T** rows = ws.rows.get(count + 2 * radius);
    for (int64_t s = 0; s < count + 2 * radius; ++s)
      rows[s] = staged + (reflect(begin - radius + s, height) - first) * padded_width;
    T* turned = scratch.get(padded_width * padded_count);
    T* group = ws.group.get(padded_count * kVecs * L);
    for (int64_t lane = 0; lane < padded_width; lane += kVecs * L) {
      const int vectors = int(std::min<int64_t>(kVecs, (padded_width - lane) / L));
      const int64_t stride = vectors * L;
      filter_columns(vectors, rows, count, lane, weights, radius, false, group);
      std::fill(group + count * stride, group + padded_count * stride, T(0));
      for (int64_t i = 0; i < padded_count; i += L)
        for (int64_t v = 0; v < stride; v += L)
          transpose_block(group + i * stride + v, stride, turned + (lane + v) * padded_count + i, padded_count);
    }
    return turned;
  }

  // Filters the transposed rows along the image's rows, for the image rows of the lanes [lane, lane + vectors * L).
  void along(const T* turned, const T* weights, int vectors, int64_t lane, bool add, T* group) {
    const T** rows = ws.rows.get(width + 2 * radius);
    for (int64_t s = 0; s < width + 2 * radius; ++s) rows[s] = turned + reflect(s - radius, width) * padded_count;
    filter_columns(vectors, rows, width, lane, weights, radius, add, group);
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
    if (radius == 0) {
      T* row = ws.block.get(padded_width);
      for (int64_t i = begin; i < end; ++i) {
        std::copy_n(staged + (i - first) * padded_width, width, row);
        store(i, row);
      }
      return;
    }
    const T* turned = down(staged, taps, ws.turned);
    T* group = ws.group.get(padded_width * kVecs * L);
    for_lane_groups([&](int vectors, int64_t lane) {
      along(turned, taps, vectors, lane, false, group);
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
