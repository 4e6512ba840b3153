"""The kept table of GPU resources is what the compilers make of the sources, and its occupancy is NVIDIA's."""

import json
import subprocess
import sys
from pathlib import Path

import gpu_resources as script
import pytest
from gpu import counts
from gpu_kernels import HAS_NVCC, SCRIPT, WITHOUT_NVCC

REGISTERS = (16, 32, 33, 64, 72, 80, 81, 96, 112, 128, 153, 168, 169, 224, 255)
SHARED = (0, 1, 1024, 16_000, 22_784, 32_000, 33_024, 49_152, 67_584, 101_376, 101_377, 232_448)
THREADS = (32, 64, 96, 128, 160, 256, 384, 1024)


@pytest.fixture
def kept() -> dict:
    return json.loads(script.KEPT.read_text())


def test_the_table_shows_the_kept_rows(kept):
    assert script.TABLE.read_text() == script.markdown(kept), "run: python scripts/gpu_resources.py"
    assert kept["estimates"] == [script.roofline.described(estimate) for estimate in script.roofline.ESTIMATES]
    assert script.FIGURE.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(("backend", "compiler"), [("cuda", "nvcc"), ("triton", "triton")])
def test_the_kept_rows_are_what_the_compilers_make(gpu_resources, kept, backend, compiler):
    if compiler not in gpu_resources["versions"]:
        pytest.skip(WITHOUT_NVCC)
    identity = lambda row: (row["kernel"], row.get("configuration"), row["architecture"])  # noqa: E731
    rows = {identity(row): row for row in kept["kernels"] if row["backend"] == backend}
    made = {identity(row): row for row in gpu_resources["kernels"] if row["backend"] == backend}
    assert made.keys() == rows.keys(), "run: python scripts/gpu_resources.py"
    if gpu_resources["versions"][compiler] == kept["versions"][compiler]:  # another version may use other registers
        for key, row in made.items():
            assert row == rows[key], "run: python scripts/gpu_resources.py"


def test_the_kept_estimates_are_of_all_forms_and_cards(kept):
    rows = [(row["form"], row["card"]) for row in kept["costs"]]
    assert rows == [(form.name, card.name) for form in counts.forms() for card in counts.CARDS]
    for row in kept["costs"]:
        assert row["estimate"] is True and row["seconds"][row["bound"]] == max(row["seconds"].values())
        assert row["machine_instructions"] > 0 and row["sectors_of_ideal"] >= 0.9, row


@pytest.mark.skipif(not HAS_NVCC, reason=WITHOUT_NVCC)
def test_the_kept_counts_are_those_of_the_sources(kept, tmp_path):
    if script.cuda.nvcc_version() != kept["versions"]["nvcc"]:
        pytest.skip("another version of nvcc")
    form = "blur, float16, k 51"
    for row in counts.costs(counts.ptx_device.build(tmp_path), part=form):
        (other,) = [other for other in kept["costs"] if (other["form"], other["card"]) == (form, row["card"])]
        for name in ("kernels", "ptx_instructions", "classes", "sectors_of_ideal", "wavefronts"):
            assert row[name] == other[name], f"{name} differ; run: python scripts/gpu_resources.py"


@pytest.mark.skipif(not HAS_NVCC, reason=WITHOUT_NVCC)
def test_occupancy_is_that_of_nvidias_calculator(tmp_path):
    source = Path(__file__).parents[1] / "support" / "occupancy_oracle.cpp"
    subprocess.run(["nvcc", "-o", tmp_path / "oracle", source], check=True)
    cases = [(sm, t, r, s) for sm in script.MULTIPROCESSORS for t in THREADS for r in REGISTERS for s in SHARED]
    lines = []
    for sm, threads, registers, shared in cases:
        limits = script.MULTIPROCESSORS[sm]
        device = (sm // 10, sm % 10, limits.threads, limits.shared, limits.shared_of_block)
        lines.append(" ".join(map(str, (*device, threads, registers, shared))))
    done = subprocess.run([tmp_path / "oracle"], input="\n".join(lines), check=True, capture_output=True, text=True)
    expected = list(map(int, done.stdout.split()))
    assert len(expected) == len(cases) and 0 in expected and 16 in expected
    for case, blocks in zip(cases, expected):
        assert script.occupancy(*case)["blocks"] == blocks, case


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "triton"], "--only: the table shows both backends; name a file with --json"),
        (["--json", "absent/file.json"], "--json: absent is no folder; make it first"),
    ],
)
def test_mistakes_are_one_clear_error(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    with pytest.raises(SystemExit):
        script.main()
    assert message in capsys.readouterr().err
