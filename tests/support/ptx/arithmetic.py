"""What PTX instructions compute from the values of their operands, lane by lane.

A value is an array of one element a lane, or a scalar that all lanes share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .module import UnsupportedPtx

Value = Any  # np.ndarray | np.generic
DTYPES: dict[str, Any] = {
    "pred": np.bool_, "f32": np.float32, "f64": np.float64,
    **{f"{kind}{bits}": np.dtype(f"u{bits // 8}").type for kind in ("b", "u") for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}").type for bits in (8, 16, 32, 64)},
    "f16": np.uint16, "bf16": np.uint16, "f16x2": np.uint32, "bf16x2": np.uint32, "tf32": np.uint32,
}  # fmt: skip
WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
NARROW_FLOATS = ("f16", "bf16", "f16x2", "bf16x2")


@dataclass(frozen=True)
class Operation:
    """A function of values of the types `sources`; its result has type `result`."""

    function: Callable[..., Value]
    sources: tuple[str, ...]
    result: str


# ---- floating point ----


def bfloat16_bits(x: Value, mode: str = "rn") -> Value:
    """Round float32 values to bfloat16."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = bits if mode == "rz" else bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.where(np.isnan(x), np.uint16(0x7FFF), (rounded >> np.uint32(16)).astype(np.uint16))


def tf32_bits(x: Value) -> Value:
    """Round float32 values to tf32, ties away from zero."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return np.where(np.isfinite(x), (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000), bits)


def decoded(x: Value, kind: str) -> Value:
    """Return floats of one of NARROW_FLOATS as float64; packed ones get a last axis of two."""
    if kind.endswith("x2"):
        return decoded(np.asarray(x)[..., None].view(np.uint16), kind[:-2])
    if kind == "f16":
        return np.asarray(x).view(np.float16).astype(np.float64)
    return (np.asarray(x).astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)


def encoded(x: Value, kind: str, mode: str = "rn") -> Value:
    """Round float64 values once to a type; the inverse of `decoded` for NARROW_FLOATS."""
    if kind.endswith("x2"):
        return np.ascontiguousarray(encoded(x, kind[:-2], mode)).view(np.uint32)[..., 0]
    if kind == "bf16":
        return bfloat16_bits(rounded(x, np.float32, "rn" if mode == "rn" else "rz"), mode)
    if kind == "f16":
        return rounded(x, np.float16, mode).view(np.uint16)
    return rounded(x, DTYPES[kind], mode)


def rounded(x: Value, dtype: Any, mode: str) -> Value:
    """Round float64 values to nearest (rn, rna), to zero (rz), down (rm) or up (rp)."""
    nearest: Value = np.asarray(x).astype(dtype)
    if mode in ("rn", "rna") or dtype is np.float64:
        return nearest
    exact = nearest.astype(np.float64)
    above = exact > x if mode == "rm" else exact < x if mode == "rp" else np.abs(exact) > np.abs(x)
    towards = {"rm": -np.inf, "rp": np.inf, "rz": 0.0}[mode]
    return np.where(above, np.nextafter(nearest, dtype(towards)), nearest)


def flushed(x: Value) -> Value:
    """Replace subnormal float32 values by zeros of their sign."""
    zero: Value = np.copysign(np.float32(0), x)
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, zero, x)


def _floating(function: Callable[..., Value], count: int, kind: str, modifiers: tuple[str, ...]) -> Operation:
    """Return a function of floats, computed in float64 and rounded once."""
    mode = next((part for part in modifiers if part in ("rn", "rz", "rm", "rp")), "rn")
    exact_in_float32 = function in (np.add, np.subtract, np.multiply, np.negative, np.absolute, np.fmin, np.fmax)
    plain = kind == "f64" or (kind == "f32" and mode == "rn" and exact_in_float32)

    def compute(*values: Value) -> Value:
        if plain:
            result = function(*values)
        elif kind in NARROW_FLOATS:
            result = function(*(decoded(value, kind) for value in values))
        else:
            result = function(*(value.astype(np.float64) for value in values))
        if "sat" in modifiers:
            result = np.where(np.isnan(result), 0, np.clip(result, 0, 1))
        if "relu" in modifiers:
            result = np.maximum(result, 0)
        return result if plain and "sat" not in modifiers else encoded(result, kind, mode)

    def with_ftz(*values: Value) -> Value:
        return flushed(compute(*map(flushed, values)))

    return Operation(with_ftz if "ftz" in modifiers and kind == "f32" else compute, (kind,) * count, kind)


def _fused(a: Value, b: Value, c: Value) -> Value:
    return a * b + c


FLOAT_FUNCTIONS: dict[str, tuple[Callable[..., Value], int]] = {
    "add": (np.add, 2), "sub": (np.subtract, 2), "mul": (np.multiply, 2), "fma": (_fused, 3), "mad": (_fused, 3),
    "div": (np.divide, 2), "neg": (np.negative, 1), "abs": (np.absolute, 1), "min": (np.fmin, 2), "max": (np.fmax, 2),
    "ex2": (np.exp2, 1), "lg2": (np.log2, 1), "rcp": (np.reciprocal, 1), "sqrt": (np.sqrt, 1), "tanh": (np.tanh, 1),
    "rsqrt": (lambda a: 1 / np.sqrt(a), 1), "sin": (np.sin, 1), "cos": (np.cos, 1),
    "copysign": (lambda a, b: np.copysign(b, a), 2),
}  # fmt: skip

# ---- integers ----


def _high(a: Value, b: Value) -> Value:
    """Return the upper half of a product of integers of one type."""
    dtype = np.asarray(a).dtype
    bits = dtype.itemsize * 8
    if bits < 64:
        wide = np.dtype(f"{dtype.kind}{dtype.itemsize * 2}").type
        return ((np.asarray(a).astype(wide) * np.asarray(b).astype(wide)) >> wide(bits)).astype(dtype)
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    x, y = np.asarray(a).astype(np.uint64), np.asarray(b).astype(np.uint64)
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = x1 * y0 + ((x0 * y0) >> half)
    other = x0 * y1 + (middle & low)
    high = x1 * y1 + (middle >> half) + (other >> half)
    if dtype.kind == "i":
        high = (
            high
            - np.where(np.asarray(a) < 0, y, 0).astype(np.uint64)
            - np.where(np.asarray(b) < 0, x, 0).astype(np.uint64)
        )
    return high.view(dtype)


def _quotient(a: Value, b: Value) -> Value:
    """Divide integers, rounded to zero."""
    dtype = np.asarray(a).dtype
    if dtype.kind == "u":
        return a // b
    unsigned = np.dtype(f"u{dtype.itemsize}")
    size = np.abs(np.asarray(a)).view(unsigned) // np.abs(np.asarray(b)).view(unsigned)
    return np.where((a < 0) != (b < 0), np.negative(size.view(dtype)), size.view(dtype))


def _shift_left(a: Value, count: Value) -> Value:
    bits, dtype = a.dtype.itemsize * 8, a.dtype.type
    return np.where(count >= bits, dtype(0), a << np.minimum(count, bits - 1).astype(dtype))


def _shift_right(a: Value, count: Value) -> Value:
    bits, dtype = a.dtype.itemsize * 8, a.dtype.type
    shifted = a >> np.minimum(count, bits - 1).astype(dtype)
    return shifted if a.dtype.kind == "i" else np.where(count >= bits, dtype(0), shifted)


def _funnel(left: bool, clamp: bool) -> Callable[..., Value]:
    def shift(low: Value, high: Value, count: Value) -> Value:
        both = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
        n = (np.minimum(count, 32) if clamp else count & np.uint32(31)).astype(np.uint64)
        return ((both << n) >> np.uint64(32) if left else both >> n).astype(np.uint32)

    return shift


def permuted_bytes(a: Value, b: Value, selector: Value) -> Value:
    """Choose four bytes of b:a by the nibbles of the selector; its eights repeat the sign."""
    both = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
    result: Value = np.uint32(0)
    for i in range(4):
        nibble = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = ((both >> ((nibble & np.uint32(7)).astype(np.uint64) << np.uint64(3))) & np.uint64(255)).astype(
            np.uint32
        )
        byte = np.where(nibble & np.uint32(8), np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0)), byte)
        result = result | (byte << np.uint32(8 * i))
    return result


def _logic(a: Value, b: Value, c: Value, table: Value) -> Value:
    """Combine bits by a truth table of eight entries (lop3)."""
    result = np.uint32(0)
    for case in range(8):
        if int(table) >> case & 1:
            result = result | ((a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c))
    return result


def _extract(a: Value, start: Value, length: Value) -> Value:
    """Return a field of bits, extended by its sign if `a` is signed (bfe)."""
    dtype, bits = a.dtype, a.dtype.itemsize * 8
    start, length = (
        (start & np.uint32(255)).astype(np.int64),
        np.minimum(length & np.uint32(255), bits).astype(np.int64),
    )
    unsigned = a.view(f"u{dtype.itemsize}").astype(np.uint64)
    low = _shift_right(unsigned, start) & (_shift_left(np.uint64(1), length) - np.uint64(1))
    if dtype.kind == "u":
        return low.astype(dtype)
    top = np.minimum(start + length - 1, bits - 1)
    sign = (_shift_right(unsigned, top) & np.uint64(1)) * (length > 0)
    present = np.maximum(np.minimum(length, bits - start), 0)
    filled = np.where(sign > 0, ~(_shift_left(np.uint64(1), present) - np.uint64(1)), np.uint64(0))
    return (low | filled).astype(f"u{dtype.itemsize}").view(dtype)


def _insert(a: Value, b: Value, start: Value, length: Value) -> Value:
    """Put the low bits of a into b (bfi)."""
    dtype = b.dtype.type
    start, length = (start & np.uint32(255)).astype(np.int64), (length & np.uint32(255)).astype(np.int64)
    field = _shift_left(_shift_left(np.uint64(1), length) - np.uint64(1), start).astype(dtype)
    return (b & ~field) | (_shift_left(a.astype(np.uint64), start).astype(dtype) & field)


def _leading_zeros(a: Value) -> Value:
    bits = a.dtype.itemsize * 8
    return sum((_shift_right(a, np.uint32(i)) == 0).astype(np.uint32) for i in range(bits))


def _highest_bit(a: Value, as_shift: bool) -> Value:
    """Return the place of an unsigned number's highest bit, or the shift that moves it to the top; -1 for 0."""
    zeros = _leading_zeros(a)
    return np.where(a == 0, np.uint32(2**32 - 1), zeros if as_shift else np.uint32(a.dtype.itemsize * 8 - 1) - zeros)


def _reversed_bits(a: Value) -> Value:
    bits, one = a.dtype.itemsize * 8, a.dtype.type(1)
    return sum((((a >> a.dtype.type(i)) & one) << a.dtype.type(bits - 1 - i)) for i in range(bits))


def _dot(a_kind: str, b_kind: str) -> Callable[..., Value]:
    def split(x: Value, kind: str) -> Value:
        return np.asarray(x)[..., None].view(np.int8 if kind == "s32" else np.uint8).astype(np.int64)

    return lambda a, b, c: ((split(a, a_kind) * split(b, b_kind)).sum(-1) + c.astype(np.int64)).astype(np.uint32)


INTEGER_FUNCTIONS: dict[str, tuple[Callable[..., Value], int]] = {
    "add": (np.add, 2), "sub": (np.subtract, 2), "mul": (np.multiply, 2), "mad": (_fused, 3), "div": (_quotient, 2),
    "rem": (np.fmod, 2), "min": (np.minimum, 2), "max": (np.maximum, 2), "abs": (np.abs, 1), "neg": (np.negative, 1),
    "and": (np.bitwise_and, 2), "or": (np.bitwise_or, 2), "xor": (np.bitwise_xor, 2), "not": (np.invert, 1),
    "sad": (lambda a, b, c: np.maximum(a, b) - np.minimum(a, b) + c, 3),
}  # fmt: skip

# ---- comparisons ----

COMPARISONS: dict[str, Callable[[Value, Value], Value]] = {
    "eq": np.equal, "ne": lambda a, b: (a < b) | (a > b), "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
    "num": lambda a, b: (a == a) & (b == b), "nan": lambda a, b: (a != a) | (b != b),
    "equ": lambda a, b: ~((a < b) | (a > b)), "neu": np.not_equal, "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b), "gtu": lambda a, b: ~(a <= b), "geu": lambda a, b: ~(a < b),
}  # fmt: skip
LOGIC = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def comparison(name: str, kind: str) -> Callable[[Value, Value], Value]:
    """Return a comparison of values of a type."""
    compare = COMPARISONS[name]
    return (lambda a, b: compare(decoded(a, kind), decoded(b, kind))) if kind in NARROW_FLOATS else compare


# ---- conversions ----

INTEGER_ROUNDING = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _conversion(opcode: tuple[str, ...]) -> Operation:
    target, source = opcode[-2:]
    modifiers = opcode[1:-2]
    mode = next((part for part in modifiers if part in ("rn", "rz", "rm", "rp", "rna")), "rn")
    to_integer = next((INTEGER_ROUNDING[part] for part in modifiers if part in INTEGER_ROUNDING), None)
    relu = (lambda x: np.maximum(x, 0)) if "relu" in modifiers else lambda x: x
    if target in ("f16x2", "bf16x2"):  # the first operand goes into the upper half
        both = lambda high, low: np.stack(np.broadcast_arrays(low, high), -1).astype(np.float64)  # noqa: E731
        return Operation(lambda high, low: encoded(relu(both(high, low)), target, mode), ("f32", "f32"), target)
    if target == "tf32":
        return Operation(tf32_bits, ("f32",), target)
    from_float, to_float = source in ("f16", "bf16", "f32", "f64"), target in ("f16", "bf16", "f32", "f64")
    dtype = DTYPES[target]

    def convert(x: Value) -> Value:
        if not from_float and not to_float:
            return _saturated(x, dtype) if "sat" in modifiers else x.astype(dtype)
        exact = decoded(x, source) if source in NARROW_FLOATS else x
        if not to_float:
            return _float_to_integer((to_integer or np.trunc)(np.asarray(exact, np.float64)), dtype)
        if to_integer:
            exact = to_integer(exact)
        if "sat" in modifiers:
            exact = np.where(np.isnan(exact), 0, np.clip(exact, 0, 1))
        if not from_float and mode == "rn" and target in ("f32", "f64"):
            return exact.astype(dtype)  # from 64 bits without double rounding
        return encoded(relu(exact.astype(np.float64)), target, mode)

    ftz = "ftz" in modifiers and source == "f32"
    return Operation((lambda x: convert(flushed(x))) if ftz else convert, (source,), target)


def _saturated(x: Value, dtype: Any) -> Value:
    limits, own = np.iinfo(dtype), np.iinfo(x.dtype)
    return np.clip(x, x.dtype.type(max(limits.min, own.min)), x.dtype.type(min(limits.max, own.max))).astype(dtype)


def _float_to_integer(x: Value, dtype: Any) -> Value:
    """Convert whole float64 numbers; what does not fit becomes the nearest limit, NaN becomes 0."""
    limits = np.iinfo(dtype)
    inside = (x >= float(limits.min)) & (x < float(limits.max) + (1 if limits.bits < 64 else 0))
    beyond = np.where(x > 0, dtype(limits.max), np.where(x < 0, dtype(limits.min), dtype(0)))
    return np.where(inside, np.where(inside, x, 0).astype(dtype), beyond)


def _packed_conversion(opcode: tuple[str, ...]) -> Operation:
    """Saturate two integers to 8 or 16 bits, the second in the low part; a third, if any, comes above (cvt.pack)."""
    narrow = DTYPES[opcode[3]]
    bits = np.uint32(np.dtype(narrow).itemsize * 8)
    unsigned = np.dtype(f"u{np.dtype(narrow).itemsize}")

    def pack(a: Value, b: Value, c: Value = None) -> Value:
        high, low = (np.asarray(_saturated(x, narrow)).view(unsigned).astype(np.uint32) for x in (a, b))
        both = low | (high << bits)
        return both if c is None else both | (c << (bits * np.uint32(2)))

    return Operation(pack, ("s32", "s32", "b32") if bits == 8 else ("s32", "s32"), "b32")


# ---- all ----


def operation(opcode: tuple[str, ...]) -> Operation:
    """Return what an arithmetic instruction computes.

    Raises:
        UnsupportedPtx: it is not known.
    """
    name, modifiers, kind = opcode[0], opcode[1:], opcode[-1]
    dtype: Any = DTYPES.get(kind)
    if name == "cvt":
        return _packed_conversion(opcode) if modifiers[0] == "pack" else _conversion(opcode)
    if name in FLOAT_FUNCTIONS and kind in ("f32", "f64", *NARROW_FLOATS):
        function, count = FLOAT_FUNCTIONS[name]
        if "NaN" in modifiers:
            function = np.minimum if name == "min" else np.maximum
        return _floating(function, count, kind, modifiers)
    if name in ("mul", "mad") and modifiers[0] in ("wide", "hi"):
        if modifiers[0] == "wide":
            wide = DTYPES[WIDER[kind]]
            widened = lambda a, b, *c: a.astype(wide) * b.astype(wide) + (c[0] if c else wide(0))  # noqa: E731
            return Operation(widened, (kind, kind, WIDER[kind])[: 2 + (name == "mad")], WIDER[kind])
        high = lambda a, b, *c: _high(a, b) + (c[0] if c else dtype(0))  # noqa: E731
        return Operation(high, (kind,) * (2 + (name == "mad")), kind)
    if name in INTEGER_FUNCTIONS and dtype is not None:
        function, count = INTEGER_FUNCTIONS[name]
        if "sat" in modifiers:
            narrow, exact = DTYPES[kind], function
            function = lambda a, b: _saturated(exact(a.astype(np.int64), b.astype(np.int64)), narrow)  # noqa: E731
        return Operation(function, (kind,) * count, kind)
    others: dict[str, Callable[[], Operation]] = {
        "shl": lambda: Operation(_shift_left, (kind, "u32"), kind),
        "shr": lambda: Operation(_shift_right, (kind, "u32"), kind),
        "shf": lambda: Operation(_funnel(modifiers[0] == "l", modifiers[1] == "clamp"), ("b32",) * 3, "b32"),
        "selp": lambda: Operation(lambda a, b, p: np.where(p, a, b), (kind, kind, "pred"), kind),
        "cnot": lambda: Operation(lambda a: (a == 0).astype(a.dtype), (kind,), kind),
        "lop3": lambda: Operation(_logic, ("b32",) * 4, "b32"),
        "bfe": lambda: Operation(_extract, (kind, "u32", "u32"), kind),
        "bfi": lambda: Operation(_insert, (kind, kind, "u32", "u32"), kind),
        "popc": lambda: Operation(lambda a: np.bitwise_count(a).astype(np.uint32), (kind,), "u32"),
        "clz": lambda: Operation(_leading_zeros, (kind,), "u32"),
        "bfind": lambda: Operation(lambda a: _highest_bit(a, "shiftamt" in modifiers), (kind,), "u32"),
        "brev": lambda: Operation(_reversed_bits, (kind,), kind),
        "dp4a": lambda: Operation(_dot(modifiers[0], modifiers[1]), ("b32",) * 3, "b32"),
    }
    if name == "prmt" and modifiers == ("b32",):
        return Operation(permuted_bytes, ("b32",) * 3, "b32")
    if name == "testp" and modifiers[0] in ("finite", "infinite", "number", "notanumber"):
        tests = {"finite": np.isfinite, "infinite": np.isinf, "number": lambda a: a == a, "notanumber": np.isnan}
        return Operation(tests[modifiers[0]], (kind,), "pred")  # type: ignore[arg-type]
    if name == "set":
        return _comparison_as_number(modifiers)
    if name in others:
        return others[name]()
    raise UnsupportedPtx(".".join(opcode))


def _comparison_as_number(modifiers: tuple[str, ...]) -> Operation:
    """Return all ones or 1.0 where a comparison holds."""
    target, source = modifiers[-2:]
    compare = comparison(modifiers[0], source)
    if target.endswith("x2"):
        return Operation(lambda a, b: encoded(compare(a, b).astype(np.float64), target), (source, source), target)
    if target in NARROW_FLOATS:
        return Operation(lambda a, b: encoded(compare(a, b).astype(np.float64), target), (source, source), target)
    if target == "f32":
        return Operation(lambda a, b: compare(a, b).astype(np.float32), (source, source), target)
    return Operation(lambda a, b: np.negative(compare(a, b).astype(np.int32)).view(np.uint32), (source, source), target)
