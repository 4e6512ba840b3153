"""Pages that MkDocs builds from files of the repository and from the command's help.

A line `{{ FILE }}` becomes the file, and `{{ help }}` the help of every command. Links are written for the repository's
web page, and rewritten here for the site.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "security.md",
}
COLUMNS = "100"  # of a help text


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Return the text of a page; MkDocs calls this for every page."""
    markdown = re.sub(r"^\{\{ (\S+) \}\}$", lambda match: _content(match[1]), markdown, flags=re.MULTILINE)
    return re.sub(
        r"\]\(([^)#:]+)(#[^)]*)?\)", lambda match: f"]({_target(match[1], config)}{match[2] or ''})", markdown
    )


def on_files(files: Any, config: Any) -> Any:
    """Add the benchmarks' figures, which lie elsewhere, to the files of the site; MkDocs calls this once."""
    from mkdocs.structure.files import File

    for path in sorted((ROOT / "benchmarks" / "results").glob("*.png")):
        files.append(File.generated(config, f"benchmarks/results/{path.name}", abs_src_path=str(path)))
    return files


def _target(link: str, config: Any) -> str:
    """Return where a link of a page leads on the site: to a page, a figure, or a file of the repository."""
    link = link.removeprefix("../").removeprefix("docs/")
    if link in PAGES:
        return PAGES[link]
    if not (ROOT / "docs" / link).exists() and (ROOT / link).exists() and not link.startswith("benchmarks/results/"):
        return f"{config['repo_url']}/blob/main/{link}"
    return link


def _content(name: str) -> str:
    if name == "help":
        return "\n\n".join(_help_of_commands())
    text = (ROOT / name).read_text()
    return f"## {name}\n\n```python\n{text}```" if name.endswith(".py") else text


def _help_of_commands() -> list[str]:
    from bvsa_core.cli import COMMANDS

    sections = []
    for command in COMMANDS:
        text = _help_of(command)
        sections.append(f"## bvsa {command}\n\n```text\n{text}```")
        listed = text.partition("Available subcommands:")[2]
        for subcommand in re.findall(r"^    (\w+)", listed, re.MULTILINE):
            sections.append(f"### bvsa {command} {subcommand}\n\n```text\n{_help_of(command, subcommand)}```")
    return sections


def _help_of(*command: str) -> str:
    from bvsa_core.cli import main

    output = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS=COLUMNS), contextlib.redirect_stdout(output):
        with contextlib.suppress(SystemExit):
            main([*command, "--help"])
    if not output.getvalue():
        raise RuntimeError(f"bvsa {' '.join(command)} --help printed nothing")
    return output.getvalue()
