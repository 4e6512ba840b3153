// Memory that a thread keeps between calls, for the scratch of the CPU kernels.
#pragma once

#include <cstdint>

namespace fovblur {

struct Block {
  void* data = nullptr;
  int64_t bytes = 0;
};

// Returns at least `bytes` of uninitialised memory, aligned to cache lines. Throws std::bad_alloc.
Block take_block(int64_t bytes);

// Takes a block back for later calls of this thread. A thread keeps at most 8 MiB and frees its oldest blocks.
void give_block(Block block);

}  // namespace fovblur
