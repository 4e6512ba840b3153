// Marks the functions that the CPU and the CUDA module share.
#pragma once

#ifdef __CUDACC__
#define FOVBLUR_HD __host__ __device__ __forceinline__
#else
#define FOVBLUR_HD inline
#endif
