"""The feature bank: features of every image at fixed blur levels, computed once for all subjects, methods and seeds.

    FOLDER/<key>/k51_gain0.5.safetensors     one file a level, (images, D) float32
    FOLDER/<key>/texts_<key>.safetensors     features of texts
    FOLDER/<key>/about.json                  what the key stands for

The key is a hash of everything that shapes a feature, so that a bank is never stale: another encoder, image or blur is
another key. Every file carries key and checksum, which are verified when it is read. Any number of processes, also of
several machines, may fill a bank at once, and any of them may be killed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bvsa_core.errors import UserError
from bvsa_core.io.atomic import claim_work, write_atomically
from bvsa_core.progress import Progress, no_progress
from bvsa_core.vision.clip import Clip
from bvsa_core.vision.feature_file import map_features, write_features
from bvsa_core.vision.images import RESIZING, hash_files, read_images
from bvsa_core.vision.shards import Shards
from bvsa_core.vision.views import Falloff, Level, OnlineViews

FORMAT = 2  # of the files, and of what the blur computes; part of every key
ABOUT = "about.json"


class FeatureBank:
    """Features of a list of images, kept in a folder.

    Args:
        folder: where banks are, each in a folder named by its key; or the folder of one bank, which must be this one.

    Raises:
        UserError: an image is missing, or the bank in the folder is of other features.
    """

    def __init__(self, folder: str | Path, clip: Clip, paths: Sequence[Path], falloff: Falloff = Falloff()):
        self.clip, self.paths, self.falloff = clip, list(paths), falloff
        about = {**fingerprint(clip, falloff), "pictures": len(self.paths), "pictures_sha256": hash_files(self.paths)}
        self.key = _key(about)
        self.folder = Path(folder) if (Path(folder) / ABOUT).is_file() else Path(folder) / self.key
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / ABOUT).is_file():
            with claim_work(self.folder, ABOUT, ABOUT, wait=True):
                write_atomically(self.folder / ABOUT, json.dumps(about, indent=2).encode() + b"\n")
        _compare(self.folder, about, "name the folder it is in, where every bank has its own, or delete it")
        self._pieces = Shards(self.folder, self.key, len(self.paths))

    def missing(self, levels: Sequence[Level]) -> list[Level]:
        """Levels not computed yet."""
        return [level for level in dict.fromkeys(levels) if not self.path(level).exists()]

    def fill(self, levels: Sequence[Level], progress: Progress = no_progress, batch_size: int | None = None) -> None:
        """Compute the levels that are missing, together with all who do the same.

        Left out, batch_size is 256 on a GPU, and on the CPU 32, whose results an allocator can still reuse.

        Raises:
            UserError: naming an image that is missing or damaged.
        """
        targets = {self.path(level): level for level in levels}
        missing = [path for path in targets if not path.exists()]
        batch_size = batch_size or (32 if self.clip.device.type == "cpu" else 256)
        total = len(missing) * len(self.paths)

        def compute(number: int, lacking: list[Path]) -> None:
            done = self._pieces.finished(missing)
            images = read_images(self.paths[self._pieces.slices[number]], self.clip.image_size)
            views = OnlineViews(self.clip, images, self.falloff)
            for path in lacking:
                features = []
                for batch in torch.arange(len(images)).split(batch_size):
                    progress("features", done, total)
                    gain = torch.full((len(batch),), targets[path].gain)
                    kernel_size = torch.full((len(batch),), targets[path].kernel_size)
                    features.append(views(batch, gain, kernel_size).cpu())
                    done += len(batch)
                self._pieces.add(path, number, torch.cat(features))

        with _full_precision():
            self._pieces.share(missing, compute)
        for path in targets:
            self._pieces.merge_shards(path)
        if missing:
            progress("features", total, total)

    def load(self, levels: Sequence[Level]) -> Tensor:
        """Features (levels, images, D) float32.

        Raises:
            UserError: as `files`.
        """
        return torch.stack([map_features(path, len(self.paths), self.key) for path in self.files(levels)])

    def files(self, levels: Sequence[Level]) -> list[Path]:
        """The files of levels, once it is sure that they are sound.

        Raises:
            UserError: one of them is missing, damaged, altered or of something else.
        """
        return _sound([self.path(level) for level in levels], len(self.paths), self.key)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm features (texts, D) float32, computed at the first call."""
        return map_features(self.texts_path(texts), len(texts), self.key).clone()

    def texts_path(self, texts: Sequence[str]) -> Path:
        """The file of these texts' features, made where it is missing, and sound.

        Raises:
            UserError: it is damaged, altered or of something else.
        """
        path = self.folder / f"texts_{_key(list(texts))}.safetensors"
        if not path.exists():
            with claim_work(self.folder, path.name, path.name, wait=True):
                if not path.exists():
                    write_features(path, [self._encode(texts)], len(texts), self.key)
        map_features(path, len(texts), self.key)
        return path

    def _encode(self, texts: Sequence[str]) -> Tensor:
        number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        with _full_precision():
            return self.clip.encode_texts(list(number))[[number[text] for text in texts]].cpu()

    def path(self, level: Level) -> Path:
        """The file of a level."""
        return self.folder / _file_name(level)


def level_files(folder: Path, levels: Sequence[Level], clip: Clip, falloff: Falloff = Falloff()) -> list[Path]:
    """The files of levels in a bank of whatever images, once it is sure that they are sound, and of this encoder and blur.

    Raises:
        UserError: they are of another encoder or blur, missing or damaged.
    """
    about = _compare(folder, fingerprint(clip, falloff), "give a bank made with these settings")
    return _sound([folder / _file_name(level) for level in levels], about.get("pictures", -1), _key(about))


def _sound(paths: list[Path], rows: int, bank: str) -> list[Path]:
    with ThreadPoolExecutor() as pool:  # checksums take as long as reading the files
        list(pool.map(lambda path: map_features(path, rows, bank), paths))
    return paths


def fingerprint(clip: Clip, falloff: Falloff) -> dict[str, Any]:
    """All that shapes a feature beside the image and the level."""
    return {
        "format": FORMAT,
        "encoder": clip.name,
        "encoder_sha256": clip.fingerprint,
        "image_size": clip.image_size,
        "mean": list(clip.mean),
        "std": list(clip.std),
        "resizing": RESIZING.name.lower(),
        "falloff": asdict(falloff),
    }


def _compare(folder: Path, asked: dict[str, Any], remedy: str) -> dict[str, Any]:
    """What about.json says of a bank, once it is sure that it says what is asked for.

    Raises:
        UserError: it is damaged, or something differs.
    """
    try:
        about = json.loads((folder / ABOUT).read_text())
        found = {name: about.get(name) for name in asked}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{folder / ABOUT}: damaged; delete the folder, and its features are computed again") from error
    if differing := [name for name in asked if found[name] != asked[name]]:
        differing = ["format"] if "format" in differing else differing  # which tells of an earlier version
        told = ", ".join(f"{name} is {_short(found[name])}, not {_short(asked[name])}" for name in differing)
        raise UserError(f"{folder}: features of something else than asked for ({told}); {remedy}")
    return about


def _short(value: object) -> str:
    return value[:8] if isinstance(value, str) and len(value) == 64 else "unknown" if value is None else str(value)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Inside, float32 products are those of float32 on every device: what is kept is not shaped by what is allowed for speed."""
    cudnn, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = cudnn
        torch.set_float32_matmul_precision(products)


def _file_name(level: Level) -> str:
    gain = f"{level.gain:g}"
    return f"k{level.kernel_size}_gain{gain if float(gain) == level.gain else repr(level.gain)}.safetensors"


def _key(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
