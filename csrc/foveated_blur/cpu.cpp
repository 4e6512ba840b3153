// Foveated Gaussian blur on the CPU: y = w x + (1 - w) G x, G = A_h (.) A_w^T with A banded and its border reflected.
//
// One pass does the arithmetic of both directions: `blur_down` filters along the rows of a matrix whose columns are
// SIMD lanes. A strip of an image goes through it, is transposed, goes through it again, and is transposed back while
// it is blended and stored. All intermediates stay in the core's second-level cache.
//
// Compiled once per instruction set with FOVBLUR_VARIANT and FOVBLUR_VECTOR_BYTES; see setup.py.

#include "cpu.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "../common/gaussian.h"
#include "../common/reflect.h"

namespace fovblur {
namespace FOVBLUR_VARIANT {
namespace {

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(FOVBLUR_VECTOR_BYTES), aligned(alignof(T)), may_alias));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int kLanes = FOVBLUR_VECTOR_BYTES / sizeof(T);

// Accumulators of one step of blur_down, kRows x kVecs vectors: as many as the register file holds.
#if FOVBLUR_VECTOR_BYTES == 64
constexpr int kRows = 8, kVecs = 3;  // 32 registers
#else
constexpr int kRows = 4, kVecs = 3;  // 16 registers
#endif

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Uninitialised, cache-line aligned scratch that grows and is reused from task to task.
template <class T>
class Scratch {
 public:
  T* get(int64_t count) {
    if (count > capacity_) {
      data_.reset(static_cast<T*>(std::aligned_alloc(64, size_t(round_up(count * int64_t(sizeof(T)), 64)))));
      if (!data_) throw std::bad_alloc();
      capacity_ = count;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t capacity_ = 0;
};

// ---- the arithmetic ----

// out[i][lanes] = sum_t taps[t] * rows[i + t][lanes] for i in [0, R): R x V accumulators, every row loaded once.
template <class T, int R, int V>
inline void blur_down_block(const T* const* rows, int64_t lane, const T* taps, int64_t radius, T* out, int64_t out_stride) {
  using Vector = Vec<T>;
  constexpr int L = kLanes<T>;
  const int64_t last_tap = 2 * radius;
  Vector sums[R][V] = {};
  // Row s feeds output i by tap s - i. Only the first and last R - 1 rows have outputs they do not reach; those are
  // skipped, not multiplied by zero, so that a NaN stays inside the blur's support.
  auto add_row = [&](int64_t s, bool partial) __attribute__((always_inline)) {
    Vector x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) x[v] = *reinterpret_cast<const Vector*>(rows[s] + lane + v * L);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const int64_t t = s - i;
      if (partial && (t < 0 || t > last_tap)) continue;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[i][v] += x[v] * taps[t];
    }
  };
  const int64_t end = last_tap + R;
  const int64_t head = std::min<int64_t>(R - 1, end), tail = std::max<int64_t>(head, last_tap + 1);
  int64_t s = 0;
  for (; s < head; ++s) add_row(s, true);
  for (; s < tail; ++s) add_row(s, false);
  for (; s < end; ++s) add_row(s, true);
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) *reinterpret_cast<Vector*>(out + i * out_stride + v * L) = sums[i][v];
}

// out[i][0 .. V * lanes) for i in [0, count), from the lanes of rows[i .. i + 2 radius] that start at `lane`.
template <class T, int V>
void blur_down(const T* const* rows, int64_t count, int64_t lane, const T* taps, int64_t radius, T* out, int64_t out_stride) {
  int64_t i = 0;
  for (; i + kRows <= count; i += kRows)
    blur_down_block<T, kRows, V>(rows + i, lane, taps, radius, out + i * out_stride, out_stride);
  if (i < count && count >= kRows) {  // the last block overlaps its neighbour and computes the same values again
    i = count - kRows;
    blur_down_block<T, kRows, V>(rows + i, lane, taps, radius, out + i * out_stride, out_stride);
    i = count;
  }
  for (; i < count; ++i) blur_down_block<T, 1, V>(rows + i, lane, taps, radius, out + i * out_stride, out_stride);
}

template <class T>
void blur_down(int vectors, const T* const* rows, int64_t count, int64_t lane, const T* taps, int64_t radius, T* out,
               int64_t out_stride) {
  switch (vectors) {
    case 1:
      return blur_down<T, 1>(rows, count, lane, taps, radius, out, out_stride);
    case 2:
      return blur_down<T, 2>(rows, count, lane, taps, radius, out, out_stride);
    default:
      return blur_down<T, kVecs>(rows, count, lane, taps, radius, out, out_stride);
  }
}

template <class V, size_t... I>
inline V interleave_low(V a, V b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (I % 2 ? sizeof...(I) + I / 2 : I / 2)...);
}
template <class V, size_t... I>
inline V interleave_high(V a, V b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (sizeof...(I) / 2 + (I % 2 ? sizeof...(I) + I / 2 : I / 2))...);
}

// A square block of lanes x lanes elements: log2(lanes) rounds of perfect shuffles.
template <class T>
inline void transpose_block(const T* in, int64_t in_stride, T* out, int64_t out_stride) {
  constexpr int L = kLanes<T>;
  constexpr auto lanes = std::make_index_sequence<L>();
  Vec<T> a[L], b[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) a[i] = *reinterpret_cast<const Vec<T>*>(in + i * in_stride);
#pragma GCC unroll 4
  for (int round = 1; round < L; round *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < L / 2; ++i) {
      b[2 * i] = interleave_low(a[i], a[i + L / 2], lanes);
      b[2 * i + 1] = interleave_high(a[i], a[i + L / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) a[i] = b[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) *reinterpret_cast<Vec<T>*>(out + i * out_stride) = a[i];
}

// ---- loading and storing rows of any element type ----

template <class T, class Element>
inline void load_row(const Element* source, int64_t stride, int64_t count, T* row) {
  if (stride == 1)
    for (int64_t j = 0; j < count; ++j) row[j] = T(to_float(source[j]));
  else
    for (int64_t j = 0; j < count; ++j) row[j] = T(to_float(source[j * stride]));
}
template <>
inline void load_row(const double* source, int64_t stride, int64_t count, double* row) {
  for (int64_t j = 0; j < count; ++j) row[j] = source[j * stride];
}

template <class T>
void load_row(DType dtype, const void* base, int64_t offset, int64_t stride, int64_t count, T* row) {
  switch (dtype) {
    case DType::uint8:
      return load_row(static_cast<const uint8_t*>(base) + offset, stride, count, row);
    case DType::float16:
      return load_row(static_cast<const Half*>(base) + offset, stride, count, row);
    case DType::bfloat16:
      return load_row(static_cast<const BFloat16*>(base) + offset, stride, count, row);
    case DType::float32:
      return load_row(static_cast<const float*>(base) + offset, stride, count, row);
    case DType::float64:
      if constexpr (sizeof(T) == 8) load_row(static_cast<const double*>(base) + offset, stride, count, row);
      return;
  }
}

template <class T, class Element>
inline void store_row(const T* row, int64_t count, Element* target, int64_t stride) {
  if (stride == 1)
    for (int64_t j = 0; j < count; ++j) target[j] = Convert<Element>::from(float(row[j]));
  else
    for (int64_t j = 0; j < count; ++j) target[j * stride] = Convert<Element>::from(float(row[j]));
}

template <class T>
void store_row(DType dtype, const T* row, int64_t count, void* base, int64_t offset, int64_t stride) {
  switch (dtype) {
    case DType::uint8:
      return store_row(row, count, static_cast<uint8_t*>(base) + offset, stride);
    case DType::float16:
      return store_row(row, count, static_cast<Half*>(base) + offset, stride);
    case DType::bfloat16:
      return store_row(row, count, static_cast<BFloat16*>(base) + offset, stride);
    case DType::float32:
      return store_row(row, count, static_cast<float*>(base) + offset, stride);
    case DType::float64: {
      double* target = static_cast<double*>(base) + offset;
      for (int64_t j = 0; j < count; ++j) target[j * stride] = double(row[j]);
      return;
    }
  }
}

// ---- one sample ----

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
    if (p.falloff == Falloff::exp) {  // its own loop, so that it vectorises
      for (int j = 0; j < int(width); ++j) map[j] = exp_of_negative(-decay * eccentricity(dy, T(j) - cx, distance));
    } else {
      for (int j = 0; j < int(width); ++j) map[j] = falloff(p.falloff, decay, eccentricity(dy, T(j) - cx, distance));
    }
  }
}

template <class T>
struct Workspace {
  Scratch<T> taps, image, turned, group, block, acuity;
  Scratch<const T*> rows;
};

// Taps of one sample, normalised; returns the radius.
template <class T>
int64_t make_taps(const BlurParams& p, int64_t sample, Scratch<T>& scratch) {
  const double sigma = double(value_of<T>(p.sigma, sample));
  const int64_t radius = gaussian_radius(sigma, value_of<int32_t>(p.kernel_size, sample));
  T* taps = scratch.get(2 * radius + 1);
  double sum = 1.0;
  for (int64_t t = 1; t <= radius; ++t) sum += 2.0 * gaussian_window(int(t), sigma);
  taps[radius] = T(1.0 / sum);
  for (int64_t t = 1; t <= radius; ++t)
    taps[radius + t] = taps[radius - t] = T(gaussian_window(int(t), sigma) / sum);
  return radius;
}

// One blurred row: blend with the sharp row x, normalise, in place. `acuity` is null where the gain is 0.
template <class T>
inline void finish_row(const BlurParams& p, int64_t channel, T gain, const T* x, const T* acuity, int64_t width, T* y) {
  if (acuity) {
    for (int64_t j = 0; j < width; ++j) {
      const T w = gain * acuity[j];
      const T blended = w * x[j] + (T(1) - w) * y[j];
      y[j] = w == T(0) ? y[j] : blended;  // an infinite pixel under weight 0 is not NaN
    }
  }
  if (p.mean) {
    const T scale = T(p.scale), mean = static_cast<const T*>(p.mean)[channel];
    const T inverse_std = T(1) / static_cast<const T*>(p.std)[channel];
    for (int64_t j = 0; j < width; ++j) y[j] = (y[j] * scale - mean) * inverse_std;
  }
}

// Rows [begin, end) of every channel of one sample. `shared_acuity` is the whole image's map when all samples share it.
template <class T>
void blur_strip(const BlurParams& p, int64_t sample, int64_t begin, int64_t end, const T* shared_acuity, Workspace<T>& ws) {
  constexpr int64_t L = kLanes<T>;
  const int64_t height = p.shape[2], width = p.shape[3], count = end - begin;
  const int64_t radius = make_taps(p, sample, ws.taps);
  const T* taps = ws.taps.get(0);
  const T gain = value_of<T>(p.gain, sample);

  const T* acuity = nullptr;  // of row `begin`
  if (gain != T(0) && radius > 0) {
    if (shared_acuity) {
      acuity = shared_acuity + begin * width;
    } else {
      T* own = ws.acuity.get(count * width);
      acuity_map(p, sample, begin, end, own);
      acuity = own;
    }
  }

  const int64_t first = std::max<int64_t>(0, begin - radius), last = std::min(height, end + radius);
  const int64_t padded_width = round_up(width, L), padded_count = round_up(count, L);
  T* image = ws.image.get((last - first) * padded_width);              // [last - first, padded_width]
  T* turned = ws.turned.get(padded_width * padded_count);              // [padded_width, padded_count]
  T* group = ws.group.get(std::max(padded_count, padded_width) * kVecs * L);
  T* block = ws.block.get(L * padded_width);                           // [L, padded_width]
  const T** rows = ws.rows.get(std::max(height, width) + 2 * radius);

  for (int64_t channel = 0; channel < p.shape[1]; ++channel) {
    const int64_t in_offset = sample * p.in_strides[0] + channel * p.in_strides[1];
    const int64_t out_offset = sample * p.out_strides[0] + channel * p.out_strides[1];
    for (int64_t i = first; i < last; ++i) {
      T* row = image + (i - first) * padded_width;
      load_row(p.in_dtype, p.images, in_offset + i * p.in_strides[2], p.in_strides[3], width, row);
      std::fill(row + width, row + padded_width, T(0));
    }
    auto store = [&](int64_t i, T* y) {
      const T* x = image + (i - first) * padded_width;
      finish_row(p, channel, gain, x, acuity ? acuity + (i - begin) * width : nullptr, width, y);
      store_row(p.out_dtype, y, width, p.out, out_offset + i * p.out_strides[2], p.out_strides[3]);
    };
    if (radius == 0) {
      for (int64_t i = begin; i < end; ++i) {
        std::copy_n(image + (i - first) * padded_width, width, block);
        store(i, block);
      }
      continue;
    }

    // Down the columns; the result is stored turned, so that its rows are image columns.
    for (int64_t s = 0; s < count + 2 * radius; ++s)
      rows[s] = image + (reflect(begin - radius + s, height) - first) * padded_width;
    for (int64_t lane = 0; lane < padded_width; lane += kVecs * L) {
      const int vectors = int(std::min<int64_t>(kVecs, (padded_width - lane) / L));
      const int64_t stride = vectors * L;
      blur_down(vectors, rows, count, lane, taps, radius, group, stride);
      std::fill(group + count * stride, group + padded_count * stride, T(0));
      for (int64_t i = 0; i < padded_count; i += L)
        for (int64_t v = 0; v < stride; v += L)
          transpose_block(group + i * stride + v, stride, turned + (lane + v) * padded_count + i, padded_count);
    }

    // Along the rows, for the image rows of one lane group at a time; turned back, blended and stored.
    for (int64_t s = 0; s < width + 2 * radius; ++s) rows[s] = turned + reflect(s - radius, width) * padded_count;
    for (int64_t lane = 0; lane < padded_count; lane += kVecs * L) {
      const int vectors = int(std::min<int64_t>(kVecs, (padded_count - lane) / L));
      const int64_t stride = vectors * L;
      blur_down(vectors, rows, width, lane, taps, radius, group, stride);
      for (int64_t v = 0; v < stride; v += L) {
        for (int64_t j = 0; j < padded_width; j += L)
          transpose_block(group + j * stride + v, stride, block + j, padded_width);
        const int64_t i = begin + lane + v;
        for (int64_t k = 0; k < L && i + k < end; ++k) store(i + k, block + k * padded_width);
      }
    }
  }
}

// ---- the batch ----

// Calls body(task, workspace) for every task; the first exception of any thread is rethrown here.
template <class Workspace, class Body>
void parallel_for(int64_t tasks, int threads, const Body& body) {
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  auto work = [&] {
    try {
      Workspace workspace;
      for (int64_t task; (task = next.fetch_add(1)) < tasks;) body(task, workspace);
    } catch (...) {
      next = tasks;
      std::lock_guard<std::mutex> lock(failure_mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> helpers;
  try {
    for (int i = 1; i < int(std::min<int64_t>(threads, tasks)); ++i) helpers.emplace_back(work);
  } catch (const std::system_error&) {  // no more threads to be had: those there are do the work
  }
  work();
  for (std::thread& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
}

template <class T>
void run(const BlurParams& p, int threads) {
  const int64_t batch = p.shape[0], channels = p.shape[1], height = p.shape[2], width = p.shape[3];
  if (batch * channels * height * width == 0) return;

  // A strip is what a thread takes: as many rows of a sample as its cache holds, fewer where threads would idle.
  constexpr int64_t kStripElements = 64 * 1024, kThreadElements = 32 * 1024;
  const int64_t strips_wanted = (2 * threads + batch - 1) / batch;
  const int64_t strip_rows = std::min(kStripElements / width, (height + strips_wanted - 1) / strips_wanted);
  const int64_t strip = std::min(height, round_up(std::max<int64_t>(1, strip_rows), 16));
  const int64_t strips = (height + strip - 1) / strip;
  const int64_t elements = batch * channels * height * width;
  threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, elements / kThreadElements)));

  std::unique_ptr<T[]> shared;
  bool foveated = false;
  for (int64_t i = 0; i < batch && !foveated; ++i) foveated = value_of<T>(p.gain, i) != T(0);
  if (foveated && p.fixation.stride == 0) {
    shared.reset(new T[size_t(height * width)]);
    acuity_map(p, 0, 0, height, shared.get());
  }
  parallel_for<Workspace<T>>(batch * strips, threads, [&](int64_t task, Workspace<T>& workspace) {
    const int64_t begin = task % strips * strip;
    blur_strip(p, task / strips, begin, std::min(height, begin + strip), shared.get(), workspace);
  });
}

}  // namespace

void foveated_blur(const BlurParams& params, int threads) {
  if (params.in_dtype == DType::float64)
    run<double>(params, threads);
  else
    run<float>(params, threads);
}

}  // namespace FOVBLUR_VARIANT
}  // namespace fovblur
