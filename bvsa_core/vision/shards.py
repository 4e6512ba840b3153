"""Features of a bank's images in shards, which tasks compute one by one.

    BANK/k51_gain0.5.00003-of-00065.safetensors      features of a shard, until all of a level are merged

Shards do not depend on who computes them, and are written atomically: processes that compute the same one write the
same bytes. A process that dies takes with it the shard it was at; all that are finished stay.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import Tensor

from bvsa_core.errors import UserError
from bvsa_core.io.atomic import PARTIAL
from bvsa_core.vision.feature_file import map_features, write_features

IMAGES = 256  # of a shard


class Shards:
    """The shards of a bank.

    Args:
        folder: of the bank.
        bank: its key.
        count: of its images.
    """

    def __init__(self, folder: Path, bank: str, count: int):
        self.folder, self.bank, self.count = folder, bank, count
        self.slices = [slice(start, min(start + IMAGES, count)) for start in range(0, count, IMAGES)]

    def path(self, target: Path, number: int) -> Path:
        """Return the file of a shard of `target`."""
        return target.with_name(f"{target.stem}.{number:05d}-of-{len(self.slices):05d}{target.suffix}")

    def missing(self, number: int, targets: Iterable[Path]) -> list[Path]:
        """Return the targets of which a shard is still to be computed."""
        # In this order: shards are deleted once their target is there.
        return [target for target in targets if not self.path(target, number).exists() and not target.exists()]

    def done_count(self, targets: Sequence[Path]) -> int:
        """Return how many features of the targets are on disk."""
        names = set(os.listdir(self.folder))
        return sum(
            piece.stop - piece.start
            for target in targets
            for number, piece in enumerate(self.slices)
            if target.name in names or self.path(target, number).name in names
        )

    def add(self, target: Path, number: int, features: Tensor) -> None:
        """Write the features of a shard."""
        path = self.path(target, number)
        write_shared(path, lambda: write_features(path, [features], len(features), self.bank), target)

    def merge(self, target: Path) -> None:
        """Make one file of the shards of a target, unless another process has, and delete them."""

        def write() -> None:
            sizes = [piece.stop - piece.start for piece in self.slices]
            parts = (map_features(self.path(target, number), size, self.bank) for number, size in enumerate(sizes))
            write_features(target, parts, self.count, self.bank)

        if not target.exists():
            write_shared(target, write)
        any_shard = f"{target.stem}.?????-of-{len(self.slices):05d}{target.suffix}"
        for path in [*self.folder.glob(any_shard), *self.folder.glob(f".{any_shard}.*{PARTIAL}")]:
            path.unlink(missing_ok=True)


def write_shared(path: Path, write: Callable[[], None], instead: Path | None = None) -> None:
    """Write a file that others may write at the same time with the same bytes; delete what killed processes left.

    Args:
        instead: file that makes this one unnecessary.

    Raises:
        UserError: it cannot be written, and nobody else has written it.
    """
    try:
        write()
    except UserError:  # another process has written it, and deleted our temporary file
        if not path.exists() and not (instead and instead.exists()):
            raise
    for partial in path.parent.glob(f".{path.name}.*{PARTIAL}"):
        partial.unlink(missing_ok=True)
