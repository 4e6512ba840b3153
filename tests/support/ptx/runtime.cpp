// Stands in for the CUDA runtime: hands every launch to a function, and answers questions about the device from a table.

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

namespace {

using OnLaunch = int (*)(const char* kernel, const unsigned* grid, const unsigned* block, size_t shared, void** arguments);

constexpr size_t kWithoutAsking = 48 * 1024;  // bytes of shared memory that a block gets without cudaFuncSetAttribute

std::map<const void*, std::string>& names() {  // of kernels, by their host functions; filled while the module is loaded
  static std::map<const void*, std::string> all;
  return all;
}
std::map<const void*, size_t> allowed;
std::map<int, int> attributes;  // of the device
OnLaunch on_launch = nullptr;

}  // namespace

extern "C" {

void ptx_on_launch(OnLaunch function) { on_launch = function; }
void ptx_set_attribute(int attribute, int value) { attributes[attribute] = value; }

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
  names()[host] = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value > attributes[cudaDevAttrMaxSharedMemoryPerBlockOptin]) return cudaErrorInvalidValue;
    allowed[kernel] = size_t(value);
  }
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t) {
  const size_t most = allowed.count(kernel) ? allowed[kernel] : kWithoutAsking;
  if (!names().count(kernel) || shared > most) return cudaErrorInvalidValue;
  const unsigned grids[] = {grid.x, grid.y, grid.z}, blocks[] = {block.x, block.y, block.z};
  return on_launch(names()[kernel].c_str(), grids, blocks, shared, arguments) ? cudaErrorLaunchFailure : cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "invalid value" : "launch failed";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (!attributes.count(attribute)) return cudaErrorInvalidValue;
  return *value = attributes[attribute], cudaSuccess;
}

// What the compiler's own launch stubs name; nothing calls them.
unsigned __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { std::abort(); }
cudaError_t __cudaGetKernel(void*, const void*) { std::abort(); }
cudaError_t __cudaLaunchKernel(void*, dim3, dim3, void**, size_t, cudaStream_t) { std::abort(); }

}  // extern "C"
