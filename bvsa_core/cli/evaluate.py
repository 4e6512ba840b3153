"""Score a run, or embeddings in files: row i of every file belongs together, FILE:KEY picks an entry of a file."""

import json
from dataclasses import replace
from pathlib import Path

import jsonargparse
import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import normalize

from bvsa_core.cli.arguments import Parser
from bvsa_core.cli.output import say, write_file
from bvsa_core.errors import UserError
from bvsa_core.experiments.repetitions import repetition_curves
from bvsa_core.io.safe_readers import file_and_key, read_arrays
from bvsa_core.progress import Display
from bvsa_core.report.tables import method_results, statistics_lines, to_rich
from bvsa_core.retrieval import rescoring
from bvsa_core.retrieval.gallery import SHAPES, as_matrix, first_invalid_row
from bvsa_core.retrieval.gates import INFORMATION, Reliability
from bvsa_core.retrieval.result import RunResult
from bvsa_core.retrieval.scoring import Embeddings, Protocol, Scores, Scoring, ranks, score, similarity
from bvsa_core.retrieval.statistics import Statistics, statistics_of
from bvsa_core.training.class_centres import CLASS_CENTRES, class_centres
from bvsa_core.training.config import relocated, with_texts
from bvsa_core.training.evaluation import check_gate
from bvsa_core.training.run import load_method
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder
from bvsa_core.vision.downloads import stay_offline


def add_arguments(parser: Parser, arguments: list[str]) -> None:
    """Add the command's flags."""
    add = parser.add_argument
    add("run", nargs="?", type=Path, help="folder of a finished run")
    add("--brain", help="brain embeddings (N, D): .pt, .npy, .npz or .safetensors, as FILE or FILE:KEY")
    add("--image", help="image embeddings (N, D); row i belongs to recording i")
    add("--text", help="text embeddings (N, E), for gates")
    add("--brain_text", help="brain embeddings (N, E) to compare with the texts; default: --brain")
    add("--gate", help=f"{', '.join(INFORMATION)}; default: the run's own, or none")
    reliability = "reliability of the gate label_free, as KIND:THRESHOLD, such as margin:0.05; default: the run's own"
    add("--reliability", help=reliability)
    rescorings = (
        f"{', '.join(rescoring.INFORMATION)}, or several as whitening,csls: lets queries inform each other's ranking"
    )
    add("--rescoring", default="none", help=rescorings)
    add("--shuffle_texts", action="store_true", help="control: give every image another's text")
    texts = "score a run with other captions of its test images, for gates: .csv, .tsv or .json by image or concept"
    add("--texts", type=Path, help=texts)
    centres = "score a run against class centres: mean features of other images of each test concept, in this folder"
    add("--class_centres", type=Path, help=f"{centres}, such as THINGS' object_images")
    full = "also report hubness and smaller galleries and, for a run, curves over test repetitions (reads its data)"
    add("--full", action="store_true", help=full)
    add("--data", type=Path, help="data folder of the run if it has moved, where data are read")
    add("--bank", type=Path, help="folder of the feature bank if it has moved, or lies outside the data")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N, where features are computed")
    add("--json", type=Path, help="file to write the results to")


def run(parsed: jsonargparse.Namespace) -> None:
    """Print the scores, and write them if --json is given."""
    if (parsed.run is None) == (parsed.brain is None):
        raise UserError("give either the folder of a run, or --brain and --image")
    for flag in ("texts", "class_centres"):
        if getattr(parsed, flag) and not parsed.run:
            raise UserError(f"--{flag} is for a run; files of embeddings have --text and --image")
    if parsed.run:
        results = score_run(parsed)
        statistics, content = results[-1].statistics, results[-1].to_json()
        Console().print(to_rich(method_results(results)))
    else:
        scores, protocol, statistics = score_files(parsed)
        content = scores.to_json(protocol) | ({"statistics": statistics} if statistics else {})
        shown = f"Top-1 {100 * scores.top1:.2f} %  Top-5 {100 * scores.top5:.2f} %  mAP {100 * scores.map:.2f} %"
        say(f"{shown}  median rank {scores.median_rank:g}  of {scores.n} queries")
        say(f"protocol: {protocol}")
    if parsed.json:
        write_file(parsed.json, json.dumps(content, indent=2).encode() + b"\n")
    for line in statistics_lines(statistics or {}):
        say(line)


def score_run(parsed: jsonargparse.Namespace) -> list[RunResult]:
    """Return the result of a run, scored as the flags say; with another gallery, after that with its own."""
    folder = RunFolder(parsed.run)
    saved = folder.verify()
    scoring = replace(scoring_of(parsed, saved.protocol.gate, saved.reliability), alpha=saved.alpha)
    curve, embeddings, other_gallery = None, folder.embeddings(), parsed.texts or parsed.class_centres
    check_gate(scoring.gate, saved.method, embeddings)
    own = [saved.rescored(embeddings, scoring, statistics=False)] if other_gallery else []
    if parsed.full or other_gallery:
        stay_offline()
        config = with_texts(relocated(folder.config(), data=parsed.data, bank=parsed.bank), parsed.texts)
        with Display() as display:
            run_data = RunData(replace(config, device=parsed.device), display)
            if other_gallery:
                embeddings, protocol = embed_gallery(parsed, folder, embeddings, run_data, display)
                saved = replace(saved, protocol=protocol)
            else:
                (curve,) = repetition_curves(folder, run_data, [scoring])
    return [*own, saved.rescored(embeddings, scoring, parsed.full, curve)]


@torch.no_grad()
def embed_gallery(
    parsed: jsonargparse.Namespace, folder: RunFolder, embeddings: Embeddings, run_data: RunData, display: Display
) -> tuple[Embeddings, Protocol]:
    """Return embeddings with the gallery that --texts and --class_centres ask for, and the protocol with it."""
    config, method, saved = folder.config(), load_method(folder, run_data), folder.result()
    if method.transductive_classifier:
        reason = f"method {config.method} classifies test images and has no gallery to change"
        raise UserError(f"{parsed.run}: {reason}; leave --texts and --class_centres out")
    test = run_data.split(config.subject, "test", config.repetitions, saved.axes)
    protocol = saved.protocol
    if run_data.stimulus_texts and parsed.texts:
        texts = run_data.texts(test.images, test.concepts)[test.image_of]
        embeddings = replace(embeddings, text=method.text_embeddings(texts).cpu())
        protocol = replace(protocol, texts_of=run_data.stimulus_texts.source)
    if parsed.class_centres:
        about = test.images, test.concepts, method.gallery_feature_levels()
        centres = class_centres(parsed.class_centres, *about, run_data, display, method.vision)[:, test.image_of]
        embeddings = replace(embeddings, image=method.image_embeddings(centres).cpu())
        protocol = replace(protocol, gallery_of=CLASS_CENTRES)
    return embeddings, protocol


def scoring_of(parsed: jsonargparse.Namespace, gate: str, learnt: Reliability | None = None) -> Scoring:
    """Return the scoring of the flags; default: the gate of a run and the reliability that it learnt."""
    reliability = Reliability.parse(parsed.reliability) if parsed.reliability else learnt
    return Scoring(parsed.gate or gate, reliability, parsed.rescoring, parsed.shuffle_texts)


def score_files(parsed: jsonargparse.Namespace) -> tuple[Scores, Protocol, Statistics | None]:
    """Return scores, protocol and, with --full, statistics of embeddings in files."""
    scoring = scoring_of(parsed, "none")
    if parsed.image is None:
        raise UserError("--image is missing: the embeddings of the images, row i that of recording i")
    if scoring.gate != "none" and parsed.text is None:
        raise UserError(f"--gate {scoring.gate} compares recordings with texts; give their embeddings with --text")
    read = lambda flag: read_embeddings(flag, getattr(parsed, flag))  # noqa: E731
    brain, image = read("brain"), read("image")
    text, brain_text = (read("text"), brain) if parsed.text else (image, image)
    brain_text = read("brain_text") if parsed.brain_text else brain_text
    for flag, (one, other) in {"image": (brain, image), "text": (brain_text, text)}.items():
        expected, width = one.shape[1], other.shape[1]
        if width != expected:
            raise UserError(f"--{flag} has {width} dimensions and the brain embeddings {expected}; they must agree")
    counts = {"brain": len(brain), "image": len(image), "text": len(text), "brain_text": len(brain_text)}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"--{flag} {count}" for flag, count in counts.items())
        raise UserError(f"row i of each file belongs together, but the numbers of rows differ: {listed}")
    scores = similarity(Embeddings(brain, image, brain_text, text), scoring)
    rank = ranks(scores)
    protocol = Protocol(Path(parsed.brain).name, "not stated", gallery=len(image), **scoring.protocol())
    return score(rank), protocol, statistics_of(scores, rank) if parsed.full else None


def read_embeddings(flag: str, where: str) -> Tensor:
    """Read unit-norm float32 embeddings (N, D) from FILE or FILE:KEY."""
    tensor = read_array(flag, where, 2, f"embeddings are {SHAPES}")
    if (row := first_invalid_row(tensor)) is not None:
        raise UserError(f"--{flag} {where}: row {row} has NaN or infinite values")
    return normalize(tensor, dim=1)


def read_array(flag: str, where: str, ndim: int, expected: str) -> Tensor:
    """Read a float32 array from FILE or FILE:KEY; `expected` describes its dimensions in error messages."""
    path, key = file_and_key(where)
    content = read_arrays(path)
    if isinstance(content, dict):
        content = _entry(flag, path, key, content)
    elif key:
        raise UserError(f"--{flag} {where}: {path} holds a single array, without the entry {key!r}")
    content = as_matrix(content) if ndim == 2 else content
    if not isinstance(content, (np.ndarray, Tensor)) or content.ndim != ndim or 0 in content.shape:
        described = tuple(content.shape) if hasattr(content, "shape") else f"a {type(content).__name__}"
        raise UserError(f"--{flag} {where}: is {described}; {expected}")
    tensor = torch.as_tensor(content)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise UserError(f"--{flag} {where}: holds {tensor.dtype}; values must be real numbers")
    return tensor.float()


def _entry(flag: str, path: str, key: str, content: dict) -> np.ndarray | Tensor:
    """Return the entry of a file: of this key, or without a key the one called like the flag, or the only one."""
    if (key or flag) in content:
        return content[key or flag]
    if not key and len(content) == 1:
        return next(iter(content.values()))
    held = ", ".join(map(str, content)) or "nothing"
    raise UserError(f"--{flag} {path}: holds {held}; pick an entry with --{flag} {path}:KEY")
