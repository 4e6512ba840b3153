// The k best scores of a recording so far, in a total order: larger first, NaN last, then the lower index.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "../common/dtype.h"

namespace fovblur {
namespace FOVBLUR_VARIANT {

template <class T>
struct Candidate {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  static constexpr Bits kSign = Bits(1) << (8 * sizeof(T) - 1);

  Bits order;  // of the floats, as unsigned integers; 0 is NaN
  int64_t index;

  Candidate(T score, int64_t at) : order(0), index(at) {
    if (score != score) return;
    const Bits bits = bit_cast<Bits>(score + T(0));  // -0 becomes 0
    order = bits & kSign ? ~bits : bits | kSign;
  }

  T score() const {
    if (order == 0) return std::numeric_limits<T>::quiet_NaN();
    return bit_cast<T>(order & kSign ? order ^ kSign : Bits(~order));
  }

  static bool better(const Candidate& a, const Candidate& b) {
    return a.order != b.order ? a.order > b.order : a.index < b.index;
  }
};

// A heap with the worst of the k best on top.
template <class T>
class Best {
 public:
  // Scores that are not above it need not be offered, if they come in the order of their indices. NaN: all need to be.
  T threshold(int64_t k) const {
    return int64_t(heap_.size()) < k ? std::numeric_limits<T>::quiet_NaN() : heap_.front().score();
  }

  void offer(T score, int64_t index, int64_t k) {
    const Candidate<T> candidate(score, index);
    if (int64_t(heap_.size()) == k) {
      if (!Candidate<T>::better(candidate, heap_.front())) return;
      std::pop_heap(heap_.begin(), heap_.end(), Candidate<T>::better);
      heap_.pop_back();
    }
    heap_.push_back(candidate);
    std::push_heap(heap_.begin(), heap_.end(), Candidate<T>::better);
  }

  const std::vector<Candidate<T>>& candidates() const { return heap_; }

 private:
  std::vector<Candidate<T>> heap_;
};

}  // namespace FOVBLUR_VARIANT
}  // namespace fovblur
