"""Texts of stimuli from files: captions of images or concepts, or the words of THINGS' list of objects.

    captions   .csv or .tsv with the columns image or concept, and text or caption; .json as {"name": "text"}
    words      .csv or .tsv with the columns uniqueID and Word, as in things_concepts.tsv

Names are those of image files, with or without folder and suffix, or of concepts; case and _ do not count.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bvsa_core.data.split import fold_concept
from bvsa_core.data.store import HEADER, read_header
from bvsa_core.errors import UserError, first_few
from bvsa_core.io.atomic import write_atomically
from bvsa_core.io.text_files import read_json, read_text
from bvsa_core.io.typed import build

STORED = "texts.json"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_REMEDY = "give another file with --texts or --concepts"


@dataclass(frozen=True)
class StimulusTexts:
    """Texts that name images: whole ones, or the words that prompts are made of."""

    source: str  # name of the file, for tables
    captions: dict[str, str] = field(default_factory=dict)  # by folded name of an image or concept
    words: dict[str, str] = field(default_factory=dict)  # by folded concept

    def captions_of(self, images: Sequence[str], concepts: Sequence[str]) -> list[str]:
        """Return the caption of every image, by its own name or its concept's; a missing one is a UserError."""
        keys = [(image, Path(image).name, Path(image).stem, concept) for image, concept in zip(images, concepts)]
        found = [_first(self.captions, names) for names in keys]
        return self._all(found, images, "captions of image(s)")

    def words_of(self, concepts: Sequence[str]) -> list[str]:
        """Return the word of every concept; a missing one is a UserError."""
        return self._all([_first(self.words, (concept,)) for concept in concepts], concepts, "words of concept(s)")

    def _all(self, found: list[str | None], names: Sequence[str], what: str) -> list[str]:
        if missing := list(dict.fromkeys(name for name, text in zip(names, found) if text is None)):
            raise UserError(f"{self.source}: {len(missing)} {what} are missing ({first_few(missing)}); add them")
        return [text for text in found if text is not None]


def _first(texts: dict[str, str], names: Sequence[str]) -> str | None:
    return next((texts[key] for name in names if (key := fold_concept(name)) in texts), None)


def read_texts(captions: Path | None, concepts: Path | None) -> StimulusTexts | None:
    """Read the file of captions (--texts) or of THINGS' objects (--concepts); None if neither is given.

    Raises:
        UserError: both are given, or the file is damaged or has other columns.
    """
    if captions and concepts:
        raise UserError("--texts and --concepts are both given; captions need no words of concepts, give one of them")
    if captions:
        return StimulusTexts(captions.name, captions=_folded(captions, _captions(captions)))
    if concepts:
        rows = _table(concepts, ("uniqueid", "unique_id"), ("word",))
        return StimulusTexts(f"words of {concepts.name}", words=_folded(concepts, rows))
    return None


def stored_texts(store: Path) -> StimulusTexts | None:
    """Read the texts that a store keeps; None if it has none."""
    path, remedy = store / STORED, "delete it, or convert the recordings again with --texts"
    return build(StimulusTexts, read_json(path, remedy), str(path), remedy) if path.exists() else None


def store_texts(store: Path, texts: StimulusTexts) -> None:
    """Keep the texts of the images in a store; runs on it use them.

    Raises:
        UserError: an image has none.
    """
    headers = [read_header(path.parent) for path in sorted(store.glob(f"sub-*/{HEADER}"))]
    splits = [split for header in headers for split in header.splits.values()]
    shown = dict(pair for split in splits for pair in zip(split.images, split.concepts))
    if texts.captions:
        named = zip(map(fold_concept, shown), texts.captions_of(list(shown), list(shown.values())))
        kept = StimulusTexts(texts.source, captions=dict(named))
    else:
        named = zip(map(fold_concept, shown.values()), texts.words_of(list(shown.values())))
        kept = StimulusTexts(texts.source, words=dict(named))
    write_atomically(store / STORED, json.dumps(asdict(kept), indent=1, ensure_ascii=False).encode() + b"\n")


def _captions(path: Path) -> list[tuple[str, str]]:
    if path.suffix.lower() == ".json":
        return list(build(dict[str, str], read_json(path, _REMEDY), str(path), _REMEDY).items())
    return _table(path, ("image", "concept"), ("text", "caption"))


def _table(path: Path, names: tuple[str, ...], values: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return name and value of every row: the first filled of the columns `names`, and that of `values`."""
    if (delimiter := _DELIMITERS.get(path.suffix.lower())) is None:
        raise UserError(f"{path}: unknown kind of file; give .csv, .tsv or, for captions, .json")
    try:
        reader = csv.DictReader(io.StringIO(read_text(path, _REMEDY).removeprefix("\ufeff")), delimiter=delimiter)
        columns = {name.strip().lower(): name for name in reader.fieldnames or ()}
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{path}: damaged ({error}); {_REMEDY}") from error
    keys, texts = ([columns[name] for name in wanted if name in columns] for wanted in (names, values))
    if not keys or not texts:
        wanted = f"{' or '.join(names)}, and {' or '.join(values)}"
        raise UserError(f"{path}: lacks a column; it needs {wanted}")
    return [(next((row[key] for key in keys if row[key]), ""), row[texts[0]] or "") for row in rows]


def _folded(path: Path, rows: list[tuple[str, str]]) -> dict[str, str]:
    """Return texts by folded name; none may be empty, and a name have one text only."""
    texts: dict[str, str] = {}
    for name, text in rows:
        if not name.strip() or not text.strip():
            raise UserError(f"{path}: {name!r} has the text {text!r}; neither may be empty")
        if texts.setdefault(fold_concept(name), text.strip()) != text.strip():
            raise UserError(f"{path}: {name!r} has two texts; keep one of them")
    if not texts:
        raise UserError(f"{path}: names nothing; {_REMEDY}")
    return texts
