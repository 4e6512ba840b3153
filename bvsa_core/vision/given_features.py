"""Features of a user's own, read from files, in place of an image encoder: no image is then needed.

A file is .npy, .npz, .pt or .safetensors and has an array (N, D) or (N, layers, D), or one vector an image by its name:

    array                                  rows in the order of --features_images, else of the data set
    {"features": array, "images": names}   names are optional
    {"img_features": array or vectors by name, ...}   as ATM-S and UBP keep theirs
    {name of an image: vector, ...}

An array (concepts, images of each, D) is the same as (N, D).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bvsa_core.data.store import sha256_of
from bvsa_core.errors import UserError, first_few
from bvsa_core.io.safe_readers import read_arrays
from bvsa_core.io.text_files import read_text
from bvsa_core.retrieval.gallery import rows_of
from bvsa_core.vision.encoder import VisionEncoder
from bvsa_core.vision.layers import OUTPUT
from bvsa_core.vision.views import SHARP, BankedViews, Level

NAMES = ("images", "names", "image_names", "paths")  # keys under which a file names the images of its rows


@dataclass(frozen=True)
class GivenFeatures(VisionEncoder):
    """Features of images by name, in place of an image encoder. Its layers are those of the array, not normalised.

    The output, which an array of one layer has, is that layer with unit norm.
    """

    features: Tensor = field(kw_only=True, repr=False)  # (N, layers, D)
    rows: dict[str, int] = field(kw_only=True, repr=False)  # by name of the image

    @property
    def device(self) -> torch.device:
        """Device of the features."""
        return self.features.device

    @property
    def layer_count(self) -> int:
        """Number of layers."""
        return self.features.shape[1]

    @property
    def has_output(self) -> bool:
        """Whether there is a single layer, which is the output, too."""
        return self.layer_count == 1

    def widths(self) -> list[int]:
        """Return the widths of the parts of a feature."""
        return [self.features.shape[2]] * len(self.layers)

    def with_layers(self, layers: Sequence[str]) -> GivenFeatures:
        """Return the same features with these parts; see `VisionEncoder`."""
        chosen = super().with_layers(layers)
        assert isinstance(chosen, GivenFeatures)
        known = f"they have {self.layer_count} layers; choose --target layer:L or layers:[0,1,...]"
        if OUTPUT in chosen.layers and not self.has_output:
            raise UserError(f"{self.name}: no output, which the target names; {known}")
        if pooled := [part for part in chosen.layers if "." in part]:
            raise UserError(f"{self.name}: no tokens, which the target names with {pooled[0]}; {known}")
        return chosen

    def views(self, images: Sequence[str], levels: Sequence[Level], device: torch.device) -> BankedViews:
        """Return the features of images, which are those of sharp ones.

        Raises:
            UserError: the levels are of blurred images, or the file lacks an image.
        """
        if blurred := [level for level in levels if level.kernel_size != SHARP.kernel_size]:
            problem = f"the method sees images at {len(blurred)} blur level(s)"
            remedy = "choose a method of sharp images, such as vanilla or nice, or an image encoder with --vision"
            raise UserError(f"{self.name} are of no blur level, and {problem}; {remedy}")
        return BankedViews(self.of(images)[None].to(device), [SHARP], self.widths())

    def of(self, images: Sequence[str]) -> Tensor:
        """Return the features (images, sum of widths) float32 of images by name."""
        chosen = self.features[self._rows_of(images)]
        parts = [normalize(chosen[:, 0], dim=-1) if part == OUTPUT else chosen[:, int(part)] for part in self.layers]
        return torch.cat(parts, dim=1)

    def shared(self, known: set[str], others: set[str]) -> list[str]:
        """Return the images of `others` whose features are those of a known one."""
        known_digests, digests = (self._digests(sorted(names)) for names in (known, others))
        seen = {*known_digests.values()}
        return [name for name, digest in digests.items() if digest in seen]

    def _digests(self, images: list[str]) -> dict[str, bytes]:
        rows = (self.features[row].numpy().tobytes() for row in self._rows_of(images))
        return {name: hashlib.sha256(row).digest() for name, row in zip(images, rows)}

    def _rows_of(self, images: Sequence[str]) -> list[int]:
        if missing := [name for name in images if name not in self.rows]:
            raise UserError(f"{self.name}: none of {len(missing)} image(s) ({first_few(missing)}); add them")
        return [self.rows[name] for name in images]


def read_given_features(
    files: Sequence[Path], names: Path | None, train: Sequence[str], test: Sequence[str]
) -> GivenFeatures:
    """Read features of every image of a data set.

    Args:
        files: one file of all images, or one of the training images and one of the test images.
        names: list of the images of all rows, .txt (one a line) or .json; default: those in the files, else the order
            of the data set.
        train: the training images of the data set, in its order.
        test: its test images.

    Raises:
        UserError: a file is damaged, has rows of other images or of several shapes, or numbers that are not finite.
    """
    expected = [[*train], [*test]] if len(files) > 1 else [[*train, *test]]
    in_order = all(list(part) == sorted(part) for part in (train, test))
    parts = [_read(path) for path in files]
    listed = _read_names(names) if names else []
    features, rows, count = [], dict[str, int](), 0
    for path, images, (content, own) in zip(files, expected, parts):
        if names:
            length = len(listed) if len(files) == 1 else len(images)
            own, listed = listed[:length], listed[length:]
        array = _layers(path, content, len(own or images))
        where = _find(path, own, images) if own else {image: row for row, image in enumerate(images)}
        if not own and not in_order:
            problem = "names no images, and the data set does not have its images in the order of their names"
            raise UserError(f"{path}: {problem}; say with --features_images which image each row is of")
        rows |= {image: count + row for image, row in where.items()}
        features.append(array)
        count += len(array)
    if listed:
        raise UserError(f"{names}: {len(listed)} names more than the rows of features; list the image of every row")
    if len({each.shape[1:] for each in features}) > 1:
        shapes = " and ".join(str(tuple(each.shape)) for each in features)
        raise UserError(f"{files[0]}: features have shapes {shapes}; layers and width must be the same")
    name = f"features of {' and '.join(path.name for path in files)}"
    digest = hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()
    blank = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return GivenFeatures(None, 0, *blank, name, digest, features=torch.cat(features), rows=rows)


def _read(path: Path) -> tuple[Any, list[str]]:
    """Return an array of features, and the names of the images of its rows if the file has them."""
    content, names = read_arrays(path), []
    if isinstance(content, dict):
        names = [str(each) for key in NAMES for each in content.get(key, [])]
        arrays = {key: value for key, value in content.items() if key not in NAMES}
        keys = [key for key in ("img_features", "features") if key in arrays]
        content = arrays[keys[0]] if keys else next(iter(arrays.values())) if len(arrays) == 1 else arrays
    if isinstance(content, dict):
        names, vectors = [str(name) for name in content], list(content.values())
        if any(isinstance(vector, dict) for vector in vectors):
            problem = f"has features under each of {first_few(names)}, such as blur levels whose sizes it does not say"
            raise UserError(f"{path}: {problem}; save those of one of them in a file of their own")
        if len({np.shape(vector) for vector in vectors}) != 1:
            raise UserError(f"{path}: has no features (one array, or a vector of the same width for every image)")
        content = np.stack([_numbers(path, vector) for vector in vectors])
    return content, names


def _numbers(path: Path, values: Any) -> np.ndarray:
    """Return real numbers as float32."""
    is_complex = values.is_complex() if isinstance(values, Tensor) else np.iscomplexobj(values)
    try:
        if is_complex:
            raise TypeError("complex numbers")
        # NumPy has no bfloat16.
        return np.asarray(values.float() if isinstance(values, Tensor) else values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: has no array of real numbers; give features (N, D) or (N, layers, D)") from error


def _layers(path: Path, content: Any, images: int) -> Tensor:
    """Return features (N, layers, D) float32 of an array (N, D), (N, layers, D) or (concepts, images of each, D)."""
    array = torch.as_tensor(_numbers(path, content))
    shape = tuple(array.shape)
    if array.ndim in (3, 4) and len(array) != images == shape[0] * shape[1]:
        array = array.flatten(0, 1)
    if array.ndim == 2:
        array = array[:, None]
    if array.ndim != 3 or 0 in shape:
        raise UserError(f"{path}: is an array {shape}; give features (N, D) or (N, layers, D)")
    if len(array) != images:
        remedy = (
            "say with --features_images which image each row is of, or give those of test images with --features_test"
        )
        raise UserError(f"{path}: has {len(array)} rows for {images} images; {remedy}")
    if not array.isfinite().all():
        row = int((~array.isfinite().flatten(1).all(1)).nonzero()[0])
        raise UserError(f"{path}: row {row} has NaN or infinite values; make the file again")
    return array


def _read_names(path: Path) -> list[str]:
    """Return the names in a list of images."""
    text = read_text(path, "give a list of images, .txt or .json")
    try:
        names = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); give a list of names") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{path}: is no list of names; write one a line (.txt), or a JSON list")
    return names


def _find(path: Path, names: list[str], images: list[str]) -> dict[str, int]:
    """Return the row of each image by its name."""
    if len({*names}) < len(names):
        raise UserError(f"{path}: an image has several rows; give each one")
    found = dict(zip(images, rows_of(images, names)))
    if missing := [image for image, row in found.items() if row is None]:
        problem = f"no features of {len(missing)} of {len(images)} images ({first_few(missing)})"
        raise UserError(f"{path}: {problem}; its first name is {names[0]!r}; name images as the data set does")
    return {image: row for image, row in found.items() if row is not None}
