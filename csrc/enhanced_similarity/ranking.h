// The order of scores in the ranking of every backend: larger first, NaN last, -0 equal to 0.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../common/dtype.h"

namespace fovblur {

template <class T>
using OrderBits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

template <class T>
constexpr OrderBits<T> kSignBit = OrderBits<T>(1) << (8 * sizeof(T) - 1);

// Unsigned integers in the order of the scores; 0 is NaN.
template <class T>
FOVBLUR_HD OrderBits<T> order_of(T score) {
  if (score != score) return 0;
  const auto bits = bit_cast<OrderBits<T>>(score + T(0));  // -0 becomes 0
  return bits & kSignBit<T> ? OrderBits<T>(~bits) : OrderBits<T>(bits | kSignBit<T>);
}

template <class T>
FOVBLUR_HD T score_of(OrderBits<T> order) {
  if (order == 0) return T(NAN);
  return bit_cast<T>(order & kSignBit<T> ? OrderBits<T>(order ^ kSignBit<T>) : OrderBits<T>(~order));
}

}  // namespace fovblur
