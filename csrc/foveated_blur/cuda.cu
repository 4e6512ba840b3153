// Foveated Gaussian blur on CUDA and its gradients, one launch a batch: the choice of the form, and the launches.

#include "cuda.h"

#include <algorithm>

#include "../common/launch.cuh"
#include "cuda_general.h"
#include "cuda_kernels.cuh"

namespace fovblur {
namespace {

enum class Form { direct, split_products, products };

bool is_half(DType dtype) { return dtype == DType::float16 || dtype == DType::bfloat16; }

// Whether exact float32 is computed by split products, where three of float16 are faster than one of float32: on tensor cores
// float16 has 16 times the rate of float32 on 8.0 and 9.0, and 2 to 4 times on GeForce cards.
bool splits_float32() {
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return minor == 0 && (major == 8 || major == 9);
}

// Chooses the form by the types of source and result: products of 16-bit operands if they lose less than rounding to either type
// does, or if PyTorch's matmul precision allows as much. Only the device knows the radii; regions of radii beyond the reach of
// products are filtered directly.
Form choose_form(DType source, DType result, const BlurParams& p) {
  const bool multiplies = is_half(source) || (source == DType::uint8 && (result != DType::float32 || p.allow_tf32));
  if (multiplies) return Form::products;
  return source == DType::float32 && splits_float32() ? Form::split_products : Form::direct;
}

// Calls each(strips, bytes of shared memory) to launch as many strips as a grid holds, until all are.
template <class Kernel, class Memory, class Each>
cudaError_t launch_strips(Kernel kernel, Strips<Memory> strips, const Each& each) {
  const int bytes = strips.shared_bytes();
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  for (; error == cudaSuccess && strips.first < strips.count; strips.first += INT32_MAX) error = each(strips, bytes);
  return error;
}

template <class Source, class Destination>
cudaError_t launch_products(const BlurParams& p, const Destination& destination, void* stream) {
  const auto kernel = blur_products<Source, Destination>;
  return launch_strips(kernel, StripsOf<Source, Destination>(p.shape), [&](const auto& strips, int bytes) {
    return launch(kernel, strips.threads(), strips.count - strips.first, bytes, stream, p, destination, strips);
  });
}

template <class Source>
cudaError_t launch_parameter_products(const BlurParams& p, const BlurGradients& gradients, void* stream) {
  const auto kernel = parameter_products<Source>;
  return launch_strips(kernel, Strips<SumMemory<Source>>(p.shape), [&](const auto& strips, int bytes) {
    return launch(kernel, strips.threads(), strips.count - strips.first, bytes, stream, p, gradients, strips, bytes);
  });
}

template <class Destination>
cudaError_t launch_split(const BlurParams& p, const Destination& destination, void* stream) {
  const auto kernel = blur_split<Destination>;
  return launch_strips(kernel, StripsOf<float, Destination>(p.shape), [&](const auto& strips, int bytes) {
    return launch(kernel, kSplitThreads, strips.count - strips.first, bytes, stream, p, destination, strips, bytes / 4);
  });
}

// Planes as tiles of the exact forms, cut so that every multiprocessor has some, in multiples of the last resort's tiles.
Tiling exact_tiling(const int64_t (&shape)[4]) {
  constexpr int kSmallest = 64;
  constexpr int64_t kEnough = 512;
  int rows = int(shape[2]), columns = int(shape[3]);
  auto enough = [&] { return Tiling(shape, rows, columns).tiles >= kEnough; };
  while (!enough() && columns > kSmallest) columns = round_up((columns + 1) / 2, kSmallest);
  while (!enough() && rows > kSmallest) rows = round_up((rows + 1) / 2, kSmallest);
  return Tiling(shape, rows, columns);
}

// Launches an exact form with as much shared memory as its walk uses up to kernels of 65 pixels, within a block's of sm_86.
template <int kThreads, int kFilters, class Destination>
cudaError_t launch_walk(void (*kernel)(BlurParams, Destination, Tiling, int), const BlurParams& p,
                        const Destination& destination, const Tiling& tiling, void* stream) {
  constexpr int kMostBytes = 99 * 1024 - int(sizeof(float)) * 2 * kThreads;
  constexpr int kFewestBytes = int(sizeof(FilterMemory<kThreads, kFilters>));
  const int rows = std::min(tiling.tile_rows, int(p.shape[2])), columns = std::min(tiling.tile_columns, int(p.shape[3]));
  const Walk<kThreads, kFilters> usual({rows, columns, 0, rows, 0, columns}, 32, INT32_MAX);
  const int bytes = std::max(std::min(4 * usual.floats(), kMostBytes), kFewestBytes);
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  return launch(kernel, kThreads, tiling.tiles, bytes, stream, p, destination, tiling, bytes / 4);
}

template <class Destination>
cudaError_t launch_pass(const BlurParams& p, const Destination& destination, DType source, DType result, void* stream) {
  const Form form = choose_form(source, result, p);
  if (form == Form::split_products) return launch_split(p, destination, stream);
  if (form == Form::direct) {
    const Tiling tiling = exact_tiling(p.shape);
    if (int64_t(tiling.tile_rows) * tiling.tile_columns <= kSmallThreads * kLines * kRun)
      return launch_walk<kSmallThreads, 1>(blur_direct<kSmallThreads, Destination>, p, destination, tiling, stream);
    return launch_walk<kDirectThreads, 1>(blur_direct<kDirectThreads, Destination>, p, destination, tiling, stream);
  }
  if constexpr (std::is_same_v<Destination, Images>)  // a gradient is never uint8
    if (source == DType::uint8) return launch_products<uint8_t>(p, destination, stream);
  if (source == DType::float16) return launch_products<Half>(p, destination, stream);
  return launch_products<BFloat16>(p, destination, stream);
}

cudaError_t launch_parameters(const BlurParams& p, const BlurGradients& gradients, void* stream) {
  if (choose_form(p.images.dtype, gradients.grad.dtype, p) != Form::products)
    return launch_walk<kDirectThreads, 2>(blur_parameter_gradient, p, gradients, exact_tiling(p.shape), stream);
  if (p.images.dtype == DType::uint8) return launch_parameter_products<uint8_t>(p, gradients, stream);
  if (p.images.dtype == DType::float16) return launch_parameter_products<Half>(p, gradients, stream);
  return launch_parameter_products<BFloat16>(p, gradients, stream);
}

bool is_empty(const int64_t (&shape)[4]) { return shape[0] * shape[1] * shape[2] * shape[3] == 0; }

const char* why_not(const int64_t (&shape)[4]) {
  constexpr int64_t kLargestSide = INT32_MAX / 4;
  const bool fits = shape[2] <= kLargestSide && shape[3] <= kLargestSide;
  return fits ? nullptr : "an image side above 536,870,911 pixels is not supported";
}

}  // namespace

const char* foveated_blur_cuda(const BlurParams& p, const Images& out, void* stream) {
  if (is_empty(p.shape)) return nullptr;
  if (const char* reason = why_not(p.shape)) return reason;
  if (needs_general_form(p)) return blur_in_general_form(p, out, stream);
  return message(launch_pass(p, out, p.images.dtype, out.dtype, stream));
}

const char* foveated_blur_backward_cuda(const BlurParams& p, const BlurGradients& gradients, void* stream) {
  if (is_empty(p.shape)) return nullptr;
  if (const char* reason = why_not(p.shape)) return reason;
  if (needs_general_form(p)) return gradients_in_general_form(p, gradients, stream);
  cudaError_t error = cudaSuccess;
  if (gradients.grad_images.data)
    error = launch_pass(p, gradients, gradients.grad.dtype, gradients.grad_images.dtype, stream);
  if (error == cudaSuccess && (gradients.grad_sigma || gradients.grad_gain)) error = launch_parameters(p, gradients, stream);
  return message(error);
}

const char* foveated_blur_list_cuda(const BlurParams& p, const ListedImage* images, int64_t tiles, DType result,
                                    void* stream) {
  if (const char* reason = why_not(p.shape)) return reason;
  return blur_of_a_list(p, images, tiles, result, stream);
}

int64_t parameter_gradient_tiles(const BlurParams& p, DType grad) {
  if (is_empty(p.shape)) return 0;
  if (needs_general_form(p)) return tiles_of_a_sample(p);
  if (choose_form(p.images.dtype, grad, p) != Form::products) return exact_tiling(p.shape).tiles / p.shape[0];
  if (p.images.dtype == DType::uint8) return Strips<SumMemory<uint8_t>>(p.shape).count / p.shape[0];
  return Strips<SumMemory<Half>>(p.shape).count / p.shape[0];
}

}  // namespace fovblur
