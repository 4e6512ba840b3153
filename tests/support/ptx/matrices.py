"""Small matrices that the 32 lanes of a warp hold together, by the layouts of the PTX ISA (mma, ldmatrix, movmatrix).

With g = lane / 4, t = lane % 4 and p elements of an operand in a register, element e of register r is
    A: row g + 8 (r % 2), column t p + e + 4 p (r / 2)
    B: row t p + e + 4 p r, column g
and element i of C and D, of 32 bits: row g + 8 (i / 2), column 2 t + i % 2. Sixteen-bit sums lie two in a register.
"""

from __future__ import annotations

import re

import numpy as np

from .arithmetic import decoded, encoded
from .module import UnsupportedPtx

LANES = np.arange(32)
G, T = LANES // 4, LANES % 4
PER_REGISTER = {"f16": 2, "bf16": 2, "tf32": 1, "u8": 4, "s8": 4}


def _elements(registers: list[np.ndarray], kind: str) -> np.ndarray:
    """Return the operand's elements as float64, (warps, registers, 32, elements of a register)."""
    words = np.stack([np.ascontiguousarray(register).reshape(-1, 32) for register in registers], 1)
    if kind == "tf32":  # the lower 13 bits do not count
        return (words & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)[..., None]
    if kind in ("f16", "bf16"):
        return decoded(words, f"{kind}x2")
    return words[..., None].view(np.uint8 if kind == "u8" else np.int8).astype(np.float64)


def mma(opcode: tuple[str, ...], a: list[np.ndarray], b: list[np.ndarray], c: list[np.ndarray]) -> list[np.ndarray]:
    """Return the registers of D = A B + C, rounded once; registers are (threads,) of 32 bits."""
    shape, (d_kind, a_kind, b_kind, c_kind) = next(part for part in opcode if re.match(r"m\d", part)), opcode[-4:]
    depth = int(shape.rpartition("k")[2])
    if not shape.startswith("m16n8k") or a_kind not in PER_REGISTER or b_kind not in PER_REGISTER or d_kind != c_kind:
        raise UnsupportedPtx(".".join(opcode))
    per = PER_REGISTER[a_kind]
    left, right = _elements(a, a_kind), _elements(b, b_kind)
    matrix_a, matrix_b = np.zeros((len(left), 16, depth)), np.zeros((len(left), depth, 8))
    for r in range(left.shape[1]):
        for e in range(per):
            matrix_a[:, G + 8 * (r % 2), T * per + e + 4 * per * (r // 2)] = left[:, r, :, e]
    for r in range(right.shape[1]):
        for e in range(per):
            matrix_b[:, T * per + e + 4 * per * r, G] = right[:, r, :, e]
    half = d_kind == "f16"
    if half:
        sums = _elements(c, "f16").transpose(0, 1, 3, 2).reshape(len(left), 4, 32)
    else:
        sums = np.stack([register.reshape(-1, 32) for register in c], 1).view(
            np.int32 if d_kind == "s32" else np.float32
        )
    product = np.matmul(matrix_a, matrix_b)
    result = np.stack([product[:, G + 8 * (i // 2), 2 * T + i % 2] for i in range(4)], 1) + sums
    if half:
        packed = encoded(result.reshape(len(left), 2, 2, 32).transpose(0, 1, 3, 2), "f16x2")
        return [packed[:, i].ravel() for i in range(2)]
    dtype = np.int64 if d_kind == "s32" else np.float32
    bits = result.astype(dtype).astype(np.int32 if d_kind == "s32" else np.float32).view(np.uint32)
    return [bits[:, i].ravel() for i in range(4)]


def mma_origins(a: list[np.ndarray], b: list[np.ndarray], c: list[np.ndarray]) -> list[np.ndarray]:
    """Return the largest number of the elements that each register of D depends on; registers are (threads,)."""
    by_group = lambda register: register.reshape(-1, 8, 4).max(2)  # noqa: E731
    rows = [np.maximum.reduce([by_group(register) for register in a[half::2]]) for half in range(2)]
    columns = np.maximum.reduce([by_group(register) for register in b])
    products = [np.maximum(rows[i // 2][:, G], columns[:, 2 * T + i % 2]) for i in range(4)]
    if len(c) == 2:
        products = [np.maximum(*products[:2]), np.maximum(*products[2:])]
    return [np.maximum(product.ravel(), sums) for product, sums in zip(products, c)]


def largest_of_registers(rows: np.ndarray, transposed: bool) -> np.ndarray:
    """Return the largest number of the elements that lanes hold of 8 x 8 matrices, (..., 32), from (..., 8, 8)."""
    matrix = np.swapaxes(rows, -1, -2) if transposed else rows
    return np.maximum(matrix[..., G, 2 * T], matrix[..., G, 2 * T + 1])


def rows_to_registers(rows: np.ndarray, transposed: bool) -> np.ndarray:
    """Return what lanes hold of 8 x 8 matrices of 16 bits, (..., 32) words, from their rows (..., 8, 8)."""
    matrix = np.swapaxes(rows, -1, -2) if transposed else rows
    low, high = matrix[..., G, 2 * T].astype(np.uint32), matrix[..., G, 2 * T + 1].astype(np.uint32)
    return low | (high << np.uint32(16))


def registers_to_rows(words: np.ndarray, transposed: bool) -> np.ndarray:
    """Return the rows (..., 8, 8) of matrices that lanes hold, (..., 32)."""
    rows = np.zeros((*words.shape[:-1], 8, 8), np.uint16)
    rows[..., G, 2 * T], rows[..., G, 2 * T + 1] = words & np.uint32(0xFFFF), words >> np.uint32(16)
    return np.swapaxes(rows, -1, -2) if transposed else rows
