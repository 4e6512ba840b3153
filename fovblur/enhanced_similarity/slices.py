"""How a top-k cuts the gallery into slices, so that few recordings keep a whole GPU busy."""

from __future__ import annotations

_MOST = 16  # slices, or rounds of blocks if that is more
_LONGER = 1.05  # how much longer than with the best number of slices a GPU may take


def slices_of(row_tiles: int, column_tiles: int, multiprocessors: int) -> int:
    """Return the number of slices.

    A block's work is a slice for a tile of recordings. A multiprocessor runs one block at a time, and the busiest one
    decides when all are done. Of the numbers that take at most 5 % longer than the best one, the lowest is returned,
    because every slice keeps k images of its own.

    Args:
        row_tiles: tiles of recordings.
        column_tiles: tiles of images.
        multiprocessors: blocks that run at once.
    """
    most = min(column_tiles, max(_MOST, _MOST * multiprocessors // row_tiles))
    tiles = [-(-row_tiles * slices // multiprocessors) * -(-column_tiles // slices) for slices in range(1, most + 1)]
    return next(slices for slices, longest in enumerate(tiles, 1) if longest <= _LONGER * min(tiles))
