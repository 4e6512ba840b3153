"""The benchmark entries run and write what they promise; no time is asserted."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROW = {
    "suite", "case", "provider", "median_s", "spread", "peak_bytes", "ratio_to_best_of_ours",
    "limit_s", "times_limit", "machine", "versions",
}  # fmt: skip


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})


PROVIDERS = {
    "blur": {
        "cpu", "torchvision loop", "kornia", "OpenCV 8-bit, as UBP", "OpenCV float32", "Pillow 8-bit", "scipy",
        *(["DALI on the CPU"] if find_spec("nvidia") and find_spec("nvidia.dali") else []),
    },
    "training": {"bvsa_core", "DataLoader of dicts"},
    "features": {"bvsa_core", "DataLoader, a pass a level"},
    "stacking": {"one after another", "stacked"},
    "similarity": {"cpu", "eager PyTorch", "eager, in chunks", *(["faiss IndexFlatIP"] if find_spec("faiss") else [])},
}  # fmt: skip


def test_the_suites_write_rows_a_table_and_a_figure(tmp_path):
    select = "(96 and forward) or (200 and not compile) or z64 or (JPEGs and not levels)"
    done = run("benchmarks", "--device", "cpu", "--select", select, "--json", tmp_path / "rows.json")
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads((tmp_path / "rows.json").read_text())
    rows, absent = kept["rows"], kept["not_installed"]
    assert ("nvidia-dali" in absent) == ("DALI on the CPU" not in PROVIDERS["blur"])
    assert f"not installed: {', '.join(absent) or 'none'}" in done.stdout
    assert {suite: {row["provider"] for row in rows if row["suite"] == suite} for suite in PROVIDERS} == PROVIDERS
    for row in rows:
        assert set(row) == ROW and row["median_s"] > 0 and row["limit_s"] > 0
        ours = row["provider"] in ("cpu", "bvsa_core")
        assert row["ratio_to_best_of_ours"] == pytest.approx(1.0) if ours else row["ratio_to_best_of_ours"] > 0
        assert row["provider"] in done.stdout
    assert (tmp_path / "rows.png").read_bytes()[:4] == b"\x89PNG"


def test_a_gpu_that_is_not_there_is_one_clear_error():
    done = run("benchmarks", "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and "--device cuda: no CUDA device is available" in done.stderr


def test_a_step_with_a_trained_image_encoder_is_timed(tmp_path):
    arguments = "--device cpu --vision tiny --batch 6 --steps 1 --lora 2 --chunk 4 --json"
    done = run("benchmarks.pipeline", *arguments.split(), tmp_path / "rows.jsonl")
    assert done.returncode == 0 and "peak memory is not measured on a CPU" in done.stderr, done.stderr
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert (row["views"], row["lora"], row["chunk"], row["peak_bytes"]) == ("lora", 2, 4, None)
    assert row["blur_share"] == pytest.approx(2 * row["blur_s"] / row["step_s"])  # each chunk is blurred in both passes
