"""RunResult and its JSON: round trips, files of earlier releases, damaged files, and rescoring."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from bvsa_core.data.dataset import RecordingAxes
from bvsa_core.encoders import InputSpec
from bvsa_core.errors import UserError
from bvsa_core.retrieval.gates import Reliability
from bvsa_core.retrieval.result import VERSION, RunResult
from bvsa_core.retrieval.scoring import Embeddings, Protocol, Scoring

PROTOCOL = Protocol("synthetic", "last", "inductive", "label_free", 3, channels=17, encoder="tiny")
RESULT = RunResult(
    method="bvsa", preset="corrected", subject="sub-01", seed=1, protocol=PROTOCOL, ranks=[1, 3, 2], note="a note",
    epoch=4, reliability=Reliability("margin", 0.05), samples=90, held_out=6, shape=InputSpec(2, 3, 128),
    axes=RecordingAxes(("O1", "Oz"), (0.0, 0.1, 0.2)), images=["a", "b", "c"], files={"weights.safetensors": "00"},
    statistics={"galleries": [{"size": 2, "top1": 0.5, "top5": 1.0}]},
)  # fmt: skip


def test_a_result_survives_its_json():
    content = json.loads(json.dumps(RESULT.to_json()))
    assert RunResult.from_json(content) == RESULT and content["version"] == VERSION
    content["ranks"][1] = 1
    with pytest.raises(UserError, match=r"r.json: altered since it was written \(its checksum differs\); delete it"):
        RunResult.from_json(content, "r.json")
    assert (content["n"], content["top1"], content["median_rank"]) == (3, RESULT.scores.top1, 2)
    assert str(PROTOCOL) == ", ".join(f"{name} {value}" for name, value in content["protocol"].items())


def test_files_of_earlier_releases_are_read():
    """They have no version, and null for values that a method does not have."""
    content = {
        "method": "nice", "preset": "corrected", "note": "", "subject": "sub-01", "seed": 0, "epoch": 2, "top1": 0.5,
        "top5": 1.0, "map": 0.75, "median_rank": 1.5, "n": 2, "reliability": None,
        "protocol": PROTOCOL.to_json() | {"gate": "none"},
        "samples": 90, "held_out": 0, "shape": {"channels": 17, "time": 100, "embedding": 128, "subjects": 1},
        "ranks": [1, 2], "images": ["a", "b"],
    }  # fmt: skip
    result = RunResult.from_json(content)
    assert result.scores.map == 0.75 and result.shape == InputSpec(17, 100, 128) and result.reliability is None
    content["shape"] |= {"texts": 0, "parts": [], "layers": []}  # widths that later releases have
    assert content.items() <= {**result.to_json(), "reliability": None}.items()
    assert not result.files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "r.json: version 2 of a result, where this release reads 1; update fovblur"),
        ({"ranks": None}, "r.json: ranks must be a list of whole numbers; delete it, and train the run again"),
        ({"ranks": [1, 0]}, "r.json: ranks must be a list of whole numbers from 1"),
        ({"seed": "1"}, "r.json: seed must be a whole number"),
        ({"protocol": []}, "r.json: protocol must be an object"),
        ({"protocol": {"dataset": "synthetic", "gate": "none"}}, "protocol: selection, information, gallery missing"),
        ({"reliability": {"kind": "max", "threshold": "x"}}, "r.json: reliability: threshold must be a number"),
        ({"reliability": {"kind": "max", "threshold": float("nan")}}, "with a finite threshold"),
        ({"reliability": {"kind": "mean", "threshold": 0.0}}, "reliability must be of a kind of margin, max"),
        ({"alpha": 7.0}, "r.json: alpha is 7; it must be above 0 and below 1"),
        ({"reliability": None}, "r.json: the gate label_free has no reliability"),
        ({"protocol": {**PROTOCOL.to_json(), "gate": "papr"}}, "r.json: unknown gate 'papr'; did you mean 'paper'"),
        ({"protocol": {**PROTOCOL.to_json(), "gallery": 0}}, "r.json: gallery must be at least 1"),
        ({"seed": True}, "r.json: seed must be a whole number"),
        ({"ranks": [2**70, 1, 1]}, "r.json: ranks must be a list of whole numbers"),
        ({"ranks": [1, 2]}, "r.json: 2 ranks of 3 images"),
        ({"samples": -1}, "epoch, samples and held_out at least 0"),
        ({"axes": {"channels": ["O1"], "times": [0.0, 0.1, 0.2]}}, "r.json: axes are not of the shape"),
        ({"axes": {"channels": ["O1", "O1"], "times": [0.0, 0.1, 0.2]}}, "r.json: axes have channels named twice: O1"),
        ({"statistics": {"galleries": 3}}, "r.json: statistics: galleries must be a list of values"),
        ({"statistics": {"repetitions": [{"averaged": 1}]}}, "repetitions: resamples, top1, top1_std, .* missing"),
        ({"images": [1]}, "r.json: images must be a list of names"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(changes, message):
    content = RESULT.to_json() | changes
    del content["checksum"]
    with pytest.raises(UserError, match=message):
        RunResult.from_json(content, "r.json")
    with pytest.raises(UserError, match=r"r.json: method, preset, subject, seed, protocol, ranks missing; delete it"):
        RunResult.from_json({"figures": 3}, "r.json")


def test_a_result_is_rescored():
    unit = torch.eye(3)
    rescored = RESULT.rescored(Embeddings(unit, unit, unit, unit), Scoring("paper", rescoring="csls"))
    assert rescored.ranks == [1, 1, 1] and rescored.protocol.information == "uses labels"
    assert rescored.protocol.scoring() == Scoring("paper", rescoring="csls")
    assert (rescored.subject, rescored.images, rescored.protocol.channels) == ("sub-01", RESULT.images, 17)
    assert set(rescored.statistics) == {"hubness", "galleries"} and rescored.reliability is None


def test_ranks_must_be_those_of_the_embeddings():
    """But for rounding, which may exchange images that are as similar, and a hundredth at a gate's threshold."""
    generator = torch.Generator().manual_seed(0)
    brain, image = (normalize(torch.randn(200, 8, generator=generator), dim=1) for _ in range(2))
    embeddings = Embeddings(brain, image, brain, image)
    result = replace(RESULT, images=[], protocol=replace(PROTOCOL, gate="none", gallery=200), reliability=None)
    result = result.rescored(embeddings, Scoring())
    result.check_ranks(embeddings, "r.json")
    result.check_ranks(Embeddings(brain + 1e-7, image, brain, image), "r.json")
    swapped = [rank + (i < 2) for i, rank in enumerate(result.ranks)]
    replace(result, ranks=swapped).check_ranks(embeddings, "r.json")
    with pytest.raises(UserError, match=r"r.json: \d+ of 200 ranks are not those of the run's embeddings; delete it"):
        replace(result, ranks=[1] * 200).check_ranks(embeddings, "r.json")
    with pytest.raises(UserError, match=r"r.json: 3 ranks, and embeddings of 200 recordings; delete it"):
        replace(result, ranks=[1, 2, 3]).check_ranks(embeddings, "r.json")
    with pytest.raises(UserError, match=r"r.json: a gallery of 3, and embeddings of 200 images; delete it"):
        replace(result, protocol=replace(result.protocol, gallery=3)).check_ranks(embeddings, "r.json")
