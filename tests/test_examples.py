"""The examples run and print what they promise."""

import re
import runpy
from pathlib import Path

import nbformat
import pytest
import run_notebook

EXAMPLES = Path(__file__).parents[1] / "examples"
PROMISED = {
    "blur_one_image": r"sigma 0, gain 0, .*differs by 0\.0 grey.*the gain was 0\.7; found 0\.7000",
    "own_recordings": r"12 images: Top-1 .*chance 8%.*information inductive.*csls .label-free transductive.*trials: ",
    "own_encoder": r"eeg_project: [\d,]+ parameters.*attention_pool: [\d,]+ parameters, Top-5",
    "own_method": r"vanilla: Top-5.*sharpening: Top-5 .* from blurred to sharp.*weights of samples after training: 0\.",
}


def test_every_example_is_run_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*PROMISED, "toy_data"}


def printed_by(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    return "".join(output.get("text", "") for output in outputs)


def test_the_notebook_runs_and_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    promised = (
        r"Top-1 accuracy \d+%, among 20 new images; chance is 5%.*gallery 20.*vanilla: Top-1 .*ubp: Top-1 .*MB in one"
    )
    kept = nbformat.read(run_notebook.NOTEBOOK, as_version=4)
    for notebook in (kept, run_notebook.run(tmp_path)):
        printed = printed_by(notebook)
        assert re.search(promised, printed, re.DOTALL), printed
        assert int(re.search(r"accuracy (\d+)%", printed)[1]) >= 20  # four times chance
    assert {path.name for path in (tmp_path / "quickstart").iterdir()} == {"data", "decoder", "page.html", "runs"}
    content = run_notebook.NOTEBOOK.read_text()
    assert len(content) < 200_000 and not re.search(r"/(home|opt|tmp|usr|work)/", content)


@pytest.mark.usefixtures("one_thread", "registries")
@pytest.mark.parametrize("name", PROMISED)
def test_an_example_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    printed = capsys.readouterr().out
    assert re.search(PROMISED[name], printed, re.DOTALL), printed
