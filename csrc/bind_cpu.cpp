// fovblur._cpu: the CPU kernels, in the best variant for the current processor.

#include <stdexcept>
#include <string>
#include <vector>

#include "build_info.h"
#include "enhanced_similarity/bind.h"
#include "enhanced_similarity/cpu.h"
#include "foveated_blur/bind.h"
#include "foveated_blur/cpu.h"
#include "retinal_blur/bind.h"
#include "retinal_blur/cpu.h"

namespace py = pybind11;

namespace {

struct Variant {
  const char* name;
  void (*foveated_blur)(const fovblur::BlurParams&, const fovblur::Images& out, int threads);
  void (*foveated_blur_list)(const fovblur::BlurParams&, const fovblur::ListedImage*, fovblur::DType result, int threads);
  void (*foveated_blur_backward)(const fovblur::BlurParams&, const fovblur::BlurGradients&, int threads);
  void (*enhanced_similarity)(const fovblur::SimilarityParams&, void* out, int threads);
  void (*enhanced_topk)(const fovblur::SimilarityParams&, const fovblur::TopK&, int threads);
  void (*blend_levels)(const fovblur::LevelParams&, const fovblur::Images& out, int threads);
};

#define FOVBLUR_ENTRIES(variant)                                                   \
  #variant, fovblur::variant::foveated_blur, fovblur::variant::foveated_blur_list, \
  fovblur::variant::foveated_blur_backward, fovblur::variant::enhanced_similarity, \
  fovblur::variant::enhanced_topk, fovblur::variant::blend_levels

// Best first.
std::vector<Variant> supported_variants() {
  std::vector<Variant> variants;
#ifdef __x86_64__
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    variants.push_back({FOVBLUR_ENTRIES(avx512)});
  if (avx2) variants.push_back({FOVBLUR_ENTRIES(avx2)});
#endif
  variants.push_back({FOVBLUR_ENTRIES(baseline)});
  return variants;
}

const std::vector<Variant> supported = supported_variants();
const Variant* in_use = &supported.front();

std::vector<std::string> variant_names() {
  std::vector<std::string> names;
  for (const Variant& variant : supported) names.push_back(variant.name);
  return names;
}

void use_variant(const std::string& name) {
  for (const Variant& variant : supported)
    if (name == variant.name) {
      in_use = &variant;
      return;
    }
  throw std::invalid_argument("no variant '" + name + "' for this processor");
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  fovblur::bind_blur(m);
  fovblur::bind_similarity(m);
  fovblur::bind_levels(m);
  m.attr("build_info") = FOVBLUR_BUILD_INFO;
  m.def("variants", variant_names, "Variants this processor can run, best first.");
  m.def("variant", [] { return std::string(in_use->name); }, "The variant in use.");
  m.def("use_variant", use_variant, py::arg("name"), "Use another variant, for tests and comparisons.");
  m.def(
      "foveated_blur",
      [](const fovblur::BlurParams& params, const fovblur::Images& out, int threads) {
        in_use->foveated_blur(params, out, threads);
      },
      py::arg("params"), py::arg("out"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "foveated_blur_list",
      [](const fovblur::BlurParams& params, uintptr_t images, int out_dtype, int threads) {
        in_use->foveated_blur_list(params, reinterpret_cast<const fovblur::ListedImage*>(images), fovblur::DType(out_dtype),
                                   threads);
      },
      py::arg("params"), py::arg("images"), py::arg("out_dtype"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>(), "Blur a list; images is the address of an array of ListedImage.");
  m.def(
      "foveated_blur_backward",
      [](const fovblur::BlurParams& params, const fovblur::BlurGradients& gradients, int threads) {
        in_use->foveated_blur_backward(params, gradients, threads);
      },
      py::arg("params"), py::arg("gradients"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "enhanced_similarity",
      [](const fovblur::SimilarityParams& params, uintptr_t out, int threads) {
        in_use->enhanced_similarity(params, reinterpret_cast<void*>(out), threads);
      },
      py::arg("params"), py::arg("out"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "enhanced_topk",
      [](const fovblur::SimilarityParams& params, const fovblur::TopK& best, int threads) {
        in_use->enhanced_topk(params, best, threads);
      },
      py::arg("params"), py::arg("best"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "blend_levels",
      [](const fovblur::LevelParams& params, const fovblur::Images& out, int threads) {
        in_use->blend_levels(params, out, threads);
      },
      py::arg("params"), py::arg("out"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}
