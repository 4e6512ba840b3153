"""Find the best images of a gallery for recordings, by a trained run. Processes of torchrun share the gallery."""

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from rich.console import Console
from torch import Tensor

from bvsa_core.cli.arguments import Parser
from bvsa_core.cli.evaluate import read_array
from bvsa_core.cli.output import say, write_file
from bvsa_core.data.dataset import concept_of, read_recordings
from bvsa_core.data.split import make_split
from bvsa_core.distributed.processes import init_processes
from bvsa_core.errors import UserError
from bvsa_core.experiments.thumbnails import THUMBNAIL, THUMBNAILS, jpeg
from bvsa_core.io.image_file import SUFFIXES
from bvsa_core.methods.base import Method
from bvsa_core.progress import Display
from bvsa_core.report.retrieval_page import FoundImage, FoundImages, RetrievalPage, to_html
from bvsa_core.report.tables import rich_table
from bvsa_core.retrieval.gallery import EmbeddingMatrix, Gallery, SideBySide, first_invalid_row, rows_of
from bvsa_core.retrieval.index import Index, recall, search_candidates
from bvsa_core.retrieval.result import RunResult
from bvsa_core.retrieval.scoring import Scoring
from bvsa_core.retrieval.search import Queries, TopK, check, search
from bvsa_core.training.config import RunConfig, relocated, with_texts
from bvsa_core.training.run import load_method
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder
from bvsa_core.vision.bank import ABOUT, level_files
from bvsa_core.vision.downloads import stay_offline
from bvsa_core.vision.images import read_images
from bvsa_core.vision.layers import OUTPUT
from bvsa_core.vision.views import features_at

SHOWN = 20  # queries that are printed; the file has all
ON_PAGE = 200  # queries on the page
RECALL_QUERIES = 256  # that are also searched exactly, to measure the recall of an index


def add_arguments(parser: Parser, arguments: list[str]) -> None:
    """Add the command's flags."""
    add = parser.add_argument
    add("run", type=Path, help="folder of a finished run")
    recordings = "published recordings (.pt), or an array (N, channels, time) like the run's"
    add("--recordings", type=Path, help=f"{recordings}; default: its test recordings")
    gallery = "folder of images, folder of a feature bank, or features (M, D): .npy, .safetensors, .safetensors:KEY"
    add("--gallery", help=f"{gallery}; default: the run's test images")
    add("--gallery_text", help="text features (M, E) for a gallery of features, for gates")
    texts = (
        "captions of the gallery's images, for gates: .csv, .tsv or .json by image or concept; default: the run's own"
    )
    add("--texts", type=Path, help=texts)
    add("--top", type=int, default=5, help="number of images for each recording")
    add("--gate", default="none", help="none, always or label_free")
    add("--index", type=Path, help="FAISS index that proposes images: a file to read, or to build and keep")
    index_type = "FAISS description of the index to build, such as IVF4096,SQ8 or HNSW32; default: by gallery size"
    add("--index_type", help=index_type)
    add("--candidates", type=int, default=100, help="number of images the index proposes for each recording")
    probes = "number of index cells to search; more cells find more of the best images"
    add("--probes", type=int, default=64, help=probes)
    add("--data", type=Path, help="data folder if it has moved since the run")
    add("--bank", type=Path, help="folder of the feature bank if it has moved, or lies outside the data")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--out", type=Path, help="file for the ranked images; default: retrieved.json in the run's folder")
    add("--page", type=Path, help="file for an HTML page that shows the images, such as retrieved.html")


def run(parsed: jsonargparse.Namespace) -> None:
    """Search the gallery, write the ranked images and print the first of them."""
    for name in ("top", "candidates", "probes"):
        if (value := getattr(parsed, name)) < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1")
    if parsed.page is not None:
        if not has_images(parsed.gallery):
            raise UserError(
                f"--page shows images, and --gallery {parsed.gallery} has features; give a folder of images"
            )
        if parsed.page.is_dir():
            raise UserError(f"--page {parsed.page}: is a folder; name a file, such as {parsed.page / 'retrieved.html'}")
    folder = RunFolder(parsed.run)
    saved, config = folder.result(), folder.config()
    scoring = Scoring(parsed.gate, saved.reliability)
    stay_offline()
    config = with_texts(relocated(config, data=parsed.data, bank=parsed.bank), parsed.texts)
    with init_processes() as processes, Display(quiet=processes.rank > 0) as display:
        if parsed.index is not None and processes.size > 1:
            raise UserError("--index is for one process; leave torchrun or the index out")
        device = parsed.device if processes.size == 1 else processes.device or "cpu"
        run_data = RunData(replace(config, device=device), display)
        method = load_method(folder, run_data)
        if method.transductive_classifier:
            reason = f"method {config.method} classifies test images and has no embeddings to search with"
            raise UserError(f"{parsed.run}: {reason}")
        if parsed.gate != "none" and not method.compares_texts:
            raise UserError(f"--gate {parsed.gate}: the run's recordings are not mapped to the space of texts; omit it")
        names, recordings, subjects = read_queries(parsed.recordings, saved, config, run_data)
        named = parsed.recordings is None or parsed.recordings.suffix == ".pt"  # after the images that were seen
        with torch.no_grad(), one_thread():
            queries = Queries(*method.query_embeddings(recordings.to(run_data.device), subjects))
        gallery = open_gallery(parsed, method, saved, config, run_data, display)
        if parsed.index is None:
            best, measured = search(queries, gallery, parsed.top, scoring, None, display, processes), None
        else:
            best, measured = search_by_index(parsed, queries, gallery, scoring, display)
    if processes.rank == 0:
        texts_of = run_data.stimulus_texts.source if gallery.texts and run_data.stimulus_texts else None
        conditions = {**scoring.protocol(), "texts_of": texts_of, "gallery": len(gallery), "recall": measured}
        correct = rows_of(names, gallery.names) if named and has_images(parsed.gallery) else [None] * len(names)
        ranking = Ranking(names, gallery.names, best, correct)
        protocol = {key: value for key, value in conditions.items() if value is not None}
        print_ranking(parsed, ranking, protocol)
        if parsed.page is not None:
            write_page(parsed, ranking, protocol, run_data)


@dataclass(frozen=True)
class Ranking:
    """The best images of a gallery for every recording."""

    recordings: Sequence[str]
    images: Sequence[str]  # names of the gallery
    best: TopK
    correct: Sequence[int | None]  # row of the correct image of every recording, None where it is unknown

    def __iter__(self) -> Iterator[tuple[str, int | None, list[tuple[int, float]]]]:
        """Return for every recording its name, the row of its correct image, and rows and scores of the best ones."""
        for name, correct, rows, scores in zip(
            self.recordings, self.correct, self.best.rows.tolist(), self.best.values.tolist()
        ):
            yield name, correct, [(row, score) for row, score in zip(rows, scores) if row >= 0]

    @property
    def ranks(self) -> list[int | None]:
        """Rank of the correct image where it is known; None if it is not among the best."""
        known = ((correct, [row for row, _ in best]) for _, correct, best in self if correct is not None)
        return [rows.index(correct) + 1 if correct in rows else None for correct, rows in known]

    def summary(self) -> str:
        """Return how many correct images were found; empty where they are unknown."""
        if not (ranks := self.ranks):
            return ""
        first, found = ranks.count(1), sum(rank is not None for rank in ranks)
        among, known = self.best.rows.shape[1], len(ranks)
        unknown = f" ({len(self.recordings) - known} others have none there)" if known < len(self.recordings) else ""
        chance = f"chance {100 / len(self.images):.3g} % and {100 * among / len(self.images):.3g} %"
        shares = f"{100 * first / known:.1f} % and {100 * found / known:.1f} %"
        return (
            f"the correct image is first for {first} and among the best {among} for {found} of {known} recordings"
            f"{unknown}: {shares}, {chance}"
        )


def search_by_index(
    parsed: jsonargparse.Namespace, queries: Queries, gallery: Gallery, scoring: Scoring, display: Display
) -> tuple[TopK, float]:
    """Return the best images among those an index proposes, and its recall of the exact search."""
    if parsed.candidates < parsed.top:
        raise UserError(f"--candidates {parsed.candidates} are fewer than --top {parsed.top}")
    check(queries, gallery, parsed.top, scoring)  # before an index is built and kept
    index = Index(parsed.index, gallery, parsed.index_type, display)
    candidates = index.propose(queries.brain_image, parsed.candidates, parsed.probes)
    best = search_candidates(queries, gallery, candidates, parsed.top, scoring)
    some = Queries(*(brain[:RECALL_QUERIES] for brain in queries))
    report = lambda _, *done: display("exact search for recall", *done)  # noqa: E731
    exact = search(some, gallery, parsed.top, scoring, progress=report)
    return best, recall(best.rows[:RECALL_QUERIES], exact.rows)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread inside: the number of threads, which torchrun changes, must not change results."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read_queries(
    path: Path | None, saved: RunResult, config: RunConfig, run_data: RunData
) -> tuple[list[str], Tensor, Tensor | None]:
    """Read names, recordings (N, channels, time) and subject indices (N,), None if unknown, of the queries."""
    shape = saved.shape
    assert shape is not None  # see load_method
    if path is None or path.suffix == ".pt":
        if path is None:
            split = run_data.split(config.subject, "test", config.repetitions, saved.axes)
        else:
            chosen = config.channels, config.window, True, None, saved.axes
            split = make_split([(path, read_recordings(path))], [path.parent.name], *chosen)
        names, recordings = [split.images[i] for i in split.image_of.tolist()], split.recordings
        subjects = split.subject_indices(run_data.training_subjects(config)).to(run_data.device)
    else:
        expected = "it must be one array (N, channels, time)"
        recordings, subjects = read_array("recordings", str(path), 3, expected), None
        names = [str(i) for i in range(len(recordings))]
    if recordings.shape[1:] != (shape.channels, shape.time):
        given = f"{recordings.shape[1]} channels x {recordings.shape[2]} samples"
        raise UserError(f"--recordings {path}: {given}; the run was trained on {shape.channels} x {shape.time}")
    if (row := first_invalid_row(recordings)) is not None:
        raise UserError(f"--recordings {path}: recording {row} has NaN or infinite samples")
    return names, recordings, subjects


def open_gallery(
    parsed: jsonargparse.Namespace,
    method: Method,
    saved: RunResult,
    config: RunConfig,
    run_data: RunData,
    display: Display,
) -> Gallery:
    """Open the gallery of the flags: test images of the run, a folder of images, a feature bank, or a features file."""
    shared: dict[str, Any] = {"image_embeddings": method.image_embeddings, "text_embeddings": method.text_embeddings}
    shared["device"] = run_data.device
    where, levels = parsed.gallery, method.gallery_feature_levels()
    unit_norm = config.target == OUTPUT
    given_texts = EmbeddingMatrix(parsed.gallery_text) if parsed.gallery_text else None
    if where is not None and not Path(where).is_dir():
        if not Path(where).suffix:
            raise UserError(f"--gallery {where}: no such folder")
        if len(levels) > 1:
            several = f"the run sees images at {len(levels)} blur levels"
            raise UserError(f"--gallery {where}: {several}; give a folder of images or a bank")
        return Gallery([EmbeddingMatrix(where, unit_norm)], given_texts, **shared)
    if where is not None and (Path(where) / ABOUT).is_file():
        encoder = run_data.clip if method.vision is None else method.vision.fingerprinted()
        files = level_files(Path(where), levels, encoder, run_data.falloff)
        return Gallery([_side_by_side(parts, unit_norm) for parts in files], given_texts, **shared)
    if given_texts:
        raise UserError("--gallery_text belongs to a gallery of features; texts of images are made from their names")
    if where is None:
        test = run_data.split(config.subject, "test", config.repetitions, saved.axes)
        if config.features is not None:
            views, rows = run_data.views(test.images, levels), torch.arange(len(test.images))
            images = [EmbeddingMatrix.of(features_at(level, views, rows), unit_norm) for level in levels]
            return Gallery(images, names=test.images, **shared)
        names, concepts, bank = test.images, test.concepts, run_data.bank(test.images, method.vision)
    else:
        paths = sorted(path for path in Path(where).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not paths:
            raise UserError(f"--gallery {where}: no image inside ({', '.join(SUFFIXES)}), nor is it a feature bank")
        names = [path.relative_to(where).as_posix() for path in paths]
        concepts, bank = [concept_of(str(path)) for path in paths], run_data.bank_for_paths(paths, method.vision)
    bank.fill(levels, display)
    unused = parsed.gate == "none" or not run_data.clip.has_texts
    texts = None if unused else EmbeddingMatrix(bank.texts_path(run_data.prompts(names, concepts)))
    return Gallery([_side_by_side(parts, unit_norm) for parts in bank.files(levels)], texts, names, **shared)


def _side_by_side(parts: Sequence[Path], unit_norm: bool) -> SideBySide:
    return SideBySide([EmbeddingMatrix(path, unit_norm) for path in parts])


def has_images(gallery: str | None) -> bool:
    """Return whether a gallery is of images, not of features: the run's test images, or a folder that is no bank."""
    return gallery is None or (Path(gallery).is_dir() and not (Path(gallery) / ABOUT).is_file())


def print_ranking(parsed: jsonargparse.Namespace, ranking: Ranking, protocol: dict) -> None:
    """Write the ranked images to a file and print the first of them."""
    queries: list[dict[str, Any]] = []
    marks = any(row is not None for row in ranking.correct)
    columns = ("recording", "rank", "image", "score", *([""] if marks else []))
    table = rich_table(columns, ("recording", "image", ""), overflow="fold")
    for name, correct, best in ranking:
        images = []
        for rank, (row, score) in enumerate(best, start=1):
            image, hit = ranking.images[row], row == correct
            images.append(
                {"rank": rank, "row": row, "image": image, "score": score, **({"correct": True} if hit else {})}
            )
            if len(queries) < SHOWN:
                cells = (Path(name).name if rank == 1 else "", str(rank), Path(image).name, f"{score:.4f}")
                table.add_row(*cells, *(["correct" if hit else ""] if marks else []))
        table.add_section()
        queries.append({"recording": name, **({} if correct is None else {"correct_row": correct}), "images": images})
    about = {"run": str(parsed.run), "gallery": str(parsed.gallery or "test images")}
    content = {**about, "protocol": protocol, "queries": queries}
    out = parsed.out or parsed.run / "retrieved.json"
    write_file(out, json.dumps(content, indent=1).encode() + b"\n")
    Console().print(table)
    if len(ranking.recordings) > SHOWN:
        say(f"and {len(ranking.recordings) - SHOWN} recordings more")
    if summary := ranking.summary():
        say(f"found: {summary}")
    say(f"protocol: {', '.join(protocol_texts(protocol))}")
    say(f"all are in {out}")


def protocol_texts(protocol: dict) -> list[str]:
    """Return the conditions of a search as text."""
    return [f"{key} {value:.3f}" if key == "recall" else f"{key} {value}" for key, value in protocol.items()]


def write_page(parsed: jsonargparse.Namespace, ranking: Ranking, protocol: dict, run_data: RunData) -> None:
    """Write a page that shows the images of the first recordings, and print its path."""
    shown = list(itertools.islice(ranking, ON_PAGE))
    rows = list(dict.fromkeys(row for _, correct, best in shown for row in (correct, *(row for row, _ in best))))
    places = {row: place for place, row in enumerate(row for row in rows if row is not None)}
    thumbnails, size = [b""] * len(places), 0
    for row, place in places.items():
        if size >= THUMBNAILS:
            break
        name = ranking.images[row]
        path = Path(parsed.gallery, name) if parsed.gallery else run_data.dataset.image_path(name)
        thumbnails[place] = jpeg(read_images([path], THUMBNAIL)[0].permute(1, 2, 0).numpy(), THUMBNAIL)
        size += len(thumbnails[place])
    found = []
    for name, correct, best in shown:
        rank = next((place for place, (row, _) in enumerate(best, start=1) if row == correct), None)
        hits = [FoundImage(places[row], _concept(ranking.images[row]), score, row == correct) for row, score in best]
        seen = None if correct is None else places[correct]
        found.append(FoundImages(name if correct is None else _concept(name), hits, seen, rank))
    left_out = []
    if len(ranking.recordings) > len(shown):
        left_out.append(f"The first {len(shown)} of {len(ranking.recordings)} recordings are shown.")
    if b"" in thumbnails:
        left_out.append("Some images are not shown, to keep the page small.")
    title = f"{parsed.run.resolve().name}: images for {len(ranking.recordings)} recordings"
    texts = [f"gallery: {parsed.gallery or 'test images'}", *protocol_texts(protocol)]
    summary = ranking.summary()
    sentence = f"{summary[0].upper()}{summary[1:]}." if summary else ""
    page = RetrievalPage(title, texts, sentence, found, thumbnails, " ".join(left_out))
    write_file(parsed.page, to_html(page).encode())
    say(f"the page is {parsed.page}")


def _concept(image: str) -> str:
    return concept_of(image).replace("_", " ")
