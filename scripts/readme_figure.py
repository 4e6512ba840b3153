"""Draw docs/foveated_blur.png, the row of real outputs that opens the README: python scripts/readme_figure.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import fovblur
from bvsa_core.synthetic.openmoji import concepts, render

OUTPUT = Path(__file__).parents[1] / "docs" / "foveated_blur.png"
SIDE, GAP, CAPTION = 224, 8, 34  # pixels
SHOWN = ("octopus", "steam_locomotive", "sunflower", "peacock", "violin", "bicycle", "strawberry", "owl", "watch")


def scene() -> torch.Tensor:
    """Nine images on a grid, (1, 3, SIDE, SIDE) uint8: detail everywhere, so that acuity shows everywhere."""
    by_name = {concept.name: concept for concept in concepts()}
    third = SIDE // 3 + 1
    grid = Image.new("RGB", (3 * third, 3 * third))
    for i, name in enumerate(SHOWN):
        tile = Image.fromarray(render(by_name[name], np.random.default_rng(i), SIDE)).resize(
            (third, third), Image.Resampling.LANCZOS
        )
        grid.paste(tile, (i % 3 * third, i // 3 * third))
    return torch.from_numpy(np.array(grid.resize((SIDE, SIDE), Image.Resampling.LANCZOS))).permute(2, 0, 1)[None]


def main() -> None:
    image = scene()
    centre = (SIDE // 2, SIDE // 2)
    # (caption, sigma, gain, fixation): one call blurs them all, each in its own way
    panels = [
        ("original", 0.0, 0.0, centre),
        ("sigma 8, gain 0", 8.0, 0.0, centre),
        ("sigma 8, gain 0.5", 8.0, 0.5, centre),
        ("sigma 8, gain 1", 8.0, 1.0, centre),
        ("sigma 2, gain 1", 2.0, 1.0, centre),
        ("sigma 4, gain 1", 4.0, 1.0, centre),
        ("sigma 16, gain 1", 16.0, 1.0, centre),
        ("sigma 8, gain 1, fixation (40, 40)", 8.0, 1.0, (40, 40)),
    ]
    captions, sigma, gain, fixation = zip(*panels)
    images = image.expand(len(panels), -1, -1, -1)
    fixation = torch.tensor(fixation, dtype=torch.float32)
    outputs = fovblur.foveated_blur(images, torch.tensor(sigma), gain=torch.tensor(gain), fixation=fixation)
    columns = 4
    rows = len(panels) // columns
    sheet = Image.new("RGB", (columns * (SIDE + GAP) + GAP, rows * (SIDE + CAPTION) + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for i, caption in enumerate(captions):
        left, top = GAP + i % columns * (SIDE + GAP), GAP + i // columns * (SIDE + CAPTION)
        sheet.paste(Image.fromarray(outputs[i].permute(1, 2, 0).numpy()), (left, top))
        draw.text((left + SIDE // 2, top + SIDE + 6), caption, fill="black", font=font, anchor="ma")
    OUTPUT.parent.mkdir(exist_ok=True)
    sheet.save(OUTPUT, optimize=True)


if __name__ == "__main__":
    main()
