// fovblur._cuda: the CUDA kernels, launched on a stream that Python names.

#include <stdexcept>

#include "bind_params.h"
#include "foveated_blur/cuda.h"

namespace py = pybind11;

PYBIND11_MODULE(_cuda, m) {
  fovblur::bind_blur_params(m);
  m.def(
      "foveated_blur",
      [](const fovblur::BlurParams& params, uintptr_t stream) {
        if (const char* error = fovblur::foveated_blur_cuda(params, reinterpret_cast<void*>(stream)))
          throw std::runtime_error(error);
      },
      py::arg("params"), py::arg("stream"), "Launch on a cudaStream_t of the current device.");
}
