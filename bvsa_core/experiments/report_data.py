"""The content of a report, from the folders of finished runs."""

import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from bvsa_core.data.dataset import concept_of
from bvsa_core.errors import UserError
from bvsa_core.experiments.cell import SCORES, gallery_level_of, learnt_levels, levels_of, load_scores
from bvsa_core.experiments.recording_cache import RecordingCache
from bvsa_core.experiments.repetitions import repetition_curves
from bvsa_core.experiments.results import GridRow
from bvsa_core.experiments.thumbnails import Blur, ThumbnailCache, jpeg
from bvsa_core.io.text_files import flatten
from bvsa_core.progress import Progress, no_progress
from bvsa_core.report.comparison_table import ComparisonRow
from bvsa_core.report.content import BlurExample, Report, ReportRow, RetrievalExample, RunSummary, distinct
from bvsa_core.report.tables import method_results, scoring_text
from bvsa_core.retrieval.result import RunResult
from bvsa_core.retrieval.scoring import similarity
from bvsa_core.training.config import RunConfig, to_dict
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder
from bvsa_core.vision.learnt_blur import MEAN
from bvsa_core.vision.loading import image_size_of
from bvsa_core.vision.views import SHARP, Falloff, Level

TOP = 5
RETRIEVALS = 12  # runs whose retrieved images are shown
QUERIES = 400  # shown of each run
BLURRED = 120  # pixels
SAMPLES = 3  # images that show the blur levels
_NOT_A_SETTING = {"subject", "seed", "device", "bank", "cache_dir"}  # the rows of a table do not depend on these
_ALWAYS_SHOWN = ("method", "preset", "encoder", "vision", "selection")  # by the table itself, so not in labels
_HINT = "give folders that 'bvsa train', 'demo' or 'reproduce' made"


def find_runs(paths: Iterable[Path]) -> tuple[list[RunFolder], list[str]]:
    """Find finished runs in folders and their subfolders; return them and messages about skipped runs.

    Raises:
        UserError: a folder does not exist or contains no finished run.
    """
    runs: dict[Path, None] = {}
    messages = []
    for path in paths:
        if not path.is_dir():
            folders = [each.name for each in path.parent.glob("*") if each.is_dir()]
            close = difflib.get_close_matches(path.name, folders, n=1)
            raise UserError(f"{path}: no such folder; {f'did you mean {path.parent / close[0]}?' if close else _HINT}")
        inside = sorted({file.parent for name in ("run.yaml", "result.json") for file in path.rglob(name)})
        if not inside:
            raise UserError(f"{path}: no run inside (no run.yaml); {_HINT}")
        finished = [each for each in inside if (each / "result.json").is_file()]
        if not finished:
            remedy = "repeat the command that began it to continue it"
            raise UserError(f"{path}: no finished run there (result.json is missing); {remedy}")
        if len(inside) > len(finished):
            messages.append(f"{len(inside) - len(finished)} unfinished run(s) in {path} are not shown")
        runs |= dict.fromkeys(each.resolve() for each in finished)
    here = Path.cwd().resolve()
    return [RunFolder(each.relative_to(here) if each.is_relative_to(here) else each) for each in runs], messages


def group_runs(folders: Sequence[RunFolder]) -> list[ReportRow]:
    """Join runs that differ only in subject and seed; return one row for each group.

    Raises:
        UserError: a file of a run is damaged, or a group lacks a run or has one twice.
    """
    groups: dict[str, list[tuple[RunFolder, RunConfig, RunResult]]] = {}
    for folder in folders:
        config = folder.config()
        settings = flatten({name: value for name, value in to_dict(config).items() if name not in _NOT_A_SETTING})
        for result in _results(folder):
            if result.layers:
                settings["target"] = "chosen"  # the layer is another in every run
            key = json.dumps([settings, result.protocol.to_json()], sort_keys=True)
            groups.setdefault(key, []).append((folder, config, result))
    all_settings = [json.loads(key)[0] for key in groups]
    protocols = [group[0][2].protocol for group in groups.values()]
    data = [(protocol.dataset, protocol.modality, protocol.setting) for protocol in protocols]
    rows = []
    for group, own, protocol, own_data in zip(groups.values(), all_settings, protocols, data):
        _check_complete(group)
        (joined,) = method_results([result for _, _, result in group])
        others = [other for other, other_data in zip(all_settings, data) if other_data == own_data]
        namesakes = [each for each in others if all(each[name] == own[name] for name in ("method", "preset"))]
        names = [name for name in own if name not in _ALWAYS_SHOWN]
        differing = [name for name in names if any(each.get(name) != own[name] for each in namesakes)]
        system = ", ".join([joined.method, *(f"{name.split('.')[-1]} {_format(own[name])}" for name in differing)])
        setting = (protocol.setting or "intra-subject").removesuffix("-subject")
        modality, encoder = (protocol.modality or "EEG").lower(), group[0][1].encoder
        comparison = ComparisonRow(modality, setting, system, encoder, joined, cells=len(group))
        rows.append((comparison, [_summary(folder, result) for folder, _, result in group]))
    return _with_labels(rows)


def grid_rows(rows: Sequence[GridRow], root: Path) -> list[ReportRow]:
    """Return the rows of a grid's table for a report; `root` is the folder of the grid."""
    runs = [[(RunFolder(root / folder), each) for folder, each in zip(row.folders, row.results)] for row in rows]
    return _with_labels([(row.comparison, [_summary(*run) for run in of_row]) for row, of_row in zip(rows, runs)])


def _with_labels(rows: Sequence[tuple[ComparisonRow, list[RunSummary]]]) -> list[ReportRow]:
    """Give every row the shortest label that is unique within its data, and the same for trainings.

    Rows that score the same runs share a training.
    """
    labels: dict[int, tuple[str, str]] = {}
    for data in dict.fromkeys(comparison.data for comparison, runs in rows if runs):
        own = [i for i, (comparison, runs) in enumerate(rows) if runs and comparison.data == data]
        names = [_name_parts(rows[i][0]) for i in own]
        folders = [tuple(run.folder for run in rows[i][1]) for i in own]
        trainings: dict[tuple, tuple] = {}
        for run_folders, (system, _, *encoders) in zip(folders, names):
            trainings.setdefault(run_folders, (system, *encoders))
        training_labels = dict(zip(trainings, distinct(list(trainings.values()))))
        labels |= zip(own, zip(distinct(names), map(training_labels.__getitem__, folders)))
    unlabelled = [(comparison.system,) * 2 for comparison, _ in rows]
    return [ReportRow(*labels.get(i, unlabelled[i]), *row, number=i) for i, row in enumerate(rows)]


def _name_parts(comparison: ComparisonRow) -> tuple[str, ...]:
    """Return the parts of a row's full name: system, gate, and what its training depends on."""
    assert comparison.result is not None
    protocol = comparison.result.protocol
    images = f"images by {protocol.encoder}"
    return comparison.system, f"gate {scoring_text(protocol)}", comparison.encoder, images, protocol.selection


def _results(folder: RunFolder) -> list[RunResult]:
    """Read the result of a run, verified; in a grid's cell, one result for each way of scoring."""
    result, path = folder.verify(), folder.path / "result.json"
    if not result.images:
        raise UserError(f"{path}: images missing; a run of an earlier version, train it again")
    return load_scores(folder.path) if (folder.path / SCORES).is_file() else [result]


def _check_complete(group: Sequence[tuple[RunFolder, RunConfig, RunResult]]) -> None:
    """Check that a group has exactly one run for every pair of subject and seed."""
    seen: dict[tuple, RunFolder] = {}
    for folder, _, result in group:
        subject, seed = cell = result.subject, result.seed
        if cell in seen:
            both = f"{seen[cell].path} and {folder.path}"
            raise UserError(f"{both}: the same run twice ({subject}, seed {seed}); name one of them")
        seen[cell] = folder
    for subject, folder in {subject: folder for (subject, _), folder in reversed(seen.items())}.items():
        for seed in {seed for _, seed in seen}:
            if (subject, seed) not in seen:
                problem = f"there is no run with seed {seed} of {subject}, as there is of others"
                raise UserError(f"{folder.path}: {problem}; name runs of the same seeds")


def _format(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _summary(folder: RunFolder, result: RunResult) -> RunSummary:
    finished = datetime.fromtimestamp((folder.path / "result.json").stat().st_mtime).astimezone()
    settings, curve = to_dict(folder.config()), (result.statistics or {}).get("repetitions")
    when = finished.isoformat(timespec="minutes")
    return RunSummary(str(folder.path), result, folder.metrics(), settings, when, curve)


def with_curves(
    rows: Sequence[ReportRow],
    run_data_of: Callable[[RunConfig], RunData],
    resamples: int,
    progress: Progress = no_progress,
) -> list[ReportRow]:
    """Compute the curve over test repetitions of the first run of every row without one, unless resamples is 0."""
    results = []
    for done, row in enumerate(rows, start=1):
        if resamples and row.runs and not any(run.repetition_curve for run in row.runs):
            folder = RunFolder(row.runs[0].folder)
            scoring = row.result.protocol.scoring(folder.result().reliability)
            (curve,) = repetition_curves(folder, run_data_of(folder.config()), [scoring], resamples)
            row = replace(row, runs=[replace(row.runs[0], repetition_curve=curve), *row.runs[1:]])
        results.append(row)
        progress("curves over test repetitions", done, len(rows))
    return results


def build_report(
    title: str,
    rows: Sequence[ReportRow],
    provenance: dict[str, str],
    data: Path | None = None,
    progress: Progress = no_progress,
) -> Report:
    """Build a report of rows, with the images that their runs retrieve and examples of their blur.

    Images are read from the folder `data`; default: the data folder named by each run.
    """
    chosen = _round_robin([row for row in rows if row.runs], RETRIEVALS)
    cache, recordings = ThumbnailCache(data), RecordingCache(data)
    retrievals = []
    for done, (row, run) in enumerate(chosen, start=1):
        retrievals.append(_retrieval(row, run, cache, recordings))
        progress("retrieved images", done, len(chosen))
    messages = []
    if (runs := sum(len(row.runs) for row in rows)) > len(chosen):
        messages.append(f"{len(chosen)} of {runs} runs are shown, the first of every row; 'bvsa report RUN' shows any.")
    if (longest := max((len(each.ranks) for each in retrievals), default=0)) > QUERIES:
        messages.append(f"Of up to {longest} recordings of a run the first {QUERIES} are shown.")
    messages += recordings.messages
    missing = {"retrieved": " ".join(messages)} if messages else {}
    blur_examples = _blur_examples(rows, cache)
    images = cache.images(progress)
    if cache.unreadable:
        remedy = "name their folder with 'bvsa report RUN --data FOLDER'"
        missing["images"] = f"Images cannot be read ({cache.unreadable}); {remedy}."
    elif cache.full:
        remedy = "to see them, run 'bvsa report RUN' with fewer runs"
        missing["images"] = f"Some images are not shown, to keep the page small; {remedy}."
    return Report(title, rows, images, retrievals, recordings.examples, blur_examples, missing, provenance)


def _round_robin(rows: Sequence[ReportRow], limit: int) -> list[tuple[ReportRow, RunSummary]]:
    """Choose the first run of every row, then the second of every row, and so on; return them in the order of rows."""
    longest = max((len(row.runs) for row in rows), default=0)
    runs = [(i, turn) for turn in range(longest) for i, row in enumerate(rows) if turn < len(row.runs)]
    return [(rows[i], rows[i].runs[turn]) for i, turn in sorted(runs[:limit])]


def _retrieval(row: ReportRow, run: RunSummary, cache: ThumbnailCache, recordings: RecordingCache) -> RetrievalExample:
    """Compute what a run retrieves, and request thumbnails of it."""
    folder = RunFolder(run.folder)
    result, config = folder.result(), folder.config()
    scores = similarity(folder.embeddings(), row.result.protocol.scoring(result.reliability))
    data = run.settings["data"]
    indices = [cache.index_of(data, image) for image in result.images]
    ordered = scores[:QUERIES].sort(dim=1, descending=True, stable=True)
    top = [[indices[i] for i in best] for best in ordered.indices[:, :TOP].tolist()]
    level = learnt_levels(config, result).get(MEAN) or gallery_level_of(config.method, config.method_options)
    blur = Blur(level, Falloff(config.decay, config.falloff), image_size_of(config.vision, config.cache_dir))
    views = [] if level == SHARP else [cache.index_of(data, image, blur) for image in result.images[: len(top)]]
    cache.request([*indices[: len(top)], *(index for best in top for index in best), *views])
    return RetrievalExample(
        label=row.label,
        data=row.comparison.data,
        subject=run.result.subject,
        seed=run.result.seed,
        targets=indices,
        ranks=run.result.ranks,
        top=top,
        scores=ordered.values[:, :TOP].tolist(),
        similarity=scores.numpy(),
        row=row.number,
        views=views,
        view_level=_level_name(level) if views else "",
        recordings=recordings.index_of(config, result, len(top)),
    )


def _blur_examples(rows: Sequence[ReportRow], cache: ThumbnailCache) -> list[BlurExample]:
    """Blur a few test images as each training does: one example for every method and its options."""
    examples: dict[str, BlurExample] = {}
    for row in (row for row in rows if row.runs):
        folder = RunFolder(row.runs[0].folder)
        config = folder.config()
        learnt = list(dict.fromkeys(learnt_levels(config, folder.result()).values()))
        levels = learnt or [level for level in levels_of(config.method, config.method_options) if level != SHARP]
        key = json.dumps([levels, config.decay, config.falloff, config.vision])
        if not levels or key in examples:
            continue
        images = folder.result().images
        names = [images[i * (len(images) - 1) // max(1, SAMPLES - 1)] for i in range(min(SAMPLES, len(images)))]
        size = image_size_of(config.vision, config.cache_dir)
        originals = [cache.read(row.runs[0].settings["data"], name, size) for name in names]
        if any(image is None for image in originals):
            continue
        sharp = np.stack([image for image in originals if image is not None])
        falloff = Falloff(config.decay, config.falloff)
        blurred = np.stack([sharp, *(Blur(level, falloff, size).apply(sharp) for level in levels)], axis=1)
        counts = [run.metrics[-1].get("blur", {}) for run in row.runs if run.metrics]
        level_names = [_level_name(level) for level in levels]
        shares: list[float | None] = [None] * len(levels)
        if counts and all(counts):
            shares = [
                float(np.mean([each.get(name, 0) / sum(each.values()) for each in counts])) for name in level_names
            ]
        examples[key] = BlurExample(
            label=row.training_label,
            levels=level_names,
            shares=shares,
            concepts=[concept_of(name).replace("_", " ") for name in names],
            images=blurred,
            thumbnails=[[jpeg(image, BLURRED, 80) for image in row_of_images] for row_of_images in blurred],
            falloff=f"falloff {config.falloff}{f', decay {config.decay:g}' if config.falloff == 'exp' else ''}",
        )
    return list(examples.values())


def _level_name(level: Level) -> str:
    """Return the name of a blur level, as in metrics.jsonl."""
    if level.sigma is not None:
        return f"sigma {level.sigma:.1f} gain {level.gain:.2f}"
    return f"k{level.kernel_size} gain {level.gain:g}"
