// Reads devices and kernels of `test_gpu_resources.py`, and prints the blocks that NVIDIA's calculator gives.
#include <cuda_occupancy.h>
#include <cstdio>
int main() {
  int major, minor, threads_of_sm, threads, registers;
  size_t shared_of_sm, shared_of_block, shared;
  while (std::scanf("%d%d%d%zu%zu", &major, &minor, &threads_of_sm, &shared_of_sm, &shared_of_block) == 5 &&
         std::scanf("%d%d%zu", &threads, &registers, &shared) == 3) {
    cudaOccDeviceProp device;
    device.computeMajor = major, device.computeMinor = minor, device.warpSize = 32, device.numSms = 1;
    device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = threads_of_sm;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.sharedMemPerBlock = 49152, device.sharedMemPerMultiprocessor = shared_of_sm;
    device.sharedMemPerBlockOptin = shared_of_block, device.reservedSharedMemPerBlock = 1024;
    cudaOccFuncAttributes kernel = {};
    kernel.maxThreadsPerBlock = 1024, kernel.numRegs = registers;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN, kernel.maxDynamicSharedSizeBytes = shared_of_block;
    cudaOccDeviceState state = {};
    cudaOccResult result;
    const int error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared);
    std::printf("%d\n", error ? 0 : result.activeBlocksPerMultiprocessor);
  }
}
