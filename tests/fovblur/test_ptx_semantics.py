"""The PTX interpreter's instructions against plain Python; layouts of matrices as the PTX ISA writes them."""

import math
import struct

import numpy as np
import pytest
from ptx.interpreter import Interpreter
from ptx.memory import Buffer
from ptx.module import UnsupportedPtx

THREADS = 64
INPUTS = 1 << 40
OUTPUT = 1 << 41


def run(tmp_path, body: str, inputs: list[np.ndarray], width: int = 8, threads: int = THREADS) -> np.ndarray:
    """Run `body` with words in %a0, %a1, ... or floats in %f0, ...; return the bytes of each thread at %out."""
    loads = []
    for i, values in enumerate(inputs):
        kind, name = ("f32", "f") if values.dtype == np.float32 else ("b32", "a")
        loads.append(
            f"mad.wide.u32 %address, %thread, 4, {INPUTS + i * 65536}; ld.global.{kind} %{name}{i}, [%address];"
        )
    registers = " ".join(f".reg .{kind} %{name}<16>;" for kind, name in [
        ("b32", "a"), ("f32", "f"), ("b16", "rh"), ("b32", "r"), ("b64", "rd"),
        ("f32", "rf"), ("f64", "rg"), ("pred", "p"),
    ])  # fmt: skip
    text = f"""
    .visible .entry tested(.param .u64 unused)
    {{
        {registers} .reg .b32 %thread; .reg .b64 %address, %out; .shared .align 16 .b8 memory[4096];
        mov.u32 %thread, %tid.x;
        {" ".join(loads)}
        mad.wide.u32 %out, %thread, {width}, {OUTPUT};
        {body}
        ret;
    }}"""
    path = tmp_path / "tested.ptx"
    path.write_text(text)
    output = np.zeros(threads * width, np.uint8)
    buffers = [
        Buffer(np.ascontiguousarray(values).view(np.uint8), INPUTS + i * 65536) for i, values in enumerate(inputs)
    ]
    buffers.append(Buffer(output, OUTPUT, writable=np.ones(len(output), bool)))
    Interpreter(path).run("tested", (1, 1, 1), (threads, 1, 1), [bytes(8)], buffers)
    return output


def u32(x: float) -> int:
    return int(x) & 0xFFFFFFFF


def s32(x: int) -> int:
    return (x & 0xFFFFFFFF) - (1 << 32 if x & 0x80000000 else 0)


def f32(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def bytes_of(word: int) -> list[int]:
    return list(struct.pack("<I", word))


def prmt(a: int, b: int, selector: int) -> int:
    source, chosen = bytes_of(a) + bytes_of(b), []
    for i in range(4):
        nibble = selector >> 4 * i & 15
        value = source[nibble & 7]
        chosen.append((255 if value > 127 else 0) if nibble & 8 else value)
    return struct.unpack("<I", bytes(chosen))[0]


def bfe(a: int, start: int, length: int, signed: bool) -> int:
    """The pseudocode of the PTX ISA."""
    position, length = start & 255, length & 255
    top = min(position + length - 1, 31)
    sign = 0 if not signed or length == 0 else a >> top & 1
    bits = [a >> position + i & 1 if i < length and position + i <= 31 else sign for i in range(32)]
    return sum(bit << i for i, bit in enumerate(bits))


def bfi(a: int, b: int, start: int, length: int) -> int:
    bits = [b >> i & 1 for i in range(32)]
    for i in range(length & 255):
        if (start & 255) + i < 32:
            bits[(start & 255) + i] = a >> i & 1
    return sum(bit << i for i, bit in enumerate(bits))


def truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def half_bits(x: float) -> int:
    return int(np.float16(x).view(np.uint16))


def bfloat_bits(x: float) -> int:
    """Round to nearest even by integer arithmetic on the bits."""
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    low, upper = bits & 0xFFFF, bits >> 16
    return upper + (low > 0x8000 or (low == 0x8000 and upper & 1))


def lop3(a: int, b: int, c: int, table: int) -> int:
    bit = lambda i: table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1) & 1  # noqa: E731
    return sum(bit(i) << i for i in range(32))


def dp4a(a: int, b: int, c: int, signed: bool) -> int:
    factors = [y - 256 * (signed and y > 127) for y in bytes_of(b)]
    return u32(sum(x * y for x, y in zip(bytes_of(a), factors)) + c)


def extended(a: int, bits: int) -> int:
    low = a & (1 << bits) - 1
    return u32(low - (1 << bits if low >> bits - 1 else 0))


def byte(a: int) -> int:
    return min(max(s32(a), 0), 255)


def tf32(a: float) -> float:
    """Round to 11 bits of precision, ties away from zero."""
    exponent = math.frexp(a)[1]
    return math.copysign(math.ldexp(math.floor(math.ldexp(abs(a), 11 - exponent) + 0.5), exponent - 11), a)


INTEGERS = {  # of three unsigned words
    "add.s32 %r1, %a0, %a1;": lambda a, b, c: u32(a + b),
    "sub.s32 %r1, %a0, %a1;": lambda a, b, c: u32(a - b),
    "mul.lo.s32 %r1, %a0, %a1;": lambda a, b, c: u32(a * b),
    "mul.hi.u32 %r1, %a0, %a1;": lambda a, b, c: a * b >> 32,
    "mul.hi.s32 %r1, %a0, %a1;": lambda a, b, c: u32(s32(a) * s32(b) >> 32),
    "mad.lo.s32 %r1, %a0, %a1, %a2;": lambda a, b, c: u32(a * b + c),
    "mad.hi.u32 %r1, %a0, %a1, %a2;": lambda a, b, c: u32((a * b >> 32) + c),
    "div.s32 %r1, %a0, %a1;": lambda a, b, c: u32(truncated(s32(a), s32(b))),
    "rem.s32 %r1, %a0, %a1;": lambda a, b, c: u32(s32(a) - truncated(s32(a), s32(b)) * s32(b)),
    "div.u32 %r1, %a0, %a1;": lambda a, b, c: a // b,
    "rem.u32 %r1, %a0, %a1;": lambda a, b, c: a % b,
    "min.s32 %r1, %a0, %a1;": lambda a, b, c: u32(min(s32(a), s32(b))),
    "max.u32 %r1, %a0, %a1;": lambda a, b, c: max(a, b),
    "abs.s32 %r1, %a0;": lambda a, b, c: u32(abs(s32(a))),
    "sad.u32 %r1, %a0, %a1, %a2;": lambda a, b, c: u32(abs(a - b) + c),
    "shl.b32 %r1, %a0, %a2;": lambda a, b, c: u32(a << c) if c < 32 else 0,
    "shr.u32 %r1, %a0, %a2;": lambda a, b, c: a >> c if c < 32 else 0,
    "shr.s32 %r1, %a0, %a2;": lambda a, b, c: u32(s32(a) >> min(c, 31)),
    "shf.l.wrap.b32 %r1, %a0, %a1, %a2;": lambda a, b, c: u32((b << 32 | a) << (c & 31) >> 32),
    "shf.r.wrap.b32 %r1, %a0, %a1, %a2;": lambda a, b, c: u32((b << 32 | a) >> (c & 31)),
    "shf.r.clamp.b32 %r1, %a0, %a1, %a2;": lambda a, b, c: u32((b << 32 | a) >> min(c, 32)),
    "lop3.b32 %r1, %a0, %a1, %a2, 0xE8;": lambda a, b, c: a & b | a & c | b & c,
    "lop3.b32 %r1, %a0, %a1, %a2, 0x1B;": lambda a, b, c: lop3(a, b, c, 0x1B),
    "prmt.b32 %r1, %a0, %a1, %a2;": prmt,
    "prmt.b32 %r1, %a0, 25700, 0x4140;": lambda a, b, c: prmt(a, 25700, 0x4140),
    "bfe.u32 %r1, %a0, %a2, 5;": lambda a, b, c: bfe(a, c, 5, False),
    "bfe.s32 %r1, %a0, %a2, 9;": lambda a, b, c: bfe(a, c, 9, True),
    "bfe.s32 %r1, %a0, 3, %a2;": lambda a, b, c: bfe(a, 3, c, True),
    "bfi.b32 %r1, %a0, %a1, %a2, 7;": lambda a, b, c: bfi(a, b, c, 7),
    "popc.b32 %r1, %a0;": lambda a, b, c: a.bit_count(),
    "clz.b32 %r1, %a0;": lambda a, b, c: 32 - a.bit_length(),
    "bfind.u32 %r1, %a0;": lambda a, b, c: u32(a.bit_length() - 1),
    "bfind.shiftamt.u32 %r1, %a0;": lambda a, b, c: u32(32 - a.bit_length() if a else -1),
    "brev.b32 %r1, %a0;": lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    "dp4a.u32.u32 %r1, %a0, %a1, %a2;": lambda a, b, c: dp4a(a, b, c, False),
    "dp4a.u32.s32 %r1, %a0, %a1, %a2;": lambda a, b, c: dp4a(a, b, c, True),
    "setp.lt.s32 %p1, %a0, %a1; selp.b32 %r1, %a2, 7, %p1;": lambda a, b, c: c if s32(a) < s32(b) else 7,
    "setp.eq.u32 %p3, %a2, 1; setp.hi.or.u32 %p1|%p2, %a0, %a1, %p3; selp.u32 %r1, 1, 0, %p2;":
        lambda a, b, c: int(a <= b or c == 1),
    "setp.ne.s32 %p1, %a2, 0; @!%p1 mov.u32 %r1, 5; @%p1 mov.u32 %r1, %a0;": lambda a, b, c: a if c else 5,
    "cvt.u16.u32 %rh1, %a0; mul.wide.s16 %r1, %rh1, %rh1;": lambda a, b, c: s32(extended(a, 16)) ** 2,
    "mov.b32 {%rh1, %rh2}, %a0; mov.b32 %r1, {%rh2, %rh1};": lambda a, b, c: u32(a << 16 | a >> 16),
    "cvt.s16.s32 %rh1, %a0; cvt.s32.s16 %r1, %rh1;": lambda a, b, c: extended(a, 16),
    "cvt.u16.u32 %rh1, %a0; cvt.s32.s8 %r1, %rh1;": lambda a, b, c: extended(a, 8),
    "cvt.sat.u8.s32 %rh1, %a0; cvt.u32.u16 %r1, %rh1;": lambda a, b, c: byte(a),
    "cvt.pack.sat.u8.s32.b32 %r1, %a0, %a1, %a2;": lambda a, b, c: u32(byte(b) | byte(a) << 8 | c << 16),
    "mul.wide.u32 %rd1, %a0, %a1; mad.lo.s64 %rd1, %rd1, 3, 5; cvt.u32.u64 %r1, %rd1;":
        lambda a, b, c: u32(a * b * 3 + 5),
    "mul.wide.s32 %rd1, %a0, %a1; mul.hi.s64 %rd2, %rd1, %rd1; shr.u64 %rd2, %rd2, 13; cvt.u32.u64 %r1, %rd2;":
        lambda a, b, c: u32((s32(a) * s32(b)) ** 2 >> 77),
    "mov.u32 %r2, %laneid; mov.u32 %r3, %ntid.x; add.s32 %r1, %r2, %r3;": None,
}  # fmt: skip


def words(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, 2**32, THREADS).astype(np.uint32) for _ in range(2))
    c = rng.integers(0, 40, THREADS).astype(np.uint32)
    a[:6], b[:6], c[:4] = (
        [0, 1, 0xFFFFFFFF, 0x80000000, 200, 0xFFFFFF80],
        [1, 3, 0xFFFFFFFE, 7, 0xFFFFFFFF, 2],
        [0, 31, 32, 33],
    )
    return [a, b, c]


@pytest.mark.parametrize("code", INTEGERS)
def test_integers(tmp_path, code, seed):
    inputs = words(seed)
    output = run(tmp_path, f"{code} st.global.u32 [%out], %r1;", inputs, 4).view(np.uint32)
    oracle = INTEGERS[code] or (lambda a, b, c: None)
    expected = [oracle(*map(int, values)) for values in zip(*inputs)]
    assert output.tolist() == (expected if INTEGERS[code] else [THREADS + i % 32 for i in range(THREADS)])


FLOATS = {  # of three floats; the oracle's result is rounded to float32
    "add.f32 %rf1, %f0, %f1;": lambda a, b, c: a + b,
    "sub.f32 %rf1, %f0, %f1;": lambda a, b, c: a - b,
    "fma.rn.f32 %rf1, %f0, %f1, %f2;": lambda a, b, c: a * b + c,
    "div.rn.f32 %rf1, %f0, %f1;": lambda a, b, c: a / b,
    "min.f32 %rf1, %f0, %f1;": min,
    "max.NaN.f32 %rf1, %f0, %f1;": lambda a, b, c: max(a, b),
    "neg.f32 %rf1, %f0;": lambda a, b, c: -a,
    "abs.f32 %rf1, %f0;": lambda a, b, c: abs(a),
    "ex2.approx.ftz.f32 %rf1, %f0;": lambda a, b, c: 2.0**a if 2.0**a >= 2**-126 else 0,
    "abs.f32 %rf1, %f0; lg2.approx.f32 %rf1, %rf1;": lambda a, b, c: math.log2(abs(a)),
    "abs.f32 %rf1, %f0; sqrt.rn.f32 %rf1, %rf1;": lambda a, b, c: math.sqrt(abs(a)),
    "abs.f32 %rf1, %f0; rsqrt.approx.f32 %rf1, %rf1;": lambda a, b, c: abs(a) ** -0.5,
    "rcp.rn.f32 %rf1, %f0;": lambda a, b, c: 1 / a,
    "cvt.sat.f32.f32 %rf1, %f0;": lambda a, b, c: min(max(a, 0), 1),
    "cvt.rni.f32.f32 %rf1, %f0;": lambda a, b, c: round(a),
    "cvt.rmi.s32.f32 %r1, %f0; cvt.rn.f32.s32 %rf1, %r1;": lambda a, b, c: math.floor(a),
    "cvt.rzi.u32.f32 %r1, %f0; cvt.rn.f32.u32 %rf1, %r1;": lambda a, b, c: max(int(a), 0),
    "cvt.f64.f32 %rg1, %f0; add.f64 %rg1, %rg1, 0d3FF0000000000000; cvt.rn.f32.f64 %rf1, %rg1;":
        lambda a, b, c: a + 1,
    "setp.geu.f32 %p1, %f0, %f1; selp.f32 %rf1, %f2, 0f40000000, %p1;": lambda a, b, c: c if a >= b else 2,
    "cvt.rn.f16.f32 %rh1, %f0; cvt.f32.f16 %rf1, %rh1;": lambda a, b, c: float(np.float16(a)),
    "cvt.rn.bf16.f32 %rh1, %f0; cvt.f32.bf16 %rf1, %rh1;": lambda a, b, c: f32(bfloat_bits(a) << 16),
    "cvt.rna.tf32.f32 %r1, %f0; mov.b32 %rf1, %r1;": lambda a, b, c: tf32(a),
    "fma.rm.f32 %rf1, %f0, %f1, %f2;": None,
}  # fmt: skip


@pytest.mark.parametrize("code", FLOATS)
def test_floats(tmp_path, code, seed):
    inputs = [np.random.default_rng(seed + i).normal(0, 4, THREADS).astype(np.float32) for i in range(3)]
    output = run(tmp_path, f"{code} st.global.f32 [%out], %rf1;", inputs, 4).view(np.float32)
    arguments = [list(map(float, values)) for values in zip(*inputs)]
    if FLOATS[code] is None:  # rounded down: at most the exact value, and the next float is above it
        exact = np.array([a * b + c for a, b, c in arguments])
        assert (output <= exact).all() and (np.nextafter(output, np.float32(np.inf)) > exact).all()
        return
    expected = np.array(
        [FLOATS[code](*(values if FLOATS[code] is not min else values[:2])) for values in arguments], np.float32
    )
    np.testing.assert_array_max_ulp(output, expected, 1 if "approx" in code else 0)


def test_not_a_number(tmp_path):
    nan, one, inf = (np.full(THREADS, value, np.float32) for value in (np.nan, 1, np.inf))
    code = """
    setp.lt.f32 %p1, %f0, %f1; setp.ne.f32 %p2, %f0, %f1; setp.neu.f32 %p3, %f0, %f1; setp.nan.f32 %p4, %f0, %f1;
    selp.u32 %r1, 1, 0, %p1; selp.u32 %r2, 2, 0, %p2; selp.u32 %r3, 4, 0, %p3; selp.u32 %r4, 8, 0, %p4;
    or.b32 %r1, %r1, %r2; or.b32 %r1, %r1, %r3; or.b32 %r1, %r1, %r4;
    min.f32 %rf1, %f0, %f1; cvt.rni.s32.f32 %r5, %f0; cvt.rni.s32.f32 %r6, %f2; cvt.sat.f32.f32 %rf2, %f0;
    st.global.v4.b32 [%out], {%r1, %rf1, %r5, %r6}; st.global.f32 [%out+16], %rf2;
    """
    output = run(tmp_path, code, [nan, one, inf], 32)[:32]
    assert output[:16].view(np.uint32).tolist() == [12, 0x3F800000, 0, 0x7FFFFFFF]
    assert output[16:20].view(np.float32) == 0


PACKED = {
    "add.f16x2 %r1, %a0, %a1;": lambda a, b, c: a + b,
    "sub.rn.f16x2 %r1, %a0, %a1;": lambda a, b, c: a - b,
    "mul.f16x2 %r1, %a0, %a1;": lambda a, b, c: a * b,
    "fma.rn.f16x2 %r1, %a0, %a1, %a2;": lambda a, b, c: np.float16(float(a) * float(b) + float(c)),
    "fma.rn.relu.f16x2 %r1, %a0, %a1, %a2;": lambda a, b, c: max(
        np.float16(float(a) * float(b) + float(c)), np.float16(0)
    ),
    "max.f16x2 %r1, %a0, %a1;": lambda a, b, c: max(a, b),
    "set.gt.f16x2.f16x2 %r1, %a0, %a1;": lambda a, b, c: np.float16(a > b),
}


@pytest.mark.parametrize("code", PACKED)
def test_packed_halves(tmp_path, code, seed):
    halves_of = np.random.default_rng(seed).normal(0, 2, (3, THREADS, 2)).astype(np.float16)
    inputs = [np.ascontiguousarray(values).view(np.uint32)[:, 0] for values in halves_of]
    output = run(tmp_path, f"{code} st.global.u32 [%out], %r1;", inputs, 4).view(np.float16).reshape(THREADS, 2)
    expected = [[PACKED[code](*halves_of[:, i, j]) for j in range(2)] for i in range(THREADS)]
    assert output.tolist() == np.array(expected, np.float16).tolist()


def test_floats_packed_as_halves(tmp_path, seed):
    a, b = np.random.default_rng(seed).normal(0, 300, (2, THREADS)).astype(np.float32)
    code = "cvt.rn.f16x2.f32 %r1, %f0, %f1; cvt.rn.bf16x2.f32 %r2, %f0, %f1; st.global.v2.u32 [%out], {%r1, %r2};"
    output = run(tmp_path, code, [a, b], 8).view(np.uint32).reshape(-1, 2).tolist()
    assert output == [[half_bits(y) | half_bits(x) << 16, bfloat_bits(y) | bfloat_bits(x) << 16] for x, y in zip(a, b)]


def test_unknown_instructions_are_refused_with_their_line(tmp_path):
    with pytest.raises(UnsupportedPtx, match=r"line \d+ of the PTX: wgmma\.fence\.sync\.aligned"):
        run(tmp_path, "wgmma.fence.sync.aligned;", [])


# ---- warps ----


@pytest.mark.parametrize(("mode", "b", "c", "source"), [
    ("bfly", 5, 31, lambda lane: lane ^ 5),
    ("down", 3, 31, lambda lane: lane + 3 if lane + 3 < 32 else lane),
    ("up", 2, 0, lambda lane: lane - 2 if lane >= 2 else lane),
    ("idx", 9, 31, lambda lane: 9),
    ("bfly", 3, 0x1C1F, lambda lane: lane ^ 3),  # segments of four
    ("down", 1, 0x181F, lambda lane: lane + 1 if lane % 8 < 7 else lane),  # of eight
])  # fmt: skip
def test_shuffles(tmp_path, mode, b, c, source):
    values = np.arange(100, 100 + THREADS).astype(np.uint32)
    code = f"shfl.sync.{mode}.b32 %r1|%p1, %a0, {b}, {c}, -1; st.global.u32 [%out], %r1;"
    output = run(tmp_path, code, [values], 4).view(np.uint32)
    assert output.tolist() == [100 + i // 32 * 32 + source(i % 32) for i in range(THREADS)]


def test_votes_and_reductions(tmp_path, seed):
    values = np.random.default_rng(seed).integers(0, 40, THREADS).astype(np.uint32)
    code = """
    setp.gt.u32 %p1, %a0, 20;
    vote.sync.any.pred %p2, %p1, -1; vote.sync.all.pred %p3, %p1, -1; vote.sync.ballot.b32 %r1, %p1, -1;
    selp.u32 %r2, 1, 0, %p2; selp.u32 %r3, 1, 0, %p3; redux.sync.add.s32 %r4, %a0, -1;
    st.global.v4.u32 [%out], {%r1, %r2, %r3, %r4};
    """
    output = run(tmp_path, code, [values], 16).view(np.uint32).reshape(2, 32, 4)
    for warp, own in enumerate(values.reshape(2, 32)):
        true = own > 20
        expected = [sum(int(bit) << i for i, bit in enumerate(true)), true.any(), true.all(), own.sum()]
        assert (output[warp] == np.array(expected, np.uint32)).all()


def test_lanes_that_part_meet_again(tmp_path):
    """A loop of different lengths, then a shuffle of the whole warp."""
    values = np.arange(THREADS).astype(np.uint32)
    code = """
    mov.u32 %r1, 0; mov.u32 %r2, 0;
    LOOP: setp.ge.u32 %p1, %r2, %a0; @%p1 bra DONE; add.u32 %r1, %r1, %r2; add.u32 %r2, %r2, 1; bra LOOP;
    DONE: shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1; st.global.u32 [%out], %r3;
    """
    output = run(tmp_path, code, [values], 4).view(np.uint32)
    assert output.tolist() == [sum(range(i ^ 1)) for i in range(THREADS)]


def test_lanes_that_come_back_join_those_that_wait(tmp_path):
    """Odd lanes jump back to a vote at which the even ones wait."""
    code = """
    and.b32 %r1, %a0, 1; setp.ne.u32 %p1, %r1, 0; @%p1 bra LATER;
    VOTE: setp.lt.u32 %p2, %a0, 5; vote.sync.ballot.b32 %r2, %p2, -1; st.global.u32 [%out], %r2; bra END;
    LATER: add.u32 %r3, %a0, 1; bra VOTE;
    END: mov.u32 %r4, 0;
    """
    output = run(tmp_path, code, [np.arange(THREADS).astype(np.uint32)], 4).view(np.uint32)
    assert output.tolist() == [0b11111] * 32 + [0] * (THREADS - 32)


def test_atomics(tmp_path):
    code = """
    mov.u32 %r2, memory; setp.eq.u32 %p1, %thread, 0; @%p1 st.shared.u32 [%r2], 5; bar.sync 0;
    atom.shared.add.u32 %r1, [%r2], 2; bar.sync 0; ld.shared.u32 %r3, [%r2]; st.global.v2.u32 [%out], {%r1, %r3};
    """
    output = run(tmp_path, code, [], 8).view(np.uint32).reshape(-1, 2)
    assert sorted(output[:, 0]) == list(range(5, 5 + 2 * THREADS, 2)) and (output[:, 1] == 5 + 2 * THREADS).all()


# ---- matrices, by the formulas of the PTX ISA ----


def places_of_16_bits(lane: int) -> tuple[list, list]:
    """Return (row, column) of each element of A and of B of m16n8k16."""
    group, thread = lane >> 2, lane % 4
    a = [(group + (0 if i < 2 or 4 <= i < 6 else 8), thread * 2 + (i & 1) + (8 if i >= 4 else 0)) for i in range(8)]
    b = [(thread * 2 + (i & 1) + (8 if i >= 2 else 0), group) for i in range(4)]
    return a, b


def places_of_8_bits(lane: int) -> tuple[list, list]:
    """Return (row, column) of each element of A and of B of m16n8k32."""
    group, thread = lane >> 2, lane % 4
    a = [
        (group if i < 4 or 8 <= i < 12 else group + 8, thread * 4 + (i & 3) + (16 if i >= 8 else 0)) for i in range(16)
    ]
    b = [(thread * 4 + (i & 3) + (16 if i >= 4 else 0), group) for i in range(8)]
    return a, b


def places_of_tf32(lane: int) -> tuple[list, list]:
    """Return (row, column) of each element of A and of B of m16n8k8."""
    group, thread = lane >> 2, lane % 4
    a = [(group, thread), (group + 8, thread), (group, thread + 4), (group + 8, thread + 4)]
    return a, [(thread, group), (thread + 4, group)]


def places_of_sums(lane: int) -> list[tuple[int, int]]:
    return [(lane >> 2 if i < 2 else (lane >> 2) + 8, (lane % 4) * 2 + (i & 1)) for i in range(4)]


def bfloat16(values: np.ndarray) -> np.ndarray:
    return np.array([bfloat_bits(x) for x in values.ravel()], np.uint16).reshape(values.shape)


PRODUCTS = {
    "m16n8k16.row.col.f32.f16.f16.f32": (places_of_16_bits, 16, lambda x: x.astype(np.float16)),
    "m16n8k16.row.col.f16.f16.f16.f16": (places_of_16_bits, 16, lambda x: x.astype(np.float16)),
    "m16n8k16.row.col.f32.bf16.bf16.f32": (places_of_16_bits, 16, bfloat16),
    "m16n8k8.row.col.f32.tf32.tf32.f32": (places_of_tf32, 8, lambda x: x.astype(np.float32)),
    "m16n8k32.row.col.s32.u8.s8.s32": (places_of_8_bits, 32, lambda x: x.astype(np.int8)),
}


@pytest.mark.parametrize("form", PRODUCTS)
def test_mma(tmp_path, form, seed):
    places, depth, convert = PRODUCTS[form]
    rng = np.random.default_rng(seed)
    a, b, c = rng.integers(0, 9, (2, 16, depth)), rng.integers(-9, 9, (2, depth, 8)), rng.integers(-9, 9, (2, 16, 8))
    halves_sum, integers = ".f16.f16.f16.f16" in form, "s32" in form
    sums = np.float16 if halves_sum else np.int32 if integers else np.float32
    words_of = lambda elements: np.ascontiguousarray(np.array(elements)).view(np.uint32)  # noqa: E731
    registers: list[list] = []
    for warp in range(2):
        for lane in range(32):
            of_a, of_b = places(lane)
            left = words_of([convert(np.array(a[warp][place], float)) for place in of_a])
            right = words_of([convert(np.array(b[warp][place], float)) for place in of_b])
            start = words_of([sums(c[warp][place]) for place in places_of_sums(lane)])
            registers.append([*left, *right, *start])
    inputs = [np.array(column, np.uint32) for column in zip(*registers)]
    in_d = [f"%a{i}" for i in range(len(inputs))]
    used, wanted = len(left), 2 if halves_sum else 4
    targets = [f"%r{i}" for i in range(wanted)]
    braces = lambda names: "{" + ", ".join(names) + "}"  # noqa: E731
    groups = [targets, in_d[:used], in_d[used:-wanted], in_d[-wanted:]]
    code = f"mma.sync.aligned.{form} {', '.join(map(braces, groups))};"
    code += "".join(f"st.global.u32 [%out+{4 * i}], %r{i};" for i in range(wanted))
    output = run(tmp_path, code, inputs, 4 * wanted)
    output = output.view(sums).reshape(2, 32, 4)
    expected = np.matmul(a, b) + c
    for warp in range(2):
        for lane in range(32):
            assert output[warp, lane].tolist() == [expected[warp][place] for place in places_of_sums(lane)]


def test_ldmatrix_and_stmatrix(tmp_path, seed):
    """Four matrices, read with and without .trans; stored back by the inverse."""
    matrices = np.random.default_rng(seed).integers(0, 65536, (4, 8, 8)).astype(np.uint16)
    rows = np.ascontiguousarray(matrices.reshape(32, 8)).view(np.uint32).reshape(32, 4)
    inputs = [np.tile(rows[:, i], 1) for i in range(4)]
    code = """
    mov.u32 %r8, memory; mad.lo.u32 %r8, %thread, 16, %r8;
    st.shared.v4.b32 [%r8], {%a0, %a1, %a2, %a3}; bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x4{TRANS}.shared.b16 {%r0, %r1, %r2, %r3}, [%r8]; bar.warp.sync -1;
    stmatrix.sync.aligned.m8n8.x4{TRANS}.shared.b16 [%r8+512], {%r0, %r1, %r2, %r3}; bar.warp.sync -1;
    ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r8+512];
    st.global.v4.b32 [%out], {%r0, %r1, %r2, %r3}; st.global.v4.b32 [%out+16], {%r4, %r5, %r6, %r7};
    """
    for trans in ("", ".trans"):
        output = run(tmp_path, code.replace("{TRANS}", trans), inputs, 32, threads=32).view(np.uint32).reshape(32, 8)
        for lane in range(32):
            row, column = lane // 4, 2 * (lane % 4)
            loaded = matrices.swapaxes(1, 2) if trans else matrices
            held = [int(matrix[row, column]) | int(matrix[row, column + 1]) << 16 for matrix in loaded]
            assert output[lane, :4].tolist() == held
        assert (output[:, 4:] == rows).all()


def test_movmatrix(tmp_path, seed):
    words_in = np.random.default_rng(seed).integers(0, 2**32, 32).astype(np.uint32)
    code = "movmatrix.sync.aligned.m8n8.trans.b16 %r1, %a0; st.global.u32 [%out], %r1;"
    output = run(tmp_path, code, [words_in], 4, threads=32)
    rows = words_in.view(np.uint16).reshape(8, 8)
    assert (output.view(np.uint16).reshape(8, 8) == rows.T).all()
