// Huge pages for large results: mapping fresh memory in small pages takes about half as long as blurring into it.
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "params.h"

namespace fovblur {
namespace FOVBLUR_VARIANT {

// Advises the kernel to back memory that is about to be written in full by huge pages; its content does not change.
inline void advise_huge_pages([[maybe_unused]] const Images& images, [[maybe_unused]] const int64_t (&shape)[4]) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 2 << 20;
  uintptr_t elements = 1;
  for (int i = 0; i < 4; ++i) elements += uintptr_t((shape[i] - 1) * images.strides[i]);
  const uintptr_t data = reinterpret_cast<uintptr_t>(images.data);
  const uintptr_t begin = (data + kPage - 1) / kPage * kPage, end = (data + elements * size_of(images.dtype)) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace FOVBLUR_VARIANT
}  // namespace fovblur
