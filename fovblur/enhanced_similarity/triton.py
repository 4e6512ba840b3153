"""The similarity and its k best in Triton: two products a tile, modulated in registers, stored once or ranked there.

Top-k walks a slice of the gallery for a tile of recordings. A candidate is one 64-bit key, the order of its score above
the complement of its index: no two keys are equal and the larger one is the better, whatever tile or slice it comes
from.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fovblur.enhanced_similarity import chunked_topk
from fovblur.enhanced_similarity.params import Inputs
from fovblur.enhanced_similarity.slices import slices_of

LARGEST_FUSED_K = 128  # beyond it the kept keys leave no registers for the products
_LARGEST_GALLERY = 2**32  # an index takes half a key
_LARGEST_GRID = 2**31 - 1
_GROUP = 8  # rows of tiles that run together, so that they share the gallery in the L2 cache
_DESCRIBED = (0, 90)  # architectures on which descriptors need fewer instructions than pointers, and the interpreter
_INTERPRETED_PROGRAMS = 4  # under the interpreter: enough for several slices
# The lowest key stands for no image; those just above it are free places, all different.
_NOBODY, _UNBEATEN = tl.constexpr(-(2**63)), tl.constexpr(2**63 - 1)
_NO_ORDER, _NAN_ORDER = tl.constexpr(-(2**31)), tl.constexpr(-(2**31) + 1)  # -inf lies above both
_LOW_HALF = tl.constexpr(2**32 - 1)
_COUNTS = [
    "recordings",
    "images",
    "row_tiles",
    "column_tiles",
    "slice_tiles",
    "slices",
    "k",
]  # do not recompile for these


@triton.jit
def _product(left, right, zero, rows, columns, width, left_row, left_column, right_row, right_column,
             OPERAND: tl.constexpr, PRECISION: tl.constexpr,
             BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """Return left @ right.T in float32 for the rows from the two pointers on; rows that do not exist count as 0."""
    n, m, d = zero + tl.arange(0, BLOCK_N), zero + tl.arange(0, BLOCK_M), zero + tl.arange(0, DEPTH)
    left += n.to(tl.int64)[:, None] * left_row + d.to(tl.int64)[None, :] * left_column
    right += m.to(tl.int64)[None, :] * right_row + d.to(tl.int64)[:, None] * right_column
    step = tl.full((), DEPTH, tl.int64)
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for start in range(0, width, DEPTH):
        inside = start + d < width
        x = tl.load(left, mask=(n < rows)[:, None] & inside[None, :], other=0.0)
        y = tl.load(right, mask=(m < columns)[None, :] & inside[:, None], other=0.0)
        total = tl.dot(x.to(OPERAND), y.to(OPERAND), total, input_precision=PRECISION)
        left += step * left_column
        right += step * right_column
    return total


@triton.jit
def _described_product(left, right, row, column, width, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
                       BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """Do as _product for descriptors of tiles of whole embeddings; what lies beyond their ends counts as 0."""
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for start in range(0, width, DEPTH):
        x, y = left.load([row, start]), right.load([column, start])
        total = tl.dot(x.to(OPERAND), y.to(OPERAND).T, total, input_precision=PRECISION)
    return total


@triton.jit
def _gate(gate, first, stride, rows, GATED: tl.constexpr, BLOCK: tl.constexpr):
    """Load the gates of a tile, 1 without a gate."""
    if GATED:
        i = tl.arange(0, BLOCK)
        values = tl.load(gate + first * stride + i.to(tl.int64) * stride, mask=i < rows, other=0.0)
    else:
        values = tl.full((BLOCK,), 1.0, tl.float32)
    return values


@triton.jit
def _scores(brain_image, image, brain_text, text, r, c, zero, row, column, rows, columns, image_width, text_width,
            brain_image_n, brain_image_d, image_m, image_d, brain_text_n, brain_text_e, text_m, text_e,
            DESCRIBED: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
            BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """Return M_bi (1 + r_i c_j M_bt) of the tile at (row, column); texts are not read if all its gates are closed."""
    if DESCRIBED:
        scores = _described_product(brain_image, image, row.to(tl.int32), column.to(tl.int32), image_width,
                                    OPERAND, PRECISION, BLOCK_N, BLOCK_M, DEPTH)  # fmt: skip
    else:
        scores = _product(brain_image + row * brain_image_n, image + column * image_m, zero, rows, columns, image_width,
                          brain_image_n, brain_image_d, image_m, image_d,
                          OPERAND, PRECISION, BLOCK_N, BLOCK_M, DEPTH)  # fmt: skip
    if (tl.max((r != 0.0).to(tl.int32)) > 0) & (tl.max((c != 0.0).to(tl.int32)) > 0):
        if DESCRIBED:
            of_texts = _described_product(brain_text, text, row.to(tl.int32), column.to(tl.int32), text_width,
                                          OPERAND, PRECISION, BLOCK_N, BLOCK_M, DEPTH)  # fmt: skip
        else:
            of_texts = _product(brain_text + row * brain_text_n, text + column * text_m, zero, rows, columns,
                                text_width, brain_text_n, brain_text_e, text_m, text_e,
                                OPERAND, PRECISION, BLOCK_N, BLOCK_M, DEPTH)  # fmt: skip
        closed = (r == 0.0)[:, None] | (c == 0.0)[None, :]  # lets no NaN through
        scores *= tl.where(closed, 1.0, 1.0 + r[:, None] * c[None, :] * of_texts)
    return scores


@triton.jit(do_not_specialize=_COUNTS)
def _similarity_kernel(
    brain_image, image, brain_text, text, row_gate, column_gate, out,
    recordings, images, image_width, text_width, row_tiles, column_tiles,
    brain_image_n, brain_image_d, image_m, image_d, brain_text_n, brain_text_e, text_m, text_e,
    row_gate_n, column_gate_m,
    out_n, out_m,
    ROW_GATED: tl.constexpr, COLUMN_GATED: tl.constexpr, GROUP: tl.constexpr,
    DESCRIBED: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Compute one tile of the matrix."""
    tile = tl.program_id(0).to(tl.int64)
    first = tile // (column_tiles * GROUP) * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    within = tile % (column_tiles * GROUP)
    row, column = (first + within % height) * BLOCK_N, within // height * BLOCK_M
    rows = tl.minimum(recordings - row, BLOCK_N).to(tl.int32)
    columns = tl.minimum(images - column, BLOCK_M).to(tl.int32)
    r = _gate(row_gate, row, row_gate_n, rows, ROW_GATED, BLOCK_N)
    c = _gate(column_gate, column, column_gate_m, columns, COLUMN_GATED, BLOCK_M)
    scores = _scores(brain_image, image, brain_text, text, r, c, 0, row, column, rows, columns, image_width, text_width,
                     brain_image_n, brain_image_d, image_m, image_d, brain_text_n, brain_text_e, text_m, text_e,
                     DESCRIBED, OPERAND, PRECISION, BLOCK_N, BLOCK_M, DEPTH)  # fmt: skip
    n, m = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    where = out + row * out_n + column * out_m
    where += n.to(tl.int64)[:, None] * out_n + m.to(tl.int64)[None, :] * out_m
    values = scores.to(out.dtype.element_ty)
    if columns == BLOCK_M:  # a mask that is the same for a whole row lets neighbours be stored together
        tl.store(where, values, mask=(n < rows)[:, None])
    else:
        tl.store(where, values, mask=(n < rows)[:, None] & (m < columns)[None, :])


@triton.jit
def _largest(order, first, columns, BLOCK_M: tl.constexpr):
    """Return key and column of the best candidate of each row; `first` is the index of the tile's first image."""
    top = tl.max(order, 1)
    column = tl.min(tl.where(order == top[:, None], columns[None, :], BLOCK_M), 1)
    key = (top.to(tl.int64) << 32) | (_LOW_HALF - (first + column))
    return tl.where(top == _NO_ORDER, _NOBODY, key), column


@triton.jit(do_not_specialize=_COUNTS)
def _topk_kernel(
    brain_image, image, brain_text, text, row_gate, column_gate, keys,
    recordings, images, image_width, text_width, row_tiles, column_tiles, slice_tiles, slices, k,
    brain_image_n, brain_image_d, image_m, image_d, brain_text_n, brain_text_e, text_m, text_e,
    row_gate_n, column_gate_m,
    ROW_GATED: tl.constexpr, COLUMN_GATED: tl.constexpr,
    DESCRIBED: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, DEPTH: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Compute keys[i, slice, :k] of a tile of recordings and one slice of the gallery, unsorted."""
    program = tl.program_id(0).to(tl.int64)
    row, slice_index = program % row_tiles * BLOCK_N, program // row_tiles  # neighbours read the same images
    rows = tl.minimum(recordings - row, BLOCK_N).to(tl.int32)
    r = _gate(row_gate, row, row_gate_n, rows, ROW_GATED, BLOCK_N)
    n, place = tl.arange(0, BLOCK_N), tl.arange(0, KEPT)
    # A place beyond k holds a key that nothing beats; a free place one that every candidate beats.
    start = tl.where(place < k, place.to(tl.int64) + (_NOBODY + 1), _UNBEATEN)
    best = tl.zeros((BLOCK_N, KEPT), dtype=tl.int64) + start[None, :]
    first_tile = slice_index * slice_tiles
    for tile in range(first_tile, tl.minimum(first_tile + slice_tiles, column_tiles)):
        column = tl.full((), BLOCK_M, tl.int64) * tile
        # 0, opaque to the compiler, which keeps no addresses in registers; a multiple lets it copy 16 bytes at a time.
        zero = tl.multiple_of(tl.minimum(tile, 0).to(tl.int32), 128)
        m = zero + tl.arange(0, BLOCK_M)
        columns = tl.minimum(images - column, BLOCK_M).to(tl.int32)
        c = _gate(column_gate, column, column_gate_m, columns, COLUMN_GATED, BLOCK_M)
        scores = _scores(brain_image, image, brain_text, text, r, c, zero, row, column, rows, columns,
                         image_width, text_width,
                         brain_image_n, brain_image_d, image_m, image_d, brain_text_n, brain_text_e, text_m, text_e,
                         DESCRIBED, OPERAND, PRECISION, BLOCK_N, BLOCK_M, DEPTH)  # fmt: skip
        bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)  # -0 becomes 0
        order = tl.where(scores != scores, _NAN_ORDER, tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF))
        order = tl.where((n < rows)[:, None] & (m < columns)[None, :], order, _NO_ORDER)
        # Indices ascend within a slice, so a score equal to the worst kept one does not replace it.
        worst = tl.min(best, 1)
        if tl.max((order > (worst >> 32).to(tl.int32)[:, None]).to(tl.int32)) > 0:
            key, at = _largest(order, column, m, BLOCK_M)
            while tl.max((key > worst).to(tl.int32)) > 0:
                best = tl.where((best == worst[:, None]) & (key > worst)[:, None], key[:, None], best)
                order = tl.where(m[None, :] == at[:, None], _NO_ORDER, order)
                worst = tl.min(best, 1)
                key, at = _largest(order, column, m, BLOCK_M)
    where = ((row + n) * slices + slice_index)[:, None] * k + place[None, :]
    tl.store(keys + where, best, mask=(n < rows)[:, None] & (place < k)[None, :])


def launch_configuration(dtype: torch.dtype, architecture: int, recordings: int, kept: int, described: bool) -> dict:
    """Return compile-time constants, warps and stages.

    Chosen by compilation for sm_86 and sm_90: the largest tiles whose registers do not spill, and on sm_90 products of
    whole warp groups.

    Args:
        dtype: of the embeddings.
        architecture: 10 times the compute capability; 0 under the interpreter.
        recordings: N.
        kept: k of a top-k; 0 for the matrix.
        described: whether tiles are loaded by descriptors.
    """
    precision = "tf32" if dtype == torch.float32 and not _is_exact(dtype) else "ieee"
    many, hopper, row = recordings > 64, architecture >= 90, 128 // dtype.itemsize
    largest = next(size for size in (16, 32, LARGEST_FUSED_K) if kept <= size and (size != 32 or described))
    if _is_exact(dtype):
        tile, warps = (32 if kept > 16 else 64, 64, 16), 8 if kept or not hopper else 4
    elif kept and described:
        tile, warps = (128, 128, row) if many and kept <= 16 else (64, 256 if kept <= 32 else 128, row), 8
    elif kept:
        few_kept = kept <= 16
        tile = (128 if many and few_kept and hopper else 64, 128, row if few_kept and not hopper else row // 2)
        warps = 8
    elif many:
        tile, warps = (128, 128, row), 8
    else:
        tile, warps = (64, 64, row), 4
    operand = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}[dtype]
    if architecture == 0 and dtype == torch.bfloat16:
        operand = tl.float32  # the interpreter multiplies no bfloat16
    constants = {"DESCRIBED": described, "OPERAND": operand, "PRECISION": precision}
    constants |= dict(zip(("BLOCK_N", "BLOCK_M", "DEPTH"), tile))
    constants |= {"KEPT": largest} if kept else {"GROUP": _GROUP}
    return constants | {"num_warps": warps, "num_stages": 4 if described or (kept and hopper) else 3}


def triton_similarity(out: Tensor, inputs: Inputs) -> None:
    """Write the similarity into `out` (N, M), of any strides."""
    recordings, images = out.shape
    configuration = _configuration(inputs, _architecture(out))
    row_tiles = triton.cdiv(recordings, configuration["BLOCK_N"])
    column_tiles = triton.cdiv(images, configuration["BLOCK_M"])
    with _device_of(out):
        _similarity_kernel[_grid(row_tiles * column_tiles, inputs)](
            *_addresses(inputs, out, configuration), *_sizes(inputs), row_tiles, column_tiles,
            *_strides(inputs), *out.stride(), **_gated(inputs), **configuration,
        )  # fmt: skip


def triton_topk(values: Tensor, indices: Tensor, inputs: Inputs) -> None:
    """Write the k best into `values` and `indices` (N, k).

    torch.topk merges the slices' keys: they are integers of which no two are equal, so it has only one possible result.
    """
    images = len(inputs.image)
    if images > _LARGEST_GALLERY:
        limit = f"backend 'triton' ranks at most {_LARGEST_GALLERY:,}"
        raise ValueError(f"image has {images:,} rows; {limit}: split them and merge the best")
    n, k = values.shape
    if k > LARGEST_FUSED_K:
        chunked_topk.topk(triton_similarity, values, indices, inputs)
        return
    configuration = _configuration(inputs, _architecture(values), k)
    row_tiles = triton.cdiv(n, configuration["BLOCK_N"])
    column_tiles = triton.cdiv(images, configuration["BLOCK_M"])
    slice_tiles = triton.cdiv(column_tiles, slices_of(row_tiles, column_tiles, _programs(values)))
    slices = triton.cdiv(column_tiles, slice_tiles)
    keys = indices.new_empty(n, slices, k)
    with _device_of(values):
        _topk_kernel[_grid(row_tiles * slices, inputs)](
            *_addresses(inputs, keys, configuration), *_sizes(inputs), row_tiles, column_tiles, slice_tiles, slices, k,
            *_strides(inputs), **_gated(inputs), **configuration,
        )  # fmt: skip
    chunked_topk.decode(keys.view(n, slices * k).topk(k).values, values, indices)


def _programs(tensor: Tensor) -> int:
    """Return how many top-k programs run at once: one a multiprocessor, as they fill its registers."""
    if not tensor.is_cuda:
        return _INTERPRETED_PROGRAMS
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


def _architecture(tensor: Tensor) -> int:
    if not tensor.is_cuda:
        return 0
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def _grid(programs: int, inputs: Inputs) -> tuple[int]:
    if programs > _LARGEST_GRID:
        shapes = f"{tuple(inputs.brain_image.shape)} and {tuple(inputs.image.shape)}"
        raise ValueError(
            f"brain_image and image of shapes {shapes} need {programs} blocks; split them to stay below 2^31"
        )
    return (programs,)


def _configuration(inputs: Inputs, architecture: int, kept: int = 0) -> dict:
    dtype, recordings = inputs.image.dtype, len(inputs.brain_image)
    described = architecture in _DESCRIBED and not _is_exact(dtype) and all(map(_can_be_described, inputs[:4]))
    return launch_configuration(dtype, architecture, recordings, kept, described)


def _is_exact(dtype: torch.dtype) -> bool:
    """Return whether products are made in float32, without the matrix units."""
    return dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"


def _can_be_described(embeddings: Tensor) -> bool:
    """Return whether the copy engine takes the rows: separate, contiguous and aligned, with 32-bit numbers."""
    (rows, width), (row_stride, column_stride) = embeddings.shape, embeddings.stride()
    aligned = embeddings.data_ptr() % 16 == row_stride * embeddings.dtype.itemsize % 16 == 0
    return aligned and column_stride == 1 and 0 < width <= row_stride and 0 < rows < 2**31


def _addresses(inputs: Inputs, out: Tensor, configuration: dict) -> tuple[Tensor | TensorDescriptor, ...]:
    embeddings: tuple[Tensor | TensorDescriptor, ...] = inputs[:4]
    if configuration["DESCRIBED"]:
        rows = (configuration["BLOCK_N"], configuration["BLOCK_M"]) * 2
        blocks = ([block, configuration["DEPTH"]] for block in rows)
        embeddings = tuple(TensorDescriptor.from_tensor(x, block) for x, block in zip(inputs[:4], blocks))
    return (*embeddings, *(out if gate is None else gate for gate in inputs[4:]), out)  # a missing gate is not read


def _sizes(inputs: Inputs) -> tuple[int, ...]:
    return (len(inputs.brain_image), *inputs.image.shape, inputs.text.shape[1])


def _strides(inputs: Inputs) -> tuple[int, ...]:
    gates = (0 if gate is None else gate.stride(0) for gate in inputs[4:])
    return (*(stride for x in inputs[:4] for stride in x.stride()), *gates)


def _gated(inputs: Inputs) -> dict[str, bool]:
    return {"ROW_GATED": inputs.row_gate is not None, "COLUMN_GATED": inputs.column_gate is not None}


def _device_of(tensor: Tensor) -> torch.cuda.device:
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)
