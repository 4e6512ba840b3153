"""The layouts in which THINGS-EEG2 and THINGS-MEG are published, one a file; each knows itself when it sees a folder."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
from collections import Counter
from pathlib import Path
from types import ModuleType

from bvsa_core.data.dataset import DESCRIPTION
from bvsa_core.data.layouts.source import ConversionOptions, SubjectSource
from bvsa_core.data.store import SubjectWriter
from bvsa_core.errors import UserError
from bvsa_core.io.atomic import lock, write_atomically
from bvsa_core.progress import Progress, no_progress


def layouts() -> dict[str, ModuleType]:
    """The modules of this folder that read a layout, by its name."""
    found = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    return {module.LAYOUT: module for module in found if hasattr(module, "LAYOUT")}


def recognise(folder: Path, modality: str) -> list[SubjectSource]:
    """The subjects in a folder of some published layout.

    Raises:
        UserError: no such folder, no layout that we know, or several at once.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    known = {name: module for name, module in layouts().items() if modality in module.MODALITIES}
    found = {name: sources for name, module in known.items() if (sources := module.find(folder))}
    if not found and folder.resolve().name.startswith("sub-"):
        raise UserError(
            f"{folder}: looks like one subject's folder; give the one that holds it, and choose by --subjects"
        )
    if not found:
        looks = "; ".join(f"{name}: {module.LOOKS_LIKE}" for name, module in known.items())
        raise UserError(f"{folder}: none of the published {modality} layouts ({looks})")
    if len(found) > 1:
        raise UserError(f"{folder}: several layouts at once ({', '.join(found)}); give the folder of one of them")
    sources = sorted(next(iter(found.values())), key=lambda source: source.subject)
    subject, times = Counter(source.subject for source in sources).most_common(1)[0]
    if times > 1:
        places = ", ".join(str(source.root) for source in sources if source.subject == subject)
        raise UserError(f"{folder}: {subject} is there {times} times, in {places}; give one of these folders")
    return [dataclasses.replace(source, modality=modality) for source in sources]


def convert(
    source: Path, store: Path, modality: str, options: ConversionOptions, progress: Progress = no_progress
) -> list[str]:
    """Bring every subject of a published folder into the store. Returns one line a subject.

    What is there already is left alone, and what a killed conversion left is gone on with.

    Raises:
        UserError: what is missing or wrong, by file; subjects already converted stay.
    """
    told = []
    sources = {found.subject: found for found in recognise(source, modality)}
    if unknown := [name for name in options.subjects if name not in sources]:
        raise UserError(f"{source}: no subject {', '.join(unknown)}; there are {', '.join(sources)}")
    subjects = [found for name, found in sources.items() if not options.subjects or name in options.subjects]
    if any(store.resolve() == found.root.resolve() for found in subjects):
        raise UserError(f"{store}: holds the files that are to be converted; give the store another folder")
    store.mkdir(parents=True, exist_ok=True)
    _describe(store, modality, options)
    for found in subjects:
        with SubjectWriter(store, found.subject, found.plan(options)) as writer:
            there = writer.complete
            if not there:
                found.convert(writer, options, _of(found.subject, progress))
        told.append(
            f"{found.subject}: {found.layout} {'was there already' if there else 'converted'}, in {writer.target}"
        )
    return told


def _of(subject: str, progress: Progress) -> Progress:
    return lambda what, done, total: progress(f"{subject} {what}", done, total)


def _describe(store: Path, modality: str, options: ConversionOptions) -> None:
    """Give the store its name and modality.

    Raises:
        UserError: it holds the other modality.
    """
    path = store / DESCRIPTION
    if not path.exists() or not any(store.glob("sub-*")):  # nothing has come of what was described
        name = options.name or {"EEG": "THINGS-EEG2", "MEG": "THINGS-MEG"}[modality]
        with lock(store, DESCRIPTION, blocking=True):
            write_atomically(path, json.dumps({"name": name, "modality": modality}, indent=1).encode() + b"\n")
    try:
        there = json.loads(path.read_text())["modality"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it, and 'bvsa data' makes it again") from error
    if there != modality:
        raise UserError(f"{store}: holds {there} recordings; give {modality} ones another folder")
