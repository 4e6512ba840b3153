"""What a grid is: a YAML file of methods, encoders, subjects, seeds and settings, and the cells it stands for.

A cell is one training: one method on one subject with one seed. Several rows of the table may come of it, by scoring its
embeddings in several ways.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import yaml

from bvsa_core import encoders
from bvsa_core.data.dataset import Dataset
from bvsa_core.errors import UserError, unknown_name
from bvsa_core.experiments import paper_results
from bvsa_core.methods import method_class
from bvsa_core.retrieval.scoring import Scoring
from bvsa_core.training.config import RunConfig, method_options, training_of

BUILT_IN = ("main", "ablation", "c-sweep", "fidelity", "demo")
# What a cell is, which the keys of a grid say; `run` says the rest.
SETTLED = {
    "data",
    "vision",
    "method",
    "method_options",
    "preset",
    "encoder",
    "encoder_options",
    "subject",
    "setting",
    "seed",
}


@dataclass(frozen=True)
class ScoringSpec:
    """One way to score a training."""

    name: str | None = None  # what the table calls it; the system's name where left out
    gate: str | None = None  # the method's own where left out
    rescoring: str = "none"
    shuffle_texts: bool = False
    published: str | None = None  # row to put beside; the system's where left out


@dataclass
class System:
    """One method as a grid trains it."""

    method: str
    name: str | None = None
    preset: str = "corrected"
    options: dict[str, Any] = field(default_factory=dict)
    encoders: list[str] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)
    published: str | None = None
    scorings: list[Any] = field(default_factory=list)

    @property
    def label(self) -> str:
        return self.name or (self.method if self.preset == "corrected" else f"{self.method} ({self.preset})")


@dataclass
class Grid:
    """A grid. `run` holds settings of every run, which come before those the authors of a method chose."""

    methods: list[Any]
    title: str = ""
    encoders: list[str] = field(default_factory=list)  # brain encoders; each method's own where left out
    vision: list[str] = field(default_factory=lambda: [RunConfig.vision])
    modalities: list[Literal["eeg", "meg"]] = field(default_factory=lambda: ["eeg"])
    settings: list[Literal["intra", "inter"]] = field(default_factory=lambda: ["intra"])
    subjects: str | list[str] = "all"
    seeds: int = 3
    resamples: int = 10  # draws of the test repetitions for a point of the curves; 0 leaves the curves out
    run: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None  # system that the others are tested against; every pair is tested where left out
    list_others: bool = False  # whether published methods that the grid does not have are listed


@dataclass(frozen=True)
class Cell:
    """One training and its scorings."""

    config: RunConfig
    modality: str
    system: str
    rows: tuple[ScoringSpec, ...]
    resamples: int

    @property
    def folder(self) -> Path:
        """Where it goes in the folder of the grid."""
        config = self.config
        made_by = "_".join(map(_slug, (self.system, config.vision, config.encoder)))
        return Path(f"{self.modality}-{config.setting}", made_by, f"{config.subject}_seed{config.seed}")

    def __str__(self) -> str:
        place = f"{self.modality.upper()} {self.config.setting}-subject"
        return f"{self.system}, {place}, {self.config.encoder}, {self.config.vision}, {self.config.subject}, seed {self.config.seed}"


def read_grid(name: str) -> tuple[Grid, list[System]]:
    """A built-in grid, or one from a YAML file.

    Raises:
        UserError: it is neither, or has a key or value that does not fit.
    """
    path = Path(__file__).with_name(f"{name}.yaml") if name in BUILT_IN else Path(name)
    if not path.is_file():
        raise UserError(
            f"grid {name}: no such file, nor built in; choose one of {', '.join(BUILT_IN)}, or give a YAML file"
        )
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file ({str(error).splitlines()[0]})") from error
    grid = Grid(**_typed(Grid, values, str(path)))
    if not grid.methods:
        raise UserError(f"{path}: methods is empty; name at least one")
    if grid.seeds < 1 or grid.resamples < 0:
        raise UserError(f"{path}: seeds is {grid.seeds} and resamples {grid.resamples}; they must be at least 1 and 0")
    systems = [_system(each, f"{path}: methods[{number}]") for number, each in enumerate(grid.methods)]
    slugs = [_slug(system.label) for system in systems]
    if grid.baseline is not None and grid.baseline not in [system.label for system in systems]:
        raise UserError(f"{path}: {unknown_name('baseline', grid.baseline, [system.label for system in systems])}")
    if twice := [system.label for system in systems if slugs.count(_slug(system.label)) > 1]:
        raise UserError(f"{path}: {' and '.join(twice)} are called alike; give each a name of its own")
    _typed(RunConfig, grid.run, f"{path}: run", SETTLED)
    for encoder in grid.encoders:
        encoders.options_class(encoder)
    return grid, systems


def _system(values: Any, where: str) -> System:
    values = {"method": values} if isinstance(values, str) else values
    system = System(**_typed(System, values, where))
    method_class(system.method)
    system.options = _typed(type(method_options(system.method, system.preset)), system.options, f"{where}: options")
    system.run = _typed(RunConfig, system.run, f"{where}: run", SETTLED)
    scorings = system.scorings or [{}]
    rows = [
        ScoringSpec(**_typed(ScoringSpec, each, f"{where}: scorings[{number}]")) for number, each in enumerate(scorings)
    ]
    system.scorings = [
        ScoringSpec(**{**vars(row), "published": row.published or (system.published if not row.name else None)})
        for row in rows
    ]
    for row in system.scorings:
        Scoring(row.gate or "none", None, row.rescoring)
        if row.published:
            paper_results.check(row.published)
    for encoder in system.encoders:
        encoders.options_class(encoder)
    return system


def _typed(kind: type, values: Any, where: str, skip: Iterable[str] = ()) -> dict[str, Any]:
    """Values of the fields of a dataclass, each known and of its type."""
    known = [each.name for each in fields(kind) if each.name not in skip]
    if not isinstance(values, dict):
        raise UserError(f"{where}: must hold settings as 'name: value', such as {', '.join(known) or 'none at all'}")
    for key in values:
        if key not in known:
            raise UserError(
                f"{where}: {unknown_name('key', str(key), known)}"
                if known
                else f"{where}: {key!r}, where no key is known"
            )
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, skip=set(skip))
    try:
        return parser.parse_object(values, defaults=False).as_dict()
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        told = " ".join(line.strip(" -\t") for line in str(error).splitlines())
        raise UserError(f"{where}: {told}") from error


def choose(systems: Sequence[System], names: Sequence[str]) -> list[System]:
    """Those of a grid's systems that are called so, or are of a method called so.

    Raises:
        UserError: the grid has none of that name.
    """
    called = {name for system in systems for name in (system.label, system.method)}
    for name in names:
        if name not in called:
            raise UserError(unknown_name("method of the grid", name, sorted(called)))
    return [system for system in systems if {system.label, system.method} & set(names)]


def cells(
    grid: Grid, systems: Sequence[System], data: dict[str, Path], flags: dict[str, Any]
) -> tuple[list[Cell], list[str]]:
    """Cells of a grid in the order of its table, and sentences about what had to be left out.

    Args:
        data: the folder of each modality that there is.
        flags: settings of every run, over what grid and methods say.

    Raises:
        UserError: an option, subject or encoder that does not fit, or nothing is left.
    """
    found, left_out = [], []
    shared = _typed(RunConfig, grid.run, "run", SETTLED)
    for modality in grid.modalities:
        if modality not in data:
            left_out.append(f"{modality.upper()} is left out: no folder was given with --{modality}")
            continue
        there = Dataset(data[modality]).subjects
        subjects = (
            there if grid.subjects == "all" else [grid.subjects] if isinstance(grid.subjects, str) else grid.subjects
        )
        if strangers := [subject for subject in subjects if subject not in there]:
            raise UserError(f"{data[modality]}: no subject {', '.join(strangers)}; there are {', '.join(there)}")
        for setting in grid.settings:
            if setting == "inter" and len(there) < 2:
                left_out.append(f"{modality.upper()} inter-subject is left out: {data[modality]} has one subject")
                continue
            for system, vision in itertools.product(systems, grid.vision):
                values = {**training_of(system.method), **shared, **system.run, **flags}
                own = values.pop("encoder", RunConfig.encoder)
                values |= {
                    "data": data[modality],
                    "vision": vision,
                    "setting": setting,
                    "method": system.method,
                    "preset": system.preset,
                }
                values["method_options"] = method_options(system.method, system.preset, **system.options)
                for encoder, subject, seed in itertools.product(
                    system.encoders or grid.encoders or [own], subjects, range(grid.seeds)
                ):
                    config = RunConfig(**values, encoder=encoder, subject=subject, seed=seed)
                    found.append(Cell(config, modality, system.label, tuple(system.scorings), grid.resamples))
    if not found:
        raise UserError("; ".join(left_out) or "the grid has no cell")
    return found, left_out


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
