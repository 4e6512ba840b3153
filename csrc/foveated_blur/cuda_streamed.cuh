// A part of a plane filtered in one walk down its rows, direct form: exact in float32.
//
// A block stages 16 or more rows at a time in shared memory, by asynchronous copies that run while it finishes the rows
// before. It filters them along x into a ring that holds the last rows filtered so, and the ring along y into results. So a
// pixel is filtered once along each direction, whatever the radius. A thread makes 16 results at a time, eight neighbours
// along the direction of the filter in two lines: each input that it reads serves both a vector load and eight sums. No tap
// is multiplied outside the support, so an infinity or NaN stays in its own.
#pragma once

#include "../common/async_copy.cuh"
#include "cuda_filter.cuh"
#include "cuda_pixels.cuh"

namespace fovblur {

constexpr int kLines = 2;             // lines of eight results that a thread makes at a time
constexpr int kStep = kLines * kRun;  // rows of the shortest step

// The part of an image that a block makes.
struct Region {
  int height, width, first_row, end_row, first_column, end_column;
};

FOVBLUR_HD int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
// The shortest row of n floats so that eight lanes, four in one row and four in the next, meet different banks by 16-byte
// accesses.
FOVBLUR_HD int row_stride(int n) { return round_up(n - 4, 8) + 4; }

// How a block walks through its region: in strips of `columns`, `rows` rows at a time. With kFilters 2 the derivative in sigma
// is filtered beside the blur.
template <int kThreads, int kFilters>
struct Walk {
  static constexpr int kFewestColumns = 32;  // narrower strips would read their margins too often

  int radius, begin, end;  // rows [begin, end) of the image are read
  int columns, rows;
  int ring;  // rows

  // Chooses the widest strips that `floats` of shared memory hold; columns is 0 if there are none.
  FOVBLUR_HD Walk(const Region& region, int radius, int floats) : radius(radius) {
    begin = region.first_row > radius ? region.first_row - radius : 0;
    end = region.height - region.end_row > radius ? region.end_row + radius : region.height;
    const int width = region.end_column - region.first_column;
    for (int strips = (width - 1) / (2 * kThreads) + 1;; ++strips) {
      columns = round_up((width - 1) / strips + 1, kRun);
      const int busy = columns < kThreads ? kThreads / columns * kStep : kStep;  // rows that give every thread work
      rows = round_up(end - begin < busy ? end - begin : busy, kStep);
      if (strips > 1 && columns < kFewestColumns) break;
      for (;; rows = kStep) {
        ring = 2 * radius + rows < end - begin ? 2 * radius + rows : round_up(end - begin, rows);
        if (this->floats() <= floats) return;
        if (rows == kStep) break;
      }
    }
    columns = 0;
  }

  // Shared memory: taps, places of the ring's rows, staged rows, the ring.
  FOVBLUR_HD int tap_floats() const { return round_up(2 * radius + 1, 4) + 4; }
  FOVBLUR_HD int place_ints() const { return round_up(2 * radius + rows, 4); }
  FOVBLUR_HD int staged_stride() const { return row_stride(columns + 2 * radius); }
  FOVBLUR_HD int ring_stride() const { return row_stride(columns); }
  FOVBLUR_HD int floats() const {
    return kFilters * tap_floats() + place_ints() + rows * staged_stride() + kFilters * ring * ring_stride();
  }
  __device__ float* taps(int filter) const { return reinterpret_cast<float*>(dynamic_shared) + filter * tap_floats(); }
  __device__ int* places() const { return reinterpret_cast<int*>(taps(kFilters)); }
  __device__ float* staged() const { return taps(kFilters) + place_ints(); }
  __device__ float* filtered(int filter) const { return staged() + rows * staged_stride() + filter * ring * ring_stride(); }

  // Writes the taps, and as a second filter their slopes.
  __device__ void hold(const Taps& gaussian) const {
#pragma unroll 1
    for (int k = int(threadIdx.x); k < tap_floats(); k += kThreads) {
      const int offset = k - radius;
      const bool inside = offset <= radius;
      taps(0)[k] = !inside ? 0.0f : (radius == 0 ? 1.0f : gaussian.tap(offset));
      if (kFilters == 2) taps(kFilters - 1)[k] = inside && radius > 0 ? gaussian.slope(offset) : 0.0f;
    }
  }
};

__device__ inline void read_four(const float* from, float (&to)[4]) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

// In shared memory, by one instruction, which the compiler does not always choose.
__device__ inline void write_four(float* to, const float* from) {
#ifdef __CUDA_ARCH__
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "f"(from[0]), "f"(from[1]), "f"(from[2]), "f"(from[3])
               : "memory");
#else
  *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
#endif
}

// Adds the eight neighbours of each line to sums[filter][line]: sums[..][i] += tap d times input i + d, for d in [0, 2 radius].
// `taps` are symmetric, and readable to the next multiple of four; load.four(s, x) gives x[k][line], the inputs s + k, for s a
// multiple of four; load.two(s, x) two of them, for s even.
template <int kFilters, class Load>
__device__ void filter_lines(const float* const (&taps)[kFilters], int radius, const Load& load,
                             float (*sums)[kLines][kRun]) {
  auto add = [&](int filter, int i, float tap, const float(&x)[kLines]) {
#pragma unroll
    for (int line = 0; line < kLines; ++line) sums[filter][line][i] += tap * x[line];
  };
  const int last = 2 * radius;
  if (last < kRun) {
#pragma unroll 1
    for (int s = 0; s < last + kRun; s += 2) {
      float x[2][kLines];
      load.two(s, x);
#pragma unroll
      for (int k = 0; k < 2; ++k)
#pragma unroll
        for (int i = 0; i < kRun; ++i)
          if (s + k >= i && s + k - i <= last)
#pragma unroll
            for (int filter = 0; filter < kFilters; ++filter) add(filter, i, taps[filter][s + k - i], x[k]);
    }
    return;
  }
  {  // the first eight inputs, which reach the first results only
    float w[kFilters][2][4];
#pragma unroll
    for (int filter = 0; filter < kFilters; ++filter)
#pragma unroll
      for (int half = 0; half < 2; ++half) read_four(taps[filter] + 4 * half, w[filter][half]);
#pragma unroll
    for (int s = 0; s < kRun; s += 4) {
      float x[4][kLines];
      load.four(s, x);
#pragma unroll
      for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int filter = 0; filter < kFilters; ++filter)
#pragma unroll
          for (int i = 0; i <= s + k; ++i) add(filter, i, w[filter][(s + k - i) / 4][(s + k - i) % 4], x[k]);
    }
  }
  auto add_all = [&](int s, const auto& x) {  // inputs that reach all eight results, from s on, a multiple of four
#pragma unroll
    for (int filter = 0; filter < kFilters; ++filter) {
      float w[3][4];
#pragma unroll
      for (int part = 0; part < 3; ++part) read_four(taps[filter] + s - kRun + 4 * part, w[part]);
#pragma unroll
      for (int k = 0; k < int(sizeof(x) / sizeof(x[0])); ++k)
#pragma unroll
        for (int i = 0; i < kRun; ++i) add(filter, i, w[(kRun + k - i) / 4][(kRun + k - i) % 4], x[k]);
    }
  };
  int s = kRun;
#pragma unroll 1
  for (; s + 8 <= last; s += 8) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x[4][kLines];
      load.four(s + 4 * half, x);
      add_all(s + 4 * half, x);
    }
  }
  if (s + 4 <= last) {
    float x[4][kLines];
    load.four(s, x);
    add_all(s, x);
    s += 4;
  }
  if (s < last) {  // an odd radius
    float x[2][kLines];
    load.two(s, x);
    add_all(s, x);
  }
  {  // the last eight inputs, which reach the last results only
    float w[kFilters][2][4];
#pragma unroll
    for (int filter = 0; filter < kFilters; ++filter)
#pragma unroll
      for (int half = 0; half < 2; ++half) read_four(taps[filter] + 4 * half, w[filter][half]);
#pragma unroll
    for (int k = 0; k < kRun; k += 2) {
      float x[2][kLines];
      load.two(last + k, x);
#pragma unroll
      for (int odd = 0; odd < 2; ++odd)
#pragma unroll
        for (int filter = 0; filter < kFilters; ++filter)
#pragma unroll
          for (int i = k + odd; i < kRun; ++i) add(filter, i, w[filter][(i - k - odd) / 4][(i - k - odd) % 4], x[odd]);
    }
  }
}

// Two staged rows.
struct AlongRows {
  const float* rows[kLines];
  __device__ void four(int s, float (&x)[4][kLines]) const {
#pragma unroll
    for (int line = 0; line < kLines; ++line) {
      float four[4];
      read_four(rows[line] + s, four);
#pragma unroll
      for (int k = 0; k < 4; ++k) x[k][line] = four[k];
    }
  }
  __device__ void two(int s, float (&x)[2][kLines]) const {
#pragma unroll
    for (int line = 0; line < kLines; ++line) {
      const float2 two = *reinterpret_cast<const float2*>(rows[line] + s);
      x[0][line] = two.x, x[1][line] = two.y;
    }
  }
};

// Two neighbouring columns of the ring, whose rows start `places` bytes after its first.
struct AlongColumns {
  const float* column;
  const int* places;
  __device__ void one(int place, float (&x)[kLines]) const {
    const float2 both = *reinterpret_cast<const float2*>(reinterpret_cast<const char*>(column) + place);
    x[0] = both.x, x[1] = both.y;
  }
  __device__ void four(int s, float (&x)[4][kLines]) const {
    const int4 at = *reinterpret_cast<const int4*>(places + s);
    one(at.x, x[0]), one(at.y, x[1]), one(at.z, x[2]), one(at.w, x[3]);
  }
  __device__ void two(int s, float (&x)[2][kLines]) const {
    const int2 at = *reinterpret_cast<const int2*>(places + s);
    one(at.x, x[0]), one(at.y, x[1]);
  }
};

// A block's walk. `pass` prepares what is staged; `output` gets the sums of eight rows of two columns.
template <int kThreads, int kFilters, class Pass>
class Stream {
 public:
  __device__ Stream(const Pass& pass, const Walk<kThreads, kFilters>& walk, const Region& region)
      : pass_(pass), walk_(walk), region_(region) {}

  // output.prefetch(i, j) returns what output(i, j, prefetched, sums) needs from device memory.
  template <class Output>
  __device__ void run(const Output& output) const {
    for (int column = region_.first_column; column < region_.end_column; column += walk_.columns) {
      int newest = walk_.begin, head = 0;  // first row of the last chunk in the ring, and its place there
      stage(newest, column);
      for (int row = newest; row - walk_.radius < region_.end_row; row += walk_.rows) {
        const bool more = row < walk_.end, results = row - walk_.radius + walk_.rows > region_.first_row;
        if (!more && !results) continue;
        if (more) {
          if (row != walk_.begin) head = wrapped(head + walk_.rows);
          newest = row;
          wait_for_copies<0>();
          if constexpr (Pass::kPrepares) prepare(row, column);
        }
        __syncthreads();  // the rows are staged, and the readers of the ring are done
        if (more) filter_rows(head);
        if (results) find_places(row, newest, head);
        __syncthreads();
        if (row + walk_.rows < walk_.end) stage(row + walk_.rows, column);
        if (results) filter_columns(row - walk_.radius, column, output);
      }
    }
  }

 private:
  const Pass& pass_;
  const Walk<kThreads, kFilters>& walk_;
  const Region& region_;

  __device__ int wrapped(int place) const { return place >= walk_.ring ? place - walk_.ring : place; }

  // Calls each(k, j) for the thread's places of a staged row; the border is reflected.
  template <class Each>
  __device__ void for_own_columns(int column, const Each& each) const {
    for (int k = int(threadIdx.x); k < walk_.columns + 2 * walk_.radius; k += kThreads)
      each(walk_.staged() + k, reflect(column - walk_.radius + k, region_.width));
  }

  template <class Element>
  __device__ void stage_as(int row, int column) const {
    const Images& images = pass_.source.images;
    const int64_t row_bytes = images.strides[2] * int64_t(sizeof(Element));
    const int full = min(walk_.rows, walk_.end - row), staged_bytes = walk_.staged_stride() * int(sizeof(float));
    for_own_columns(column, [&](float* staged, int j) {
      char* to = reinterpret_cast<char*>(staged);
      const char* from = static_cast<const char*>(images.data) + pass_.source.at(row, j) * int64_t(sizeof(Element));
#pragma unroll 8
      for (int q = 0; q < full; ++q, to += staged_bytes, from += row_bytes) {
        const Element* element = reinterpret_cast<const Element*>(from);
        if constexpr (std::is_same_v<Element, float>)
          copy_async_float(reinterpret_cast<float*>(to), element);
        else
          *reinterpret_cast<float*>(to) = to_float(*element);
      }
    });
  }

  // Begins to read rows from `row` on.
  __device__ void stage(int row, int column) const {
    switch (pass_.source.images.dtype) {
      case DType::uint8:
        stage_as<uint8_t>(row, column);
        break;
      case DType::float16:
        stage_as<Half>(row, column);
        break;
      case DType::bfloat16:
        stage_as<BFloat16>(row, column);
        break;
      default:
        stage_as<float>(row, column);
        commit_copies();
    }
  }

  // Prepares the thread's own staged pixels.
  __device__ void prepare(int row, int column) const {
    const int full = min(walk_.rows, walk_.end - row), stride = walk_.staged_stride();
    for_own_columns(column, [&](float* x, int j) {
      auto prepare_with = [&](int i, float weight) {
        *x = pass_.prepare(i, j, region_.height, region_.width, weight, *x);
        x += stride;
      };
      if (pass_.weight.kind == Falloff::exp) {
#pragma unroll 4
        for (int q = 0; q < full; ++q) prepare_with(row + q, pass_.weight.exponential_at(row + q, j));
      } else {
#pragma unroll 1
        for (int q = 0; q < full; ++q) prepare_with(row + q, pass_.weight.at(row + q, j));
      }
    });
  }

  // Filters the staged rows into the ring from place `head` on. Rows below the image's end are not used.
  __device__ void filter_rows(int head) const {
    const float* taps[kFilters];
#pragma unroll
    for (int filter = 0; filter < kFilters; ++filter) taps[filter] = walk_.taps(filter);
    const int lane = int(threadIdx.x) % 32, runs = walk_.columns / kRun, slots = runs * (walk_.rows / kStep);
    for (int slot = int(threadIdx.x) / 32 * 4 + lane % 4; slot < slots; slot += kThreads / 8) {
      const int band = slot / runs, run = slot - band * runs, q = band * kStep + lane / 4;
      const float* from = walk_.staged() + q * walk_.staged_stride() + run * kRun;
      float sums[kFilters][kLines][kRun] = {};
      filter_lines(taps, walk_.radius, AlongRows{{from, from + kRun * walk_.staged_stride()}}, sums);
#pragma unroll
      for (int filter = 0; filter < kFilters; ++filter)
#pragma unroll
        for (int line = 0; line < kLines; ++line) {
          const float(&y)[kRun] = sums[filter][line];
          const int place = wrapped(head + q + line * kRun);
          float* to = walk_.filtered(filter) + place * walk_.ring_stride() + run * kRun;
          write_four(to, y);
          write_four(to + 4, y + 4);
        }
    }
  }

  // Writes where the ring holds the rows that the results of the step from `row` on reach; those outside may be any.
  __device__ void find_places(int row, int newest, int head) const {
    const int first = max(walk_.begin, newest + walk_.rows - walk_.ring), last = min(newest + walk_.rows, walk_.end) - 1;
    for (int s = int(threadIdx.x); s < 2 * walk_.radius + walk_.rows; s += kThreads) {
      const int reached = max(min(reflect(row - 2 * walk_.radius + s, region_.height), last), first);
      const int place = wrapped(head + reached - newest);
      walk_.places()[s] = (place < 0 ? place + walk_.ring : place) * walk_.ring_stride() * int(sizeof(float));
    }
  }

  // Filters the ring into the results of `rows` rows from `first` on.
  template <class Output>
  __device__ void filter_columns(int first, int column, const Output& output) const {
    const int pairs = walk_.columns / 2;
    for (int task = int(threadIdx.x); task < pairs * (walk_.rows / kRun); task += kThreads) {
      const int group = task / pairs, pair = task - group * pairs, i = first + group * kRun, j = column + 2 * pair;
      if (i + kRun <= region_.first_row || i >= region_.end_row || j >= region_.end_column) continue;
      const auto prefetched = output.prefetch(i, j);
      const float* const blur[1] = {walk_.taps(0)};
      const int* places = walk_.places() + group * kRun;
      float sums[kFilters][kLines][kRun] = {};
      if constexpr (kFilters == 1) {
        filter_lines(blur, walk_.radius, AlongColumns{walk_.filtered(0) + 2 * pair, places}, sums);
      } else {
        const float* const both[2] = {walk_.taps(0), walk_.taps(1)};
        filter_lines(both, walk_.radius, AlongColumns{walk_.filtered(0) + 2 * pair, places}, sums);
        filter_lines(blur, walk_.radius, AlongColumns{walk_.filtered(1) + 2 * pair, places}, sums + 1);
      }
      output(i, j, prefetched, sums);
    }
  }
};

// Eight rows of two columns as a thread's output gets them.
struct Patch {
  float2 rows[kRun];
};

// Calls each(k, line) for the pixels of a patch inside the region, in a loop that is not unrolled, for rare and long code.
template <class Each>
__device__ void for_each_pixel(const Region& region, int i, int j, const Each& each) {
#pragma unroll 1
  for (int n = 0; n < kLines * kRun; ++n) {
    const int k = n / kLines, line = n % kLines;
    if (i + k >= region.first_row && i + k < region.end_row && j + line < region.end_column) each(k, line);
  }
}

// sums[line][k] for indices that are not constant, without an array in local memory.
__device__ inline float chosen(const float (&sums)[kLines][kRun], int k, int line) {
  float sum = 0.0f;
#pragma unroll
  for (int n = 0; n < kLines * kRun; ++n) sum = n / kRun == line && n % kRun == k ? sums[n / kRun][n % kRun] : sum;
  return sum;
}

// Finishes and stores the results of a pass, pairs of neighbours from an even column on.
template <class Pass>
struct StoredOutput {
  const Pass& pass;
  const Region& region;
  bool pairs;  // whether the common case, float32 in aligned pairs with the exponential falloff, may be taken
  __device__ StoredOutput(const Pass& pass, const Region& region)
      : pass(pass), region(region),
        pairs(pass.weight.kind == Falloff::exp && pass.source.has_pairs() && pass.target.has_pairs()) {}

  __device__ bool takes_pairs(int j) const { return pairs && j + 1 < region.end_column; }
  __device__ bool inside(int i) const { return i >= region.first_row && i < region.end_row; }
  __device__ float finished(int i, int j, float weight, float x, float blurred) const {
    return pass.finish(i, j, region.height, region.width, weight, x, blurred);
  }

  __device__ float2 finished_pair(int i, int j, float2 sharp, float first, float second) const {
    return make_float2(finished(i, j, pass.weight.exponential_at(i, j), sharp.x, first),
                       finished(i, j + 1, pass.weight.exponential_at(i, j + 1), sharp.y, second));
  }
  __device__ void store_any(int i, int j, float blurred) const {
    pass.target.store(i, j, finished(i, j, pass.weight.at(i, j), pass.source.load(i, j), blurred));
  }

  // A lane's part of 16 x 16 results: columns j, j + 1, j + 8, j + 9 of rows i and i + 8; sums[columns][2 rows + column].
  __device__ bool takes_tile() const { return pairs && region.end_column % 2 == 0; }
  __device__ void store_tile(int i, int j, const float (&sums)[2][4]) const {
    if (takes_tile()) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if (!inside(i + 8 * k)) continue;
        const float* from = pass.source.floats(i + 8 * k, j);
        float* to = pass.target.floats(i + 8 * k, j);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          if (j + 8 * n >= region.end_column) continue;
          const float2 sharp = *reinterpret_cast<const float2*>(from + 8 * n);
          *reinterpret_cast<float2*>(to + 8 * n) =
              finished_pair(i + 8 * k, j + 8 * n, sharp, sums[n][2 * k], sums[n][2 * k + 1]);
        }
      }
      return;
    }
#pragma unroll 1
    for (int m = 0; m < 8; ++m) {
      const int row = i + 8 * (m / 4), column = j + 8 * (m / 2 % 2) + m % 2;
      float sum = 0.0f;
#pragma unroll
      for (int e = 0; e < 8; ++e) sum = e == m ? sums[e / 2 % 2][e / 4 * 2 + e % 2] : sum;
      if (inside(row) && column < region.end_column) store_any(row, column, sum);
    }
  }

  // Eight rows.
  __device__ Patch prefetch(int i, int j) const {
    Patch sharp = {};
    if (!takes_pairs(j)) return sharp;
    const float* row = pass.source.floats(i, j);
#pragma unroll
    for (int k = 0; k < kRun; ++k, row += pass.source.images.strides[2])
      if (inside(i + k)) sharp.rows[k] = *reinterpret_cast<const float2*>(row);
    return sharp;
  }

  __device__ void operator()(int i, int j, const Patch& sharp, const float (&sums)[1][kLines][kRun]) const {
    if (takes_pairs(j)) {
      float* row = pass.target.floats(i, j);
#pragma unroll
      for (int k = 0; k < kRun; ++k, row += pass.target.images.strides[2]) {
        const float2 y = finished_pair(i + k, j, sharp.rows[k], sums[0][0][k], sums[0][1][k]);
        if (inside(i + k)) *reinterpret_cast<float2*>(row) = y;
      }
      return;
    }
    for_each_pixel(region, i, j, [&](int k, int line) { store_any(i + k, j + line, chosen(sums[0], k, line)); });
  }
};

// Adds up the parts of dL/dsigma = sum g (1 - w) (A' x A^T + A x A'^T) and of dL/dgain = sum g f (x - A x A^T).
struct ParameterSums {
  static constexpr bool kPrepares = false;
  Plane source, grad;
  const Weight& weight;
  __device__ ParameterSums(const BlurParams& p, const BlurGradients& gradients, int64_t sample, int64_t channel,
                           const Weight& weight)
      : source(p.images, sample, channel), grad(gradients.grad, sample, channel), weight(weight) {}
};

struct SummedOutput {
  const ParameterSums& sums;
  const Region& region;
  float &of_sigma, &of_gain;
  bool pairs;
  __device__ SummedOutput(const ParameterSums& sums, const Region& region, float& of_sigma, float& of_gain)
      : sums(sums), region(region), of_sigma(of_sigma), of_gain(of_gain),
        pairs(sums.weight.kind == Falloff::exp && sums.source.has_pairs() && sums.grad.has_pairs()) {}

  struct Nothing {};
  __device__ Nothing prefetch(int, int) const { return {}; }

  __device__ void add(float acuity, float g, float x, float blurred, float slope) const {
    of_sigma += g * (1.0f - sums.weight.gain * acuity) * slope;
    of_gain += g * acuity * (x - blurred);
  }

  __device__ void operator()(int i, int j, Nothing, const float (&filtered)[2][kLines][kRun]) const {
    if (pairs && i >= region.first_row && i + kRun <= region.end_row && j + 1 < region.end_column) {
      const float *of_source = sums.source.floats(i, j), *of_grad = sums.grad.floats(i, j);
#pragma unroll
      for (int k = 0; k < kRun; ++k, of_source += sums.source.images.strides[2], of_grad += sums.grad.images.strides[2]) {
        const float2 x = *reinterpret_cast<const float2*>(of_source), g = *reinterpret_cast<const float2*>(of_grad);
        add(sums.weight.exponential_acuity(i + k, j), g.x, x.x, filtered[0][0][k], filtered[1][0][k]);
        add(sums.weight.exponential_acuity(i + k, j + 1), g.y, x.y, filtered[0][1][k], filtered[1][1][k]);
      }
      return;
    }
    for_each_pixel(region, i, j, [&](int k, int line) {
      add(sums.weight.acuity(i + k, j + line), sums.grad.load(i + k, j + line), sums.source.load(i + k, j + line),
          chosen(filtered[0], k, line), chosen(filtered[1], k, line));
    });
  }
};

}  // namespace fovblur
