// Runs a CPU kernel on contiguous arrays in files of the current folder: the program of a test on an emulated processor.
//   blur B C H W DTYPE RESULT_DTYPE BORDER FALLOFF DECAY THREADS NORMALISED BACKWARD
//   similarity RECORDINGS IMAGES WIDTH DTYPE K THREADS

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "enhanced_similarity/cpu.h"
#include "foveated_blur/cpu.h"

using namespace fovblur;
using Bytes = std::vector<char>;

namespace {

Bytes read(const std::string& name) {
  std::ifstream file(name, std::ios::binary);
  if (!file) throw std::runtime_error("no file " + name);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

void write(const std::string& name, const Bytes& bytes) {
  std::ofstream(name, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
}

void blur(const std::vector<double>& arguments) {
  BlurParams p{};
  for (int i = 0; i < 4; ++i) p.shape[i] = int64_t(arguments[i]);
  const int64_t pixels = p.shape[2] * p.shape[3], elements = p.shape[0] * p.shape[1] * pixels;
  const DType dtype = DType(int(arguments[4])), result = DType(int(arguments[5]));
  const auto describe = [&](Bytes& data, DType type) {
    return Images{data.data(), type, {p.shape[1] * pixels, pixels, p.shape[3], 1}};
  };
  Bytes images = read("images"), sigma = read("sigma"), kernel_size = read("kernel_size"), gain = read("gain");
  Bytes fixation = read("fixation"), mean, std, blurred(size_t(elements * size_of(result)));
  p.images = describe(images, dtype);
  p.sigma = {sigma.data(), 1};
  p.kernel_size = {kernel_size.data(), 1};
  p.gain = {gain.data(), 1};
  p.fixation = {fixation.data(), 2};
  p.border = Border(int(arguments[6]));
  p.falloff = Falloff(int(arguments[7]));
  p.decay = arguments[8];
  p.scale = dtype == DType::uint8 ? 1.0 / 255 : 1.0;
  const int threads = int(arguments[9]);
  if (arguments[10] != 0) {
    mean = read("mean");
    std = read("std");
    p.mean = mean.data();
    p.std = std.data();
  }
  baseline::foveated_blur(p, describe(blurred, result), threads);
  write("blurred", blurred);
  if (arguments[11] == 0) return;
  Bytes grad = read("grad"), grad_images(images.size()), grad_sigma(sigma.size()), grad_gain(gain.size());
  baseline::foveated_blur_backward(
      p, {describe(grad, result), describe(grad_images, dtype), grad_sigma.data(), grad_gain.data()}, threads);
  write("grad_images", grad_images);
  write("grad_sigma", grad_sigma);
  write("grad_gain", grad_gain);
}

void similarity(const std::vector<double>& arguments) {
  SimilarityParams p{};
  p.recordings = int64_t(arguments[0]);
  p.images = int64_t(arguments[1]);
  p.image_width = p.text_width = int64_t(arguments[2]);
  p.dtype = DType(int(arguments[3]));
  const int64_t k = int64_t(arguments[4]);
  const int threads = int(arguments[5]);
  const Bytes brain_image = read("brain_image"), image = read("image"), brain_text = read("brain_text"), text = read("text");
  p.brain_image = {brain_image.data(), p.image_width, 1};
  p.image = {image.data(), p.image_width, 1};
  p.brain_text = {brain_text.data(), p.text_width, 1};
  p.text = {text.data(), p.text_width, 1};
  Bytes scores(size_t(p.recordings * p.images * size_of(p.dtype)));
  baseline::enhanced_similarity(p, scores.data(), threads);
  write("scores", scores);
  Bytes values(size_t(p.recordings * k * (p.dtype == DType::float64 ? 8 : 4))), indices(size_t(p.recordings * k * 8));
  baseline::enhanced_topk(p, {k, values.data(), reinterpret_cast<int64_t*>(indices.data())}, threads);
  write("values", values);
  write("indices", indices);
}

}  // namespace

int main(int, char** argv) {
  std::vector<double> arguments;
  for (char** argument = argv + 2; *argument; ++argument) arguments.push_back(std::atof(*argument));
  std::string(argv[1]) == "blur" ? blur(arguments) : similarity(arguments);
}
