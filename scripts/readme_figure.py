"""Draw docs/foveated_blur.png, the figure that opens the README: python scripts/readme_figure.py"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import resvg_py
import torch
from PIL import Image, ImageDraw, ImageFont

import fovblur
from bvsa_core.synthetic.openmoji import concepts

OUTPUT = Path(__file__).parents[1] / "docs" / "foveated_blur.png"
SIDE, GAP, CAPTION, FOOTER, COLUMNS = 224, 8, 30, 24, 4  # pixels; panels per row
DECAY = 8.0  # of the sharpness with distance from the fixation; the default of 3 keeps more of the surround sharp
CENTRE = (SIDE // 2, SIDE // 2)
PANELS = (  # sigma, gain, fixation (y, x)
    (0, 1, CENTRE),
    (4, 1, CENTRE),
    (8, 1, CENTRE),
    (16, 1, CENTRE),
    (8, 0, CENTRE),
    (8, 0.5, CENTRE),
    (8, 1, (37, 37)),
    (8, 1, (186, 37)),
)
OBJECTS = "octopus steam_locomotive sunflower peacock tiger bicycle strawberry sailboat parrot".split()
GROUNDS = ("#f6e7c8", "#cfe3ee", "#d9ead3")


def scene() -> torch.Tensor:
    """Return nine objects on a grid, (1, 3, SIDE, SIDE) uint8: detail everywhere shows the blur everywhere."""
    svg = {concept.name: concept.svg for concept in concepts()}
    tile = SIDE // 3 + 1
    image = Image.new("RGB", (3 * tile, 3 * tile))
    for i, name in enumerate(OBJECTS):
        row, column = divmod(i, 3)
        ground = Image.new("RGBA", (tile, tile), GROUNDS[(row + column) % 3])
        drawing = Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_path=svg[name], width=tile))).convert("RGBA")
        ground.alpha_composite(drawing)
        image.paste(ground.convert("RGB"), (column * tile, row * tile))
    return torch.from_numpy(np.array(image.crop((0, 0, SIDE, SIDE)))).permute(2, 0, 1)[None]


def draw_fixation(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    """Draw a white cross with a black outline at the fixation."""
    for colour, width, arm in (("black", 5, 11), ("white", 2, 9)):
        draw.line((x - arm, y, x + arm, y), fill=colour, width=width)
        draw.line((x, y - arm, x, y + arm), fill=colour, width=width)


def main() -> None:
    """Blur the scene eight ways in one call, and draw the outputs with their fixations."""
    sigma, gain, fixation = (torch.tensor(values, dtype=torch.float32) for values in zip(*PANELS))
    images = scene().expand(len(PANELS), -1, -1, -1)
    outputs = fovblur.foveated_blur(images, sigma, gain=gain, fixation=fixation, decay=DECAY)
    rows = len(PANELS) // COLUMNS
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + CAPTION) + GAP + FOOTER), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for i, (output, (sigma, gain, (y, x))) in enumerate(zip(outputs, PANELS)):
        left, top = GAP + i % COLUMNS * (SIDE + GAP), GAP + i // COLUMNS * (SIDE + CAPTION)
        sheet.paste(Image.fromarray(output.permute(1, 2, 0).numpy()), (left, top))
        draw_fixation(draw, left + x, top + y)
        at = "" if (y, x) == CENTRE else f", fixation ({y}, {x})"
        caption = f"sigma {sigma}, gain {gain}{at}" if sigma else "sigma 0: the original"
        draw.text((left + SIDE // 2, top + SIDE + 5), caption, fill="black", font=font, anchor="ma")
    footer = f"The cross marks the fixation. Decay of the sharpness: {DECAY:g}. All eight images come from one call."
    draw.text((GAP, sheet.height - FOOTER - 2), footer, fill="#555555", font=ImageFont.load_default(size=13))
    OUTPUT.parent.mkdir(exist_ok=True)
    sheet.save(OUTPUT, optimize=True)


if __name__ == "__main__":
    main()
