"""Pages of the site that are files of the repository: `{{ FILE }}` on a line of its own becomes the file, its links kept right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for every page."""
    return re.sub(r"^\{\{ (\S+) \}\}$", lambda found: _content(found[1]), markdown, flags=re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Called by MkDocs with the files of the site: images that pages link to and that lie elsewhere join them."""
    from mkdocs.structure.files import File

    for path in sorted((ROOT / "benchmarks" / "results").glob("*.png")):
        files.append(File.generated(config, f"benchmarks/results/{path.name}", abs_src_path=str(path)))
    return files


def _content(name: str) -> str:
    text = (ROOT / name).read_text()
    if name.endswith(".py"):
        return f"## {name}\n\n```python\n{text}```"
    text = text.replace("](docs/", "](")
    for source, page in PAGES.items():
        text = text.replace(f"]({source})", f"]({page})")
    return text
