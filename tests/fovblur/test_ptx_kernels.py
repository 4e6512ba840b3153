"""Every CUDA kernel as nvcc compiled it, run by the PTX interpreter and compared with the float64 reference."""

import re
import shutil

import pytest
import torch
from ptx import device as ptx_device
from ptx.device import Device
from ptx.interpreter import Interpreter
from ptx.memory import Fault
from ptx_cases import CASES, FLOAT, HALF, Blur, Similarity, serve

from fovblur.foveated_blur.params import BlurParams

CARDS = {"sm_86": ptx_device.RTX_3080, "sm_90": ptx_device.H100}

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@pytest.fixture(scope="session")
def module(tmp_path_factory):
    return ptx_device.build(tmp_path_factory.mktemp("ptx"))


def placed_on(number: int, case: Blur | Similarity) -> list[str]:
    """Return the cards for a case: both where the host code may choose by the card, else each in turn."""
    both = isinstance(case, Blur) and case.source == FLOAT and not case.tf32
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
    params = BlurParams(*per_sample, torch.tensor([[3.0, 5.0]]).expand(2, 2), None, None, "exp", 3.0)
    Device(module, ptx_device.RTX_3080).forward(images, out, params)
    assert out[0].isnan().all() and out[1].isfinite().all()


# ---- faults injected into the compiled code ----

MUTATIONS = {
    "swapped fragments": (r"(mma\.sync[^;]*?\},\s*\{)(%\w+),\s*(%\w+)", r"\1\3, \2"),
    "no barrier": (r"bar\.sync\s+0;", ""),
    "no barrier of a warp": (r"bar\.warp\.sync\s+[^;]+;", ""),
    "short waits": (r"(cp\.async\.wait_group\s+)\d+;", r"\g<1>9;"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_faults_injected_into_the_kernels_are_detected(module, name, monkeypatch, tmp_path, seed):
    pattern, replacement = MUTATIONS[name]
    found = []
    for op, case in (
        ("foveated_blur", Blur((1, 1, 70, 96), (51,), HALF, HALF, gradients=False)),
        ("foveated_blur", Blur((1, 1, 70, 96), (51,), torch.float32, torch.float32, tf32=True, gradients=False)),
        ("enhanced_similarity", Similarity((20, 140, 200, 40), HALF)),
    ):
        device = Device(module, ptx_device.RTX_3080)
        serve(device, monkeypatch)
        device.choose_blocks = lambda called: ()
        case.run()
        right = device.interpreters[list(ptx_device.OPS).index(op)].module.kernels
        mutated = tmp_path / f"{op}.ptx"
        mutated.write_text(re.sub(pattern, replacement, (module.parent / f"cuda-{op}-86.ptx").read_text()))
        device.interpreters = (Interpreter(mutated),)
        wrong = device.interpreters[0].module.kernels
        if all(right[called.kernel].code == wrong[called.kernel].code for called in device.launches):
            continue  # no such instruction in the kernels of this op
        device.choose_blocks = lambda called: None
        with pytest.raises((Fault, AssertionError)):
            case.check(case.run())
        found.append(op)
    assert found
