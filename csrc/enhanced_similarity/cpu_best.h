// The k best scores of a recording so far, in a total order: larger first, NaN last, then the lower index.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "ranking.h"

namespace fovblur {
namespace FOVBLUR_VARIANT {

template <class T>
struct Candidate {
  OrderBits<T> order;
  int64_t index;

  Candidate(T score, int64_t at) : order(order_of(score)), index(at) {}

  T score() const { return score_of<T>(order); }

  static bool better(const Candidate& a, const Candidate& b) {
    return a.order != b.order ? a.order > b.order : a.index < b.index;
  }
};

// A heap with the worst of the k best on top.
template <class T>
class Best {
 public:
  // A score at or below it need not be offered, if scores come in the order of their indices. NaN: offer every score.
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
