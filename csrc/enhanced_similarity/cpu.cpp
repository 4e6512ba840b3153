// Enhanced similarity on the CPU: M_bi * (1 + r_i c_j M_bt), tile by tile, stored or ranked.
#include "cpu.h"

#include <atomic>
#include <limits>
#include <memory>

#include "cpu_best.h"
#include "cpu_product.h"

namespace fovblur {
namespace FOVBLUR_VARIANT {
namespace {

constexpr int64_t kBlocks = 16;  // blocks of recordings whose panels are in memory at once

template <class T>
T value_of(const Gate& gate, int64_t i) {
  return gate.data ? static_cast<const T*>(gate.data)[i * gate.stride] : T(1);
}

template <class T>
struct Workspace {
  Scratch<T> packed;  // rows of a tile, converted
  alignas(64) T image_scores[kTile * kBlock];
  alignas(64) T text_scores[kTile * kBlock];
};

// Up to kBlocks blocks of recordings, packed once and compared with the whole gallery.
template <class T>
class Recordings {
 public:
  Recordings(const SimilarityParams& params, int64_t first, int threads)
      : p_(params), first_(first), count_(std::min(kBlocks * kBlock, params.recordings - first)) {
    image_.get(blocks() * Panel<T>::size(p_.image_width));
    text_.get(blocks() * Panel<T>::size(p_.text_width));
    parallel_for<Scratch<T>>(blocks(), threads, [&](int64_t block, Scratch<T>& rows) {
      T* space = rows.get(Panel<T>::packing_space(std::max(p_.image_width, p_.text_width)));
      image_panel(block).pack(p_.dtype, p_.brain_image, first_of(block), space);
      T* gates = gates_ + block * kBlock;
      for (int64_t q = 0; q < kBlock; ++q) gates[q] = q < count_of(block) ? value_of<T>(p_.row_gate, first_of(block) + q) : T(0);
      any_open_[block] = std::any_of(gates, gates + kBlock, [](T gate) { return gate != T(0); });
      if (any_open_[block]) text_panel(block).pack(p_.dtype, p_.brain_text, first_of(block), space);
    });
  }

  int64_t blocks() const { return (count_ + kBlock - 1) / kBlock; }
  int64_t first_of(int64_t block) const { return first_ + block * kBlock; }
  int64_t count_of(int64_t block) const { return std::min<int64_t>(kBlock, count_ - block * kBlock); }

  // workspace.image_scores[i][q] = the enhanced similarity of recording q of a block to image first + i.
  void score(int64_t block, int64_t first, int64_t count, Workspace<T>& workspace) const {
    T* scores = workspace.image_scores;
    image_panel(block).products(p_.dtype, p_.image, first, count, workspace.packed, scores);
    bool open = false;
    for (int64_t i = 0; any_open_[block] && i < count && !open; ++i) open = value_of<T>(p_.column_gate, first + i) != T(0);
    if (!open) return;
    const T* text_scores = workspace.text_scores;
    text_panel(block).products(p_.dtype, p_.text, first, count, workspace.packed, workspace.text_scores);
    const T* rows = gates_ + block * kBlock;
    const int64_t lanes = round_up(count_of(block), kLanes<T>);
    for (int64_t i = 0; i < count; ++i) {
      const T column = value_of<T>(p_.column_gate, first + i);
      if (column == T(0)) continue;
      for (int64_t q = 0; q < lanes; ++q) {
        const T enhanced = T(1) + rows[q] * column * text_scores[i * kBlock + q];
        scores[i * kBlock + q] *= rows[q] == T(0) ? T(1) : enhanced;  // a closed gate lets no NaN through
      }
    }
  }

 private:
  Panel<T> image_panel(int64_t block) const { return panel(image_, p_.image_width, block); }
  Panel<T> text_panel(int64_t block) const { return panel(text_, p_.text_width, block); }
  Panel<T> panel(Scratch<T>& panels, int64_t width, int64_t block) const {
    return {panels.get(0) + block * Panel<T>::size(width), width, count_of(block)};
  }

  const SimilarityParams& p_;
  int64_t first_, count_;
  mutable Scratch<T> image_, text_;
  T gates_[kBlocks * kBlock];
  bool any_open_[kBlocks];
};

// Threads that have enough to do, and the images a task takes.
struct Plan {
  Plan(const SimilarityParams& p, int wanted) {
    constexpr double kThreadProducts = 1 << 20;
    const double products = double(p.recordings) * double(p.images) * double(p.image_width + p.text_width + 1);
    threads = int(std::max(1.0, std::min(double(wanted), products / kThreadProducts)));
    const int64_t share = (p.images + 8 * threads - 1) / (8 * threads);
    chunk = std::min<int64_t>(32 * kTile, round_up(share, kTile));
    chunks = (p.images + chunk - 1) / chunk;
  }

  // Calls body(first, count) for every tile of a chunk.
  template <class Body>
  void tiles(const SimilarityParams& p, int64_t index, const Body& body) const {
    const int64_t end = std::min(p.images, (index + 1) * chunk);
    for (int64_t first = index * chunk; first < end; first += kTile) body(first, std::min<int64_t>(kTile, end - first));
  }

  int threads;
  int64_t chunk, chunks;
};

template <class T>
void store(const SimilarityParams& p, const Recordings<T>& recordings, int64_t block, int64_t first, int64_t count,
           const T* scores, void* out) {
  for (int64_t q = 0; q < recordings.count_of(block); ++q) {
    T row[kTile];
    for (int64_t i = 0; i < count; ++i) row[i] = scores[i * kBlock + q];
    store_row(p.dtype, row, count, out, (recordings.first_of(block) + q) * p.images + first, 1);
  }
}

template <class T>
void similarity(const SimilarityParams& p, void* out, int threads) {
  if (p.recordings == 0 || p.images == 0) return;
  const Plan plan(p, threads);
  for (int64_t begin = 0; begin < p.recordings; begin += kBlocks * kBlock) {
    const auto recordings = std::make_unique<Recordings<T>>(p, begin, plan.threads);
    parallel_for<Workspace<T>>(plan.chunks * recordings->blocks(), plan.threads, [&](int64_t task, Workspace<T>& workspace) {
      const int64_t block = task % recordings->blocks();
      plan.tiles(p, task / recordings->blocks(), [&](int64_t first, int64_t count) {
        recordings->score(block, first, count, workspace);
        store(p, *recordings, block, first, count, workspace.image_scores, out);
      });
    });
  }
}

// The best of the images one thread has scored, for each of the recordings of a block.
template <class T>
struct BlockBest {
  Best<T> best[kBlock];
  alignas(64) T thresholds[kBlock];

  BlockBest() { std::fill_n(thresholds, kBlock, std::numeric_limits<T>::quiet_NaN()); }

  void offer_tile(const T* scores, int64_t recordings, int64_t first, int64_t count, int64_t k) {
    for (int64_t i = 0; i < count; ++i, scores += kBlock) {
      int any = 0;
      for (int64_t q = 0; q < recordings; ++q) any |= !(scores[q] <= thresholds[q]);
      if (!any) continue;
      for (int64_t q = 0; q < recordings; ++q) {
        if (scores[q] <= thresholds[q]) continue;
        best[q].offer(scores[q], first + i, k);
        thresholds[q] = best[q].threshold(k);
      }
    }
  }
};

template <class T>
void topk(const SimilarityParams& p, const TopK& out, int threads) {
  if (p.recordings == 0) return;
  const Plan plan(p, threads);
  for (int64_t begin = 0; begin < p.recordings; begin += kBlocks * kBlock) {
    const auto recordings = std::make_unique<Recordings<T>>(p, begin, plan.threads);
    const int64_t blocks = recordings->blocks();
    std::vector<std::vector<BlockBest<T>>> of_thread(size_t(plan.threads));
    std::atomic<int64_t> next{0};
    parallel_for<Workspace<T>>(plan.threads, plan.threads, [&](int64_t thread, Workspace<T>& workspace) {
      std::vector<BlockBest<T>>& best = of_thread[size_t(thread)];
      best = std::vector<BlockBest<T>>(size_t(blocks));
      for (int64_t chunk; (chunk = next.fetch_add(1)) < plan.chunks;)
        for (int64_t block = 0; block < blocks; ++block)
          plan.tiles(p, chunk, [&](int64_t first, int64_t count) {
            recordings->score(block, first, count, workspace);
            best[size_t(block)].offer_tile(workspace.image_scores, recordings->count_of(block), first, count, out.k);
          });
    });
    parallel_for<std::vector<Candidate<T>>>(blocks, plan.threads, [&](int64_t block, std::vector<Candidate<T>>& all) {
      for (int64_t q = 0; q < recordings->count_of(block); ++q) {
        all.clear();
        for (const auto& best : of_thread) {
          const auto& candidates = best[size_t(block)].best[q].candidates();
          all.insert(all.end(), candidates.begin(), candidates.end());
        }
        std::partial_sort(all.begin(), all.begin() + out.k, all.end(), Candidate<T>::better);
        const int64_t row = (recordings->first_of(block) + q) * out.k;
        for (int64_t i = 0; i < out.k; ++i) {
          static_cast<T*>(out.values)[row + i] = all[size_t(i)].score();
          out.indices[row + i] = all[size_t(i)].index;
        }
      }
    });
  }
}

}  // namespace

void enhanced_similarity(const SimilarityParams& params, void* out, int threads) {
  if (params.dtype == DType::float64)
    similarity<double>(params, out, threads);
  else
    similarity<float>(params, out, threads);
}

void enhanced_topk(const SimilarityParams& params, const TopK& best, int threads) {
  if (params.dtype == DType::float64)
    topk<double>(params, best, threads);
  else
    topk<float>(params, best, threads);
}

}  // namespace FOVBLUR_VARIANT
}  // namespace fovblur
