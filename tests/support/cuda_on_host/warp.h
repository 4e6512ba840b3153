// Operations of the 32 lanes of a warp, for cuda_runtime.h: barriers, and the functions of csrc/common/mma.cuh.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/dtype.h"

namespace cuda_on_host {

inline unsigned lane() { return flat_thread() % 32; }

// Publishes this lane's words and returns those of all lanes, until the next barrier.
template <size_t kCount>
const Exchange& exchange(const uint64_t (&words)[kCount]) {
  static_assert(kCount <= 8, "a lane contributes eight words at most");
  Exchange& all = exchanges[2 * (flat_thread() / 32) + size_t(running->warp_barriers % 2)];
  for (size_t k = 0; k < kCount; ++k) all.words[lane()][k] = words[k];
  warp_barrier();
  return all;
}

// c += a b for A 16 x kDepth and B kDepth x 8; of_a and of_b find an element in the lanes' words, by the fragment layouts of
// the PTX ISA.
template <int kDepth, class OfA, class OfB>
void multiply(float (&c)[4], const Exchange& all, const OfA& of_a, const OfB& of_b) {
  const int g = int(lane()) / 4, t = int(lane()) % 4;
  for (int place = 0; place < 4; ++place) {
    const int row = g + place / 2 * 8, column = 2 * t + place % 2;
    float sum = c[place];
    for (int k = 0; k < kDepth; ++k) sum += of_a(all, row, k) * of_b(all, k, column);
    c[place] = sum;
  }
}

// A pair of halves as a pair of floats, converted once for all lanes that read it.
template <class Type>
uint64_t floats_of(uint32_t pair) {
  auto bits = [](uint32_t half) { return fovblur::bit_cast<uint32_t>(fovblur::to_float(Type{uint16_t(half)})); };
  return bits(pair) | uint64_t(bits(pair >> 16)) << 32;
}
inline float float_of(uint64_t pair, int which) { return fovblur::bit_cast<float>(uint32_t(pair >> (32 * which))); }

template <class Type>
void mma16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const Exchange& all = exchange({floats_of<Type>(a[0]), floats_of<Type>(a[1]), floats_of<Type>(a[2]), floats_of<Type>(a[3]),
                                  floats_of<Type>(b[0]), floats_of<Type>(b[1])});
  auto of_a = [](const Exchange& x, int row, int k) {  // a[0] rows g, a[1] rows g + 8; a[2], a[3] columns 8 and on
    return float_of(x.words[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k % 2);
  };
  auto of_b = [](const Exchange& x, int k, int column) {
    return float_of(x.words[column * 4 + k % 8 / 2][4 + k / 8], k % 2);
  };
  multiply<16>(c, all, of_a, of_b);
}

// Ignores the 13 low bits, which tf32 does not have.
inline float tf32_of(uint64_t word) { return fovblur::bit_cast<float>(uint32_t(word) & 0xffffe000u); }

}  // namespace cuda_on_host

inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline void __syncwarp() { cuda_on_host::warp_barrier(); }
inline uint64_t __shfl_sync(uint32_t, uint64_t value, int source) {
  return cuda_on_host::exchange({value}).words[source % 32][0];
}
inline uint64_t __shfl_xor_sync(uint32_t, uint64_t value, int distance) {
  return cuda_on_host::exchange({value}).words[cuda_on_host::lane() ^ unsigned(distance)][0];
}
inline uint32_t __ballot_sync(uint32_t, int vote) {
  const cuda_on_host::Exchange& all = cuda_on_host::exchange({uint64_t(vote != 0)});
  uint32_t votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= uint32_t(all.words[lane][0]) << lane;
  return votes;
}
inline int __any_sync(uint32_t, int vote) {
  const cuda_on_host::Exchange& all = cuda_on_host::exchange({uint64_t(vote != 0)});
  return std::any_of(all.words, all.words + 32, [](const uint64_t(&words)[8]) { return words[0] != 0; });
}

namespace fovblur {

inline void mma_half(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_on_host::mma16<Half>(c, a, b);
}
inline void mma_bfloat16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_on_host::mma16<BFloat16>(c, a, b);
}
inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  using cuda_on_host::Exchange;
  using cuda_on_host::tf32_of;
  const Exchange& all = cuda_on_host::exchange({a[0], a[1], a[2], a[3], b[0], b[1]});
  auto of_a = [](const Exchange& x, int row, int k) { return tf32_of(x.words[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2]); };
  auto of_b = [](const Exchange& x, int k, int column) { return tf32_of(x.words[column * 4 + k % 4][4 + k / 4]); };
  cuda_on_host::multiply<8>(c, all, of_a, of_b);
}

inline void load_matrices_as(bool transposed, const void* row, uint32_t (&m)[4]) {
  if (reinterpret_cast<uintptr_t>(row) % 16) cuda_on_host::fail("a row of load_matrices is not aligned to 16 bytes");
  const cuda_on_host::Exchange& all = cuda_on_host::exchange({reinterpret_cast<uint64_t>(row)});
  const unsigned g = cuda_on_host::lane() / 4, t = cuda_on_host::lane() % 4;
  auto element = [&](unsigned k, unsigned row, unsigned column) {
    uint16_t bits;
    std::memcpy(&bits, reinterpret_cast<const char*>(all.words[8 * k + row][0]) + 2 * column, sizeof(bits));
    return uint32_t(bits);
  };
  for (unsigned k = 0; k < 4; ++k)
    m[k] = transposed ? element(k, 2 * t, g) | element(k, 2 * t + 1, g) << 16
                      : element(k, g, 2 * t) | element(k, g, 2 * t + 1) << 16;
}
inline void load_matrices(const void* row, uint32_t (&m)[4]) { load_matrices_as(false, row, m); }
inline void load_transposed_matrices(const void* row, uint32_t (&m)[4]) { load_matrices_as(true, row, m); }

template <class Type>
uint32_t pack(float low, float high) {
  return Convert<Type>::from(low).bits | uint32_t(Convert<Type>::from(high).bits) << 16;
}
inline uint32_t pack_half(float low, float high) { return pack<Half>(low, high); }
inline uint32_t pack_bfloat16(float low, float high) { return pack<BFloat16>(low, high); }
template <class Type>
uint32_t add_zeros(uint32_t pair, uint32_t sums) {
  auto add = [](uint32_t x, uint32_t sum) { return 0.0f * to_float(Type{uint16_t(x)}) + to_float(Type{uint16_t(sum)}); };
  return pack<Type>(add(pair, sums), add(pair >> 16, sums >> 16));
}
inline uint32_t add_zeros_half(uint32_t pair, uint32_t sums) { return add_zeros<Half>(pair, sums); }
inline uint32_t add_zeros_bfloat16(uint32_t pair, uint32_t sums) { return add_zeros<BFloat16>(pair, sums); }
inline uint32_t to_tf32(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  return std::isfinite(x) ? (bits + 0x1000u) & 0xffffe000u : bits;
}

}  // namespace fovblur
