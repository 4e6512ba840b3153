#include "scratch.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace fovblur {
namespace {

constexpr int64_t kLine = 64;             // bytes of a cache line
constexpr int64_t kMostBytes = 8 << 20;   // that a thread keeps
constexpr int kMostBlocks = 32;

// The blocks a thread keeps, the oldest first.
class Kept {
 public:
  ~Kept() { free_oldest(count_); }

  // Removes and returns the smallest block of at least `bytes`, at most twice as large; an empty one if there is none.
  Block take(int64_t bytes) {
    Block* best = nullptr;
    for (Block* block = blocks_; block < blocks_ + count_; ++block)
      if (block->bytes >= bytes && block->bytes <= 2 * bytes && (!best || block->bytes < best->bytes)) best = block;
    if (!best) return {};
    const Block taken = *best;
    std::copy(best + 1, blocks_ + count_--, best);
    bytes_ -= taken.bytes;
    return taken;
  }

  void add(Block block) {
    while (count_ == kMostBlocks || bytes_ + block.bytes > kMostBytes) free_oldest(1);
    blocks_[count_++] = block;
    bytes_ += block.bytes;
  }

 private:
  void free_oldest(int count) {
    for (int i = 0; i < count; ++i) {
      bytes_ -= blocks_[i].bytes;
      std::free(blocks_[i].data);
    }
    std::copy(blocks_ + count, blocks_ + count_, blocks_);
    count_ -= count;
  }

  Block blocks_[kMostBlocks];
  int count_ = 0;
  int64_t bytes_ = 0;
};

thread_local Kept kept;

}  // namespace

Block take_block(int64_t bytes) {
  bytes = (bytes + kLine - 1) / kLine * kLine;
  Block block = kept.take(bytes);
  if (!block.data) block = {std::aligned_alloc(size_t(kLine), size_t(bytes)), bytes};
  if (!block.data) throw std::bad_alloc();
  return block;
}

void give_block(Block block) {
  if (block.bytes > kMostBytes)
    std::free(block.data);
  else if (block.data)
    kept.add(block);
}

}  // namespace fovblur
