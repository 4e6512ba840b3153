"""Every CUDA kernel as nvcc compiled it, run by the PTX interpreter and compared with the float64 reference."""

import re
import shutil
from dataclasses import dataclass

import comparisons
import pytest
import torch
from ptx import device as ptx_device
from ptx.device import Device
from ptx.interpreter import Interpreter
from ptx.memory import Fault
from ptx_cases import BFLOAT16, CASES, FLOAT, HALF, LAYOUTS, UINT8, Blur, Levels, Options, Similarity, serve

from fovblur.foveated_blur.params import BlurGradients, BlurParams

CARDS = {"sm_86": ptx_device.RTX_3080, "sm_90": ptx_device.H100}

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@pytest.fixture(scope="session")
def module(tmp_path_factory):
    return ptx_device.build(tmp_path_factory.mktemp("ptx"))


def placed_on(number: int, case: Blur | Options | Levels | Similarity) -> list[str]:
    """Return the cards for a case: both where the host code may choose by the card, else each in turn."""
    both = isinstance(case, Blur) and case.source == FLOAT
    return list(CARDS) if both else [list(CARDS)[number % 2]]


PLACED = [(card, case) for number, case in enumerate(CASES) for card in placed_on(number, case)]


@pytest.mark.parametrize(("card", "case"), PLACED, ids=str)
def test_kernels_agree_with_the_reference(module, card, case, monkeypatch, seed):
    serve(Device(module, CARDS[card]), monkeypatch)
    case.check(case.run())


def test_the_cases_launch_every_kernel(module, monkeypatch):
    launched, compiled = set(), set()
    for card in CARDS.values():
        device = Device(module, card)
        device.choose_blocks = lambda called: ()
        serve(device, monkeypatch)
        for name, case in PLACED:
            if CARDS[name] is card:
                case.run()
        launched |= {called.kernel for called in device.launches}
        compiled |= {name for interpreter in device.interpreters for name in interpreter.module.kernels}
        monkeypatch.undo()
    assert launched == compiled


@pytest.mark.parametrize("source", [torch.uint8, HALF, torch.bfloat16, FLOAT], ids=str)
@pytest.mark.parametrize("sigma", [torch.nan, -1.0])
def test_a_bad_sigma_gives_nan(module, sigma, source):
    """Checked on the device, because a check on the host would wait for it."""
    images, out = torch.ones(2, 1, 6, 10).to(source), torch.zeros(2, 1, 6, 10, dtype=HALF)
    per_sample = torch.tensor([sigma, 1.0]), torch.tensor([25, 25], dtype=torch.int32), torch.tensor([0.5, 0.5])
    params = BlurParams(*per_sample, torch.tensor([[3.0, 5.0]]).expand(2, 2), None, None, None, "exp", 3.0)
    Device(module, ptx_device.RTX_3080).forward(images, out, params)
    assert out[0].isnan().all() and out[1].isfinite().all()


@dataclass(frozen=True)
class ParameterGradient:
    """Gradients of sigma and gain; `directly` in the direct form, because products cannot compute them."""

    shape: tuple[int, int, int, int]
    kernel_size: tuple[int, ...]
    sigma: tuple[float, ...]
    source: torch.dtype
    result: torch.dtype
    layout: str = "contiguous"
    falloff: str = "exp"
    directly: bool = False

    def __str__(self) -> str:
        names = [str(dtype).removeprefix("torch.") for dtype in (self.source, self.result)]
        sizes = "x".join(map(str, self.shape)), "k" + "+".join(map(str, self.kernel_size))
        return "-".join([*names, *sizes, self.layout, self.falloff])


PARAMETER_GRADIENTS = [
    ParameterGradient((2, 1, 37, 75), (9, 51), (1.5, 8.5), HALF, HALF),
    ParameterGradient((2, 3, 33, 72), (51, 5), (25.0, 0.5), HALF, FLOAT, "offset", "linear"),
    ParameterGradient((1, 1, 70, 130), (101,), (16.0,), HALF, BFLOAT16, "strided"),
    ParameterGradient((1, 1, 40, 530), (51,), (8.5,), HALF, HALF, "padded"),  # three strips
    ParameterGradient((1, 1, 70, 250), (101,), (50.0,), BFLOAT16, BFLOAT16, "transposed"),  # a strip in parts
    ParameterGradient((2, 1, 28, 40), (3, 51), (1.5, 3.0), BFLOAT16, HALF, "channels_last"),
    ParameterGradient((1, 3, 64, 40), (51,), (8.5,), UINT8, HALF, "channels_last"),
    ParameterGradient((1, 1, 80, 96), (101,), (16.0,), UINT8, BFLOAT16, "offset"),
    ParameterGradient((1, 2, 24, 40), (131,), (20.0,), HALF, HALF, directly=True),
    ParameterGradient((1, 2, 20, 18), (51,), (8.5,), UINT8, HALF, directly=True),
]


@pytest.mark.parametrize("case", PARAMETER_GRADIENTS, ids=str)
def test_gradients_of_sigma_and_gain(module, case, seed):
    batch, channels = case.shape[:2]
    images = LAYOUTS[case.layout](comparisons.edges(case.shape, case.source))
    sigma, kernel_size = torch.tensor(case.sigma), torch.tensor(case.kernel_size, dtype=torch.int32)
    grad = LAYOUTS[case.layout](comparisons.followed_by_gradients(images, sigma, kernel_size).to(case.result))
    fixation = torch.rand(batch, 2) * torch.tensor(case.shape[2:])
    normalisation = torch.full((channels,), 0.45), 0.2 + 0.1 * torch.rand(channels)
    params = BlurParams(sigma, kernel_size, torch.rand(batch), fixation, *normalisation, None, case.falloff, 3.0)
    ours = BlurGradients(None, torch.empty(batch), torch.empty(batch))
    device = Device(module, ptx_device.RTX_3080)
    device.backward(grad, images, ours, params)
    (called,) = device.launches
    assert "parameter_products" in called.kernel
    kernel, files = device.kernel(called)
    ran = {
        files[code.source[0]] for code, visits in zip(kernel.code, called.counts.visits) if visits and code.source[0]
    }
    assert any(name.endswith("cuda_filter.cuh") for name in ran) == case.directly
    tolerance = 1e-2 if BFLOAT16 == case.source else 2e-3
    for name, one, other in zip(
        ("sigma", "gain"), ours[1:], comparisons.exact_parameter_gradients(grad, images, params)
    ):
        assert ((one - other) / other).abs().max() < tolerance, name


@pytest.mark.parametrize(("sigma", "expected"), [(0.0, 0.0), (1e-20, 0.0), (-1.0, torch.nan), (torch.nan, torch.nan)])
@pytest.mark.parametrize("source", [HALF, UINT8], ids=str)
def test_gradients_of_unusual_sigmas_stay_in_their_sample(module, source, sigma, expected):
    images, grad = comparisons.edges((2, 1, 30, 40), source), torch.ones(2, 1, 30, 40).to(HALF)
    per_sample = torch.tensor([sigma, 3.0]), torch.tensor([25, 25], dtype=torch.int32), torch.tensor([0.5, 0.5])
    params = BlurParams(*per_sample, torch.tensor([[3.0, 5.0]]).expand(2, 2), None, None, None, "exp", 3.0)
    ours = BlurGradients(None, torch.empty(2), torch.empty(2))
    Device(module, ptx_device.RTX_3080).backward(grad, images, ours, params)
    for one in ours[1:]:
        torch.testing.assert_close(one[0].item(), expected, equal_nan=True)
        assert one[1].isfinite() and one[1] != 0


# ---- faults injected into the compiled code ----

MUTATIONS = {
    "swapped fragments": (r"(mma\.sync[^;]*?\},\s*\{)(%\w+),\s*(%\w+)", r"\1\3, \2"),
    "no barrier": (r"bar\.sync\s+0;", ""),
    "short waits": (r"(cp\.async\.wait_group\s+)\d+;", r"\g<1>9;"),
    "no copies": (r"cp\.async\.c[ag]\.[^;]+;", ""),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_faults_injected_into_the_kernels_are_detected(module, name, monkeypatch, tmp_path, seed):
    pattern, replacement = MUTATIONS[name]
    found = []
    for source, case in (
        ("foveated_blur-cuda", Blur((1, 1, 70, 96), (51,), HALF, HALF, gradients=False)),
        ("foveated_blur-cuda", Blur((1, 1, 70, 96), (51,), FLOAT, FLOAT, gradients=False)),
        ("enhanced_similarity-cuda", Similarity((20, 140, 200, 40), HALF)),
    ):
        device = Device(module, ptx_device.RTX_3080)
        serve(device, monkeypatch)
        device.choose_blocks = lambda called: ()
        case.run()
        right = device.interpreters[list(ptx_device.SOURCES).index(source)].module.kernels
        mutated = tmp_path / f"{source}.ptx"
        mutated.write_text(re.sub(pattern, replacement, (module.parent / f"{source}-86.ptx").read_text()))
        device.interpreters = (Interpreter(mutated),)
        wrong = device.interpreters[0].module.kernels
        if all(right[called.kernel].code == wrong[called.kernel].code for called in device.launches):
            continue  # no such instruction in these kernels
        device.choose_blocks = lambda called: None
        with pytest.raises((Fault, AssertionError)):
            case.check(case.run())
        found.append(source)
    assert found
