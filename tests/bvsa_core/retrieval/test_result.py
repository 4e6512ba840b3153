"""RunResult and its JSON: round trips, files of earlier releases, damaged files, and rescoring."""

import json

import pytest
import torch

from bvsa_core.encoders import InputSpec
from bvsa_core.errors import UserError
from bvsa_core.retrieval.gates import Reliability
from bvsa_core.retrieval.result import VERSION, RunResult
from bvsa_core.retrieval.scoring import Embeddings, Protocol, Scoring

PROTOCOL = Protocol("synthetic", "last", "inductive", "label_free", 3, channels=17, encoder="tiny")
RESULT = RunResult(
    method="bvsa", preset="corrected", subject="sub-01", seed=1, protocol=PROTOCOL, ranks=[1, 3, 2], note="a note",
    epoch=4, reliability=Reliability("margin", 0.05), samples=90, held_out=6, shape=InputSpec(17, 100, 128),
    images=["a", "b", "c"], statistics={"repetitions": [{"averaged": 1}]},
)  # fmt: skip


def test_a_result_survives_its_json():
    content = json.loads(json.dumps(RESULT.to_json()))
    assert RunResult.from_json(content) == RESULT and content["version"] == VERSION
    assert (content["n"], content["top1"], content["median_rank"]) == (3, RESULT.scores.top1, 2)
    assert str(PROTOCOL) == ", ".join(f"{name} {value}" for name, value in content["protocol"].items())


def test_files_of_earlier_releases_are_read():
    """They have no version, and null for values that a method does not have."""
    content = {
        "method": "nice", "preset": "corrected", "note": "", "subject": "sub-01", "seed": 0, "epoch": 2, "top1": 0.5,
        "top5": 1.0, "map": 0.75, "median_rank": 1.5, "n": 2, "protocol": PROTOCOL.to_json(), "reliability": None,
        "samples": 90, "held_out": 0, "shape": {"channels": 17, "time": 100, "embedding": 128, "subjects": 1},
        "ranks": [1, 2], "images": ["a", "b"],
    }  # fmt: skip
    result = RunResult.from_json(content)
    assert result.scores.map == 0.75 and result.shape == InputSpec(17, 100, 128) and result.reliability is None
    assert content.items() <= {**result.to_json(), "reliability": None}.items()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "r.json: version 2 of a result, where this release reads 1; update fovblur"),
        ({"ranks": None}, "r.json: ranks must be a list of whole numbers from 1; delete it, and train the run again"),
        ({"ranks": [1, 0]}, "r.json: ranks must be a list of whole numbers from 1"),
        ({"seed": "1"}, "r.json: seed must be a whole number"),
        ({"protocol": []}, "r.json: protocol must be an object"),
        ({"protocol": {"dataset": "synthetic", "gate": "none"}}, "protocol: selection, information, gallery missing"),
        ({"reliability": {"kind": "max", "threshold": "x"}}, "r.json: reliability: threshold must be a number"),
        ({"images": [1]}, "r.json: images must be a list of names"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        RunResult.from_json(RESULT.to_json() | changes, "r.json")
    with pytest.raises(
        UserError, match=r"r.json: method, preset, subject, seed, protocol, ranks missing; .* train it again"
    ):
        RunResult.from_json({"figures": 3}, "r.json")


def test_a_result_is_rescored():
    unit = torch.eye(3)
    rescored = RESULT.rescored(Embeddings(unit, unit, unit, unit), Scoring("paper", rescoring="csls"))
    assert rescored.ranks == [1, 1, 1] and rescored.protocol.information == "uses labels"
    assert rescored.protocol.scoring() == Scoring("paper", rescoring="csls")
    assert (rescored.subject, rescored.images, rescored.protocol.channels) == ("sub-01", RESULT.images, 17)
    assert set(rescored.statistics) == {"hubness", "galleries"} and rescored.reliability is None
