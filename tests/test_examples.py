"""The examples run and print what they promise."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PROMISED = {
    "blur_one_image": r"sigma 0, gain 0, .*differs by 0\.0 grey.*the gain was 0\.7; found 0\.7000",
    "own_recordings": r"12 images: Top-1 .*chance 8%.*information inductive.*csls .label-free transductive.*trials: ",
    "own_encoder": r"eeg_project: [\d,]+ parameters.*attention_pool: [\d,]+ parameters, Top-5",
    "own_method": r"vanilla: Top-5.*sharpening: Top-5 .* from blurred to sharp.*weights of samples after training: 0\.",
}


def test_every_example_is_run_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*PROMISED, "toy_data"}


@pytest.mark.usefixtures("one_thread", "registries")
@pytest.mark.parametrize("name", PROMISED)
def test_an_example_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    printed = capsys.readouterr().out
    assert re.search(PROMISED[name], printed, re.DOTALL), printed
