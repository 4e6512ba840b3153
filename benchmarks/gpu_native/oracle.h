// The ops in double precision, written as their formulas: what the results of the kernels are compared with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "foveated_blur/blur_math.h"

namespace oracle {

using Values = std::vector<double>;

inline int64_t mirrored(int64_t i, int64_t n) {
  while (n > 1 && (i < 0 || i >= n)) i = i < 0 ? -i : 2 * (n - 1) - i;
  return n > 1 ? i : 0;
}

// The taps of one sample, and their derivative in sigma.
struct Taps {
  int64_t radius;
  Values tap, slope;

  Taps(double sigma, int kernel_size) : radius(sigma == 0 ? 0 : kernel_size / 2), tap(2 * radius + 1), slope(tap) {
    double sum = 0, moment = 0;
    for (int64_t t = -radius; t <= radius; ++t) sum += tap[t + radius] = radius ? std::exp(-0.5 * t * t / (sigma * sigma)) : 1;
    for (double& each : tap) each /= sum;
    for (int64_t t = -radius; t <= radius; ++t) moment += tap[t + radius] * t * t;
    for (int64_t t = -radius; t <= radius; ++t)
      slope[t + radius] = radius ? tap[t + radius] * (t * t - moment) / (sigma * sigma * sigma) : 0;
  }
};

// Filters a plane [height, width] along both directions, or applies the transpose of that.
inline Values filtered(const Values& x, int64_t height, int64_t width, const Values& down, const Values& across, bool adjoint) {
  Values along(x.size()), y(x.size());
  const int64_t radius = int64_t(down.size()) / 2;
  // The plane is `lines` x `n`, filtered along n, whose pixels are `step` apart.
  auto pass = [&](const Values& from, Values& to, const Values& taps, int64_t lines, int64_t n, int64_t line, int64_t step) {
    std::vector<int64_t> there(n + 2 * radius);
    for (int64_t k = 0; k < n + 2 * radius; ++k) there[k] = mirrored(k - radius, n) * step;
    for (int64_t i = 0; i < lines; ++i)
      for (int64_t j = 0; j < n; ++j)
        for (int64_t t = 0; t <= 2 * radius; ++t) {
          const int64_t here = i * line + j * step, other = i * line + there[j + t];
          to[adjoint ? other : here] += taps[t] * from[adjoint ? here : other];
        }
  };
  pass(x, along, across, height, width, width, 1);
  pass(along, y, down, width, height, 1, width);
  return y;
}

inline double falloff(fovblur::Falloff kind, double decay, double u) {
  using fovblur::Falloff;
  if (kind == Falloff::exp) return std::exp(-decay * u);
  if (kind == Falloff::linear) return 1 - u;
  if (kind == Falloff::quadratic) return 1 - u * u;
  if (kind == Falloff::log) return 1 - std::log(u * (std::exp(1.0) - 1) + 1);
  double low = 0, high = 3.14159265358979;  // the cycloid x = r (s - sin s), y = 1 - r (1 - cos s)
  for (int k = 0; k < 60; ++k) {
    const double s = (low + high) / 2;
    (0.5729 * (s - std::sin(s)) < u ? low : high) = s;
  }
  return 1 - 0.5729 * (1 - std::cos(low));
}

inline double acuity(fovblur::Falloff kind, double decay, double i, double j, double cy, double cx, double height, double width) {
  double dy = height - 1 - cy, dx = width - 1 - cx;
  if (cy != std::floor(height / 2) || cx != std::floor(width / 2)) {
    dy = std::max(std::fabs(cy), std::fabs(dy));
    dx = std::max(std::fabs(cx), std::fabs(dx));
  }
  const double distance = std::hypot(i - cy, j - cx), farthest = std::hypot(dy, dx);
  return falloff(kind, decay, distance < farthest ? distance / farthest : (distance > 0 ? 1 : 0));
}

// Scores [recordings, images] of embeddings in rows; an empty gate is all 1.
inline Values scores(const Values& brain_image, const Values& image, const Values& brain_text, const Values& text,
                     const Values& row_gate, const Values& column_gate, int64_t recordings, int64_t images) {
  const int64_t image_width = int64_t(image.size()) / images, text_width = int64_t(text.size()) / images;
  auto product = [](const Values& left, const Values& right, int64_t row, int64_t other, int64_t width) {
    return std::inner_product(&left[row * width], &left[row * width] + width, &right[other * width], 0.0);
  };
  Values result(recordings * images);
  for (int64_t i = 0; i < recordings; ++i)
    for (int64_t j = 0; j < images; ++j) {
      const double gate = (row_gate.empty() ? 1 : row_gate[i]) * (column_gate.empty() ? 1 : column_gate[j]);
      const double of_text = product(brain_text, text, i, j, text_width);
      result[i * images + j] = product(brain_image, image, i, j, image_width) * (1 + gate * of_text);
    }
  return result;
}

}  // namespace oracle
