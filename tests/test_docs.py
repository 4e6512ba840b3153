"""The documentation builds without a warning, names what people import, and its examples in docstrings are right."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bvsa_core
import fovblur
from bvsa_core import encoders, methods

ROOT = Path(__file__).parents[1]
SOURCES = [
    path.relative_to(ROOT) for package in ("fovblur", "bvsa_core") for path in sorted((ROOT / package).rglob("*.py"))
]
WITH_EXAMPLES = [
    ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCES
    if ">>> " in (ROOT / path).read_text()
]


def test_the_site_builds_and_its_links_lead_somewhere(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (tmp_path / "site").rglob("index.html"):
        text = page.read_text()
        assert "{{ " not in text, page
        for target in re.findall(r'<(?:img|script|link)[^>]* (?:src|href)="([^"]+)"', text):
            assert not target.startswith(("http:", "https:", "//")), f"{page} fetches {target}"
            assert (page.parent / target.partition("?")[0]).exists(), f"{page} has {target}, which is not there"


def test_every_public_name_is_documented():
    told = (ROOT / "docs" / "library.md").read_text() + (ROOT / "docs" / "op.md").read_text()
    documented = {line.rpartition(".")[2] for line in told.splitlines() if line.startswith("::: ")}
    names = {name.partition("register_")[0] or "register" for name in bvsa_core.__all__}
    assert names | set(fovblur.__all__) <= documented


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_are_right(module, monkeypatch):
    for registry in (encoders, methods):
        monkeypatch.setattr(registry, "_registered", {})
    outcome = doctest.testmod(
        importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert outcome.attempted and not outcome.failed
