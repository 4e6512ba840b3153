"""Slices of the gallery: how busy they keep the multiprocessors of any GPU."""

import random

import pytest

from fovblur.enhanced_similarity.slices import slices_of

MULTIPROCESSORS = (1, 3, 20, 46, 68, 82, 84, 108, 114, 132, 144)


def longest(row_tiles: int, column_tiles: int, multiprocessors: int, slices: int) -> int:
    """Return the tiles of the busiest multiprocessor if blocks are dealt out in turn, the longer slices first."""
    tiles = [0] * multiprocessors
    for block in range(row_tiles * slices):
        tiles[block % multiprocessors] += -(-(column_tiles - block // row_tiles) // slices)
    return max(tiles)


@pytest.mark.parametrize("multiprocessors", MULTIPROCESSORS)
def test_no_number_of_slices_is_a_fifth_faster(multiprocessors, seed):
    chance = random.Random(seed)
    for _ in range(20):
        row_tiles, column_tiles = chance.choice([chance.randint(1, 9), chance.randint(1, 300)]), chance.randint(1, 60)
        sizes = row_tiles, column_tiles, multiprocessors
        slices = slices_of(*sizes)
        assert 1 <= slices <= column_tiles
        best = min(longest(*sizes, other) for other in range(1, column_tiles + 1))
        assert longest(*sizes, slices) <= 1.2 * best, sizes


def test_a_long_gallery_keeps_every_multiprocessor_busy():
    for multiprocessors in MULTIPROCESSORS:
        for row_tiles in range(1, 1000):
            sizes = row_tiles, 10_000, multiprocessors
            slices = slices_of(*sizes)
            rounds = -(-row_tiles * slices // multiprocessors)
            busy = row_tiles * 10_000 / (multiprocessors * rounds * -(-10_000 // slices))
            assert busy >= 0.9, sizes


def test_known_cards():
    """The last round of 15 slices of eight tiles of recordings would leave 12 of an H100's 132 multiprocessors idle."""
    assert slices_of(8, 7813, 132) == 16 and slices_of(8, 7813, 68) == 17
    assert slices_of(1, 1, 132) == slices_of(500, 1, 132) == 1
