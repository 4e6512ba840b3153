"""The published data sets that can be fetched by name, from datasets.yaml."""

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bvsa_core.errors import UserError
from bvsa_core.io.text_files import read_yaml
from bvsa_core.io.typed import build

_RANGE = re.compile(r"(?:sub-)?0*(\d{1,4})(?:-(?:sub-)?0*(\d{1,4}))?")


@dataclass(frozen=True)
class Source:
    """Files of one publisher."""

    publisher: Literal["osf", "figshare", "openneuro", "huggingface"]
    id: str
    page: str  # for people
    select: list[str]  # patterns of the paths that are fetched
    within: list[str] = field(default_factory=list)  # folders that are listed; default: all
    subject: str = ""  # expression whose group is the subject's number; default: files are of no subject
    folder: str = ""  # where the files go, below the destination
    unpack: bool = False  # zip files are unpacked and removed
    unverified: str = ""

    def subject_of(self, path: str) -> int | None:
        """Return the number of the subject that a file is of; None if it is of all."""
        match = re.search(self.subject, path) if self.subject else None
        return int(match[1]) if match else None


@dataclass(frozen=True)
class PublishedDataset:
    """A data set as one group publishes it."""

    title: str
    name: str  # in tables
    modality: Literal["EEG", "MEG"]
    subjects: int
    layout: str  # name of its module in bvsa_core.data.layouts
    gigabytes: float  # of one subject on disk
    gigabytes_from: str
    license: str
    citation: str
    sources: list[Source]


@functools.cache
def published_datasets() -> dict[str, PublishedDataset]:
    """Return the data sets by name."""
    path, remedy = Path(__file__).with_name("datasets.yaml"), "install fovblur again"
    return build(dict[str, PublishedDataset], read_yaml(path, remedy), str(path), remedy)


def parse_subjects(text: str, count: int) -> list[int]:
    """Return the numbers that text such as "1-10" or "1,3" names; all of `count` if it is empty.

    >>> parse_subjects("2-3,sub-07", 10)
    [2, 3, 7]
    """
    numbers: set[int] = set() if text else set(range(1, count + 1))
    for part in text.split(",") if text else ():
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= count:
            raise UserError(f"subjects are {text!r}; give numbers from 1 to {count}, such as 1-{count} or 1,3")
        numbers |= set(range(first, last + 1))
    return sorted(numbers)
