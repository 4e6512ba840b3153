// Calls every entry point of the CUDA ops and compares the results with those of oracle.h. It is for memcheck, racecheck
// and initcheck of compute-sanitizer: PyTorch is left out because its caching allocator hides accesses beyond a tensor.
// Buffers have exactly the size of their content, and only the kernels write the scratch buffers.
//
//     nvcc -std=c++17 -O2 -lineinfo -arch=sm_90 -Icsrc -o native benchmarks/gpu_native/*.cu csrc/*/cuda*.cu
//     compute-sanitizer --tool memcheck --error-exitcode 1 ./native
//
// `native N` leaves out the cases of more than N pixels or scores. Prints a line for each wrong result; exits with 1 if there
// is one.

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>
#include <string>

#include "enhanced_similarity/cuda.h"
#include "foveated_blur/cuda.h"
#include "oracle.h"

namespace {

using fovblur::DType;
using oracle::Values;

std::mt19937 random_bits(0);
int64_t most = INT64_MAX;
int cases = 0, wrong = 0;
std::string now;  // the case in words

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", now.c_str(), cudaGetErrorString(error));
  std::exit(1);
}

void check(const char* error) {
  if (error) {
    std::printf("%s: %s\n", now.c_str(), error);
    std::exit(1);
  }
  check(cudaDeviceSynchronize());
}

void expect(const char* what, double error, double largest_error) {
  ++cases;
  if (error <= largest_error) return;  // false for NaN
  ++wrong;
  std::printf("wrong: %s, %s: error %g above %g\n", now.c_str(), what, error, largest_error);
}

// ---- memory of the device ----

class Buffer {
 public:
  explicit Buffer(int64_t bytes) : bytes_(bytes) { check(cudaMalloc(&data_, size_t(bytes))); }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  void* data() const { return data_; }
  void fill() { check(cudaMemset(data_, 0xff, size_t(bytes_))); }  // NaN
  void upload(const void* from) { check(cudaMemcpy(data_, from, size_t(bytes_), cudaMemcpyHostToDevice)); }
  template <class T>
  std::vector<T> download() const {
    std::vector<T> values(size_t(bytes_) / sizeof(T));
    check(cudaMemcpy(values.data(), data_, size_t(bytes_), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  void* data_ = nullptr;
  int64_t bytes_;
};

void put(DType dtype, double value, unsigned char* to) {
  const float x = float(value);
  auto copy = [&](auto converted) { std::memcpy(to, &converted, sizeof converted); };
  if (dtype == DType::uint8) copy(fovblur::Convert<uint8_t>::from(x));
  if (dtype == DType::float16) copy(fovblur::Convert<fovblur::Half>::from(x));
  if (dtype == DType::bfloat16) copy(fovblur::Convert<fovblur::BFloat16>::from(x));
  if (dtype == DType::float32) copy(x);
}

double get(DType dtype, const unsigned char* from) {
  auto read = [&](auto stored) {
    std::memcpy(&stored, from, sizeof stored);
    return double(fovblur::to_float(stored));
  };
  if (dtype == DType::uint8) return read(uint8_t());
  if (dtype == DType::float16) return read(fovblur::Half());
  if (dtype == DType::bfloat16) return read(fovblur::BFloat16());
  return read(0.0f);
}

enum class Layout { contiguous, channels_last, padded, transposed, expanded };
constexpr Layout kLayouts[] = {Layout::contiguous, Layout::channels_last, Layout::padded, Layout::transposed, Layout::expanded};

// A tensor of four dimensions; its values are those of the device's type.
class Tensor {
 public:
  Tensor(DType dtype, const int64_t (&shape)[4], Layout layout) : dtype_(dtype), buffer_(arrange(dtype, shape, layout)) {
    buffer_.fill();
  }

  // Uploads random numbers from low to high.
  Tensor& draw(double low, double high) {
    std::uniform_real_distribution<double> distribution(low, high);
    std::vector<unsigned char> bytes = buffer_.download<unsigned char>();
    each([&](int64_t place) { put(dtype_, distribution(random_bits), &bytes[place * fovblur::size_of(dtype_)]); });
    buffer_.upload(bytes.data());
    return *this;
  }

  Values values() const {
    const std::vector<unsigned char> bytes = buffer_.download<unsigned char>();
    Values result;
    each([&](int64_t place) { result.push_back(get(dtype_, &bytes[place * fovblur::size_of(dtype_)])); });
    return result;
  }

  void* data() const { return static_cast<unsigned char*>(buffer_.data()) + offset_ * fovblur::size_of(dtype_); }
  fovblur::Images images() const { return {data(), dtype_, {strides_[0], strides_[1], strides_[2], strides_[3]}}; }
  fovblur::Embeddings embeddings() const { return {data(), strides_[2], strides_[3]}; }

 private:
  int64_t arrange(DType dtype, const int64_t (&shape)[4], Layout layout) {
    const auto [b, c, h, w] = shape;
    const int64_t all[][4] = {{c * h * w, h * w, w, 1}, {c * h * w, 1, w * c, c}, {c * h * (w + 3), h * (w + 3), w + 3, 1},
                              {c * h * w, h * w, 1, h}, {0, 0, 0, 0}};
    offset_ = layout == Layout::padded;
    int64_t last = offset_;
    for (int k = 0; k < 4; ++k) {
      shape_[k] = shape[k];
      strides_[k] = all[int(layout)][k];
      last += (shape_[k] - 1) * strides_[k];
    }
    return (last + 1) * fovblur::size_of(dtype);
  }

  template <class Each>
  void each(const Each& at) const {  // in the order of [b, c, h, w]
    for (int64_t b = 0; b < shape_[0]; ++b)
      for (int64_t c = 0; c < shape_[1]; ++c)
        for (int64_t h = 0; h < shape_[2]; ++h)
          for (int64_t w = 0; w < shape_[3]; ++w)
            at(offset_ + b * strides_[0] + c * strides_[1] + h * strides_[2] + w * strides_[3]);
  }

  DType dtype_;
  int64_t shape_[4], strides_[4], offset_;
  Buffer buffer_;
};

template <class T>
class Numbers {  // one-dimensional
 public:
  explicit Numbers(const std::vector<T>& values) : values(values), buffer_(int64_t(values.size() * sizeof(T))) {
    buffer_.upload(values.data());
  }
  fovblur::PerSample per_sample(int64_t stride) const { return {buffer_.data(), stride}; }
  const void* data() const { return buffer_.data(); }
  const std::vector<T> values;

 private:
  Buffer buffer_;
};

const char* name_of(DType dtype) {
  constexpr const char* names[] = {"uint8", "float16", "bfloat16", "float32"};
  return names[int(dtype)];
}

double largest(const Values& x) {
  double most = 0;
  for (double each : x) most = std::max(most, std::fabs(each));
  return most;
}

// The largest difference; NaN if there is one.
double difference(const Values& ours, const Values& expected) {
  double most = 0;
  for (size_t k = 0; k < ours.size(); ++k) {
    const double error = std::fabs(ours[k] - expected[k]);
    if (!(error <= most)) most = error;
    if (std::isnan(most)) break;
  }
  return most;
}

// ---- the blur ----

double rounding(DType dtype, bool tf32) {
  constexpr double errors[] = {0, 2e-3, 1.2e-2, 1e-5};
  return dtype == DType::float32 && tf32 ? 2e-3 : errors[int(dtype)];
}

// Blurs the images of a batch as a list.
void blur_list(const fovblur::BlurParams& p, const fovblur::Images& out) {
  auto at = [](const fovblur::Images& images, int64_t sample) {
    return static_cast<char*>(images.data) + sample * images.strides[0] * fovblur::size_of(images.dtype);
  };
  std::vector<fovblur::ListedImage> images;
  const int64_t tiles = fovblur::tiles_of_an_image(p.shape[1], p.shape[2], p.shape[3]);
  for (int64_t b = 0; b < p.shape[0]; ++b)
    images.push_back({at(p.images, b), {p.images.strides[1], p.images.strides[2], p.images.strides[3]},
                      at(out, b), {out.strides[1], out.strides[2], out.strides[3]}, p.shape[1], p.shape[2], p.shape[3],
                      static_cast<const float*>(p.weight.data) + b * p.weight.strides[0],
                      {p.weight.strides[1], p.weight.strides[2]}, b * tiles});
  const Numbers<fovblur::ListedImage> table(images);
  fovblur::BlurParams of_list = p;
  of_list.weight = {};
  check(fovblur::foveated_blur_list_cuda(of_list, static_cast<const fovblur::ListedImage*>(table.data()),
                                         p.shape[0] * tiles, out.dtype, nullptr));
}

// With `mapped` the falloff is given as a map, which takes the form for all options; the images are a list, too.
void blur(DType source, DType result, const int64_t (&shape)[4], Layout layout, fovblur::Falloff falloff, bool normalise,
          bool tf32, int first_size, bool mapped = false) {
  const auto [batch, channels, height, width] = shape;
  const int64_t plane = height * width;
  if (batch * channels * plane > most) return;
  now = std::string(name_of(source)) + " to " + name_of(result) + (tf32 ? ", tf32" : "") + ", layout " +
        std::to_string(int(layout)) + ", falloff " + std::to_string(int(falloff)) + (normalise ? ", normalised" : "") + (mapped ? ", mapped" : "");
  for (int64_t side : shape) now += " " + std::to_string(side);

  constexpr int kSizes[] = {51, 3, 101, 9, 27, 201};
  std::vector<float> sigmas, gains, fixations, mean, std;
  std::vector<int32_t> sizes;
  for (int64_t b = 0; b < batch; ++b) {
    sizes.push_back(kSizes[(first_size + b) % 6]);
    sigmas.push_back(b == 2 ? 0.0f : 0.15f * float(sizes.back()) + 0.35f);
    gains.push_back(0.5f + 0.25f * float(b % 3));
    fixations.push_back(b % 2 ? 0.3f * float(height) : float(height / 2));
    fixations.push_back(b % 2 ? 0.8f * float(width) : float(width / 2));
  }
  for (int64_t c = 0; c < channels; ++c) mean.push_back(0.4f + 0.05f * float(c)), std.push_back(0.2f + 0.03f * float(c));
  const Numbers<float> sigma(sigmas), gain(gains), fixation(fixations), means(mean), stds(std);
  const Numbers<int32_t> size(sizes);
  const double scale = normalise && source == DType::uint8 ? 1.0 / 255 : 1.0;

  Tensor images(source, shape, layout);
  images.draw(0, source == DType::uint8 ? 255 : 1);
  const Layout dense = layout == Layout::expanded ? Layout::contiguous : layout;  // outputs do not overlap
  Tensor out(result, shape, dense), grad(result, shape, layout), grad_images(source, shape, dense);
  fovblur::BlurParams p = {};
  std::copy(shape, shape + 4, p.shape);
  p.images = images.images();
  p.sigma = sigma.per_sample(1), p.kernel_size = size.per_sample(1);
  p.gain = gain.per_sample(1), p.fixation = fixation.per_sample(2);
  p.falloff = falloff, p.decay = 3, p.scale = scale, p.allow_tf32 = tf32;
  p.mean = normalise ? means.data() : nullptr, p.std = normalise ? stds.data() : nullptr;
  std::vector<float> acuities;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t k = 0; k < plane; ++k)
      acuities.push_back(float(oracle::acuity(falloff, 3, double(k / width), double(k % width), fixations[2 * b],
                                              fixations[2 * b + 1], double(height), double(width))));
  const Numbers<float> map(acuities);
  if (mapped) p.weight = {map.data(), {plane, width, 1}};
  check(fovblur::foveated_blur_cuda(p, out.images(), nullptr));
  Tensor listed(result, shape, dense);
  if (mapped) blur_list(p, listed.images());

  const bool has_gradient = result != DType::uint8, has_image_gradient = has_gradient && source != DType::uint8;
  const int64_t tiles = has_gradient ? fovblur::parameter_gradient_tiles(p, result) : 0;
  Buffer of_sigma(std::max<int64_t>(batch * tiles, 1) * 4), of_gain(std::max<int64_t>(batch * tiles, 1) * 4);
  if (has_gradient) {
    grad.draw(-0.5, 1);
    const fovblur::Images none = {};
    const fovblur::BlurGradients gradients = {grad.images(), has_image_gradient ? grad_images.images() : none, of_sigma.data(),
                                              of_gain.data()};
    check(fovblur::foveated_blur_backward_cuda(p, gradients, nullptr));
  }

  const Values x = images.values(), g = has_gradient ? grad.values() : Values(x.size());
  Values expected(x.size()), expected_grad(x.size()), sigma_grads(batch), gain_grads(batch), weights(plane), sum_of_grad(batch);
  double range = 0;  // of the result before and after the mean is subtracted, which may leave little of it
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t c = 0; c < channels; ++c) {
      const oracle::Taps taps(sigmas[b], sizes[b]);
      const double unit = normalise ? scale / std[c] : 1, shift = normalise ? mean[c] / std[c] : 0;
      const int64_t first = (b * channels + c) * plane;
      const Values own(&x[first], &x[first] + plane);
      Values through(plane);  // gradient of the blurred image
      const Values blurred = oracle::filtered(own, height, width, taps.tap, taps.tap, false);
      for (int64_t k = 0; k < plane; ++k) {
        const double f = oracle::acuity(falloff, 3, double(k / width), double(k % width), fixations[2 * b], fixations[2 * b + 1],
                                        double(height), double(width));
        weights[k] = taps.radius ? gains[b] * f : 1;
        const double blended = (weights[k] * own[k] + (1 - weights[k]) * blurred[k]) * unit;
        expected[first + k] = blended - shift;
        range = std::max({range, blended, std::fabs(blended - shift)});
        through[k] = (1 - weights[k]) * g[first + k] * unit;
        sum_of_grad[b] += std::fabs(g[first + k] * unit);
        if (taps.radius) gain_grads[b] += g[first + k] * unit * f * (own[k] - blurred[k]);
      }
      if (!has_gradient) continue;
      const Values spread = oracle::filtered(through, height, width, taps.tap, taps.tap, true);
      const Values slope = oracle::filtered(own, height, width, taps.slope, taps.tap, false);
      const Values other = oracle::filtered(own, height, width, taps.tap, taps.slope, false);
      for (int64_t k = 0; k < plane; ++k) {
        expected_grad[first + k] = weights[k] * g[first + k] * unit + spread[k];
        sigma_grads[b] += through[k] * (slope[k] + other[k]);
      }
    }
  const double tolerance = std::max(rounding(result, tf32), rounding(source, tf32));
  const bool rounds = result == DType::uint8;  // to a whole level
  expect("result", difference(out.values(), expected), rounds ? 0.65 : std::max(tolerance, 1e-5) * range);
  if (mapped) expect("result of a list", difference(listed.values(), out.values()), 0);
  if (!has_gradient) return;
  if (has_image_gradient)
    expect("gradient of images", difference(grad_images.values(), expected_grad), 2 * tolerance * largest(expected_grad));
  const std::vector<float> sigma_parts = of_sigma.download<float>(), gain_parts = of_gain.download<float>();
  for (int64_t b = 0; b < batch; ++b) {
    auto total = [&](const std::vector<float>& parts) {
      return std::accumulate(parts.begin() + b * tiles, parts.begin() + (b + 1) * tiles, 0.0);
    };
    const double most_wrong = 1e-4 * (source == DType::uint8 ? 255 : 1) * sum_of_grad[b];
    expect("gradient of sigma", std::fabs(total(sigma_parts) - sigma_grads[b]), most_wrong);
    expect("gradient of gain", std::fabs(total(gain_parts) - gain_grads[b]), most_wrong);
  }
}

constexpr DType kTypes[][2] = {{DType::uint8, DType::uint8},       {DType::uint8, DType::float16},
                               {DType::uint8, DType::float32},     {DType::float16, DType::float16},
                               {DType::bfloat16, DType::bfloat16}, {DType::float32, DType::float32},
                               {DType::float32, DType::float16}};
constexpr int64_t kShapes[][4] = {{1, 1, 1, 1}, {4, 2, 5, 7}, {1, 1, 1, 70}, {4, 1, 37, 53}, {1, 3, 64, 64}, {2, 1, 70, 129},
                                  {1, 2, 224, 224}};

void blurs() {
  int turn = 0;
  for (const auto& shape : kShapes)
    for (const auto& types : kTypes)
      for (Layout layout : kLayouts) {
        if (shape[2] == 224 && layout != Layout::contiguous && layout != Layout::channels_last) continue;
        const bool normalise = types[1] != DType::uint8 && turn % 2;
        blur(types[0], types[1], shape, layout, fovblur::Falloff(turn % 5), normalise, false, turn);
        if (types[0] == DType::uint8 && types[1] == DType::float32)  // then in half precision
          blur(types[0], types[1], shape, layout, fovblur::Falloff(turn % 5), normalise, true, turn);
        ++turn;
      }
}

void mapped_blurs() {
  int turn = 0;
  for (const auto& shape : kShapes)
    for (const auto& types : kTypes) {
      const bool normalise = types[1] != DType::uint8 && turn % 2;
      blur(types[0], types[1], shape, kLayouts[turn % 5], fovblur::Falloff(turn % 5), normalise, false, turn, true);
      ++turn;
    }
}

// ---- the similarity ----

void similarity(DType dtype, int64_t recordings, int64_t images, int64_t image_width, int64_t text_width, Layout layout,
                bool tf32, int gates) {
  if (recordings * images > most) return;
  now = std::string("similarity, ") + name_of(dtype) + (tf32 ? ", tf32" : "") + ", layout " + std::to_string(int(layout)) +
        ", gates " + std::to_string(gates);
  for (int64_t size : {recordings, images, image_width, text_width}) now += " " + std::to_string(size);
  auto embeddings = [&](int64_t rows, int64_t width) { return Tensor(dtype, {1, 1, rows, width}, layout); };
  Tensor brain_image = embeddings(recordings, image_width), image = embeddings(images, image_width);
  Tensor brain_text = embeddings(recordings, text_width), text = embeddings(images, text_width);
  for (Tensor* each : {&brain_image, &image, &brain_text, &text}) each->draw(-0.3, 0.5);
  auto gate = [](int64_t rows) {
    std::vector<float> values;
    for (int64_t k = 0; k < rows; ++k) values.push_back(k % 4 == 1 ? 0.0f : 0.25f * float(k % 5));
    return values;
  };
  const Numbers<float> rows(gate(recordings)), columns(gate(images));
  const bool by_row = gates & 1, by_column = gates & 2;
  const fovblur::Gate open = {nullptr, 0};
  const fovblur::SimilarityParams p = {recordings, images, image_width, text_width, dtype, brain_image.embeddings(),
                                       image.embeddings(), brain_text.embeddings(), text.embeddings(),
                                       by_row ? fovblur::Gate{rows.data(), 1} : open,
                                       by_column ? fovblur::Gate{columns.data(), 1} : open, tf32};
  auto doubles = [](const Numbers<float>& gate, bool used) {
    return used ? Values(gate.values.begin(), gate.values.end()) : Values();
  };
  const Values expected = oracle::scores(brain_image.values(), image.values(), brain_text.values(), text.values(),
                                         doubles(rows, by_row), doubles(columns, by_column), recordings, images);
  const double scale = largest(expected), products = dtype == DType::float32 && tf32 ? 4e-3 : 1e-5;
  for (DType result : {dtype, DType::float32}) {
    Tensor out(result, {1, 1, recordings, images}, Layout::contiguous);
    check(fovblur::enhanced_similarity_cuda(p, out.data(), result, nullptr));
    expect(name_of(result), difference(out.values(), expected), std::max(rounding(result, false), products) * scale);
  }

  for (int64_t k : {int64_t(1), int64_t(5), fovblur::most_fused()}) {
    if (k > images) continue;
    const int64_t tiles = (images + fovblur::score_tile() - 1) / fovblur::score_tile(), slices = std::min<int64_t>(tiles, 3);
    Buffer values(recordings * k * 4), indices(recordings * k * 8), keys(recordings * slices * k * 8);
    const fovblur::TopK best = {k, values.data(), static_cast<int64_t*>(indices.data())};
    check(fovblur::enhanced_topk_cuda(p, best, static_cast<uint64_t*>(keys.data()), slices, nullptr));
    const std::vector<float> found = values.download<float>();
    const std::vector<int64_t> where = indices.download<int64_t>();
    double error = 0;
    for (int64_t i = 0; i < recordings; ++i) {
      Values sorted(&expected[i * images], &expected[i * images] + images);
      std::sort(sorted.begin(), sorted.end(), std::greater<double>());
      std::set<int64_t> seen;
      for (int64_t n = i * k; n < (i + 1) * k; ++n) {
        const bool is_new = where[n] >= 0 && where[n] < images && seen.insert(where[n]).second;
        const bool ordered = n == i * k || found[n] <= found[n - 1];
        if (!is_new || !ordered) error = INFINITY;
        if (is_new) error = std::max(error, std::fabs(found[n] - expected[i * images + where[n]]));
        error = std::max(error, std::fabs(found[n] - sorted[n - i * k]));
      }
    }
    expect(("the best " + std::to_string(k)).c_str(), error, products * scale);
  }
}

void similarities() {
  constexpr int64_t kSizes[][4] = {{1, 1, 1, 1}, {5, 9, 3, 2}, {37, 53, 40, 24}, {65, 129, 100, 17}, {130, 300, 64, 64},
                                   {300, 1000, 512, 768}};
  int turn = 0;
  for (const auto& [recordings, images, image_width, text_width] : kSizes)
    for (DType dtype : {DType::float16, DType::bfloat16, DType::float32})
      for (Layout layout : {Layout::contiguous, Layout::padded, Layout::transposed})
        for (bool tf32 : {false, true})
          if (!tf32 || dtype == DType::float32)
            similarity(dtype, recordings, images, image_width, text_width, layout, tf32, turn++ % 4);
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) most = std::atoll(arguments[1]);
  blurs();
  similarities();
  mapped_blurs();
  std::printf("%d results, %d wrong\n", cases, wrong);
  return wrong > 0 || cases == 0;
}
