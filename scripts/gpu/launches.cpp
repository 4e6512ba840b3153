// Calls the CUDA ops for every type that they serve and prints their launches, one JSON object per line: kernel, threads and
// dynamic shared memory, from the launch code itself. Linked with tests/support/ptx/runtime.cpp, which needs no GPU.

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "enhanced_similarity/cuda.h"
#include "foveated_blur/cuda.h"
#include "retinal_blur/cuda.h"

extern "C" {
void ptx_on_launch(int (*function)(const char* kernel, const unsigned* grid, const unsigned* block, size_t shared, void**));
void ptx_set_attribute(int attribute, int value);
}

namespace {

std::string call;
int architecture = 86;  // of the device

int print_launch(const char* kernel, const unsigned*, const unsigned* block, size_t shared, void**) {
  std::printf("{\"call\": \"%s\", \"kernel\": \"%s\", \"threads\": %u, \"dynamic_shared\": %zu}\n", call.c_str(), kernel,
              block[0] * block[1] * block[2], shared);
  return 0;
}

void set_architecture(int value) {
  architecture = value;
  ptx_set_attribute(cudaDevAttrComputeCapabilityMajor, value / 10);
  ptx_set_attribute(cudaDevAttrComputeCapabilityMinor, value % 10);
  ptx_set_attribute(cudaDevAttrMultiProcessorCount, 68);
  ptx_set_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, (value == 90 ? 227 : 99) * 1024);
}

using fovblur::DType;

const char* const kTypes[] = {"uint8", "float16", "bfloat16", "float32"};
void* const kData = reinterpret_cast<void*>(4096);  // never read

fovblur::Images images_of(int type, int64_t side) { return {kData, DType(type), {3 * side * side, side * side, side, 1}}; }

void check(const char* error) {
  if (!error) return;
  std::fprintf(stderr, "%s: %s\n", call.c_str(), error);
  std::exit(1);
}

void blur(int source, int result, int64_t side, bool tf32) {
  fovblur::BlurParams p = {};
  const int64_t shape[] = {1024, 3, side, side};
  for (int i = 0; i < 4; ++i) p.shape[i] = shape[i];
  p.allow_tf32 = tf32;
  const std::string types = std::string(kTypes[source]) + " to " + kTypes[result] + (tf32 ? ", tf32" : "");
  p.images = images_of(source, side);
  const std::string on = architecture == 90 ? ", 9.0" : "";
  call = "blur, " + types + on;
  check(fovblur::foveated_blur_cuda(p, images_of(result, side), nullptr));
  if (result == 0) return;  // has no gradient
  fovblur::BlurGradients gradients = {images_of(result, side), {}, kData, kData};
  call = "gradient of sigma and gain, " + types;
  check(fovblur::foveated_blur_backward_cuda(p, gradients, nullptr));
  if (source == 0) return;
  gradients = {images_of(result, side), images_of(source, side), nullptr, nullptr};
  call = std::string("gradient of images, ") + kTypes[result] + " to " + kTypes[source] + on;
  check(fovblur::foveated_blur_backward_cuda(p, gradients, nullptr));
}

void blur_with_options() {
  fovblur::BlurParams p = {{1024, 3, 224, 224}, images_of(3, 224)};
  p.border = fovblur::Border::symmetric;
  call = "blur, options";
  check(fovblur::foveated_blur_cuda(p, images_of(3, 224), nullptr));
  call = "blur of a list";
  check(fovblur::foveated_blur_list_cuda(p, static_cast<const fovblur::ListedImage*>(kData), 1024, DType::float32, nullptr));
  call = "gradient of images, options";
  check(fovblur::foveated_blur_backward_cuda(p, {images_of(3, 224), images_of(3, 224), nullptr, nullptr}, nullptr));
  call = "gradient of sigma and gain, options";
  check(fovblur::foveated_blur_backward_cuda(p, {images_of(3, 224), {}, kData, kData}, nullptr));
}

void levels() {
  const fovblur::LevelParams p = {{1024, 3, 224, 224}, images_of(3, 224), {kData, {}}, fovblur::Border::reflect, 2};
  call = "levels, float32";
  check(fovblur::blend_levels_cuda(p, images_of(3, 224), nullptr));
}

void similarity(int type, bool tf32, bool strided) {
  const fovblur::Embeddings rows = {kData, 1024, strided ? 2 : 1};
  const fovblur::Gate open = {nullptr, 0};
  const fovblur::SimilarityParams p = {1000, 4096, 1024, 1024, DType(type), rows, rows, rows, rows, open, open, tf32};
  const std::string types = std::string(kTypes[type]) + (tf32 ? ", tf32" : "") + (strided ? ", strided" : "");
  call = "similarity, " + types;
  check(fovblur::enhanced_similarity_cuda(p, kData, DType(type), nullptr));
  check(fovblur::enhanced_similarity_cuda(p, kData, DType::float32, nullptr));
  call = "top-k, " + types;
  const fovblur::TopK best = {fovblur::most_fused(), kData, static_cast<int64_t*>(kData)};
  check(fovblur::enhanced_topk_cuda(p, best, static_cast<uint64_t*>(kData), 8, nullptr));
}

}  // namespace

int main() {
  ptx_on_launch(print_launch);
  for (int tf32 = 0; tf32 < 2; ++tf32) {
    for (int source = 0; source < 4; ++source)
      for (int result = 0; result < 4; ++result)
        if (result != 0 || source == 0)
          for (int64_t side : {32, 224})
            for (int on : {90, 86}) {  // which differ in the form of exact float32
              set_architecture(on);
              if ((on == 86 || source == 3) && (!tf32 || source == 0)) blur(source, result, side, tf32);
            }
    for (int type = 1; type < 4; ++type)
      for (int strided = 0; strided < 2; ++strided) similarity(type, tf32, strided);
  }
  blur_with_options();
  levels();
}
