"""The feature bank: features of every image at fixed blur levels, computed once for all subjects, methods and seeds.

    FOLDER/<key>/k51_gain0.5.safetensors          outputs at a level, (images, D) float32, unit-norm
    FOLDER/<key>/k51_gain0.5.layer3.safetensors   a pooled layer at a level, not normalised
    FOLDER/<key>/texts_<key>.safetensors          features of texts
    FOLDER/<key>/about.json                       what the key stands for

The key is a hash of everything that shapes a feature, so a bank is never stale: another encoder, image or blur has
another key; all layers of an encoder have the same, and one pass over the images computes those that are missing. Every
file carries the key and a checksum, which are verified when it is read. Any number of processes, also of several
machines, may fill a bank at once, and any of them may be killed.
"""

import copy
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bvsa_core.distributed.processes import ProcessGroup
from bvsa_core.errors import UserError
from bvsa_core.io.atomic import refuse_links, write_atomically
from bvsa_core.io.text_files import read_json
from bvsa_core.progress import Progress, no_progress
from bvsa_core.vision.encoder import VisionEncoder
from bvsa_core.vision.feature_file import map_features, write_features
from bvsa_core.vision.images import RESIZING, hash_files, read_images
from bvsa_core.vision.layers import OUTPUT
from bvsa_core.vision.shards import Shards, write_shared
from bvsa_core.vision.views import Falloff, Level, OnlineViews, features_at

FORMAT = 2  # of the files, and of what the blur computes; part of every key
ABOUT = "about.json"


@dataclass(frozen=True)
class ShardTask:
    """A shard of a bank that is to be computed at some levels, by any process that has the encoder.

    Each target is a file with a level and a part of its features, `output` or a layer.
    """

    shards: Shards
    number: int
    paths: list[Path]
    targets: dict[Path, tuple[Level, str]]
    falloff: Falloff

    @torch.no_grad()
    def run(self, clip: VisionEncoder, progress: Progress = no_progress) -> None:
        """Compute what is missing of the shard, and report the batches."""
        missing = self.shards.missing(self.number, self.targets)
        if not missing:
            return
        batch_size = 32 if clip.device.type == "cpu" else 256  # on the CPU, an allocator can still reuse the results
        pixels, wanted = read_images(self.paths, clip.image_size), dict[Level, dict[str, Path]]()
        for target in missing:
            level, part = self.targets[target]
            wanted.setdefault(level, {})[part] = target
        done, total = 0, len(missing) * len(self.paths)
        with _full_precision(), torch.no_grad():
            for level, targets in wanted.items():
                encoder, features = clip.with_layers(list(targets)), []
                views = OnlineViews(encoder, pixels, self.falloff)
                for batch in torch.arange(len(self.paths)).split(batch_size):
                    progress("features", done, total)
                    features.append(features_at(level, views, batch).cpu())
                    done += len(batch) * len(targets)
                for target, part in zip(targets.values(), torch.cat(features).split(encoder.widths(), dim=1)):
                    self.shards.add(target, self.number, part)


class FeatureBank:
    """Features of a list of images, kept in a folder.

    Args:
        folder: where banks are, each in a folder named by its key; or the folder of one bank, which must be this one.

    Raises:
        UserError: an image is missing, or the bank in the folder holds other features.
    """

    def __init__(self, folder: str | Path, clip: VisionEncoder, paths: Sequence[Path], falloff: Falloff = Falloff()):
        self.clip, self.paths, self.falloff = clip, list(paths), falloff
        about = {**fingerprint(clip, falloff), "pictures": len(self.paths), "pictures_sha256": hash_files(self.paths)}
        self.key = _key(about)
        self.folder = Path(folder) if (Path(folder) / ABOUT).is_file() else Path(folder) / self.key
        refuse_links(self.folder, below=Path(folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / ABOUT
        if not path.is_file():
            write_shared(path, lambda: write_atomically(path, json.dumps(about, indent=2).encode() + b"\n"))
        check_matches(self.folder, about, "name the folder it is in, where every bank has its own, or delete it")
        self._shards = Shards(self.folder, self.key, len(self.paths))

    def with_encoder(self, clip: VisionEncoder) -> "FeatureBank":
        """Return the same bank for other layers of its encoder; no image is read."""
        other = copy.copy(self)
        other.clip = clip
        return other

    def missing(self, levels: Sequence[Level]) -> list[Level]:
        """Return the levels of which some part is not computed yet."""
        return [level for level in dict.fromkeys(levels) if not all(path.exists() for path in self.paths_of(level))]

    def _tasks(self, levels: Sequence[Level]) -> list[ShardTask]:
        """Return the shards that are missing of some level."""
        targets = {self.path(level, part): (level, part) for level in levels for part in self.clip.layers}
        parts = ((number, self.paths[part]) for number, part in enumerate(self._shards.slices))
        tasks = [ShardTask(self._shards, number, paths, targets, self.falloff) for number, paths in parts]
        return [task for task in tasks if self._shards.missing(task.number, targets)]

    def fill(
        self,
        levels: Sequence[Level],
        progress: Progress = no_progress,
        processes: ProcessGroup = ProcessGroup(),
        run: Callable[[list[ShardTask], Progress], Iterable] | None = None,
    ) -> None:
        """Compute the levels that are missing.

        Args:
            processes: those that call this together; each computes some of the shards.
            run: yields when a task is done; default: run the tasks one by one in this process.
        """
        missing = self.missing(levels)
        targets = [path for level in missing for path in self.paths_of(level)]
        total = len(targets) * len(self.paths)
        tasks = [task for task in self._tasks(missing) if task.number % processes.size == processes.rank]
        done = self._shards.done_count(targets)
        report = lambda name, computed, *_: progress(name, done + computed, total)  # noqa: E731
        here = partial(ShardTask.run, clip=self.clip, progress=report)
        for _ in run(tasks, report) if run else map(here, tasks):
            done = self._shards.done_count(targets)
            progress("features", done, total)
        processes.barrier()
        if processes.rank == 0:
            for path in dict.fromkeys(path for level in levels for path in self.paths_of(level)):
                self._shards.merge(path)
        processes.barrier()
        if missing:
            progress("features", total, total)

    def load(self, levels: Sequence[Level]) -> Tensor:
        """Return features (levels, images, D) float32, the parts of a feature side by side."""
        files = self.files(levels)
        parts = [[map_features(path, len(self.paths), self.key) for path in paths] for paths in files]
        features = torch.empty(len(levels), len(self.paths), sum(part.shape[1] for part in parts[0]))
        for level, its_parts in zip(features, parts):
            torch.cat(its_parts, dim=1, out=level)
        return features

    def files(self, levels: Sequence[Level]) -> list[list[Path]]:
        """Return the files of the parts of each level, verified."""
        return verify_files([self.paths_of(level) for level in levels], len(self.paths), self.key)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit-norm features (texts, D) float32, computed at the first call."""
        return map_features(self.texts_path(texts), len(texts), self.key).clone()

    def texts_path(self, texts: Sequence[str]) -> Path:
        """Return the file of these texts' features, verified; write it if it is missing."""
        path = self.folder / f"texts_{_key(list(texts))}.safetensors"
        if not path.exists():
            number = {text: i for i, text in enumerate(dict.fromkeys(texts))}  # each is encoded once
            with _full_precision():
                features = self.clip.encode_texts(list(number))[[number[text] for text in texts]].cpu()
            write_shared(path, lambda: write_features(path, [features], len(texts), self.key))
        map_features(path, len(texts), self.key)
        return path

    def path(self, level: Level, part: str = OUTPUT) -> Path:
        """Return the file of a part of the features at a level."""
        return self.folder / _file_name(level, part)

    def paths_of(self, level: Level) -> list[Path]:
        """Return the files of the encoder's parts at a level."""
        return [self.path(level, part) for part in self.clip.layers]


def level_files(
    folder: Path, levels: Sequence[Level], clip: VisionEncoder, falloff: Falloff = Falloff()
) -> list[list[Path]]:
    """Return the files of the parts of each level in a bank of any images, verified to be of this encoder and blur."""
    about = check_matches(folder, fingerprint(clip, falloff), "give a bank made with these settings")
    paths = [[folder / _file_name(level, part) for part in clip.layers] for level in levels]
    return verify_files(paths, about.get("pictures", -1), _key(about))


def verify_files(paths: list[list[Path]], rows: int, bank: str) -> list[list[Path]]:
    """Return the paths once their checksums are verified, which takes as long as reading the files."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda path: map_features(path, rows, bank), itertools.chain(*paths)))
    return paths


def held_levels(folder: Path, encoder: str, images: int, levels: Sequence[Level]) -> list[Level]:
    """Return the levels whose outputs a bank there probably holds: one of that encoder's name and number of images."""
    held: set[Level] = set()
    for path in folder.glob(f"*/{ABOUT}"):
        about = read_json(path, "delete the folder, and it is made again")
        if f"{about.get('encoder')}/".startswith(f"{encoder}/") and about.get("pictures") == images:
            held |= {level for level in levels if (path.parent / _file_name(level, OUTPUT)).is_file()}
    return [level for level in levels if level in held]


def fingerprint(clip: VisionEncoder, falloff: Falloff) -> dict[str, Any]:
    """Return all that shapes a feature beside the image and the level."""
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


def check_matches(folder: Path, expected: dict[str, Any], remedy: str) -> dict[str, Any]:
    """Return the about.json of a bank, checked to hold what is expected."""
    about = read_json(folder / ABOUT, "delete the folder, and its features are computed again")
    differing = [name for name in expected if about.get(name) != expected[name]]
    if differing:
        differing = ["format"] if "format" in differing else differing  # a bank of an earlier version
        values = (f"{name} is {_short(about.get(name))}, not {_short(expected[name])}" for name in differing)
        raise UserError(f"{folder}: features of something else than asked for ({', '.join(values)}); {remedy}")
    return about


def _short(value: object) -> str:
    return value[:8] if isinstance(value, str) and len(value) == 64 else "unknown" if value is None else str(value)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Inside, every device multiplies in full float32, so that features do not depend on settings for speed."""
    cudnn, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = cudnn
        torch.set_float32_matmul_precision(products)


def _file_name(level: Level, part: str) -> str:
    gain = f"{level.gain:g}"
    gain, layer = gain if float(gain) == level.gain else repr(level.gain), "" if part == OUTPUT else f".layer{part}"
    sigma = "" if level.sigma is None else f"_sigma{level.sigma!r}"
    return f"k{level.kernel_size}_gain{gain}{sigma}{layer}.safetensors"


def _key(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
