"""Training in several processes beside one process with the same global batch."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bvsa_core import encoders, methods
from bvsa_core.distributed.processes import ProcessGroup
from bvsa_core.training.checkpoint import read_state

METHODS = [{"method": name, "encoder": "eeg_project", "dropout": False} for name in methods.names()]
NORMALISED = [name for name in encoders.names() if name not in ("eeg_project", "perceptron")]  # over batches
ENCODERS = [{"method": "atm", "encoder": name, "dropout": False} for name in NORMALISED]


def flat(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for name in sorted(value) for number in flat(value[name])]
    return [number for part in value for number in flat(part)] if isinstance(value, list) else [value]


@pytest.fixture
def workers(fork_server, tmp_path):
    """Call a function of distributed_workers in so many processes, and return what it wrote."""

    def call(function: str, processes: int, *arguments: object) -> list:
        path = tmp_path / "result.json"
        ended = fork_server.run(f"distributed_workers:{function}", str(path), *arguments, processes=processes)
        assert [each.code for each in ended] == [0] * processes, ended
        assert not any(each.out + each.err for each in ended), ended
        return json.loads(path.read_text())

    return call


def test_losses_without_dropout_are_those_of_one_process(workers):
    """Random latents, noise on gradients, per-sample state, and parameters that no loss depends on included."""
    seed = 7  # fixed: a similarity within rounding of an interval's end could fall on either side of it
    expected = workers("losses", 1, METHODS, seed)
    for processes in (2, 3):
        for case, one, several in zip(METHODS, expected, workers("losses", processes, METHODS, seed), strict=True):
            assert one.keys() == several.keys()
            for name in ("loss", "validation_loss"):
                assert several[name] == pytest.approx(one[name], rel=1e-5), case
            for name in ("kernel_size", "gain"):
                assert several.get(name) == one.get(name), case
            assert flat(several["fused"]) == pytest.approx(flat(one["fused"]), abs=1e-5), case


@pytest.mark.parametrize("processes", [2, 3])
def test_on_cpus_batch_norm_takes_the_rows_of_a_process(workers, seed, processes):
    """Losses equal those of one process that normalises the same rows; running statistics are the first process's."""
    expected = workers("losses", 1, [{**case, "shards": processes} for case in ENCODERS], seed)
    for case, one, several in zip(ENCODERS, expected, workers("losses", processes, ENCODERS, seed), strict=True):
        assert several["loss"] == pytest.approx(one["loss"], rel=1e-5), case
        statistics = [name for name in one if "running" in name]
        assert statistics, case
        for name in statistics:  # rounding leads Adam where a bias lies before batch norm
            assert several[name] == pytest.approx(one[name], rel=1e-2, abs=1e-2), case


def test_on_gpus_batch_norm_takes_all_rows():
    encoder = ProcessGroup(rank=0, size=2).shard_encoder(nn.Sequential(nn.BatchNorm1d(4)), torch.device("cuda"))
    assert isinstance(encoder[0], nn.SyncBatchNorm) and list(encoder.state_dict()) == [
        f"0.{name}" for name in nn.BatchNorm1d(4).state_dict()
    ]


@pytest.mark.parametrize("method", ["vanilla", "bvsa"])
def test_gradients_without_dropout_are_those_of_one_process(workers, seed, method):
    expected = flat(workers("gradients", 1, method, seed))
    tolerance = 1e-12 * max(map(abs, expected))  # float64: sums in another order
    for processes in (2, 3):
        assert flat(workers("gradients", processes, method, seed)) == pytest.approx(expected, rel=0, abs=tolerance)


def test_dropout_differs_between_processes_and_leaves_the_common_stream_alone(workers, seed):
    first, second, number = workers("random_rows", 3, seed)
    rows = [tuple(row) for row in first + second]
    assert len(set(rows)) == len(rows)
    assert number == torch.rand((), generator=torch.Generator().manual_seed(seed)).item()
    assert workers("random_rows", 3, seed) == [first, second, number]


def test_every_item_belongs_to_one_process():
    shards = [ProcessGroup(rank, 3).shard(range(8)) for rank in range(3)]
    assert sorted(item for shard in shards for item in shard) == list(range(8)) and max(map(len, shards)) == 3


def test_only_the_first_process_to_fail_reports_it(fork_server):
    first, second = fork_server.run("distributed_workers:second_fails", "", processes=2)
    assert first.code == 2 and not first.out + first.err and "process 1 has failed" in second.err


def test_the_command_trains_in_two_processes_and_only_the_first_writes(fork_server, tiny_data, tmp_path):
    settings = "--quiet --method ubp --epochs 2 --batch_size 16 --views online --encoder_options.dropout 0"
    arguments = ("train", "--data", tiny_data, *settings.split(), "--out")
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

    first, second = fork_server.bvsa(*arguments, tmp_path / "together", "--seed", 1, processes=2)  # other settings
    assert first.code == second.code == 2 and (first.err + second.err).count("holds a run with other settings") == 1
    first, second = fork_server.bvsa(*arguments, tmp_path / "else", "--device", "cuda:0", processes=2)
    assert first.code == second.code == 2 and (first.err + second.err).count("\n") == 1
    assert (
        "--device cuda:0 is one device for 2 processes; omit the flag, and each process takes its own GPU"
        in first.err + second.err
    )


def test_a_trained_image_encoder_is_that_of_one_process(fork_server, tiny_data, tmp_path):
    settings = (
        "--quiet --method ubp --epochs 2 --batch_size 13 --encoder_options.dropout 0 --device cpu --vision_lora 2"
    )
    settings += " --vision_lr 1e-3 --chunk 4 --learn_blur subject --views online"
    arguments = ("train", "--data", tiny_data, *settings.split(), "--out")
    (alone,) = fork_server.bvsa(*arguments, tmp_path / "alone")
    ended = fork_server.bvsa(*arguments, tmp_path / "together", processes=2)
    assert alone.code == 0 and [each.code for each in ended] == [0, 0], (alone, ended)
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("alone", "together"))
    updates = [name for name in one if "lora" in name]
    assert one.keys() == two.keys() and updates
    for name in (*updates, "learnt_blur.offset"):
        assert (one[name] - two[name]).abs().max() <= 1e-3 * max(one[name].abs().max(), 1e-3), name
    dropped = (*arguments[:-1], "--vision_dropout", 0.5, "--epochs", 1, "--out", tmp_path / "dropped")
    ended = fork_server.bvsa(*dropped, processes=2)
    assert [each.code for each in ended] == [0, 0], ended


def test_searches_of_two_processes_are_those_of_one(fork_server, tiny_data, tmp_path):
    out = [tmp_path / f"by{processes}.json" for processes in (1, 2)]
    for processes, path in enumerate(out, start=1):
        arguments = ("retrieve", tiny_data.parent / "run", "--quiet", "--out", path)
        first, *others = fork_server.bvsa(*arguments, processes=processes)
        assert first.code == 0 and not first.err, first
        assert all(each == replace(each, code=0, out="", err="") for each in others), others
    assert out[0].read_bytes() == out[1].read_bytes()


def test_ctrl_c_ends_all_processes_which_continue_to_the_same_bytes(fork_server, tiny_data, tmp_path):
    settings = "--quiet --method vanilla --batch_size 8 --epochs 40"
    arguments = ("train", "--data", tiny_data, *settings.split(), "--out")
    state = tmp_path / "run" / "resume.pt"
    first, second = fork_server.bvsa(*arguments, tmp_path / "run", processes=2, after=state, by=signal.SIGINT)
    assert first.code == 130 and second.code == 2 and not second.out + second.err, (first, second)
    assert first.err.count("\n") == 1 and first.err.endswith("; the same command continues\n")
    assert f"stopped in epoch {read_state(state.read_bytes())['epoch'] + 1} of 40" in first.err
    weights = []
    for folder in (tmp_path / "run", tmp_path / "whole"):
        assert not any(each.code for each in fork_server.bvsa(*arguments, folder, processes=2))
        weights.append((folder / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1]
