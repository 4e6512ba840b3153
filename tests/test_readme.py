"""README and pages say what runs have measured, their examples run, and their links lead somewhere."""

import re
from pathlib import Path

import pytest
import update_docs

ROOT = Path(__file__).parents[1]
PAGES = [Path(name) for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES += sorted(path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md"))


def test_tables_are_those_of_the_kept_runs():
    for page in update_docs.PAGES:
        assert update_docs.updated(page) == (ROOT / page).read_text(), "run: python scripts/update_docs.py"


def test_the_readme_is_short_and_starts_with_its_two_commands():
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^pip install -e '\.\[(\w+)\]' && (\w+.*)$", text, re.MULTILINE)
    assert commands == [("demo", "bvsa demo"), ("test", "pytest")] and len(text.splitlines()) <= 130


def test_python_examples_of_the_readme_run():
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_linked_files_exist(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", text):
        assert (ROOT / page.parent / target).exists(), target
