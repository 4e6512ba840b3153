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
// symmetric, constant and circular borders it is symmetric.
inline double border_share(Border border, int64_t i, int64_t n) {
  return border == Border::reflect && (i == 0 || i == n - 1) ? 0.5 : 1.0;
}

template <class T>
void image_gradient_strip(Strip<T> strip, const BlurGradients& gradients, const T* shared_acuity) {
  const BlurParams& p = strip.p;
  strip.transpose();
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

// Adds the strip's rows to dL/dsigma = sum g (1 - w) (A' x A^T + A x A'^T), the first term along y, the second along x, and to
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

// How the samples of a call are cut: a strip has as many rows as a core's cache holds, and fewer where that gives too few
// strips for the threads.
struct Strips {
  int64_t rows, of_a_sample;

  Strips(const BlurParams& p, int64_t wanted) {
    constexpr int64_t kStripElements = 64 * 1024;
    const int64_t height = p.shape[2];
    const int64_t most = std::min(kStripElements / p.shape[3], (height + wanted - 1) / wanted);
    rows = std::min(height, round_up(std::max<int64_t>(1, most), 16));
    of_a_sample = (height + rows - 1) / rows;
  }

  template <class T>
  Strip<T> make(const BlurParams& p, int64_t task, bool with_slopes, Workspace<T>& workspace) const {
    const int64_t begin = task % of_a_sample * rows;
    return {p, workspace, task / of_a_sample, begin, std::min(p.shape[2], begin + rows), with_slopes};
  }
};

// Strips for each of `samples`, so that no thread idles.
int64_t strips_wanted(int64_t samples, int threads) { return (2 * threads + samples - 1) / samples; }

// Threads that are worth their start.
int useful_threads(int64_t elements, int threads) {
  constexpr int64_t kThreadElements = 32 * 1024;
  return int(std::max<int64_t>(1, std::min<int64_t>(threads, elements / kThreadElements)));
}

int64_t elements_of(const BlurParams& p) { return p.shape[0] * p.shape[1] * p.shape[2] * p.shape[3]; }

// Returns the acuity that all samples share, or null if each has its own.
template <class T>
const T* acuity_of_all(const BlurParams& p, Scratch<T>& scratch) {
  if (p.weight.data || p.fixation.stride != 0) return nullptr;
  T* map = scratch.get(p.shape[2] * p.shape[3]);
  acuity_map(p, 0, 0, p.shape[2], map);
  return map;
}

template <class T>
void forward(const BlurParams& p, const Images& out, int threads) {
  if (elements_of(p) == 0) return;
  advise_huge_pages(out, p.shape);
  bool foveated = false;
  for (int64_t i = 0; i < p.shape[0] && !foveated; ++i) foveated = value_of<T>(p.gain, i) != T(0);
  Scratch<T> scratch;  // for a batch; that of one sample is made by its strips, on all threads
  const T* acuity = foveated && p.shape[0] > 1 ? acuity_of_all(p, scratch) : nullptr;
  const Strips strips(p, strips_wanted(p.shape[0], threads));
  const auto body = [&](int64_t task, Workspace<T>& workspace) {
    blur_strip(strips.make(p, task, false, workspace), out, acuity);
  };
  parallel_for<Workspace<T>>(p.shape[0] * strips.of_a_sample, useful_threads(elements_of(p), threads), body);
}

// The call that blurs one image of a list, by the parameters of sample `index`.
template <class T>
BlurParams call_of(const BlurParams& p, const ListedImage& image, int64_t index) {
  const auto own = [&](const PerSample& parameter, size_t element) {
    return PerSample{static_cast<const char*>(parameter.data) + size_t(index * parameter.stride) * element, 0};
  };
  BlurParams call = p;
  const int64_t shape[4] = {1, image.channels, image.height, image.width};
  std::copy_n(shape, 4, call.shape);
  call.images.data = const_cast<void*>(image.data);
  call.images.strides[0] = 0;
  std::copy_n(image.strides, 3, call.images.strides + 1);
  call.sigma = own(p.sigma, sizeof(T));
  call.kernel_size = own(p.kernel_size, sizeof(int32_t));
  call.gain = own(p.gain, sizeof(T));
  call.fixation = own(p.fixation, sizeof(T));
  call.weight = {image.weight, {0, image.weight_strides[0], image.weight_strides[1]}};
  return call;
}

template <class T>
void forward_list(const BlurParams& p, const ListedImage* images, DType result, int threads) {
  struct Listed {
    BlurParams call;
    Images out;
    Strips strips;
    int64_t first_task;
  };
  std::vector<Listed> list;
  int64_t tasks = 0, elements = 0;
  for (int64_t i = 0; i < p.shape[0]; ++i) {
    const ListedImage& image = images[i];
    const BlurParams call = call_of<T>(p, image, i);
    if (elements_of(call) == 0) continue;
    const Images out{image.target, result, {0, image.target_strides[0], image.target_strides[1], image.target_strides[2]}};
    advise_huge_pages(out, call.shape);
    list.push_back({call, out, Strips(call, strips_wanted(p.shape[0], threads)), tasks});
    tasks += list.back().strips.of_a_sample;
    elements += elements_of(call);
  }
  const auto body = [&](int64_t task, Workspace<T>& workspace) {
    const auto comes_before = [](int64_t task, const Listed& listed) { return task < listed.first_task; };
    const Listed& listed = *(std::upper_bound(list.begin(), list.end(), task, comes_before) - 1);
    const T* shared_acuity = nullptr;
    blur_strip(listed.strips.make(listed.call, task - listed.first_task, false, workspace), listed.out, shared_acuity);
  };
  parallel_for<Workspace<T>>(tasks, useful_threads(elements, threads), body);
}

template <class T>
void backward(const BlurParams& p, const BlurGradients& gradients, int threads) {
  T* grad_sigma = static_cast<T*>(gradients.grad_sigma);
  T* grad_gain = static_cast<T*>(gradients.grad_gain);
  const int64_t sigmas = p.shape[0] * (p.per_axis ? 2 : 1);
  if (grad_sigma) std::fill_n(grad_sigma, sigmas, T(0));
  if (grad_gain) std::fill_n(grad_gain, p.shape[0], T(0));
  if (elements_of(p) == 0) return;
  if (gradients.grad_images.data) advise_huge_pages(gradients.grad_images, p.shape);
  Scratch<T> scratch;
  const T* shared = acuity_of_all(p, scratch);
  const Strips strips(p, strips_wanted(p.shape[0], threads));
  // Sums of rows, which are added up in order, so that the result does not depend on the number of threads.
  const int64_t height = p.shape[2];
  std::vector<double> of_sigma(grad_sigma ? size_t(sigmas * height) : 0);
  std::vector<double> of_gain(grad_gain ? size_t(p.shape[0] * height) : 0);
  const auto body = [&](int64_t task, Workspace<T>& workspace) {
    const Strip<T> strip = strips.make(p, task, grad_sigma != nullptr, workspace);
    if (gradients.grad_images.data) image_gradient_strip(strip, gradients, shared);
    const size_t first_row = size_t(strip.sample * height);
    if (grad_sigma || grad_gain)
      parameter_gradient_strip(strip, gradients, shared, grad_sigma ? &of_sigma[(p.per_axis ? 2 : 1) * first_row] : nullptr,
                               grad_gain ? &of_gain[first_row] : nullptr);
  };
  parallel_for<Workspace<T>>(p.shape[0] * strips.of_a_sample, useful_threads(elements_of(p), threads), body);
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

void foveated_blur_list(const BlurParams& params, const ListedImage* images, DType result, int threads) {
  if (params.images.dtype == DType::float64)
    forward_list<double>(params, images, result, threads);
  else
    forward_list<float>(params, images, result, threads);
}

void foveated_blur_backward(const BlurParams& params, const BlurGradients& gradients, int threads) {
  if (params.images.dtype == DType::float64)
    backward<double>(params, gradients, threads);
  else
    backward<float>(params, gradients, threads);
}

}  // namespace FOVBLUR_VARIANT
}  // namespace fovblur
