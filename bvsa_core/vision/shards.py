"""A bank's images in pieces, which processes share out without knowing of one another.

    BANK/k51_gain0.5.00003-of-00065.safetensors      features of a piece, until all of a level are put together

Pieces are the same whatever the number of processes, and what is computed of one does not depend on who computes it.
A process that dies takes with it the piece it was at; all that are finished stay.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from bvsa_core.errors import UserError
from bvsa_core.io.atomic import claim_work
from bvsa_core.vision.feature_file import map_features, write_features

IMAGES = 256  # of a piece
WAIT = 0.2  # seconds between looks at what others are doing


class Shards:
    """The pieces of a bank.

    Args:
        folder: of the bank.
        bank: its key.
        count: of its images.
    """

    def __init__(self, folder: Path, bank: str, count: int):
        self.folder, self.bank, self.count = folder, bank, count
        self.slices = [slice(start, min(start + IMAGES, count)) for start in range(0, count, IMAGES)]

    def path(self, target: Path, number: int | str) -> Path:
        """The file of a piece of what will be in `target`."""
        number = number if isinstance(number, str) else f"{number:05d}"
        return target.with_name(f"{target.stem}.{number}-of-{len(self.slices):05d}{target.suffix}")

    def lacking(self, number: int, targets: Sequence[Path]) -> list[Path]:
        """Of which targets a piece is still to be computed."""
        # In this order: pieces are deleted once their target is there.
        return [target for target in targets if not self.path(target, number).exists() and not target.exists()]

    def finished(self, targets: Sequence[Path]) -> int:
        """Features of the targets that are on disk, by whomever."""
        names = set(os.listdir(self.folder))
        return sum(
            piece.stop - piece.start
            for target in targets
            for number, piece in enumerate(self.slices)
            if target.name in names or self.path(target, number).name in names
        )

    def add(self, target: Path, number: int, features: Tensor) -> None:
        """Keep the features of a piece."""
        write_features(self.path(target, number), [features], len(features), self.bank)

    def share(self, targets: Sequence[Path], work: Callable[[int, list[Path]], None]) -> None:
        """Return when every piece of all targets is computed: by `work`, or by other processes that are at it.

        Each process of torch.distributed begins at a part of its own, so that few meet.
        """
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        first = rank * len(self.slices) // world
        todo = [*range(first, len(self.slices)), *range(first)]
        while todo := [number for number in todo if self.lacking(number, targets)]:
            idle = True
            for number in todo:
                with claim_work(self.folder, f"piece {number}", self.path(Path("*.safetensors"), number).name) as ours:
                    if ours and (lacking := self.lacking(number, targets)):
                        work(number, lacking)
                    idle = idle and not ours
            if idle:
                time.sleep(WAIT)

    def merge_shards(self, target: Path) -> None:
        """Make one file of the pieces of a target, unless somebody has, and delete them."""
        any_piece = self.path(target, "[0-9]" * 5).name
        if target.exists() and not any(self.folder.glob(any_piece)):
            return
        with claim_work(self.folder, target.name, target.name, wait=True):
            if not target.exists():
                sizes = [piece.stop - piece.start for piece in self.slices]
                parts = (map_features(self.path(target, number), size, self.bank) for number, size in enumerate(sizes))
                try:
                    write_features(target, parts, self.count, self.bank)
                except UserError:  # where claims cannot be had, another may have done it, and deleted the pieces
                    if not target.exists():
                        raise
            for piece in self.folder.glob(any_piece):
                piece.unlink(missing_ok=True)
