"""Several processes train as one does with the same global batch."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import pytest
from safetensors import safe_open

from bvsa_core import encoders, methods

CASES = [*((name, "tsconv") for name in methods.names()), ("bvsa", "eeg_project")]
CASES += [("atm", name) for name in encoders.names() if name not in ("tsconv", "eeg_project")]


def flat(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for name in sorted(value) for number in flat(value[name])]
    return [number for part in value for number in flat(part)] if isinstance(value, list) else [value]


@pytest.fixture(scope="module")
def trained(fork_server, tmp_path_factory) -> dict[int, dict]:
    """What one, two and three processes learn, from all that are random; of three some methods and encoders."""
    folder = tmp_path_factory.mktemp("together")
    for processes, cases in ((1, CASES), (2, CASES), (3, [("bvsa", "tsconv"), ("mcdb", "tsconv"), ("atm", "atm")])):
        ended = fork_server.run(
            "distributed_workers:losses", str(folder / f"{processes}.json"), cases, 7, processes=processes
        )
        assert [each.code for each in ended] == [0] * processes, ended
        assert not any(each.out + each.err for each in ended), ended
    return {processes: json.loads((folder / f"{processes}.json").read_text()) for processes in (1, 2, 3)}


@pytest.mark.parametrize("case", [" ".join(case) for case in CASES])
def test_losses_are_those_of_one_process_with_the_same_batches(trained, case):
    """With dropout, batch normalisation, random latents, per-sample state and parameters that nothing uses.

    The seed is fixed: a similarity within rounding of an interval's end would fall on either side of it.
    """
    for processes in (2, 3):
        if case in trained[processes]:
            found, expected = trained[processes][case], trained[1][case]
            assert found.keys() == expected.keys()
            assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
            if (
                case == "bvsa eeg_project"
            ):  # where no bias lies before a batch normalisation, along which rounding leads Adam
                assert found["held out"] == pytest.approx(expected["held out"], rel=1e-5)
            for name in ("kernel_size", "gain"):
                assert found.get(name) == expected.get(name)
            assert flat(found["fused"]) == pytest.approx(flat(expected["fused"]), abs=1e-5)


@pytest.mark.parametrize("processes", [2, 3])
def test_gradients_of_gathered_rows_are_those_of_one_process(fork_server, tmp_path, processes, seed):
    results = []
    for number in (1, processes):
        ended = fork_server.run(
            "distributed_workers:gradients", str(tmp_path / f"{number}.json"), seed, processes=number
        )
        assert [each.code for each in ended] == [0] * number, ended
        results.append(flat(json.loads((tmp_path / f"{number}.json").read_text())))
    # float64: sums of a few hundred terms in another order.
    assert results[1] == pytest.approx(results[0], rel=1e-10, abs=1e-10)


def test_random_numbers_that_belong_to_no_sample_are_refused(fork_server):
    ended = fork_server.run("distributed_workers:refuses", "", processes=2)
    told = "".join(each.err for each in ended)
    assert all(each.code for each in ended)
    assert (
        "the encoder draws random numbers (aten.rand.default) that are not one for each sample; train it without torchrun"
        in told
    )


def test_the_first_to_fail_tells_and_the_others_end_without_a_word(fork_server):
    first, second = fork_server.run("distributed_workers:hears_once", "", processes=2)
    assert first.code == 2 and not first.out + first.err and "process 1 is at its end" in second.err


def test_the_command_trains_in_two_processes_and_only_the_first_writes_and_tells(fork_server, tiny_data, tmp_path):
    arguments = (
        "train",
        "--data",
        tiny_data,
        "--method",
        "ubp",
        "--epochs",
        2,
        "--batch_size",
        16,
        "--views",
        "online",
        "--out",
    )
    (alone,) = fork_server.bvsa(*arguments, tmp_path / "alone")
    first, second = fork_server.bvsa(*arguments, tmp_path / "together", processes=2)
    assert alone.code == first.code == second.code == 0, (alone, first, second)
    assert "mAP %" in first.out and not first.err and not second.out + second.err
    left = [{path.name: path for path in (tmp_path / name).iterdir()} for name in ("alone", "together")]
    assert left[0].keys() == left[1].keys() and left[0]["run.yaml"].read_bytes() == left[1]["run.yaml"].read_bytes()
    lines = [[json.loads(line) for line in each["metrics.jsonl"].read_text().splitlines()] for each in left]
    assert [line["loss"] for line in lines[1]] == pytest.approx([line["loss"] for line in lines[0]], rel=1e-5)
    assert [line["blur"] for line in lines[1]] == [line["blur"] for line in lines[0]]
    results = [json.loads(each["result.json"].read_text()) for each in left]
    assert results[0]["ranks"] == results[1]["ranks"]

    first, second = fork_server.bvsa(
        *arguments, tmp_path / "together", "--seed", 1, processes=2
    )  # which the folder does not hold
    assert first.code == second.code == 2 and (first.err + second.err).count("holds a run with other settings") == 1
    first, second = fork_server.bvsa(*arguments, tmp_path / "else", "--device", "cuda:0", processes=2)
    assert first.code == second.code == 2 and (first.err + second.err).count("\n") == 1
    assert "--device cuda:0 is one for 2 processes; leave it out, and each takes its own" in first.err + second.err


def test_grids_and_searches_of_two_processes_are_those_of_one(fork_server, tiny_data, tmp_path):
    grid, run = tmp_path / "grid.yaml", tiny_data.parent / "run"
    grid.write_text(
        "methods: [vanilla, nice]\nencoders: [eeg_project]\nseeds: 1\nresamples: 0\nrun: {epochs: 1, validation: 0}\n"
    )
    found = []
    for processes in (1, 2):
        out = tmp_path / f"by{processes}"
        for arguments in (
            ("reproduce", grid, "--eeg", tiny_data, "--out", out),
            ("retrieve", run, "--out", out / "found.json"),
        ):
            first, *others = fork_server.bvsa(*arguments, processes=processes)
            assert first.code == 0 and not first.err, first
            assert all(each == replace(each, code=0, out="", err="") for each in others), others
        files = (
            path for path in out.rglob("*") if path.is_file() and path.name != "page.html"
        )  # which tells the command
        found.append({path.relative_to(out): path.read_bytes() for path in files})
    assert found[0] == found[1] and len(found[0]) > 10


def test_ctrl_c_ends_all_processes_and_the_first_says_where(fork_server, tiny_data, tmp_path):
    arguments = (
        "train",
        "--data",
        tiny_data,
        "--method",
        "vanilla",
        "--batch_size",
        8,
        "--epochs",
        300,
        "--out",
        tmp_path / "run",
    )
    begun = tmp_path / "run" / "resume.safetensors"
    first, second = fork_server.bvsa(*arguments, processes=2, after=begun, by=signal.SIGINT)
    assert first.code == 130 and second.code == 2 and not second.out + second.err, (first, second)
    assert first.err.count("\n") == 1 and first.err.endswith("; the same command continues\n")
    facts = json.loads(safe_open(begun, "pt").metadata()["facts"])
    assert f"stopped in epoch {facts['epoch'] + 1} of 300" in first.err
