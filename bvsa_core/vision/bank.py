"""The feature bank: features of every picture at fixed blur levels, computed once for all subjects, methods and seeds.

    FOLDER/<key>/k51_gain0.5.safetensors     one file a level, (pictures, D) float32
    FOLDER/<key>/texts_<key>.safetensors     features of texts
    FOLDER/<key>/about.json                  what the key stands for

The key is a hash of everything that shapes a feature, so that a bank is never stale: another encoder, picture or blur is
another key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from bvsa_core.data.recording import read_arrays
from bvsa_core.errors import UserError
from bvsa_core.files import write_atomically
from bvsa_core.vision.clip import Clip
from bvsa_core.vision.images import hash_files, read_images
from bvsa_core.vision.views import Falloff, Level, OnlineViews

FORMAT = 1  # of the files; part of every key
ABOUT = "about.json"
Progress = Callable[[int, int], None]


class FeatureBank:
    """Features of a list of pictures, kept in a folder."""

    def __init__(self, folder: str | Path, clip: Clip, paths: Sequence[Path], falloff: Falloff = Falloff()):
        self.clip, self.paths, self.falloff = clip, list(paths), falloff
        about = {
            "format": FORMAT,
            "encoder": clip.name,
            "encoder_sha256": clip.fingerprint,
            "pictures": len(self.paths),
            "pictures_sha256": hash_files(self.paths),
            "image_size": clip.image_size,
            "falloff": asdict(falloff),
        }
        self.folder = Path(folder) / _key(about)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / ABOUT).exists():
            write_atomically(self.folder / ABOUT, json.dumps(about, indent=2).encode() + b"\n")

    def missing(self, levels: Sequence[Level]) -> list[Level]:
        """Levels not computed yet."""
        return [level for level in dict.fromkeys(levels) if not self.path(level).exists()]

    def fill(self, levels: Sequence[Level], progress: Progress = lambda *_: None, batch_size: int | None = None) -> None:
        """Compute the levels that are missing; progress hears of (features done, features in all).

        Left out, batch_size is 256 on a GPU, and on the CPU 32, whose results an allocator can still reuse.

        Raises:
            UserError: naming a picture that is missing or damaged.
        """
        missing = self.missing(levels)
        if not missing:
            return
        batch_size = batch_size or (32 if self.clip.device.type == "cpu" else 256)
        features = {level: [] for level in missing}
        total = len(missing) * len(self.paths)
        for start in range(0, len(self.paths), batch_size):
            images = read_images(self.paths[start : start + batch_size], self.clip.image_size)
            views = OnlineViews(self.clip, images, self.falloff, batch_size)
            everything = torch.arange(len(images))
            for done, level in enumerate(missing):
                progress(start * len(missing) + done * len(images), total)
                gain = torch.full((len(images),), level.gain)
                kernel_size = torch.full((len(images),), level.kernel_size)
                features[level].append(views(everything, gain, kernel_size).cpu())
        for level, parts in features.items():
            write_atomically(self.path(level), safetensors.torch.save({"features": torch.cat(parts)}))
        progress(total, total)

    def load(self, levels: Sequence[Level]) -> Tensor:
        """Features (levels, pictures, D) float32.

        Raises:
            UserError: a level is missing or its file is damaged.
        """
        return torch.stack([self._load(self.path(level), len(self.paths)) for level in levels])

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm features (texts, D) float32, computed at the first call."""
        return self._load(self.texts_path(texts), len(texts))

    def texts_path(self, texts: Sequence[str]) -> Path:
        """The file of these texts' features, made where it is missing."""
        path = self.folder / f"texts_{_key(list(texts))}.safetensors"
        if not path.exists():
            number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
            features = self.clip.encode_texts(list(number))[[number[text] for text in texts]]
            write_atomically(path, safetensors.torch.save({"features": features.cpu().clone()}))
        return path

    def path(self, level: Level) -> Path:
        """The file of a level."""
        return self.folder / file_name(level)

    def _load(self, path: Path, rows: int) -> Tensor:
        features = read_arrays(path).get("features")
        if features is None or features.ndim != 2 or len(features) != rows:
            raise UserError(f"{path}: not the features of {rows} items; delete it, and it is computed again")
        return features


def file_name(level: Level) -> str:
    """The file of a level in a bank's folder."""
    return f"k{level.kernel_size}_gain{level.gain:g}.safetensors"


def bank_made_by(folder: Path, clip: Clip) -> Path:
    """The folder of a bank, once it is sure that this encoder made it.

    Raises:
        UserError: another encoder did, or about.json is damaged.
    """
    try:
        about = json.loads((folder / ABOUT).read_text())
        encoder, sha256 = about["encoder"], about["encoder_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / ABOUT}: damaged; delete the folder, and its features are computed again") from error
    if sha256 != clip.fingerprint:
        raise UserError(f"{folder}: features by {encoder}; the run compares with those of {clip.name}")
    return folder


def _key(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
