"""The layouts in which THINGS-EEG2 and THINGS-MEG are published, one a file.

A layout's module has three constants and two functions; `convert.convert` does the rest:

    LAYOUT, MODALITIES, LOOKS_LIKE                          name, EEG or MEG or both, files for messages
    find(folder) -> list[SubjectSource]                     subjects of that layout in a folder; empty if there are none
    read(source, split, context: ReadContext) -> Epochs     one split of a subject
"""

import dataclasses
import importlib
import pkgutil
from collections import Counter
from pathlib import Path
from types import ModuleType

from bvsa_core.data.layouts.source import SubjectSource
from bvsa_core.errors import UserError


def layouts() -> dict[str, ModuleType]:
    """Return the modules of this folder that read a layout, by its name."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    return {module.LAYOUT: module for module in modules if hasattr(module, "LAYOUT")}


def recognise(folder: Path, modality: str) -> list[SubjectSource]:
    """Return the subjects in a folder, which must have one published layout of the modality."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    known = {name: module for name, module in layouts().items() if modality in module.MODALITIES}
    matches = {name: sources for name, module in known.items() if (sources := module.find(folder))}
    if not matches and folder.resolve().name.startswith("sub-"):
        raise UserError(f"{folder}: looks like one subject's folder; give its parent, and choose by --subjects")
    if not matches:
        looks = "; ".join(f"{name}: {module.LOOKS_LIKE}" for name, module in known.items())
        raise UserError(f"{folder}: none of the published {modality} layouts ({looks})")
    if len(matches) > 1:
        raise UserError(f"{folder}: several layouts at once ({', '.join(matches)}); give the folder of one of them")
    sources = sorted(next(iter(matches.values())), key=lambda source: source.subject)
    subject, times = Counter(source.subject for source in sources).most_common(1)[0]
    if times > 1:
        places = ", ".join(str(source.root) for source in sources if source.subject == subject)
        raise UserError(f"{folder}: {subject} is there {times} times, in {places}; give one of these folders")
    return [dataclasses.replace(source, modality=modality) for source in sources]
