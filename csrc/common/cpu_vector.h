// Vectors as wide as the registers of the variant that is compiled.
#pragma once

namespace fovblur {
namespace FOVBLUR_VARIANT {

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(FOVBLUR_VECTOR_BYTES), aligned(alignof(T)), may_alias));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int kLanes = FOVBLUR_VECTOR_BYTES / sizeof(T);

}  // namespace FOVBLUR_VARIANT
}  // namespace fovblur
