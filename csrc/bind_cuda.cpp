// fovblur._cuda: the CUDA kernels, launched on a stream that Python names.

#include <stdexcept>

#include "bind_params.h"
#include "foveated_blur/cuda.h"

namespace py = pybind11;

namespace {

void check(const char* error) {
  if (error) throw std::runtime_error(error);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  fovblur::bind_params(m);
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
      "parameter_gradient_tiles",
      [](const fovblur::BlurParams& params) { return fovblur::parameter_gradient_tiles(params.shape); }, py::arg("params"),
      "Partial sums of a sample's parameter gradients that foveated_blur_backward writes.");
}
