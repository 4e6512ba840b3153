"""A grid: a YAML file of methods, encoders, subjects, seeds and settings, and the cells that it stands for.

A cell is one training: one method on one subject with one seed. Its embeddings may be scored in several ways, each of
which is a row of the table.
"""

import argparse
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import jsonargparse

from bvsa_core import encoders
from bvsa_core.data.dataset import Dataset
from bvsa_core.errors import UserError, unknown_name
from bvsa_core.experiments import paper_results
from bvsa_core.io.text_files import read_yaml
from bvsa_core.methods import method_class
from bvsa_core.retrieval.scoring import Scoring
from bvsa_core.synthetic.dataset import SyntheticConfig
from bvsa_core.training.config import RunConfig, method_options, training_of

BUILT_IN = ("main", "records", "ablation", "c-sweep", "fidelity", "demo", "demo-full")
# Settings of a run that other keys of a grid determine; its key `run` takes the rest.
SET_BY_GRID = (
    "data", "vision", "method", "method_options", "preset", "encoder", "encoder_options", "subject", "setting", "seed",
)  # fmt: skip

_COUNTS = {"seeds": (1, 1000), "resamples": (0, 10_000)}  # a billion would fill the memory before the first training


@dataclass(frozen=True)
class ScoringSpec:
    """One way to score a training."""

    name: str | None = None  # in the table; default: the name of the system
    gate: str | None = None  # default: the gate of the method
    rescoring: str = "none"
    shuffle_texts: bool = False
    published: str | None = None  # published row beside it; default: that of the system, unless rescored


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
    baseline: str | None = None  # system that this one is tested against; default: the grid's
    scorings: list[Any] = field(default_factory=list)  # `read_grid` makes them ScoringSpec

    @property
    def label(self) -> str:
        """Name in the table."""
        return self.name or (self.method if self.preset == "corrected" else f"{self.method} ({self.preset})")


@dataclass
class Grid:
    """Content of a grid's YAML file. `run` holds settings of every run, which override those of a method's authors."""

    methods: list[Any]
    title: str = ""
    encoders: list[str] = field(default_factory=list)  # brain encoders; default: each method's own
    vision: list[str] = field(default_factory=lambda: [RunConfig.vision])
    vision_of_recorded: list[str] = field(default_factory=list)  # in place of `vision` for data that are not synthetic
    modalities: list[Literal["eeg", "meg"]] = field(default_factory=lambda: ["eeg"])
    settings: list[Literal["intra", "inter"]] = field(default_factory=lambda: ["intra"])
    subjects: str | list[str] = "all"
    seeds: int = 3
    resamples: int = 10  # draws of test repetitions per point of a curve; 0: no curves
    run: dict[str, Any] = field(default_factory=dict)
    synthetic: dict[str, Any] = field(default_factory=dict)  # sizes of the data that are made where none are given
    baseline: str | None = None  # system that the others are tested against; default: every pair is tested
    list_others: bool = False  # list published methods that the grid does not have


@dataclass(frozen=True)
class Cell:
    """One training and the ways to score it."""

    config: RunConfig
    modality: str
    system: str
    rows: tuple[ScoringSpec, ...]
    resamples: int
    baseline: str | None = None  # system that this one is tested against

    @property
    def folder(self) -> Path:
        """Folder of the cell in the folder of the grid."""
        config = self.config
        system = "_".join(map(_slug, (self.system, config.vision, config.encoder)))
        return Path(f"{self.modality}-{config.setting}", system, f"{config.subject}_seed{config.seed}")

    def __str__(self) -> str:
        config = self.config
        place = f"{self.modality.upper()} {config.setting}-subject"
        return f"{self.system}, {place}, {config.encoder}, {config.vision}, {config.subject}, seed {config.seed}"


def read_grid(name: str) -> tuple[Grid, list[System]]:
    """Read a built-in grid, or one from a YAML file.

    Raises:
        UserError: the name is neither, or a key or value does not fit.
    """
    path = Path(__file__).with_name(f"{name}.yaml") if name in BUILT_IN else Path(name)
    if not path.is_file():
        choices = f"choose one of {', '.join(BUILT_IN)}, or give a YAML file"
        raise UserError(f"grid {name}: no such file, nor built in; {choices}")
    known = ", ".join(each.name for each in fields(Grid))
    grid = Grid(**_checked(Grid, read_yaml(path, f"a grid has the settings {known}"), str(path)))
    if not grid.methods:
        raise UserError(f"{path}: methods is empty; name at least one")
    check_counts(grid, f"{path}: ")
    systems = [_system(each, f"{path}: methods[{number}]") for number, each in enumerate(grid.methods)]
    labels = [system.label for system in systems]
    for baseline in (grid.baseline, *(system.baseline for system in systems)):
        if baseline is not None and baseline not in labels:
            raise UserError(f"{path}: {unknown_name('baseline', baseline, labels)}")
    slugs = [_slug(label) for label in labels]
    if equal := [label for label, slug in zip(labels, slugs) if slugs.count(slug) > 1]:
        raise UserError(f"{path}: {' and '.join(equal)} have the same name; give each a name of its own")
    grid.run = _checked(RunConfig, grid.run, f"{path}: run", SET_BY_GRID)
    grid.synthetic = _checked(SyntheticConfig, grid.synthetic, f"{path}: synthetic", ("modality",))
    for encoder in itertools.chain(grid.encoders, *(system.encoders for system in systems)):
        encoders.options_class(encoder)
    return grid, systems


def check_counts(grid: Grid, source: str) -> None:
    """Check the counts of a grid; `source` begins the error messages."""
    for name, (least, most) in _COUNTS.items():
        if not least <= (count := getattr(grid, name)) <= most:
            raise UserError(f"{source}{name} is {count}; it must be {least} to {most}")


def _system(values: Any, source: str) -> System:
    """Check one entry of a grid's methods; `source` begins the error messages."""
    values = {"method": values} if isinstance(values, str) else values
    system = System(**_checked(System, values, source))
    method_class(system.method)
    system.options = _checked(type(method_options(system.method, system.preset)), system.options, f"{source}: options")
    system.run = _checked(RunConfig, system.run, f"{source}: run", SET_BY_GRID)
    specs = []
    for number, each in enumerate(system.scorings or [{}]):
        spec = ScoringSpec(**_checked(ScoringSpec, each, f"{source}: scorings[{number}]"))
        Scoring(spec.gate or "none", None, spec.rescoring)
        own = None if spec.name or spec.rescoring != "none" else system.published  # published scores are inductive
        if published := spec.published or own:
            paper_results.check(published)
        specs.append(replace(spec, published=published))
    system.scorings = specs
    return system


def _checked(kind: type, values: Any, source: str, skip: Iterable[str] = ()) -> dict[str, Any]:
    """Check that values are of known fields of a dataclass and of their types; `skip` names fields that are refused."""
    known = [each.name for each in fields(kind) if each.name not in skip]
    if not isinstance(values, dict):
        raise UserError(f"{source}: must hold settings as 'name: value', such as {', '.join(known) or 'none at all'}")
    if unknown := [key for key in values if key not in known]:
        message = unknown_name("key", str(unknown[0]), known) if known else f"{unknown[0]!r}, where no key is known"
        raise UserError(f"{source}: {message}")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, skip=set(skip))
    try:
        return parser.parse_object(values, defaults=False).as_dict()
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        message = " ".join(line.strip(" -\t") for line in str(error).splitlines())
        raise UserError(f"{source}: {message}") from error


def systems_named(systems: Sequence[System], names: Sequence[str]) -> list[System]:
    """Return the systems with labels in `names`, and all of a method where no label is its name.

    Raises:
        UserError: a name fits none.
    """
    labels, of_methods = {system.label for system in systems}, {system.method for system in systems}
    for name in names:
        if name not in labels | of_methods:
            raise UserError(unknown_name("method of the grid", name, sorted(labels | of_methods)))
    wanted = set(names)
    return [each for each in systems if each.label in wanted or each.method in wanted - labels]


def cells(
    grid: Grid,
    systems: Sequence[System],
    data: dict[str, Path],
    flags: dict[str, Any],
    assumed: Mapping[str, list[str]] = {},
) -> tuple[list[Cell], list[str]]:
    """Return the cells of a grid in the order of its table, and sentences about what is skipped.

    Args:
        systems: those of the grid, or some of them.
        data: data folder of each modality.
        flags: settings of every run; they override those of the grid and its methods.
        assumed: subjects of a modality whose data folder is not read.

    Raises:
        UserError: an option, subject or encoder does not fit, or no cell remains.
    """
    result, skipped = [], []
    for modality in grid.modalities:
        if modality not in data:
            skipped.append(f"{modality.upper()} is skipped: no folder was given with --{modality}")
            continue
        dataset = None if modality in assumed else Dataset(data[modality])
        known = dataset.subjects if dataset else assumed[modality]
        image_encoders = grid.vision if dataset and dataset.synthetic else grid.vision_of_recorded or grid.vision
        named = [grid.subjects] if isinstance(grid.subjects, str) else grid.subjects
        subjects = known if grid.subjects == "all" else named
        if unknown := [subject for subject in subjects if subject not in known]:
            raise UserError(f"{data[modality]}: no subject {', '.join(unknown)}; there are {', '.join(known)}")
        for setting in grid.settings:
            if setting == "inter" and len(known) < 2:
                skipped.append(f"{modality.upper()} inter-subject is skipped: {data[modality]} has one subject")
                continue
            for system, vision in itertools.product(systems, image_encoders):
                values = {**training_of(system.method, system.preset, setting), **grid.run, **system.run, **flags}
                own = values.pop("encoder", RunConfig.encoder)
                values |= {"data": data[modality], "vision": vision, "setting": setting, "method": system.method}
                options = method_options(system.method, system.preset, **system.options)
                values |= {"preset": system.preset, "method_options": options}
                brain_encoders = system.encoders or grid.encoders or [own]
                for encoder, subject, seed in itertools.product(brain_encoders, subjects, range(grid.seeds)):
                    config = RunConfig(**values, encoder=encoder, subject=subject, seed=seed)
                    rows, baseline = tuple(system.scorings), system.baseline or grid.baseline
                    result.append(Cell(config, modality, system.label, rows, grid.resamples, baseline))
    if not result:
        raise UserError("; ".join(skipped) or "the grid has no cell")
    return result, skipped


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
