"""An interpreter of the PTX that nvcc writes for the CUDA kernels.

It runs one block at a time, lanes in numpy, with the inline assembly that CUDA on the host leaves out, and stops at
what no kernel may do: races, values that were never written, accesses out of bounds or misaligned, barriers that not
all threads reach. It counts what warps issue, and what moves through device and shared memory.

`module` parses, `translate` turns instructions into functions once, `block` runs a block, `interpreter` a launch, and
`device` takes the launches from the library's own host code.
"""
