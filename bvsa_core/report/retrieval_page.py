"""A self-contained HTML page of the images that a search found; it has no script and loads nothing."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup


@dataclass(frozen=True)
class FoundImage:
    """One of the best images for a recording."""

    image: int  # index into RetrievalPage.thumbnails
    name: str
    score: float
    correct: bool


@dataclass(frozen=True)
class FoundImages:
    """The best images for one recording, best first."""

    recording: str
    best: Sequence[FoundImage]
    seen: int | None = None  # the image that was seen, as an index into RetrievalPage.thumbnails
    rank: int | None = None  # of the correct image, if it is among the best


@dataclass(frozen=True)
class RetrievalPage:
    """Everything that the page shows."""

    title: str
    protocol: Sequence[str]
    summary: str  # how many were found; empty where the correct images are unknown
    found: Sequence[FoundImages]
    thumbnails: Sequence[bytes]  # JPEG; empty for an image that is not shown
    left_out: str = ""  # what the page does not show


def to_html(page: RetrievalPage) -> str:
    """Render the page. Each image is in it once, as the background of a class."""
    folder = files("bvsa_core.report") / "template"
    template, style = ((folder / name).read_text("utf-8") for name in ("retrieved.html", "page.css"))
    images = [
        f'.query .i{i} {{ background-image: url("data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"); }}'
        for i, jpeg in enumerate(page.thumbnails)
        if jpeg
    ]
    options: Any = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    rendered = jinja2.Environment(**options).from_string(template)
    return rendered.render(page=page, style=Markup("\n".join([style, *images])))
