"""What `pip install` builds from the published archive, and the errors where nvcc fails or is given wrong settings."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@pytest.fixture(scope="session")
def archive(tmp_path_factory) -> Path:
    """The sdist of a copy of this checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("csrc", "fovblur", "bvsa_core"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / "tests").mkdir()
    (copy / "tests" / "test_nothing.py").touch()
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=copy, check=True, capture_output=True)
    (made,) = (copy / "dist").iterdir()
    return made


@pytest.fixture(scope="session")
def checkout(archive, tmp_path_factory) -> Path:
    """The unpacked archive, with an nvcc that fails and a C++ compiler that is quick because it does not optimise."""
    folder = tmp_path_factory.mktemp("build")
    with tarfile.open(archive) as files:
        files.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (copy,) = folder.iterdir()
    failing = "case $1 in --version) echo release 99.9;; *) echo 'nvcc fatal error: no licence' >&2; exit 1;; esac"
    quick = f'exec {os.environ.get("CXX", "c++")} "$@" -O0'
    for path, script in ((copy / "cuda" / "bin" / "nvcc", failing), (copy / "quick" / "c++", quick)):
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    return copy


def build(checkout: Path, command: list[str], **environment: str) -> subprocess.CompletedProcess:
    tools = {"CUDA_HOME": str(checkout / "cuda"), "CXX": str(checkout / "quick" / "c++")}
    environment = {**os.environ, **tools, **environment}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="session")
def built(checkout) -> tuple[Path, str]:
    """The wheel of the archive, and the output of pip."""
    command = [*PIP, "wheel", "-v", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", "wheels", "."]
    done = build(checkout, command, FOVBLUR_BUILD_CUDA="")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (checkout / "wheels").iterdir()
    return wheel, done.stdout + done.stderr


@pytest.fixture(scope="session")
def installed(built, tmp_path_factory) -> Path:
    """Python of a new environment with the wheel, without a compiler on the PATH; other packages are the tests'."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment)
    python = environment / "bin" / "python"
    command = [*PIP, "--python", str(python), "install", "--no-deps", "--no-index", str(built[0])]
    subprocess.run(command, env={"PATH": str(environment / "bin")}, check=True, capture_output=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "torch_of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def call(installed: Path, *arguments: str) -> subprocess.CompletedProcess:
    options = {"cwd": installed.parents[1], "env": {"PATH": str(installed.parent)}}
    return subprocess.run([str(installed), *arguments], capture_output=True, text=True, **options)


def test_the_archive_holds_what_is_compiled_and_no_tests(archive):
    with tarfile.open(archive) as files:
        held = {name.partition("/")[2] for name in files.getnames()}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert sources < held and not any(name.startswith("tests") for name in held)


def test_the_wheel_holds_every_data_file_and_is_typed(built):
    held = set(zipfile.ZipFile(built[0]).namelist())
    ours = [path for package in ("fovblur", "bvsa_core") for path in (ROOT / package).rglob("*") if path.is_file()]
    kept = [path for path in ours if path.suffix != ".so" and "__pycache__" not in path.parts]
    expected = {path.relative_to(ROOT).as_posix() for path in kept}
    assert expected <= held and {"fovblur/py.typed", "bvsa_core/py.typed"} <= expected
    assert not [name for name in held if name.startswith(("csrc", "tests"))]


SMOKE = """
import sys
blocked = "triton torchvision open_clip lightning_fabric jsonargparse safetensors scipy PIL rich"
sys.modules |= dict.fromkeys(blocked.split())
import torch, fovblur
from bvsa_core.cli import main
blurred = fovblur.foveated_blur(torch.rand(2, 3, 9, 8), kernel_size=torch.tensor([3, 5]), backend="cpu")
assert blurred.shape == (2, 3, 9, 8) and blurred.isfinite().all()
print(fovblur.__file__, *fovblur.available_backends().values(), sep="\\n")
sys.exit(main(["train"]))
"""


def test_the_wheel_runs_where_there_is_no_compiler_nor_triton_nor_cuda_nor_an_extra(installed):
    done = call(installed, "-c", SMOKE)
    assert done.returncode == 2, done.stderr
    where, reference, cpu, triton, cuda = done.stdout.splitlines()
    assert Path(where).is_relative_to(installed.parents[1]) and reference == cpu == "None"
    assert "install it with: pip install triton" in triton and "was not built" in cuda
    assert "PIL, rich, torchvision not installed; the command needs: pip install 'fovblur[train]'" in done.stderr
    assert done.stderr.count("\n") == 1
    program = subprocess.run([str(installed.with_name("bvsa")), "--help"], capture_output=True, text=True, check=True)
    assert "usage: bvsa COMMAND" in program.stdout


def test_a_failing_nvcc_gives_one_line_and_a_working_cpu_module(built, checkout, installed):
    (message,) = (line for line in built[1].splitlines() if "CUDA" in line)
    assert "fovblur: CUDA module skipped:" in message and "no licence" in message
    info = call(installed, "-m", "fovblur.info").stdout
    assert "CUDA module: not built:" in info and "no licence" in info
    assert "CPU tensors would be served by cpu" in info
    again = build(checkout, IN_PLACE, FOVBLUR_BUILD_CUDA="0")  # and the reason changes with the next build
    assert again.returncode == 0 and "skipped: FOVBLUR_BUILD_CUDA=0" in again.stderr


IN_PLACE = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("FOVBLUR_BUILD_CUDA=1", "FOVBLUR_BUILD_CUDA=1, but the CUDA module cannot be built"),
        ("FOVBLUR_BUILD_CUDA=1 TORCH_CUDA_ARCH_LIST=Ampere", "TORCH_CUDA_ARCH_LIST names 'Ampere'"),
        ("FOVBLUR_BUILD_CUDA=perhaps", "FOVBLUR_BUILD_CUDA is 'perhaps'; set it to 1"),
    ],
)
def test_what_must_build_and_cannot_is_an_error(checkout, environment, message):
    done = build(checkout, IN_PLACE, **dict(setting.split("=") for setting in environment.split()))
    assert done.returncode != 0 and message in done.stderr
