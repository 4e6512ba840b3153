// Foveated Gaussian blur on the CPU: y = w x + (1 - w) A_h x A_w^T, with A banded and its border folded in.
//
// A thread takes a strip of rows of one sample. The strip is filtered down its columns, transposed, filtered again, and
// transposed back while it is blended and stored. All intermediates stay in the core's L2 cache.
//
// Compiled once per instruction set with FOVBLUR_VARIANT and FOVBLUR_VECTOR_BYTES; see setup.py.

#include "cpu.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "../common/cpu_rows.h"
#include "cpu_strip.h"
#include "huge_pages.h"

namespace fovblur {
namespace FOVBLUR_VARIANT {
namespace {

// ---- forward ----

template <class T>
void blur_strip(Strip<T> strip, const Images& out, const T* shared_acuity) {
  const BlurParams& p = strip.p;
  const bool blends = strip.gain != T(0) && !strip.identity;
  const T* const* acuity = blends ? strip.acuity(shared_acuity, strip.begin, strip.end) : nullptr;
  for (int64_t channel = 0; channel < p.shape[1]; ++channel) {
    const int64_t source = p.images.plane(strip.sample, channel), target = out.plane(strip.sample, channel);
    auto load = [&](int64_t i, T* row) {
      load_row(p.images.dtype, p.images.data, source + i * p.images.strides[2], p.images.strides[3], strip.width, row);
    };
    const T* staged = strip.ws.staged.get((strip.last - strip.first) * strip.padded_width);
    auto store = [&](int64_t i, T* y) {
      if (blends) {
        const T* x = staged + (i - strip.first) * strip.padded_width;
        const T* f = acuity[i - strip.begin];
        for (int64_t j = 0; j < strip.width; ++j) {
          const T w = strip.gain * f[j];
          const T blended = w * x[j] + (T(1) - w) * y[j];
          y[j] = w == T(0) ? y[j] : blended;  // an infinite pixel under weight 0 is not NaN
        }
      }
      if (p.mean) {
        const T scale = T(p.scale), mean = static_cast<const T*>(p.mean)[channel];
        const T inverse_std = T(1) / static_cast<const T*>(p.std)[channel];
        for (int64_t j = 0; j < strip.width; ++j) y[j] = (y[j] * scale - mean) * inverse_std;
      }
      store_row(out.dtype, y, strip.width, out.data, target + i * out.strides[2], out.strides[3]);
    };
    strip.filter(load, store);
  }
}

// ---- backward ----

// Row i of the gradient of the blended image, before the normalisation.
template <class T>
void load_gradient(const BlurParams& p, const Images& grad, int64_t sample, int64_t channel, int64_t i, T* row) {
  load_row(grad.dtype, grad.data, grad.plane(sample, channel) + i * grad.strides[2], grad.strides[3], p.shape[3], row);
  if (!p.std) return;
  const T factor = T(p.scale) / static_cast<const T*>(p.std)[channel];
  for (int64_t j = 0; j < p.shape[3]; ++j) row[j] *= factor;
}

// Diagonal of E in A^T = E A E^-1: under Border::reflect the blur is symmetric once border pixels count half, and under
// symmetric, constant and circular borders it is symmetric. Replicate has none, and is not asked for its transpose.
inline double border_share(Border border, int64_t i, int64_t n) {
  return border == Border::reflect && (i == 0 || i == n - 1) ? 0.5 : 1.0;
}

template <class T>
void image_gradient_strip(Strip<T> strip, const BlurGradients& gradients, const T* shared_acuity) {
  const BlurParams& p = strip.p;
  const T* const* acuity = strip.acuity(shared_acuity, strip.first, strip.last);
  const T share_of_ends = T(border_share(p.border, 0, strip.width));
  T* gradient = strip.ws.row.get(strip.width);
  for (int64_t channel = 0; channel < p.shape[1]; ++channel) {
    auto load = [&](int64_t i, T* row) {  // (1 - w) g / share
      load_gradient(p, gradients.grad, strip.sample, channel, i, row);
      if (strip.identity) return;
      const T* f = acuity[strip.place(i)];
      const T factor = T(1 / border_share(p.border, i, strip.height));
      for (int64_t j = 0; j < strip.width; ++j) row[j] *= (T(1) - strip.gain * f[j]) * factor;
      row[0] /= share_of_ends;
      if (strip.width > 1) row[strip.width - 1] /= share_of_ends;
    };
    const Images& target = gradients.grad_images;
    auto store = [&](int64_t i, T* row) {  // share times the blurred, and w g
      if (!strip.identity) {
        const T* f = acuity[strip.place(i)];
        const T factor = T(border_share(p.border, i, strip.height));
        load_gradient(p, gradients.grad, strip.sample, channel, i, gradient);
        row[0] *= share_of_ends;
        if (strip.width > 1) row[strip.width - 1] *= share_of_ends;
        for (int64_t j = 0; j < strip.width; ++j) row[j] = row[j] * factor + strip.gain * f[j] * gradient[j];
      }
      const int64_t offset = target.plane(strip.sample, channel) + i * target.strides[2];
      store_row(target.dtype, row, strip.width, target.data, offset, target.strides[3]);
    };
    strip.filter(load, store);
  }
}

// What the strip's rows add to dL/dsigma = sum g (1 - w) (A' x A^T + A x A'^T), whose terms are those of y and x, and to
// dL/dgain = sum g f (x - A x A^T). The sums of sigma are [1, height], or [2, height] if it is given per axis.
template <class T>
void parameter_gradient_strip(Strip<T> strip, const BlurGradients& gradients, const T* shared_acuity, double* of_sigma,
                              double* of_gain) {
  constexpr int64_t L = kLanes<T>;
  if (strip.identity) return;
  const BlurParams& p = strip.p;
  const int axes = p.per_axis ? 2 : 1;
  Workspace<T>& ws = strip.ws;
  const T* const* acuity = strip.acuity(shared_acuity, strip.begin, strip.end);
  T* gradient = ws.row.get(strip.width);
  T* group = nullptr;
  T* group_slope[2] = {};
  for (int64_t channel = 0; channel < p.shape[1]; ++channel) {
    const int64_t source = p.images.plane(strip.sample, channel);
    const T* staged = strip.stage([&](int64_t i, T* row) {
      load_row(p.images.dtype, p.images.data, source + i * p.images.strides[2], p.images.strides[3], strip.width, row);
    });
    const T* turned = strip.down(staged, strip.taps[0], ws.turned);
    const T* turned_slope = of_sigma ? strip.down(staged, strip.slopes[0], ws.turned_slope) : nullptr;
    strip.for_lane_groups([&](int vectors, int64_t lane) {
      if (of_gain) {
        group = ws.group.get(strip.padded_width * kVecs * L);
        strip.along(turned, strip.taps[1], vectors, lane, false, group);
      }
      if (of_sigma) {
        for (int axis = 0; axis < axes; ++axis) group_slope[axis] = ws.group_slope[axis].get(strip.padded_width * kVecs * L);
        strip.along(turned_slope, strip.taps[1], vectors, lane, false, group_slope[0]);
        strip.along(turned, strip.slopes[1], vectors, lane, !p.per_axis, group_slope[axes - 1]);
      }
      for (int64_t v = 0; v < vectors * L; v += L) {
        const T* blurred = of_gain ? strip.turn_back(group, vectors * L, v, ws.block) : nullptr;
        const T* slope[2] = {};
        for (int axis = 0; of_sigma && axis < axes; ++axis)
          slope[axis] = strip.turn_back(group_slope[axis], vectors * L, v, ws.block_slope[axis]);
        for (int64_t k = 0; k < L && strip.begin + lane + v + k < strip.end; ++k) {
          const int64_t i = strip.begin + lane + v + k;
          const T* x = staged + (i - strip.first) * strip.padded_width;
          const T* f = acuity[i - strip.begin];
          load_gradient(p, gradients.grad, strip.sample, channel, i, gradient);
          if (of_gain) {
            T sum = 0;
            for (int64_t j = 0; j < strip.width; ++j) sum += gradient[j] * f[j] * (x[j] - blurred[k * strip.padded_width + j]);
            of_gain[i] += double(sum);
          }
          for (int axis = 0; of_sigma && axis < axes; ++axis) {
            if (strip.radius[axis] == 0) continue;  // the identity, whatever the pixels
            T sum = 0;
            for (int64_t j = 0; j < strip.width; ++j)
              sum += gradient[j] * (T(1) - strip.gain * f[j]) * slope[axis][k * strip.padded_width + j];
            of_sigma[axis * strip.height + i] += double(sum);
          }
        }
      }
    });
  }
}

// ---- the batch ----

// The batch cut into strips, and the acuity map if all samples share it.
template <class T>
struct Plan {
  int64_t strips, strip, tasks;
  int threads;
  Scratch<T> acuity;
  T* shared_acuity = nullptr;

  Plan(const BlurParams& p, int available_threads, bool foveated) : threads(available_threads) {
    const int64_t batch = p.shape[0], height = p.shape[2], width = p.shape[3];
    // A strip has as many rows of a sample as a core's cache holds, and fewer if threads would idle.
    constexpr int64_t kStripElements = 64 * 1024, kThreadElements = 32 * 1024;
    const int64_t strips_wanted = (2 * threads + batch - 1) / batch;
    const int64_t strip_rows = std::min(kStripElements / width, (height + strips_wanted - 1) / strips_wanted);
    strip = std::min(height, round_up(std::max<int64_t>(1, strip_rows), 16));
    strips = (height + strip - 1) / strip;
    tasks = batch * strips;
    threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, batch * p.shape[1] * height * width / kThreadElements)));
    if (foveated && !p.weight.data && p.fixation.stride == 0) {
      shared_acuity = acuity.get(height * width);
      acuity_map(p, 0, 0, height, shared_acuity);
    }
  }

  // Calls body(strip, task) for every strip.
  template <class Body>
  void run(const BlurParams& p, bool with_slopes, const Body& body) const {
    parallel_for<Workspace<T>>(tasks, threads, [&](int64_t task, Workspace<T>& workspace) {
      const int64_t begin = task % strips * strip;
      body(Strip<T>(p, workspace, task / strips, begin, std::min(p.shape[2], begin + strip), with_slopes), task);
    });
  }
};

bool is_empty(const BlurParams& p) { return p.shape[0] * p.shape[1] * p.shape[2] * p.shape[3] == 0; }

template <class T>
void forward(const BlurParams& p, const Images& out, int threads) {
  if (is_empty(p)) return;
  advise_huge_pages(out, p.shape);
  bool foveated = false;
  for (int64_t i = 0; i < p.shape[0] && !foveated; ++i) foveated = value_of<T>(p.gain, i) != T(0);
  const Plan<T> plan(p, threads, foveated);
  plan.run(p, false, [&](Strip<T> strip, int64_t) { blur_strip(strip, out, plan.shared_acuity); });
}

template <class T>
void backward(const BlurParams& p, const BlurGradients& gradients, int threads) {
  T* grad_sigma = static_cast<T*>(gradients.grad_sigma);
  T* grad_gain = static_cast<T*>(gradients.grad_gain);
  const int64_t sigmas = p.shape[0] * (p.per_axis ? 2 : 1);
  if (grad_sigma) std::fill_n(grad_sigma, sigmas, T(0));
  if (grad_gain) std::fill_n(grad_gain, p.shape[0], T(0));
  if (is_empty(p)) return;
  if (gradients.grad_images.data) advise_huge_pages(gradients.grad_images, p.shape);
  const Plan<T> plan(p, threads, true);
  const T* shared = plan.shared_acuity;
  // Sums of rows, which are added up in order, so that the result does not depend on the number of threads.
  const int64_t height = p.shape[2];
  std::vector<double> of_sigma(grad_sigma ? size_t(sigmas * height) : 0);
  std::vector<double> of_gain(grad_gain ? size_t(p.shape[0] * height) : 0);
  plan.run(p, grad_sigma != nullptr, [&](Strip<T> strip, int64_t) {
    if (gradients.grad_images.data) image_gradient_strip(strip, gradients, shared);
    const size_t first_row = size_t(strip.sample * height);
    if (grad_sigma || grad_gain)
      parameter_gradient_strip(strip, gradients, shared, grad_sigma ? &of_sigma[(p.per_axis ? 2 : 1) * first_row] : nullptr,
                               grad_gain ? &of_gain[first_row] : nullptr);
  });
  const auto add_up = [&](const std::vector<double>& rows, int64_t count, T* totals) {
    for (int64_t i = 0; totals && i < count; ++i)
      totals[i] = T(std::accumulate(rows.begin() + i * height, rows.begin() + (i + 1) * height, 0.0));
  };
  add_up(of_sigma, sigmas, grad_sigma);
  add_up(of_gain, p.shape[0], grad_gain);
}

}  // namespace

void foveated_blur(const BlurParams& params, const Images& out, int threads) {
  if (params.images.dtype == DType::float64)
    forward<double>(params, out, threads);
  else
    forward<float>(params, out, threads);
}

void foveated_blur_backward(const BlurParams& params, const BlurGradients& gradients, int threads) {
  if (params.images.dtype == DType::float64)
    backward<double>(params, gradients, threads);
  else
    backward<float>(params, gradients, threads);
}

}  // namespace FOVBLUR_VARIANT
}  // namespace fovblur
