// The border rule REFLECT_101: ... 2 1 | 0 1 2 ... n-2 n-1 | n-2 n-3 ...
#pragma once

#include <cstdint>

#include "host_device.h"

namespace fovblur {

// Index in [0, n) of the pixel that position i shows, for any i (period 2n - 2).
template <class Int>
FOVBLUR_HD Int reflect(Int i, Int n) {
  const Int last = n - 1;
  i = i < 0 ? -i : i;
  if (i <= last) return i;
  if (last == 0) return 0;
  const Int period = 2 * last;
  i %= period;
  return i <= last ? i : period - i;
}

}  // namespace fovblur
