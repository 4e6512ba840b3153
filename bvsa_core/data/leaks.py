"""Leaks: concepts and images that two parts of a data set share, so that a score of one is no test."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from bvsa_core.data.dataset import Dataset
from bvsa_core.data.split import fold_concept
from bvsa_core.data.store import sha256_of
from bvsa_core.errors import first_few

Shown = tuple[tuple[str, str], ...]  # image and concept


def shared_concepts(known: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return the concepts of `others` that are among the known ones, see `fold_concept`."""
    folded = set(map(fold_concept, known))
    return sorted({concept for concept in others if fold_concept(concept) in folded})


def shared_images(known: Iterable[Path], others: Iterable[Path]) -> list[Path]:
    """Return the files of `others` that are among the known ones, by path or by content."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in set(known):
        by_size[path.stat().st_size].append(path)
    shared = []
    for path in sorted(set(others)):
        alike = by_size[path.stat().st_size]  # only files of equal size are read
        if path in alike or (alike and sha256_of(path) in map(sha256_of, alike)):
            shared.append(path)
    return shared


def find_leak(
    dataset: Dataset,
    train: Shown,
    held_out: Shown,
    test: Shown,
    shared: Callable[[set[str], set[str]], list[str]] | None = None,
) -> str | None:
    """Return what the training data have of the test set or of the held-out data; None if nothing.

    Args:
        dataset: has the images.
        train: image and concept of everything trained on, as `Split.shown` returns them.
        held_out: of what is held out of the training data, if anything is.
        test: of the test set.
        shared: returns which of some images are among known ones; default: those whose files are equal.

    Raises:
        UserError: an image is missing.
    """
    leaks = []
    for name, seen, others in (("the test set", train + held_out, test), ("the held-out data", train, held_out)):
        concepts = shared_concepts(*((concept for _, concept in each) for each in (seen, others)))
        known, compared = ({image for image, _ in each} for each in (seen, others))
        if shared is None:
            paths = shared_images(*(map(dataset.image_path, each) for each in (known, compared)))
            images = [path.name for path in paths]
        else:
            images = shared(known, compared)
        found = {"concept(s)": concepts, "image(s)": images}
        if parts := [f"{len(names)} {kind} ({first_few(names)})" for kind, names in found.items() if names]:
            leaks.append(f"{' and '.join(parts)} of {name}")
    return f"the training data have {', and '.join(leaks)}" if leaks else None
