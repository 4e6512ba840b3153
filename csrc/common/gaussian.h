// The Gaussian window, before it is normalised to sum 1 over -radius .. radius.
#pragma once

#include <cmath>

#include "host_device.h"

namespace fovblur {

// Never quite 0: an infinite pixel stays infinite all over the support, where 0 * infinity would be NaN.
template <class Real>
FOVBLUR_HD Real gaussian_window(int offset, Real sigma) {
  const Real u = Real(offset) / sigma;
  const Real window = exp(Real(-0.5) * u * u);
  return window < Real(1.17549435e-38) ? Real(1.17549435e-38) : window;
}

// A sigma of 0 is the identity, whatever kernel size it comes with.
template <class Real>
FOVBLUR_HD int gaussian_radius(Real sigma, int kernel_size) {
  return sigma == Real(0) ? 0 : kernel_size / 2;
}

}  // namespace fovblur
