"""Run random calls of both ops on the CUDA kernels in the PTX interpreter, against the float64 reference.

    make ptx-fuzz SEED=0 SECONDS=600

Prints the calls that fail, with the seed that repeats each. Needs nvcc.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support")]

import pytest  # noqa: E402
import torch  # noqa: E402
from ptx import device as ptx_device  # noqa: E402
from ptx_cases import BFLOAT16, FLOAT, HALF, LAYOUTS, UINT8, Blur, Similarity, serve  # noqa: E402
from similarity_under_test import LAYOUTS as EMBEDDING_LAYOUTS  # noqa: E402

from fovblur.foveated_blur.validation import FALLOFFS  # noqa: E402

CARDS = (ptx_device.RTX_3080, ptx_device.A100, ptx_device.H100)


def random_blur(rng: random.Random) -> Blur:
    batch, channels = rng.choice([(1, 1), (2, 1), (1, 3), (2, 2)])
    height, width = rng.choice([1, 3, 16, 17, 33, 40, 70]), rng.choice([1, 5, 8, 17, 64, 65, 72, 90, 130])
    source = rng.choice([UINT8, HALF, BFLOAT16, FLOAT])
    return Blur(
        (batch, channels, height, width),
        tuple(rng.choice([1, 3, 9, 31, 33, 51, 67, 101, 127, 129, 131, 203]) for _ in range(batch)),
        source,
        rng.choice([HALF, BFLOAT16, FLOAT, *([UINT8] if source == UINT8 else [])]),
        rng.choice(list(LAYOUTS)),
        tf32=rng.random() < 0.4,
        non_finite=source != UINT8 and rng.random() < 0.2,
        falloff=rng.choice(FALLOFFS),
        sigma=tuple(rng.choice([0.0, 0.4, 3.0, 9.0, 20.0]) for _ in range(batch)) if rng.random() < 0.5 else (),
    )


def random_similarity(rng: random.Random) -> Similarity:
    images = rng.choice([1, 7, 129, 140, 260])
    return Similarity(
        (rng.choice([1, 5, 65, 130]), images, rng.choice([0, 5, 16, 33, 64, 130]), rng.choice([0, 8, 24, 33])),
        rng.choice([HALF, BFLOAT16, FLOAT]),
        rng.choice(list(EMBEDDING_LAYOUTS)),
        tf32=rng.random() < 0.5,
        gates=rng.random() < 0.7,
        k=min(images, rng.choice([1, 10, 33, 70, 128, 150])),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the first call; later calls count up")
    parser.add_argument("--seconds", type=float, default=600, help="no call starts later than this")
    chosen = parser.parse_args()
    if ptx_device.nvcc() is None:
        parser.error("nvcc is not on PATH; install the CUDA toolkit")
    failed, seed = 0, chosen.seed
    with tempfile.TemporaryDirectory() as folder:
        module = ptx_device.build(Path(folder))
        end = time.monotonic() + chosen.seconds
        while seed == chosen.seed or time.monotonic() < end:
            rng = random.Random(seed)
            torch.manual_seed(seed)
            case, card = rng.choice([random_blur, random_similarity])(rng), rng.choice(CARDS)
            with pytest.MonkeyPatch.context() as patch:
                serve(ptx_device.Device(module, card), patch)
                try:
                    case.check(case.run())
                except Exception as error:
                    failed += 1
                    print(f"SEED={seed}, {card.architecture}, {case}: {type(error).__name__}: {error}", flush=True)
            seed += 1
    print(f"{seed - chosen.seed} calls, seeds {chosen.seed} to {seed - 1}, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
