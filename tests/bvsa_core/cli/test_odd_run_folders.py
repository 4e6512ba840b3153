"""Run folders with odd but parsable content: a page, or a UserError of one line, never a traceback."""

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bvsa_core.errors import UserError
from bvsa_core.experiments.cell import SCORES
from bvsa_core.experiments.report_data import build_report, group_runs
from bvsa_core.io.typed import build
from bvsa_core.report.page import to_html
from bvsa_core.retrieval.scoring import Scoring
from bvsa_core.retrieval.statistics import CurvePoint
from bvsa_core.training.run import load_method
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder

ODD: list[Any] = [None, -1, 0, "x", "", [], {}, True, 1e999, float("nan"), 10**30, 2.5, [[1]], ["x"], {"a": 1}]
ODD += ["\ud800", [1, 2, 3], KeyError]  # KeyError removes the value
CASES, PAGES = 50, 1  # of each file, and of these, pages of those that group_runs takes


def without_checksums(content: Any) -> Any:
    """Return a result as an earlier version wrote it, so that odd values are met."""
    if isinstance(content, dict):
        return {key: without_checksums(value) for key, value in content.items() if key != "checksum"}
    return [without_checksums(each) for each in content] if isinstance(content, list) else content


FILES: dict[str, tuple[Callable[[str], Any], Callable[[Any], str]]] = {
    "run.yaml": (yaml.safe_load, yaml.safe_dump),
    "result.json": (lambda text: without_checksums(json.loads(text)), json.dumps),
    SCORES: (lambda text: without_checksums(json.loads(text)), json.dumps),
    "metrics.jsonl": (lambda text: json.loads(text.splitlines()[0]), lambda content: json.dumps(content) + "\n"),
}


def places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of everything in plain data; of lists, of the first two items."""
    yield path
    pairs = (
        content.items() if isinstance(content, dict) else enumerate(content[:2]) if isinstance(content, list) else ()
    )
    for key, value in pairs:
        yield from places(value, (*path, key))


def with_odd(content: Any, path: tuple, odd: Any) -> Any:
    if not path:
        return odd
    content = copy.deepcopy(content)
    *parents, last = path
    holder = content
    for key in parents:
        holder = holder[key]
    if odd is KeyError:
        del holder[last]
    else:
        holder[last] = odd
    return content


@pytest.fixture(scope="module")
def cell(finished, tmp_path_factory) -> Path:
    """A run with scores of two kinds, as in a grid."""
    folder = RunFolder(shutil.copytree(finished, tmp_path_factory.mktemp("odd") / "run"))
    result, embeddings = replace(folder.result(), files={}), folder.embeddings()
    (folder.path / "result.json").write_text(json.dumps(result.to_json()))
    accuracy = {"top1": 0.5, "top1_std": 0.1, "top5": 0.9, "top5_std": 0.1}
    curve = [CurvePoint(averaged=n, resamples=2, **accuracy) for n in (1, 2, 6)]
    scorings = Scoring(), Scoring("label_free", result.reliability, "csls")
    rows = [result.rescored(embeddings, scoring, curve=curve).to_json() for scoring in scorings]
    (folder.path / SCORES).write_text(json.dumps({"asked": {}, "rows": rows}))
    return folder.path


@pytest.mark.parametrize("name", FILES)
def test_odd_content_is_reported_in_one_line(cell, tmp_path, seed, name):
    folder = RunFolder(shutil.copytree(cell, tmp_path / "run"))
    path, (read, write) = folder.path / name, FILES[name]
    content = read(path.read_text())
    cases = [(place, odd) for place in places(content) for odd in ODD if place or odd is not KeyError]
    pages = PAGES
    for place, odd in random.Random(seed).sample(cases, CASES):
        path.write_text(write(with_odd(content, place, odd)))
        try:
            rows = group_runs([folder])
            if pages:
                pages -= 1
                to_html(build_report("odd", rows, {}))
            if place[:1] in (("shape",), ("samples",), ("method",), ("method_options",), ("encoder",)):
                load_method(folder, RunData(folder.config()))
        except UserError as error:
            assert "\n" not in str(error), (place, odd)
        except Exception as error:
            raise AssertionError(f"{name}: {odd!r} at {place}") from error


def test_values_are_checked_against_annotations():
    for kind, good, bad, message in (
        (tuple[float, float] | None, [1, 2.5], [1], "x must be a list of numbers; again"),
        (dict[str, int], {"a": 1}, {"a": "b"}, "x: a must be a whole number; again"),
        (str | list[str], ["a"], 3, "x must be text or a list of names; again"),
        (Path, "a/b", 3, "x must be text; again"),
        (bool, True, 1, "x must be true or false; again"),
        (str, "\u00e4", "\ud800", "x must be text; again"),
    ):
        build(kind, good, "x", "again")
        with pytest.raises(UserError, match=message):
            build(kind, bad, "x", "again")
