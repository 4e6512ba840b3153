"""The choice of a backend by argument, by environment and automatically, and the reasons why one cannot run."""

import re
import subprocess
import sys

import pytest
import torch
from backends_under_test import ON_GPU
from comparisons import LAYOUTS
from gpu_streams import to_device

import fovblur
from fovblur import backends, info


@pytest.fixture(autouse=True)
def forget_reasons():
    caches = (backends.unavailable_reason, backends._device_unavailable)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_auto_serves_cpu_tensors_with_the_compiled_module():
    assert backends.resolve(None, "foveated_blur", torch.device("cpu"), torch.float32) == "cpu"
    assert backends.resolve("auto", "foveated_blur", torch.device("cpu"), torch.float64) == "cpu"


def test_auto_prefers_compiled_backends_for_cuda_tensors(monkeypatch):
    monkeypatch.setattr(backends, "unavailable_reason", lambda name: None)
    monkeypatch.setattr(backends, "triton_is_interpreted", lambda: False)
    cuda = torch.device("cuda")
    assert backends.resolve(None, "foveated_blur", cuda, torch.float16) in ("cuda", "triton")
    assert backends.resolve(None, "foveated_blur", cuda, torch.float64) == "reference"


def test_environment_variable_chooses_and_the_argument_overrides_it(monkeypatch):
    monkeypatch.setenv("FOVBLUR_BACKEND", "reference")
    assert backends.resolve(None, "foveated_blur", torch.device("cpu"), torch.float32) == "reference"
    assert backends.resolve("cpu", "foveated_blur", torch.device("cpu"), torch.float32) == "cpu"
    monkeypatch.setenv("FOVBLUR_BACKEND", "fast")
    with pytest.raises(ValueError, match="FOVBLUR_BACKEND is 'fast'"):
        fovblur.gaussian_blur(torch.rand(1, 1, 4, 4), 1.0)


def test_a_backend_that_cannot_run_raises_with_the_reason(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if ON_GPU:
        with pytest.raises(RuntimeError, match="'triton' cannot run: it serves CUDA tensors, not cpu ones"):
            fovblur.gaussian_blur(torch.rand(1, 1, 4, 4), 1.0, backend="triton")
        return
    with pytest.raises(RuntimeError, match="'triton' cannot run: no CUDA device is available"):
        fovblur.gaussian_blur(torch.rand(1, 1, 4, 4), 1.0, backend="triton")
    with pytest.raises(RuntimeError, match="'cuda' cannot run: (no CUDA device|the CUDA module was not built)"):
        fovblur.gaussian_blur(torch.rand(1, 1, 4, 4), 1.0, backend="cuda")


@pytest.mark.parametrize(
    ("capability", "driver", "built", "reason"),
    [
        ((8, 6), 13, "8.0;8.6", None),
        ((8, 9), 13, "8.6", None),
        ((12, 0), 13, "8.6;9.0+PTX", None),
        ((9, 0), 14, "9.0a", None),
        ((12, 0), 13, "8.6;9.0", "built for 8.6, 9.0, not for 12.0 of Card; rerun: TORCH_CUDA_ARCH_LIST=12.0 pip"),
        ((8, 0), 13, "8.6", "built for 8.6, not for 8.0"),
        ((7, 5), 13, "8.0+PTX", "built for 8.0[+]PTX, not for 7.5"),
        ((9, 2), 13, "9.0a", "built for 9.0a, not for 9.2"),
        ((8, 6), 12, "8.6", "driver serves CUDA 12 and the module was built with release 13.0; update the driver"),
    ],
    ids=str,
)
def test_a_device_that_the_build_does_not_serve_is_left_to_triton(monkeypatch, capability, driver, built, reason):
    for name, value in {"is_available": True, "device_count": 1, "get_device_name": "Card"}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    facts = {"cuda": {"compiler": "release 13.0", "architectures": built.split(";")}}
    monkeypatch.setattr(backends, "build_info", lambda: facts)
    monkeypatch.setattr(backends, "load_native", lambda name: None)
    monkeypatch.setattr(backends, "_driver_version", lambda: driver)
    chosen = backends.resolve(None, "foveated_blur", torch.device("cuda", 0), torch.float32)
    if reason is None:
        assert backends.unavailable_reason("cuda") is None and chosen == "cuda"
    else:
        assert re.search(reason, backends.unavailable_reason("cuda")) and chosen == "triton"


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (12, 0)], ids=str)
def test_auto_prefers_what_the_table_says(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(backends, "unavailable_reason_for", lambda name, device, dtype: None)
    similarity = "triton" if capability == (9, 0) else "cuda"
    expected = {
        ("enhanced_similarity", torch.float16): similarity,
        ("enhanced_similarity", torch.bfloat16): similarity,
        ("enhanced_similarity", torch.float32): "cuda",
        ("enhanced_similarity", torch.float64): "reference",
        ("foveated_blur", torch.float16): "cuda",
    }
    for (op, dtype), name in expected.items():
        assert backends.resolve(None, op, torch.device("cuda", 0), dtype) == name
        assert backends.resolve("cuda", op, torch.device("cuda", 0), dtype) == "cuda"
    monkeypatch.setattr(backends, "unavailable_reason_for", lambda name, *_: "broken" if name == similarity else None)
    other = {"cuda": "triton", "triton": "cuda"}[similarity]
    assert backends.resolve(None, "enhanced_similarity", torch.device("cuda", 0), torch.float16) == other


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tests_on_a_gpu_keep_the_layout_of_their_inputs(layout):
    images = LAYOUTS[layout](torch.rand(4, 3, 26, 30))
    moved = to_device(images, torch.device("cuda" if ON_GPU else "meta"))
    assert moved.device.type != "cpu" and moved.untyped_storage().nbytes() == images.untyped_storage().nbytes()
    placed = lambda x: (x.shape, x.stride(), x.storage_offset())  # noqa: E731
    assert placed(moved) == placed(images) and (not ON_GPU or torch.equal(moved.cpu(), images))


def test_available_backends_lists_all_with_reasons():
    reasons = fovblur.available_backends()
    assert tuple(reasons) == ("reference", "cpu", "triton", "cuda")
    assert reasons["reference"] is None and reasons["cpu"] is None
    assert ON_GPU or isinstance(reasons["cuda"], str)


def test_info_reports_the_build_and_the_backends():
    text = info.report()
    for part in (
        "compiler:",
        "CPU module: variants baseline",
        "CUDA module:",
        "foveated_blur: float16 CPU tensors would be served by cpu",
    ):
        assert part in text
    printed = subprocess.run([sys.executable, "-m", "fovblur.info"], capture_output=True, text=True, check=True).stdout
    assert "enhanced_similarity: float16 CUDA tensors would be served by" in printed


@pytest.mark.parametrize(
    ("blocked", "then"),
    [
        (["triton", "fovblur._cuda"], "assert fovblur.gaussian_blur(torch.rand(1, 1, 8, 8), 1.0).shape[2:] == (8, 8)"),
        (["triton"], "assert 'import of triton halted' in fovblur.available_backends()['triton']"),
        (["fovblur._cuda"], "assert 'not built' in fovblur.available_backends()['cuda']"),
        (["scipy", "torchvision", "lightning_fabric", "jsonargparse", "cv2"], "fovblur.available_backends()"),
    ],
    ids=str,
)
def test_imports_and_runs_without(blocked, then):
    code = f"import sys, torch; sys.modules |= dict.fromkeys({blocked}); import fovblur; {then}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_loads_neither_triton_nor_the_training_package():
    code = "import sys, fovblur; assert not {'triton', 'bvsa_core', 'fovblur._cuda'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
