"""Calls of both ops that the PTX interpreter runs, and what their results are compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import comparisons
import dense_blur
import pytest
import similarity_under_test
import torch
from ptx.device import Device
from torch import Tensor

import fovblur
from fovblur import backends
from fovblur.foveated_blur import native
from fovblur.foveated_blur.params import BlurGradients
from fovblur.retinal_blur import native as native_retina
from fovblur.retinal_blur.params import LevelParams

UINT8, HALF, BFLOAT16, FLOAT = torch.uint8, torch.float16, torch.bfloat16, torch.float32
# Error of a result relative to the largest value, by the coarsest of the types.
TOLERANCE = {HALF: 3e-3, BFLOAT16: 2e-2, FLOAT: 1e-5, UINT8: 3e-3}
GRADIENT_TOLERANCE = {HALF: 4e-3, BFLOAT16: 2e-2, FLOAT: 1e-5, UINT8: 4e-3}


@dataclass(frozen=True)
class Blur:
    """A blur, and for floating images its gradients."""

    shape: tuple[int, int, int, int]
    kernel_size: tuple[int, ...]
    source: torch.dtype
    result: torch.dtype
    layout: str = "contiguous"
    tf32: bool = False
    non_finite: bool = False
    falloff: str = "exp"
    sigma: tuple[float, ...] = ()  # by default a sixth of the kernel's size
    gradients: bool = True

    def __str__(self) -> str:
        names = [str(value).removeprefix("torch.") for value in (self.source, self.result)]
        flags = [name for name in ("tf32", "non_finite") if getattr(self, name)]
        sizes = "x".join(map(str, self.shape)), "k" + "+".join(map(str, self.kernel_size))
        return "-".join([*names, *sizes, self.layout, self.falloff, *flags])

    def arguments(self) -> dict:
        """Return random arguments of foveated_blur."""
        batch, _, height, width = self.shape
        images = comparisons.random_images(self.shape, self.source)
        if self.non_finite:
            images[0, 0, height // 3, width // 2], images[-1, -1, -1, -1] = torch.nan, torch.inf
        sigma = torch.tensor(self.sigma or [size / 6 for size in self.kernel_size])
        fixation = torch.rand(batch, 2) * torch.tensor([height, width])
        normalised = {"mean": 0.45, "std": 0.25} if self.source == UINT8 and self.result != UINT8 else {}
        return {
            "images": LAYOUTS[self.layout](images), "sigma": sigma, "kernel_size": torch.tensor(self.kernel_size),
            "gain": torch.rand(batch), "fixation": fixation, "falloff": self.falloff, "out_dtype": self.result,
            **normalised,
        }  # fmt: skip

    def run(self) -> list[Tensor]:
        """Return the result and gradients of backend "cuda", each beside the float64 reference's."""
        arguments = self.arguments()
        ours, expected = self._call(arguments, "cuda"), self._call(exact(arguments), "reference")
        return [pair for pairs in zip(ours, expected) for pair in pairs]

    def check(self, results: list[Tensor]) -> None:
        ours, expected, *gradients = results
        coarsest = max((self.source, self.result), key=lambda dtype: TOLERANCE[dtype])
        assert torch.equal(ours.isfinite(), expected.isfinite()), "values that are not finite differ"
        finite = expected.isfinite()
        error = (ours.double() - expected)[finite].abs().max().item() if finite.any() else 0.0
        largest = max(expected[finite].abs().max().item(), 1e-3) if finite.any() else 1.0
        bound = TOLERANCE[coarsest] * largest + (0.5 if self.result == UINT8 else 0)
        assert error <= bound, f"error {error / largest:.2e}"
        if gradients:
            tolerance = max(GRADIENT_TOLERANCE[self.source], GRADIENT_TOLERANCE[self.result])
            comparisons.assert_close(gradients[::2], gradients[1::2], tolerance, self._grad().double())

    def _grad(self) -> Tensor:
        generator = torch.Generator().manual_seed(sum(self.shape))
        return torch.rand(self.shape, generator=generator) - 0.3

    def _call(self, arguments: dict, backend: str) -> list[Tensor]:
        arguments = dict(arguments)
        wanted = self.gradients and not self.non_finite and self.result != UINT8
        names = ("images", "sigma", "gain") if self.source != UINT8 else ("sigma", "gain")
        leaves = [arguments[name].requires_grad_(wanted) for name in names]
        with matmul_precision(self.tf32):
            result = fovblur.foveated_blur(**arguments, backend=backend)
            if not wanted:
                return [result]
            grad = self._grad().to(result.dtype).transpose(2, 3).contiguous().transpose(2, 3)
            return [result.detach(), *torch.autograd.grad(result, leaves, grad)]


@dataclass(frozen=True)
class Options:
    """A blur with options that the fastest forms do not take, its gradients, and that of its images as a list."""

    shape: tuple[int, int, int, int]
    kernel_size: tuple[int, ...]  # of which each axis of a sample takes one
    border: str
    per_axis: bool = True
    tables: bool = False
    mapped: bool = False
    source: torch.dtype = FLOAT

    def __str__(self) -> str:
        flags = [name for name in ("per_axis", "tables", "mapped") if getattr(self, name)]
        sizes = "x".join(map(str, self.shape)), "k" + "+".join(map(str, self.kernel_size))
        return "-".join([str(self.source).removeprefix("torch."), *sizes, self.border, *flags])

    def run(self) -> list[Tensor]:
        """Return results and gradients of the CUDA kernels, each beside those of dense matrices."""
        batch, _, height, width = self.shape
        images, grad = comparisons.random_images(self.shape, self.source), torch.rand(self.shape) - 0.3
        weight = torch.rand(batch, height, width) if self.mapped else None
        params = dense_blur.random_params(
            batch, self.kernel_size, self.per_axis, border=self.border, tables=self.tables, weight=weight
        )
        out, listed = torch.empty(self.shape), torch.empty(self.shape)
        of_images = None if self.border == "replicate" or self.source == UINT8 else torch.empty(self.shape)
        grads = BlurGradients(of_images, torch.empty_like(params.sigma), torch.empty_like(params.gain))
        native.cuda_forward(images, out, params)
        native.cuda_backward(grad, images, grads, params)
        native.cuda_forward_list(
            list(images), list(listed), params._replace(weight=None), None if weight is None else list(weight)
        )
        expected = dense_blur.blur(images, params)
        pairs = [(out, expected), (listed, expected), *zip(grads, dense_blur.gradients(grad, images, params))]
        return [x for one, other in pairs if one is not None for x in (one, other)]

    def check(self, results: list[Tensor]) -> None:
        terms = math.prod(self.shape[1:])  # of the gradients of sigma and gain, which cancel
        for one, other in zip(results[::2], results[1::2]):
            scale = other.abs().max().item() if one.ndim == 4 else 0.3 * terms
            assert (one - other).abs().max() <= 1e-5 * scale


@dataclass(frozen=True)
class Levels:
    """A blend of Gaussian levels."""

    shape: tuple[int, int, int, int]
    border: str

    def __str__(self) -> str:
        return "levels-" + "x".join(map(str, self.shape)) + f"-{self.border}"

    def run(self) -> list[Tensor]:
        batch, _, height, width = self.shape
        level = 1 + 2 * torch.rand(batch, height, width)  # no pixel is that of level 0
        images, out = torch.rand(self.shape), torch.empty(self.shape)
        params = LevelParams(level, (0.0, 1.0, 2.5, 6.0), (1, 9, 17, 37), self.border)
        native_retina.cuda_forward(images, out, params)
        return [out, dense_blur.blend_of_levels(images, params)]

    def check(self, results: list[Tensor]) -> None:
        assert comparisons.relative_error(*results) < 1e-5


@dataclass(frozen=True)
class Similarity:
    """A matrix and its top-k."""

    shape: tuple[int, int, int, int]  # N, M, D, E
    dtype: torch.dtype
    layout: str = "contiguous"
    tf32: bool = False
    gates: bool = True
    k: int = 10

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.shape))
        flags = [name for name in ("tf32", "gates") if getattr(self, name)]
        return "-".join([str(self.dtype).removeprefix("torch."), sizes, f"k{self.k}", self.layout, *flags])

    def run(self) -> list[Tensor]:
        embeddings = similarity_under_test.random_embeddings(*self.shape, self.dtype)
        embeddings = [similarity_under_test.LAYOUTS[self.layout](one) for one in embeddings]
        gates = similarity_under_test.random_gates(*self.shape[:2]) if self.gates else {}
        with matmul_precision(self.tf32):
            matrix = fovblur.enhanced_similarity(*embeddings, **gates, backend="cuda")
            best = fovblur.enhanced_topk(*embeddings, self.k, **gates, backend="cuda")
        return [similarity_under_test.exact(*embeddings, **gates), matrix, *best]

    def check(self, results: list[Tensor]) -> None:
        scores, matrix, values, indices = results
        scale = max(1.0, scores.abs().max().item())
        tolerance = (
            2e-3
            if self.tf32 and self.dtype == FLOAT
            else 1e-5
            if self.dtype == FLOAT
            else 2 * torch.finfo(self.dtype).eps
        )
        assert (matrix.double() - scores).abs().max() <= tolerance * scale
        similarity_under_test.check_topk(values, indices, scores, tolerance)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": comparisons.LAYOUTS["channels_last"],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "offset": lambda x: torch.cat([x[..., :1], x], 3)[..., 1:],
    "padded": lambda x: torch.cat([x, x[..., :3]], 3)[..., : x.shape[3]],
    "strided": lambda x: torch.stack([x, x], 4)[..., 1],
    "flipped-storage": comparisons.LAYOUTS["flipped-storage"],
}

CASES = [
    # every type, in one piece and with odd sizes
    Blur((2, 1, 37, 75), (9, 51), HALF, HALF),
    Blur((1, 2, 48, 96), (51,), HALF, HALF),
    Blur((1, 1, 70, 130), (101,), HALF, FLOAT, layout="offset"),
    Blur((2, 1, 5, 7), (3, 51), HALF, BFLOAT16, layout="strided", falloff="linear"),
    Blur((1, 1, 40, 64), (51,), HALF, HALF, non_finite=True),
    Blur((1, 1, 24, 40), (131,), HALF, HALF),
    Blur((2, 1, 33, 72), (51, 1), BFLOAT16, BFLOAT16),
    Blur((1, 1, 20, 81), (33,), BFLOAT16, FLOAT, layout="transposed", falloff="quadratic"),
    Blur((1, 2, 18, 40), (51,), BFLOAT16, BFLOAT16, layout="channels_last", non_finite=True),
    Blur((2, 1, 37, 75), (9, 51), UINT8, HALF),
    Blur((1, 3, 32, 64), (51,), UINT8, HALF, layout="channels_last"),
    Blur((1, 1, 70, 96), (101,), UINT8, UINT8),
    Blur((1, 1, 17, 33), (51,), UINT8, BFLOAT16, layout="offset"),
    Blur((2, 1, 16, 50), (5, 51), UINT8, FLOAT, layout="padded"),
    Blur((1, 1, 30, 77), (51,), UINT8, FLOAT, tf32=True),
    Blur((2, 1, 37, 75), (9, 51), FLOAT, FLOAT),
    Blur((1, 1, 48, 64), (51,), FLOAT, FLOAT),
    Blur((1, 1, 40, 70), (101,), FLOAT, FLOAT, layout="offset", falloff="log"),
    Blur((1, 1, 40, 70), (51,), FLOAT, FLOAT, non_finite=True),
    Blur((2, 2, 7, 5), (51, 3), FLOAT, HALF, layout="flipped-storage", falloff="brachistochrone"),
    Blur((1, 1, 40, 70), (101,), FLOAT, FLOAT, layout="padded", non_finite=True),
    Blur((1, 1, 1, 1), (51,), FLOAT, FLOAT),
    Options((1, 1, 30, 75), (3, 21), "symmetric"),
    Options((1, 1, 20, 30), (51,), "circular", per_axis=False, mapped=True),
    Options((1, 1, 12, 60), (5, 9), "replicate", tables=True),
    Options((1, 1, 9, 40), (9, 131), "reflect", source=UINT8),
    Options((1, 1, 9, 40), (3, 51), "constant", mapped=True),
    Levels((1, 1, 20, 70), "symmetric"),
    # the similarity
    Similarity((70, 140, 40, 24), HALF, k=130),
    Similarity((9, 140, 64, 16), HALF, k=64),
    Similarity((5, 300, 64, 0), HALF, layout="offset"),
    Similarity((130, 129, 33, 16), BFLOAT16, layout="padded", k=40),
    Similarity((3, 7, 0, 8), BFLOAT16, gates=False, k=7),
    Similarity((20, 140, 40, 24), FLOAT, k=128),
    Similarity((65, 30, 17, 5), FLOAT, layout="transposed", gates=False, k=1),
    Similarity((70, 140, 40, 24), FLOAT, tf32=True, k=33),
    Similarity((9, 12, 21, 30), FLOAT, layout="strided", tf32=True, k=5),
]


def exact(arguments: dict) -> dict:
    """Return the arguments in float64."""
    double = lambda value: value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value  # noqa: E731
    arguments = {name: double(value) for name, value in arguments.items() if name != "out_dtype"}
    if arguments["images"].dtype == UINT8:
        scale = 255 if "mean" in arguments else 1
        arguments["images"] = arguments["images"].double() / scale
    return arguments


class matmul_precision:
    """Allow tf32, or not, within a block."""

    def __init__(self, tf32: bool):
        self.wanted = "high" if tf32 else "highest"

    def __enter__(self) -> None:
        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.wanted)

    def __exit__(self, *_: object) -> None:
        torch.set_float32_matmul_precision(self.before)


def serve(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let backend="cuda" run in the interpreter."""
    device.serve(monkeypatch)
    reason_for = backends.unavailable_reason_for
    monkeypatch.setattr(backends, "unavailable_reason", lambda name: None)
    monkeypatch.setattr(
        backends, "unavailable_reason_for", lambda name, _, dtype: reason_for(name, torch.device("cuda"), dtype)
    )
