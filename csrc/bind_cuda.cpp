// fovblur._cuda: the CUDA kernels, launched on a stream that Python passes.

#include <stdexcept>

#include "enhanced_similarity/bind.h"
#include "enhanced_similarity/cuda.h"
#include "foveated_blur/bind.h"
#include "foveated_blur/cuda.h"
#include "retinal_blur/bind.h"
#include "retinal_blur/cuda.h"

namespace py = pybind11;

namespace {

void check(const char* error) {
  if (error) throw std::runtime_error(error);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  fovblur::bind_blur(m);
  fovblur::bind_levels(m);
  fovblur::bind_similarity(m);
  m.def(
      "foveated_blur",
      [](const fovblur::BlurParams& params, const fovblur::Images& out, uintptr_t stream) {
        check(fovblur::foveated_blur_cuda(params, out, reinterpret_cast<void*>(stream)));
      },
      py::arg("params"), py::arg("out"), py::arg("stream"), "Launch on a cudaStream_t of the current device.");
  m.def(
      "foveated_blur_backward",
      [](const fovblur::BlurParams& params, const fovblur::BlurGradients& gradients, uintptr_t stream) {
        check(fovblur::foveated_blur_backward_cuda(params, gradients, reinterpret_cast<void*>(stream)));
      },
      py::arg("params"), py::arg("gradients"), py::arg("stream"), "Launch on a cudaStream_t of the current device.");
  m.def(
      "foveated_blur_list",
      [](const fovblur::BlurParams& params, uintptr_t images, int64_t tiles, int out_dtype, uintptr_t stream) {
        check(fovblur::foveated_blur_list_cuda(params, reinterpret_cast<const fovblur::ListedImage*>(images), tiles,
                                               fovblur::DType(out_dtype), reinterpret_cast<void*>(stream)));
      },
      py::arg("params"), py::arg("images"), py::arg("tiles"), py::arg("out_dtype"), py::arg("stream"),
      "Launch on a cudaStream_t of the current device; images is an array of ListedImage in its memory.");
  m.def("tiles_of_an_image", &fovblur::tiles_of_an_image, py::arg("channels"), py::arg("height"), py::arg("width"),
        "Tiles that foveated_blur_list cuts an image into.");
  m.def(
      "parameter_gradient_tiles",
      [](const fovblur::BlurParams& params, const fovblur::Images& grad) {
        return fovblur::parameter_gradient_tiles(params, grad.dtype);
      },
      py::arg("params"), py::arg("grad"), "Partial sums of a sample's parameter gradients that foveated_blur_backward writes.");
  m.def(
      "blend_levels",
      [](const fovblur::LevelParams& params, const fovblur::Images& out, uintptr_t stream) {
        check(fovblur::blend_levels_cuda(params, out, reinterpret_cast<void*>(stream)));
      },
      py::arg("params"), py::arg("out"), py::arg("stream"), "Launch on a cudaStream_t of the current device.");
  m.def(
      "enhanced_similarity",
      [](const fovblur::SimilarityParams& params, uintptr_t out, int out_dtype, uintptr_t stream) {
        check(fovblur::enhanced_similarity_cuda(params, reinterpret_cast<void*>(out), fovblur::DType(out_dtype),
                                                reinterpret_cast<void*>(stream)));
      },
      py::arg("params"), py::arg("out"), py::arg("out_dtype"), py::arg("stream"),
      "Launch on a cudaStream_t of the current device.");
  m.def(
      "enhanced_topk",
      [](const fovblur::SimilarityParams& params, const fovblur::TopK& best, uintptr_t keys, int64_t slices, uintptr_t stream) {
        check(fovblur::enhanced_topk_cuda(params, best, reinterpret_cast<uint64_t*>(keys), slices,
                                          reinterpret_cast<void*>(stream)));
      },
      py::arg("params"), py::arg("best"), py::arg("keys"), py::arg("slices"), py::arg("stream"),
      "Launch on a cudaStream_t of the current device; keys is a buffer [N, slices, k].");
  m.def("multiprocessors", &fovblur::multiprocessors, "Blocks of enhanced_topk that the current device runs at once.");
  m.attr("SCORE_TILE") = fovblur::score_tile();
  m.attr("MOST_FUSED") = fovblur::most_fused();
}
