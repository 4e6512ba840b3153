"""Check the stimuli, resize them, and copy them to the recordings: `bvsa data images`.

    STORE/Image_set_Resize/training_images/00001_aardvark/aardvark_01b.jpg
    STORE/Image_set_Resize/test_images/00001_aircraft_carrier/aircraft_carrier_06s.jpg
    STORE/Image_set_Resize/images.json        size, checksum, concept and THINGS name of every image

Images are resized to a square as in `read_images` and UBP (bilinear with antialiasing), so that encoders see the same
up to JPEG coding: quality 95 without chroma subsampling here, Pillow's 75 with it in UBP. Images that have the size
already are copied byte for byte. Grey images become RGB. A file gets the modification time of its source, from which a
run that was interrupted knows what is done.
"""

import calendar
import functools
import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from bvsa_core.data import things_eeg, things_meg
from bvsa_core.data.dataset import IMAGE_FOLDERS, concept_of
from bvsa_core.data.quality.check import CheckReport
from bvsa_core.data.store import HEADER, read_header, sha256_of
from bvsa_core.errors import UserError
from bvsa_core.io.atomic import refuse_links, write_atomically
from bvsa_core.io.image_archive import SUFFIXES, archived_images, hidden, open_archive, read_image
from bvsa_core.io.image_file import DECODE_ERRORS, to_rgb
from bvsa_core.io.text_files import read_json
from bvsa_core.progress import Progress, no_progress

INDEX = "images.json"
_SPLITS = {"training_images": "training_images", "train_images": "training_images", "test_images": "test_images"}
_NAME = re.compile(r"\w+/\d{5}_(?P<concept>[^/]+)/(?P=concept)_\d\d\w*\.(?:jpe?g|png)", re.IGNORECASE)
_EXAMPLE = "training_images/00001_aardvark/aardvark_01b.jpg"
_FORMATS = ("JPEG", "PNG")
_EXPECTED = {
    "training_images": [1654 * facts.IMAGES_PER_CONCEPT for facts in (things_eeg, things_meg)],
    "test_images": [200],
}
_MAX_BYTES, _MAX_PIXELS = 2**26, 2**26  # of one image; those of THINGS are far below either
_DAMAGE = (*DECODE_ERRORS, zipfile.BadZipFile)


@dataclass(frozen=True)
class _SourceImage:
    """An image in the source, not read yet."""

    path: str  # for messages
    parts: tuple[str, ...]  # of its path inside the source
    size: int  # bytes
    mtime: int | None  # nanoseconds
    read: Callable[[], bytes]

    @property
    def name(self) -> str | None:
        """Its name in the store, or None if it is not in the folder of a split."""
        *_, split, concept, file = ("", "", *self.parts)
        return f"{_SPLITS[split]}/{concept}/{file}" if split in _SPLITS else None


def import_images(
    source: Path, store: Path, size: int = 224, quality: int = 95, progress: Progress = no_progress
) -> CheckReport:
    """Check, resize and index the images that the recordings in `store` name, or all images if there are no recordings.

    Args:
        source: folder or zip file of the stimuli: training_images and test_images, as folders or zip files, or the
            concept folders of THINGS itself, in which images are looked up by file name.
        store: folder of the recordings.
        size: width and height in pixels; 0 keeps the files as they are.
        quality: of the JPEG files, 1 to 100.
        progress: called after every image.

    Raises:
        UserError: source or store cannot be used at all. Problems of single images are in the report.
    """
    if size < 0 or not 1 <= quality <= 100:
        raise UserError(f"size is {size} and quality {quality}; size must be 0 or more pixels, quality 1 to 100")
    report, folder = CheckReport(), store / IMAGE_FOLDERS[0]
    given, made = source.resolve(), folder.resolve()
    if given.is_relative_to(made) or made.is_relative_to(given):
        remedy = "give a folder outside, or another one for the recordings"
        raise UserError(f"{source}: images of {folder} cannot be made there; {remedy}")
    images = list(_source_images(source, report))
    if not images:
        remedy = "give the folder of training_images and test_images, or their zip files"
        raise UserError(f"{source}: no images inside; {remedy}")
    chosen = _match(images, _required_names(store), source, store, report)
    for path in (folder, *(folder / name for name in chosen)):
        refuse_links(path, below=store)
    if size == 0:  # else they are made small
        needed, free = sum(image.size for image in chosen.values()), shutil.disk_usage(_existing(store)).free
        if needed > free:
            sizes = f"{needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free"
            raise UserError(f"{folder}: the images take {sizes}; make room, or give a --size")
    checksums = _open_index(folder, size, quality)
    import_one = functools.partial(_import_one, folder, size, quality)
    entries: list[dict[str, Any]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, result in enumerate(pool.map(import_one, chosen, chosen.values(), map(checksums.get, chosen))):
            progress("images", done, len(chosen))
            if isinstance(result, str):
                report.problems.append(result)
            else:
                entries.append(result)
    progress("images", len(chosen), len(chosen))
    shape = "as they were" if size == 0 else f"{size} x {size}"
    counts = Counter(entry["name"].partition("/")[0] for entry in entries)
    report.summary += [f"{folder / split}: {count} images, {shape}" for split, count in counts.items()]
    names_by_checksum: defaultdict[str, list[str]] = defaultdict(list)
    for entry in entries:
        names_by_checksum[entry["sha256"]].append(entry["name"])
    equal = [names for names in names_by_checksum.values() if len(names) > 1]
    report.summary += [f"the same image under several names: {', '.join(names)}" for names in equal]
    if not report.problems:
        for left_by_a_kill in folder.rglob(".*.partial"):
            left_by_a_kill.unlink()
        _write_index(folder, size, quality, entries)
    return report


def _source_images(source: Path, report: CheckReport) -> Iterator[_SourceImage]:
    """Yield all images of a folder or zip file; of zip files in a folder, if they are named after a split or alone."""
    if source.is_dir():
        in_folder = list(_images_in_folder(source))
        yield from in_folder
        zips = sorted(source.glob("*.zip"))
        of_splits = [path for path in zips if path.stem in _SPLITS]
        for path in of_splits if of_splits or in_folder else zips:
            if not (source / path.stem).is_dir():
                yield from _images_in_zip(path, report)
    elif source.suffix == ".zip" and source.is_file():
        yield from _images_in_zip(source, report)
    else:
        raise UserError(f"{source}: no such folder or zip file")


def _images_in_folder(root: Path) -> Iterator[_SourceImage]:
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.suffix.lower() in SUFFIXES and not any(map(hidden, parts)) and path.is_file():
            stat = path.stat()
            yield _SourceImage(str(path), parts, stat.st_size, stat.st_mtime_ns, path.read_bytes)


def _images_in_zip(path: Path, report: CheckReport) -> Iterator[_SourceImage]:
    archive = open_archive(path)  # closed when the last image has been read
    for image in archived_images(archive):
        if image.problem:
            report.problems.append(f"{path}: {image.problem}")
            continue
        try:
            mtime = calendar.timegm((*image.info.date_time, 0, 0, 0)) * 10**9
        except ValueError:  # a day that does not exist
            mtime = None
        parts = image.parts if path.stem not in _SPLITS or image.parts[0] in _SPLITS else (path.stem, *image.parts)
        read = functools.partial(read_image, archive, image.info)
        yield _SourceImage(f"{path}: {image.info.filename}", parts, image.info.file_size, mtime, read)


def _required_names(store: Path) -> list[str]:
    """Names of images in the store's recordings; empty if there are none."""
    headers = [read_header(path.parent) for path in sorted(store.glob(f"sub-*/{HEADER}"))]
    names = list(dict.fromkeys(name for header in headers for split in header.splits.values() for name in split.images))
    for name in names:
        parts = PurePosixPath(name).parts
        if len(parts) != 3 or parts[0] not in _SPLITS or ".." in parts or "\\" in name:
            remedy = f"which should be like {_EXAMPLE}; make them again by bvsa data"
            raise UserError(f"{store}: recordings name the image {name!r}, {remedy}")
    return names


def _existing(folder: Path) -> Path:
    """Return a folder, or the closest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _match(
    images: list[_SourceImage], required: list[str], source: Path, store: Path, report: CheckReport
) -> dict[str, _SourceImage]:
    """Return the source image of each name in the store."""
    by_name: dict[str, _SourceImage] = {}
    by_file: defaultdict[str, list[_SourceImage]] = defaultdict(list)
    for image in images:
        by_file[image.parts[-1]].append(image)
        first = by_name.setdefault(image.name, image) if image.name else image
        if first is not image:
            report.problems.append(f"{image.path}: the same place as {first.path}; keep one of them")
    if not required:
        return _match_all(by_name, images, source, store, report)
    chosen = {}
    for name in required:
        candidates = [by_name[name]] if name in by_name else by_file[PurePosixPath(name).name]
        if len(candidates) == 1:
            chosen[name] = candidates[0]
        elif candidates:
            paths = f"{candidates[0].path} and {candidates[1].path}"
            report.problems.append(f"{name}: several in {source}, {paths}; keep one of them")
        else:
            report.problems.append(f"{name}: missing in {source}; fetch it")
    if not chosen:
        needed = f"the {len(required)} images that recordings in {store} show, as {required[0]}"
        raise UserError(f"{source}: none of {needed}; give their folder")
    if spare := len(images) - len({id(image) for image in chosen.values()}):
        report.summary.append(f"{source}: {spare} more images, which no recording names, left alone")
    return chosen


def _match_all(
    by_name: dict[str, _SourceImage], images: list[_SourceImage], source: Path, store: Path, report: CheckReport
) -> dict[str, _SourceImage]:
    """Return every image of the source, for a store without recordings, and report unexpected names and numbers."""
    named = {name: image for name, image in by_name.items() if _NAME.fullmatch(name)}
    if not named:
        reason = f"no recordings in {store} to say which are needed; bring those first"
        raise UserError(f"{source}: no image named like {_EXAMPLE}, and {reason}")
    others = [image.path for image in images if not _NAME.fullmatch(image.name or "")]
    report.problems += [f"{path}: not named like {_EXAMPLE}; rename or remove it" for path in others]
    counts = Counter(name.partition("/")[0] for name in named)
    for split, numbers in _EXPECTED.items():
        if counts[split] not in numbers:
            problem = f"{split} are {counts[split]} images, not {' or '.join(map(str, numbers))}"
            remedy = "fetch them all, or bring the recordings first if they need no more"
            report.problems.append(f"{source}: {problem}; {remedy}")
    return dict(sorted(named.items()))


def _open_index(folder: Path, size: int, quality: int) -> dict[str, str]:
    """Make the folder or continue with it, and return the checksums of finished images by name."""
    path = folder / INDEX
    if not folder.exists() or all(hidden(child.name) for child in folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        _write_index(folder, size, quality, None)
    if not path.exists():
        reason = f"is there already, and not made by 'bvsa data images' ({INDEX} is missing); move it away"
        raise UserError(f"{folder}: {reason}")
    remedy = f"delete {folder} and make it again"
    index = read_json(path, remedy)
    try:
        made = index["size"], index["quality"]
        checksums = {entry["name"]: entry["sha256"] for entry in index["images"] or ()}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); {remedy}") from error
    if made != (size, quality):
        settings = f"size {made[0]} and quality {made[1]}"
        raise UserError(f"{folder}: made with {settings}; give these, or delete it to make it again")
    return checksums


def _import_one(
    folder: Path, size: int, quality: int, name: str, image: _SourceImage, checksum: str | None
) -> dict[str, Any] | str:
    """Check one image and write it, unless that is done. Returns its entry in images.json, or a problem."""
    target = folder / name
    try:
        if target.exists() and target.stat().st_mtime_ns == image.mtime and checksum in (None, sha256_of(target)):
            content, made = target.read_bytes(), False
        elif image.size > _MAX_BYTES:
            raise ValueError(f"{image.size} bytes are too many")
        else:
            content, made = _resize(image.read(), target.suffix.lower(), size, quality), True
        with _open(content) as opened:
            width = opened.width
    except _DAMAGE as error:
        return f"{image.path}: cannot be used ({error}); fetch it again"
    if made:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)
        if image.mtime is not None:
            os.utime(target, ns=(image.mtime, image.mtime))
    entry = {"name": name, "concept": concept_of(name), "things_id": PurePosixPath(name).stem, "width": width}
    return {**entry, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _resize(content: bytes, suffix: str, size: int, quality: int) -> bytes:
    """Return image bytes at the target size and format; they are re-encoded only if needed."""
    with _open(content) as image:
        if image.width * image.height > _MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        if image.width != image.height:
            raise ValueError(f"{image.width} x {image.height} pixels, not a square")
        image.load()
        if size == 0 or (image.width == size and image.mode == "RGB"):
            return content
        resized = to_rgb(image).resize((size, size), Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    resized.save(stream, "PNG" if suffix == ".png" else "JPEG", quality=quality, subsampling=0)  # PNG ignores both
    return stream.getvalue()


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=_FORMATS)
    except Image.UnidentifiedImageError as error:
        raise ValueError("no JPEG or PNG file") from error


def _write_index(folder: Path, size: int, quality: int, images: list[dict[str, Any]] | None) -> None:
    """Write images.json; its images are null until all of them are there."""
    content = {"size": size, "quality": quality, "images": images}
    write_atomically(folder / INDEX, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
