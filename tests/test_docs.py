"""The site builds without a warning, names the whole public surface, and the examples in docstrings are right."""

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
from bvsa_core.cli import COMMANDS

ROOT = Path(__file__).parents[1]
SOURCES = [path for name in ("fovblur", "bvsa_core") for path in sorted((ROOT / name).rglob("*.py"))]
SOURCES = [path.relative_to(ROOT) for path in SOURCES if ">>> " in path.read_text()]
WITH_EXAMPLES = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in SOURCES]


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", config, "--site-dir", site]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built."""
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_links_lead_somewhere_and_nothing_is_fetched(site):
    for page in site.rglob("index.html"):
        text = page.read_text()
        assert "{{ " not in text, page
        for target in re.findall(r'<(?:img|script|link)[^>]* (?:src|href)="([^"]+)"', text):
            assert not target.startswith(("http:", "https:", "//")), f"{page} fetches {target}"
            assert (page.parent / target.partition("?")[0]).exists(), f"{page} has {target}, which is missing"


def test_the_reference_shows_functions_and_examples_as_code(site):
    anchors = {"op": "fovblur.foveated_blur.api.foveated_blur", "library": "bvsa_core.training.run.train"}
    for page, anchor in anchors.items():
        text = (site / page / "index.html").read_text()
        assert f'id="{anchor}"' in text and "<blockquote>" not in text
    text = (site / "cli" / "index.html").read_text()
    assert all(f"usage: bvsa {command}" in text for command in COMMANDS)


def test_a_broken_link_fails_the_build(tmp_path):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.md").write_text("# Home\n\n[gone](gone.md)\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: pages\nnav: [index.md]\nplugins: []\nhooks: []\n")
    built = build(config, tmp_path / "site")
    assert built.returncode == 1 and "'gone.md', but the target is not found" in built.stderr


def test_every_public_name_is_documented():
    text = (ROOT / "docs" / "library.md").read_text() + (ROOT / "docs" / "op.md").read_text()
    documented = {line.rpartition(".")[2] for line in text.splitlines() if line.startswith("::: ")}
    assert {*bvsa_core.__all__, *fovblur.__all__} <= documented


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_are_right(module, registries):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    outcome = doctest.testmod(importlib.import_module(module), optionflags=flags)
    assert outcome.attempted and not outcome.failed
