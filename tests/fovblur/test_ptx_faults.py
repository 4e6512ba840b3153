"""Planted faults, each of which the PTX interpreter must find; the same code without the fault passes."""

import shutil
import subprocess

import numpy as np
import pytest
from ptx.interpreter import Interpreter
from ptx.memory import Buffer, Fault

THREADS = 64
SOURCE = r"""
#include <cuda_pipeline_primitives.h>
#include <cstdint>
#if WRONG
#define ORDER(barrier)
#define ORDERED_VOTE(condition) (condition)
#define LEFT 1
#define OFFSET 1
#else
#define ORDER(barrier) barrier
#define ORDERED_VOTE(condition) __any_sync(0xffffffffu, condition)
#define LEFT 0
#define OFFSET 0
#endif
extern "C" {
#define KERNEL __global__ void __launch_bounds__(64)

KERNEL other_warp(const float* in, float* out) {
  __shared__ float held[64];
  held[threadIdx.x] = in[threadIdx.x];
  ORDER(__syncthreads());
  out[threadIdx.x] = held[63 - threadIdx.x];
}
KERNEL other_lane(const float* in, float* out) {
  __shared__ volatile float held[64];
  held[threadIdx.x] = in[threadIdx.x];
  ORDER(__syncwarp());
  out[threadIdx.x] = held[threadIdx.x ^ 1];
}
KERNEL reused(const float* in, float* out) {
  __shared__ float held[64];
  float sum = 0;
  for (int i = 0; i < 2; ++i) {
    held[threadIdx.x] = in[threadIdx.x] * i;
    __syncthreads();
    sum += held[63 - threadIdx.x];
    ORDER(__syncthreads());
  }
  out[threadIdx.x] = sum;
}
KERNEL voted(const float* in, float* out) {  // a vote uses the values read; what it orders are reads before writes
  __shared__ float held[2];
  if (threadIdx.x % 32 == 0) held[threadIdx.x / 32] = 0;
  __syncwarp();
  float worst = held[threadIdx.x / 32];
  bool more = ORDERED_VOTE(in[threadIdx.x] > worst);
  if (more && threadIdx.x % 32 == 0) held[threadIdx.x / 32] = 1;
  __syncwarp();
  out[threadIdx.x] = held[threadIdx.x / 32];
}
KERNEL copied(const float* in, float* out) {
  __shared__ float held[2][64];
  for (int i = 0; i < 2; ++i) {
    __pipeline_memcpy_async(&held[i][threadIdx.x], in + threadIdx.x, 4);
    __pipeline_commit();
  }
  __pipeline_wait_prior(LEFT);
  __syncthreads();
  out[threadIdx.x] = held[1][63 - threadIdx.x];
}
KERNEL beyond(const float* in, float* out) { out[threadIdx.x] = in[threadIdx.x + OFFSET]; }
KERNEL before(const float* in, float* out) { out[threadIdx.x - OFFSET] = in[threadIdx.x]; }
KERNEL beyond_shared(const float* in, float* out) {
  extern __shared__ float wide[];
  wide[threadIdx.x + OFFSET] = in[threadIdx.x];
  out[threadIdx.x] = wide[threadIdx.x + OFFSET];
}
KERNEL never_written(const float* in, float* out) {
  __shared__ volatile float held[64];
  if (threadIdx.x >= OFFSET) held[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = held[threadIdx.x];
}
KERNEL decided_by_what_was_never_written(const float* in, float* out) {
  __shared__ volatile float held[64], other[64];
  if (threadIdx.x >= OFFSET) held[threadIdx.x] = in[threadIdx.x];
  other[threadIdx.x] = 2 * held[threadIdx.x];  // by way of shared memory
  if (__any_sync(0xffffffffu, other[threadIdx.x] > 3)) out[threadIdx.x] = 1;
  else out[threadIdx.x] = 2;
}
KERNEL product_of_what_was_never_written(const float* in, float* out) {
  __shared__ __align__(16) uint32_t held[32 * 4];  // four matrices of eight rows
  if (threadIdx.x < 32) {
    for (int k = 0; k < 4; ++k)
      if (threadIdx.x != 31 || k != 3 || !OFFSET) held[4 * threadIdx.x + k] = __float_as_uint(in[threadIdx.x]);
    __syncwarp();
    uint32_t a[4], row = uint32_t(__cvta_generic_to_shared(held + 4 * threadIdx.x));
    float c[4] = {};
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(row));
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%8}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(0));
    out[threadIdx.x] = c[0] + c[1];  // rows 0 to 7
    if (threadIdx.x < 28 || OFFSET) out[threadIdx.x] += c[3];  // row 15 is that of the last four lanes
  }
}
KERNEL reached_and_left(const float* in, float* out) {  // a wide load may reach what was never written
  __shared__ __align__(16) volatile float held[64][4];
  for (int k = 0; k < 3; ++k) held[threadIdx.x][k] = in[threadIdx.x];
  if (OFFSET == 0 || threadIdx.x > 9) held[threadIdx.x][3] = 1;
  float x, y, z, w;
  asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(x), "=f"(y), "=f"(z), "=f"(w)
               : "r"(uint32_t(__cvta_generic_to_shared((float*)held[threadIdx.x]))));
  out[threadIdx.x] = x + y + (in[threadIdx.x] > 9 ? w : z);
}
KERNEL own_output(const float* in, float* out) {
  if (threadIdx.x >= OFFSET) out[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = ((volatile float*)out)[threadIdx.x] + 1;
}
KERNEL to_input(float* in, float* out) { (OFFSET ? in : out)[threadIdx.x] = 1; }
KERNEL misaligned(const float* in, float* out) {
  if (threadIdx.x < 8) *(float4*)(out + 4 * threadIdx.x) = *(const float4*)(in + 4 * threadIdx.x + OFFSET);
}
KERNEL misaligned_shared(const float* in, float* out) {
  __shared__ __align__(16) float held[80];
  if (threadIdx.x < 16) *(float4*)(held + 4 * threadIdx.x + OFFSET) = make_float4(1, 2, 3, 4);
  __syncthreads();
  out[threadIdx.x] = held[threadIdx.x + OFFSET];
}
KERNEL parted(const float* in, float* out) {
  if (in[threadIdx.x] >= OFFSET) __syncthreads();
  else asm volatile("bar.sync 0;");
  out[threadIdx.x] = 1;
}
KERNEL left_early(const float* in, float* out) {
  if (in[threadIdx.x] < OFFSET) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
KERNEL half_a_warp(const float* in, float* out) {
  float sum = in[threadIdx.x];
  if (sum < OFFSET) { out[threadIdx.x] = sum; return; }
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, sum, 1);
}
KERNEL one_place(const float* in, float* out) {
  __shared__ volatile float held[64];
  held[OFFSET ? threadIdx.x / 2 : threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = 1;
}
__constant__ float halves[4] = {0.5f, 0.25f, 0.125f, 0.0625f};
__device__ const short steps[3] = {-7, 300, 2};
KERNEL of_every_memory(const float* in, float* out) {
  __shared__ float held[64];
  float own[8];
  for (int i = 0; i < 8; ++i) own[(i + threadIdx.x) % 8] = in[i];
  held[threadIdx.x] = own[threadIdx.x / 8];
  __syncthreads();
  const float* either = int(in[0]) == 0 ? held : in;
  float x = either[threadIdx.x] + steps[threadIdx.x % 3];
  switch (threadIdx.x % 6) {
    case 0: x *= 3; break;
    case 1: x = rsqrtf(x * x); break;
    case 2: x -= 11; break;
    case 3: x = fabsf(x); break;
    case 4: x = x * x; break;
    default: x += halves[threadIdx.x % 4];
  }
  out[threadIdx.x] = x;
}
KERNEL of_all_blocks(const float* in, float* out) {
  const int block = OFFSET ? 0 : blockIdx.x;
  out[block * 64 + threadIdx.x] = in[threadIdx.x];
}
}
"""
NEVER_WRITTEN = r"what follows from shared memory that was never written, read at PTX line \d+"
FAULTS = {
    "other_warp": "race: thread .* reads shared memory that thread .* writes",
    "other_lane": "race: thread 0 reads shared memory that thread 1 writes",
    "reused": "race: thread .* writes shared memory that warp .* reads",
    "voted": "race: thread .* writes shared memory that warp .* reads",
    "copied": "reads shared memory that an asynchronous copy still fills",
    "beyond": r"device access out of bounds: 4 bytes at .*, 0 bytes after the end of a buffer",
    "before": "device access out of bounds",
    "beyond_shared": "shared access out of bounds: 4 bytes at 256 of 256",
    "never_written": f"stores to device memory {NEVER_WRITTEN}",
    "decided_by_what_was_never_written": f"decides by {NEVER_WRITTEN}",
    "product_of_what_was_never_written": f"stores to device memory {NEVER_WRITTEN}",
    "own_output": "reads device memory that has no value",
    "to_input": "writes device memory that is not an output's element",
    "misaligned": "device address .* is not aligned to 16 bytes",
    "misaligned_shared": "shared address 4 is not aligned to 16 bytes",
    "parted": "threads wait at different barriers",
    "left_early": "waits at a barrier that other threads never reach",
    "half_a_warp": "waits for lanes of its warp that never come",
    "one_place": "several lanes write one place of shared memory",
    "of_all_blocks": "writes device memory that another block writes",
}

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@pytest.fixture(scope="module")
def injected(tmp_path_factory) -> dict[str, Interpreter]:
    folder = tmp_path_factory.mktemp("injected")
    (folder / "injected.cu").write_text(SOURCE)
    programs = {}
    for wrong, name in enumerate(("right", "wrong")):
        target = folder / f"{name}.ptx"
        command = ["nvcc", "-ptx", "-arch=compute_86", f"-DWRONG={wrong}", "-o", target, folder / "injected.cu"]
        subprocess.run(command, check=True)
        programs[name] = Interpreter(target)
    return programs


def run(interpreter: Interpreter, kernel: str) -> np.ndarray:
    values = np.arange(THREADS).astype(np.float32)
    output = np.zeros(8 * THREADS, np.uint8)
    buffers = [
        Buffer(values.view(np.uint8), 4096),
        Buffer(output, 8192, readable=np.zeros(len(output), bool), writable=np.ones(len(output), bool)),
    ]
    arguments = [address.to_bytes(8, "little") for address in (4096, 8192)]
    interpreter.run(kernel, (2 if kernel == "of_all_blocks" else 1, 1, 1), (THREADS, 1, 1), arguments, buffers, 256)
    return output.view(np.float32)[:THREADS]


@pytest.mark.parametrize("kernel", FAULTS)
def test_injected_faults_are_detected(injected, kernel):
    with pytest.raises(Fault, match=FAULTS[kernel]):
        run(injected["wrong"], kernel)


def test_tables_local_arrays_generic_addresses_and_switches(injected):
    results = run(injected["right"], "of_every_memory")
    cases = (lambda x, t: 3 * x, lambda x, t: 1 / abs(x), lambda x, t: x - 11, lambda x, t: abs(x), lambda x, t: x * x)
    for t in range(THREADS):
        x = (t // 8 - t) % 8 + (-7, 300, 2)[t % 3]
        expected = cases[t % 6](x, t) if t % 6 < 5 and (t % 6 != 1 or x) else x + 0.5 ** (1 + t % 4)
        if t % 6 == 1 and x == 0:
            expected = np.inf
        assert results[t] == pytest.approx(expected, rel=1e-6)


def test_a_wide_load_may_reach_memory_that_was_never_written(injected):
    for program in injected.values():
        results = run(program, "reached_and_left")
        assert np.array_equal(results, [2 * x + (1 if x > 9 else x) for x in range(THREADS)])


@pytest.mark.parametrize("kernel", [kernel for kernel in FAULTS if kernel not in ("parted", "own_output")])
def test_the_same_code_without_the_fault_passes(injected, kernel):
    run(injected["right"], kernel)
