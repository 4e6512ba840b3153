"""Draw docs/retinal_blur.png, one scene at growing eccentricity: python scripts/retinal_figure.py"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from readme_figure import CAPTION, FOOTER, GAP, SIDE, scene

import fovblur

OUTPUT = Path(__file__).parents[1] / "docs" / "retinal_blur.png"
PIXELS_PER_DEGREE = 40
ECCENTRICITIES = (0, 10, 20, 40, 60)  # degrees, of the middle of each copy of the scene


def main() -> None:
    """Blur a wide image that has a copy of the scene at each eccentricity, and draw the copies side by side."""
    lefts = [PIXELS_PER_DEGREE * degrees for degrees in ECCENTRICITIES]
    wide = torch.full((1, 3, SIDE, lefts[-1] + SIDE), 255, dtype=torch.uint8)
    for left in lefts:
        wide[..., left : left + SIDE] = scene()
    blurred = fovblur.retinal_blur(wide, (SIDE / 2, SIDE / 2), pixels_per_degree=PIXELS_PER_DEGREE)[0]
    size = (len(lefts) * (SIDE + GAP) + GAP, SIDE + CAPTION + GAP + FOOTER)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for i, (left, degrees) in enumerate(zip(lefts, ECCENTRICITIES)):
        place = GAP + i * (SIDE + GAP)
        sheet.paste(Image.fromarray(blurred[..., left : left + SIDE].permute(1, 2, 0).numpy()), (place, GAP))
        caption = f"{degrees} degrees" if degrees else "at the fixation"
        draw.text((place + SIDE // 2, GAP + SIDE + 5), caption, fill="black", font=font, anchor="ma")
    footer = f"All from one call: a display with {PIXELS_PER_DEGREE} pixels per degree, cut out at five eccentricities."
    draw.text((GAP, sheet.height - FOOTER - 2), footer, fill="#555555", font=ImageFont.load_default(size=13))
    sheet.save(OUTPUT, optimize=True)


if __name__ == "__main__":
    main()
