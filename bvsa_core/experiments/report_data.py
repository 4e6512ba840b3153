"""From folders of runs to what a page and its figures are made of."""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fovblur
from bvsa_core.data.dataset import Dataset, concept_of
from bvsa_core.errors import UserError
from bvsa_core.experiments.cell import SCORES, levels_of, load_scores
from bvsa_core.experiments.repetitions import repetition_curves
from bvsa_core.experiments.results import GridRow
from bvsa_core.progress import Progress, no_progress
from bvsa_core.report.comparison_table import ComparisonRow
from bvsa_core.report.content import (
    BlurExample,
    GalleryImage,
    Report,
    ReportRow,
    RetrievalExample,
    RunSummary,
    distinct,
    flat,
)
from bvsa_core.report.tables import method_results, scoring
from bvsa_core.retrieval.result import RunResult
from bvsa_core.retrieval.scoring import Protocol, similarity
from bvsa_core.training.checkpoint import RunFolder
from bvsa_core.training.config import RunConfig, to_dict
from bvsa_core.training.run_data import RunData
from bvsa_core.vision.clip import image_size_of
from bvsa_core.vision.images import read_images
from bvsa_core.vision.views import SHARP

TOP = 5
RETRIEVALS = 12  # runs whose retrieved images are shown
QUERIES = 400  # of each
THUMBNAIL = 96  # pixels
THUMBNAILS = 2_000_000  # bytes of all of them, some 600
BLURRED = 120  # pixels
SAMPLES = 3  # images that are blurred to show how
# What does not tell one experiment from another: whose recordings, which seed, where things are computed and kept.
_NO_SETTING = {"subject", "seed", "device", "bank", "cache_dir"}
_SHOWN_ANYWAY = ("method", "preset", "encoder", "vision", "selection")


def find_runs(paths: Iterable[Path]) -> tuple[list[RunFolder], list[str]]:
    """Finished runs in these folders, however deep, and sentences about what was passed over.

    Raises:
        UserError: a folder is not there, or holds no finished run.
    """
    found: dict[Path, None] = {}
    told = []
    for path in paths:
        if not path.is_dir():
            near = difflib.get_close_matches(
                path.name, [each.name for each in path.parent.glob("*") if each.is_dir()], n=1
            )
            meant = (
                f"did you mean {path.parent / near[0]}?"
                if near
                else "give folders that 'bvsa train', 'demo' or 'reproduce' left"
            )
            raise UserError(f"{path}: no such folder; {meant}")
        inside = sorted(
            {*(each.parent for each in path.rglob("run.yaml")), *(each.parent for each in path.rglob("result.json"))}
        )
        if not inside:
            raise UserError(
                f"{path}: no run inside (no run.yaml); give folders that 'bvsa train', 'demo' or 'reproduce' left"
            )
        finished = [each for each in inside if (each / "result.json").is_file()]
        if not finished:
            raise UserError(
                f"{path}: no finished run there (result.json is missing); the command that began it continues it"
            )
        if len(inside) > len(finished):
            told.append(f"{len(inside) - len(finished)} unfinished run(s) in {path} are left out")
        found |= dict.fromkeys(each.resolve() for each in finished)
    here = Path.cwd().resolve()
    return [RunFolder(each.relative_to(here) if each.is_relative_to(here) else each) for each in found], told


def group_runs(folders: Sequence[RunFolder]) -> list[ReportRow]:
    """Lines of a table, one for all runs that differ in subject and seed alone.

    Raises:
        UserError: a file of a run is damaged, or runs cannot be joined.
    """
    groups: dict[str, list[tuple[RunFolder, RunConfig, RunResult]]] = {}
    for folder in folders:
        config = folder.config()
        own = {name: value for name, value in flat(to_dict(config)).items() if name.split(".")[0] not in _NO_SETTING}
        for result in _results(folder):
            key = json.dumps([own, result.protocol.to_json()], sort_keys=True)
            groups.setdefault(key, []).append((folder, config, result))
    settings = [json.loads(key)[0] for key in groups]
    data = [
        (protocol.dataset, protocol.modality, protocol.setting)
        for protocol in (group[0][2].protocol for group in groups.values())
    ]
    found = []
    for group, own, place in zip(groups.values(), settings, data):
        _check_joins(group)
        results = [result for _, _, result in group]
        (row,) = method_results(results)
        config, protocol = group[0][1], row.protocol
        beside = [other for other, there in zip(settings, data) if there == place]
        alike = [other for other in beside if (other["method"], other["preset"]) == (own["method"], own["preset"])]
        apart = [
            name for name in own if name not in _SHOWN_ANYWAY and any(other.get(name) != own[name] for other in alike)
        ]
        system = ", ".join([row.method, *(f"{name.split('.')[-1]} {_shown(own[name])}" for name in apart)])
        setting = (protocol.setting or "intra-subject").removesuffix("-subject")
        entry = ComparisonRow(
            (protocol.modality or "EEG").lower(), setting, system, config.encoder, row, cells=len(group)
        )
        found.append((entry, [_run(folder, result) for folder, _, result in group]))
    return _labelled(found)


def grid_rows(found: Sequence[GridRow], root: Path) -> list[ReportRow]:
    """Lines of the table of a grid, as `experiments.results.comparison_rows` joined them."""
    return _labelled(
        [
            (row.entry, [_run(RunFolder(root / folder), each) for folder, each in zip(row.folders, row.results)])
            for row in found
        ]
    )


def _labelled(found: Sequence[tuple[ComparisonRow, list[RunSummary]]]) -> list[ReportRow]:
    """Lines, each called by what tells it from the others of its data; so are their trainings, which several lines may share."""
    labels: dict[int, str] = {}
    trainings: dict[int, str] = {}
    for data in dict.fromkeys(entry.data for entry, runs in found if runs):
        here = {
            number: _names(entry, entry.row.protocol)
            for number, (entry, runs) in enumerate(found)
            if entry.row and runs and entry.data == data
        }
        labels |= zip(here, distinct(list(here.values())))
        trained_by = {number: tuple(run.folder for run in found[number][1]) for number in here}
        first = {trained_by[number]: number for number in reversed(here)}
        names = [(system, *made_by) for system, _, *made_by in (here[number] for number in first.values())]
        of_training = dict(zip(first, distinct(names)))
        trainings |= {number: of_training[folders] for number, folders in trained_by.items()}
    return [
        ReportRow(labels.get(number, entry.system), trainings.get(number, entry.system), entry, runs)
        for number, (entry, runs) in enumerate(found)
    ]


def _names(entry: ComparisonRow, protocol: Protocol) -> tuple[str, ...]:
    return (
        entry.system,
        f"gate {scoring(protocol)}",
        entry.encoder,
        f"images by {protocol.encoder}",
        protocol.selection,
    )


def _results(folder: RunFolder) -> list[RunResult]:
    """Read the result of a run, or in a grid's cell one for each way its training is scored."""
    result = folder.result()
    if not result.images:
        raise UserError(f"{folder.path / 'result.json'}: images missing; a run of an earlier version, train it again")
    return load_scores(folder.path) if (folder.path / SCORES).is_file() else [result]


def _check_joins(group: Sequence[tuple[RunFolder, RunConfig, RunResult]]) -> None:
    """Whether there is a mean over these runs: one for every subject and seed."""
    seen: dict[tuple, RunFolder] = {}
    for folder, _, result in group:
        cell = result.subject, result.seed
        if cell in seen:
            raise UserError(
                f"{seen[cell].path} and {folder.path}: the same run twice ({cell[0]}, seed {cell[1]}); name one of them"
            )
        seen[cell] = folder
    for subject in {subject for subject, _ in seen}:
        for seed in {seed for _, seed in seen}:
            if (subject, seed) not in seen:
                folder = next(folder for (who, _), folder in seen.items() if who == subject)
                raise UserError(
                    f"{folder.path}: of {subject} there is no run with seed {seed}, as of others; name runs of the same seeds"
                )


def _shown(value: object) -> str:
    named = {None: "none", True: "on", False: "off"}
    return (
        named[value]
        if value is None or isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _run(folder: RunFolder, result: RunResult) -> RunSummary:
    finished = datetime.fromtimestamp((folder.path / "result.json").stat().st_mtime).astimezone()
    return RunSummary(
        folder=str(folder.path),
        subject=result.subject,
        seed=result.seed,
        ranks=result.ranks,
        metrics=folder.metrics(),
        settings=to_dict(folder.config()),
        finished=finished.isoformat(timespec="minutes"),
        repetitions=(result.statistics or {}).get("repetitions"),
    )


def with_curves(
    lines: Sequence[ReportRow],
    materials_of: Callable[[RunConfig], RunData],
    resamples: int,
    progress: Progress = no_progress,
) -> list[ReportRow]:
    """Lines without a curve over test repetitions get that of their first run; with 0 resamples they stay as they are.

    Raises:
        UserError: data that the curve needs are out of reach.
    """
    found = []
    for done, line in enumerate(lines):
        if resamples and line.runs and not any(run.repetitions for run in line.runs):
            folder = RunFolder(line.runs[0].folder)
            scoring = line.row.protocol.scoring(folder.result().reliability)
            (curve,) = repetition_curves(folder, materials_of(folder.config()), [scoring], resamples)
            line = replace(line, runs=[replace(line.runs[0], repetitions=curve), *line.runs[1:]])
        found.append(line)
        progress("curves over test repetitions", done + 1, len(lines))
    return found


def build_report(
    title: str,
    lines: Sequence[ReportRow],
    made_by: dict[str, str],
    data: Path | None = None,
    progress: Progress = no_progress,
) -> Report:
    """A report of lines, with what their runs retrieve and how their images are blurred.

    Args:
        data: the data folder, where it has moved since the runs.

    Raises:
        UserError: what a run has left is damaged.
    """
    missing: dict[str, str] = {}
    chosen = _round_robin([line for line in lines if line.runs], RETRIEVALS)
    album = ThumbnailCache(data)
    retrievals = []
    for done, (line, run) in enumerate(chosen):
        progress("retrieved images", done, len(chosen))
        retrievals.append(_retrieval(line, run, album))
    progress("retrieved images", len(chosen), len(chosen))
    runs = sum(len(line.runs) for line in lines)
    told = (
        [f"{len(chosen)} of {runs} runs are shown, of every line the first; 'bvsa report RUN' shows any."]
        if runs > len(chosen)
        else []
    )
    if (longest := max((len(each.similarity) for each in retrievals), default=0)) > QUERIES:
        told.append(f"Of up to {longest} recordings of a run the first {QUERIES} are shown.")
    missing |= {"retrieved": " ".join(told)} if told else {}
    blurred = _blurred(lines, album)
    images = album.images(progress)
    if album.unreadable:
        missing["images"] = (
            f"Images are out of reach ({album.unreadable}); 'bvsa report RUN --data FOLDER' says where they are."
        )
    elif album.full:
        missing["images"] = (
            "Some images are not shown, to keep the page small; 'bvsa report RUN' of fewer runs shows them."
        )
    return Report(title, lines, images, retrievals, blurred, missing, made_by)


def _round_robin(lines: Sequence[ReportRow], limit: int) -> list[tuple[ReportRow, RunSummary]]:
    """The first run of every line, then the second of every line, and so on."""
    longest = max((len(line.runs) for line in lines), default=0)
    found = [(line, line.runs[turn]) for turn in range(longest) for line in lines if turn < len(line.runs)]
    kept = found[:limit]
    return sorted(kept, key=lambda pair: lines.index(pair[0]))


def _retrieval(line: ReportRow, run: RunSummary, album: ThumbnailCache) -> RetrievalExample:
    folder, protocol = RunFolder(run.folder), line.row.protocol
    result = folder.result()
    scores = similarity(folder.embeddings(), protocol.scoring(result.reliability))
    if scores.shape[0] != len(run.ranks) or scores.shape[1] != len(result.images):
        raise UserError(
            f"{folder.path}: result.json and embeddings.safetensors are not of the same run; train it again"
        )
    numbers = [album.number(run.settings["data"], image) for image in result.images]
    found = scores[:QUERIES].sort(dim=1, descending=True, stable=True)
    best = found.indices[:, :TOP].tolist()
    album.want(number for at, row in enumerate(best) for number in (numbers[at], *(numbers[i] for i in row)))
    return RetrievalExample(
        label=line.label,
        data=line.entry.data,
        subject=run.subject,
        seed=run.seed,
        right=numbers[: len(best)],
        ranks=run.ranks[:QUERIES],
        best=[[numbers[i] for i in row] for row in best],
        scores=found.values[:, :TOP].tolist(),
        similarity=scores.numpy(),
    )


class ThumbnailCache:
    """The images that a report speaks of, and where they lie.

    Args:
        moved: the data folder of all of them, where it is not the one of the runs.
    """

    def __init__(self, moved: Path | None = None):
        self.moved = moved
        self.unreadable: str | None = None  # why the first that could not be read
        self.full = False  # whether some were left out
        self._numbers: dict[tuple[str, str], int] = {}
        self._wanted: set[int] = set()
        self._folders: dict[str, Dataset] = {}

    def number(self, data: str, image: str) -> int:
        return self._numbers.setdefault((str(self.moved or data), image), len(self._numbers))

    def want(self, numbers: Iterable[int]) -> None:
        self._wanted.update(numbers)

    def read(self, data: str, image: str, size: int) -> np.ndarray | None:
        """An image (size, size, 3) uint8; None where it cannot be read."""
        data = str(self.moved or data)
        try:
            if data not in self._folders:
                self._folders[data] = Dataset(data)
            return read_images([self._folders[data].image_path(image)], size)[0].permute(1, 2, 0).numpy()
        except UserError as error:
            self.unreadable = self.unreadable or str(error)
            return None

    def images(self, progress: Progress = no_progress) -> list[GalleryImage]:
        """All of them in the order of their numbers, with thumbnails of those that are wanted."""
        found, made = [], 0
        for (data, image), number in self._numbers.items():
            wanted = number in self._wanted
            self.full |= wanted and made >= THUMBNAILS
            pixels = self.read(data, image, THUMBNAIL) if wanted and not self.full else None
            thumbnail = None if pixels is None else jpeg(pixels, THUMBNAIL)
            made += len(thumbnail or b"")
            found.append(GalleryImage(image, concept_of(image).replace("_", " "), thumbnail))
            progress("thumbnails", number + 1, len(self._numbers))
        return found


def jpeg(image: np.ndarray, side: int, quality: int = 72) -> bytes:
    """An image (height, width, 3) uint8 as a square file."""
    file = io.BytesIO()
    Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS).save(
        file, "JPEG", quality=quality, optimize=True
    )
    return file.getvalue()


def _blurred(lines: Sequence[ReportRow], album: ThumbnailCache) -> list[BlurExample]:
    """What each way to blur does to a few images of the test set: one for every method and its options."""
    found: dict[str, BlurExample] = {}
    for line in lines:
        if not line.runs:
            continue
        run = line.runs[0]
        config = RunFolder(run.folder).config()
        levels = [level for level in levels_of(config.method, config.method_options) if level != SHARP]
        key = json.dumps([levels, config.decay, config.falloff, config.vision])
        if not levels or key in found:
            continue
        images = RunFolder(run.folder).result().images
        names = [images[i * (len(images) - 1) // max(1, SAMPLES - 1)] for i in range(min(SAMPLES, len(images)))]
        read = [album.read(run.settings["data"], name, image_size_of(config.vision)) for name in names]
        sharp = [image for image in read if image is not None]
        if len(sharp) < len(names):
            continue
        originals = torch.from_numpy(np.stack(sharp)).permute(0, 3, 1, 2)
        sizes, gains = (torch.tensor(values).repeat(len(sharp)) for values in zip(*levels))
        batch = originals.repeat_interleave(len(levels), dim=0)
        batch = fovblur.foveated_blur(batch, kernel_size=sizes, gain=gains, decay=config.decay, falloff=config.falloff)
        blurred = torch.cat([originals[:, None], batch.unflatten(0, (len(sharp), len(levels)))], dim=1)
        shown = blurred.permute(0, 1, 3, 4, 2).contiguous().numpy()
        called = [f"k{level.kernel_size} gain {level.gain:g}" for level in levels]
        census = [each.metrics[-1].get("blur", {}) for each in line.runs if each.metrics]
        share = lambda name, census=census: sum(each.get(name, 0) / sum(each.values()) for each in census) / len(census)  # noqa: E731
        found[key] = BlurExample(
            label=line.training,
            levels=called,
            shares=[share(name) if census and all(census) else None for name in called],
            names=[concept_of(name).replace("_", " ") for name in names],
            images=shown,
            thumbnails=[[jpeg(image, BLURRED, 80) for image in row] for row in shown],
            falloff=f"falloff {config.falloff}, decay {config.decay:g}"
            if config.falloff == "exp"
            else f"falloff {config.falloff}",
        )
    return list(found.values())
