"""The stimuli, checked and brought beside the recordings: what `bvsa data images` does.

    STORE/Image_set_Resize/training_images/00001_aardvark/aardvark_01b.jpg
    STORE/Image_set_Resize/test_images/00001_aircraft_carrier/aircraft_carrier_06s.jpg
    STORE/Image_set_Resize/images.json        of every image its size, checksum, concept and name in THINGS

An image is resized as read_images would resize it, and as UBP did (bilinear with antialiasing, to a square), so that what
encoders see is the same but for the JPEG coding: quality 95 without subsampled colour here, Pillow's 75 with it there. A
image that has the size already is copied to the byte. Grey ones become RGB.
A file gets the time of modification of what it was made of, by which a run that was stopped knows what is left to do.
"""

from __future__ import annotations

import calendar
import functools
import hashlib
import io
import json
import os
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

from bvsa_core.data import things_eeg, things_meg
from bvsa_core.data.dataset import IMAGE_FOLDERS, concept_of
from bvsa_core.data.quality.check import CheckReport
from bvsa_core.data.store import HEADER, read_header, sha256_of
from bvsa_core.errors import UserError
from bvsa_core.io.atomic import write_atomically
from bvsa_core.io.image_file import DAMAGE

INDEX = "images.json"
_SPLITS = {"training_images": "training_images", "train_images": "training_images", "test_images": "test_images"}
_NAME = re.compile(r"\w+/\d{5}_(?P<concept>[^/]+)/(?P=concept)_\d\d\w*\.(?:jpe?g|png)", re.IGNORECASE)
_LIKE = "training_images/00001_aardvark/aardvark_01b.jpg"
_SUFFIXES = (".jpg", ".jpeg", ".png")
_FORMATS = ("JPEG", "PNG")
_EXPECTED = {
    "training_images": [1654 * facts.IMAGES_PER_CONCEPT for facts in (things_eeg, things_meg)],
    "test_images": [200],
}
_MAX_BYTES, _MAX_PIXELS = 2**26, 2**26  # of one image; those of THINGS are far below either
_DAMAGE = (*DAMAGE, zipfile.BadZipFile)


@dataclass(frozen=True)
class Entry:
    """What images.json says of an image."""

    name: str  # such as training_images/00001_aardvark/aardvark_01b.jpg
    concept: str
    things_id: str  # such as aardvark_01b
    width: int  # pixels, and as many high
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Found:
    """An image in the source, not yet read."""

    where: str
    parts: tuple[str, ...]  # of its path inside the source
    size: int  # bytes
    time: int | None  # of modification, nanoseconds
    read: Callable[[], bytes]


def import_images(
    source: Path,
    store: Path,
    size: int = 224,
    quality: int = 95,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> CheckReport:
    """Check, resize and index the images that the store's recordings name; all of the source where there are none.

    Args:
        source: folder or zip file of the stimuli: training_images and test_images, as folders or zip files, or the folders
            of concepts of THINGS itself, in which images are found by their names.
        size: width and height in pixels; 0 leaves the files as they are.
        quality: of the JPEG files, 1 to 100.

    Raises:
        UserError: source or store cannot be used at all. What is wrong with single images is in the report.
    """
    if size < 0 or not 1 <= quality <= 100:
        raise UserError(f"size is {size} and quality {quality}; size must be 0 or more pixels, quality 1 to 100")
    report, folder = CheckReport(), store / IMAGE_FOLDERS[0]
    within = os.path.commonpath([source.resolve(), folder.resolve()])
    if within in (str(source.resolve()), str(folder.resolve())):
        raise UserError(
            f"{source}: images of {folder} cannot be made there; give a folder outside, or another one for the recordings"
        )
    found = list(_find(source, report))
    if not found:
        raise UserError(
            f"{source}: no images inside; give the folder of training_images and test_images, or their zip files"
        )
    chosen = _choose(found, _named(store), source, store, report)
    known = _begin(folder, size, quality)

    def bring(name: str) -> Entry | str:
        return _bring(chosen[name], folder, name, known.get(name), size, quality)

    entries: list[Entry] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, result in enumerate(pool.map(bring, chosen)):
            progress("images", done, len(chosen))
            if isinstance(result, str):
                report.problems.append(result)
            else:
                entries.append(result)
    progress("images", len(chosen), len(chosen))
    for split, count in Counter(entry.name.partition("/")[0] for entry in entries).items():
        report.found.append(f"{folder / split}: {count} images, {'as they were' if size == 0 else f'{size} x {size}'}")
    report.found += [f"the same image under several names: {', '.join(names)}" for names in _same(entries)]
    if not report.problems:
        for left_by_a_kill in folder.rglob(".*.partial"):
            left_by_a_kill.unlink()
        _write_index(folder, size, quality, entries)
    return report


def _find(source: Path, report: CheckReport) -> Iterator[_Found]:
    """All images of a folder or zip file."""
    if source.is_dir():
        yield from _in_folder(source)
        for path in sorted(source.glob("*.zip")):
            if path.stem in _SPLITS and not (source / path.stem).is_dir():
                yield from _in_zip(path, report)
    elif source.suffix == ".zip" and source.is_file():
        yield from _in_zip(source, report)
    else:
        raise UserError(f"{source}: no such folder or zip file")


def _in_folder(folder: Path) -> Iterator[_Found]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _hidden(name))
        for name in sorted(names):
            path = Path(place, name)
            if path.suffix.lower() in _SUFFIXES and not _hidden(name) and path.is_file():
                about = path.stat()
                yield _Found(
                    str(path), path.relative_to(folder).parts, about.st_size, about.st_mtime_ns, path.read_bytes
                )


def _in_zip(path: Path, report: CheckReport) -> Iterator[_Found]:
    """Images of an archive; nothing is unpacked to where an archive says."""
    try:
        archive = zipfile.ZipFile(path)  # closed when the last image has been read
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: damaged or cut off ({error}); fetch it again") from error
    for member in archive.infolist():
        parts = PurePosixPath(member.filename).parts
        if ".." in parts or member.filename.startswith("/") or "\\" in member.filename or ":" in member.filename:
            report.problems.append(
                f"{path}: {member.filename!r} points outside the archive; it was not read. Do not trust this file"
            )
            continue
        if not parts or any(map(_hidden, parts)) or PurePosixPath(parts[-1]).suffix.lower() not in _SUFFIXES:
            continue
        if member.flag_bits & 1:
            raise UserError(
                f"{path}: password-protected; unpack it with the password that THINGS gives, then give the folder"
            )
        yield _Found(
            f"{path}: {member.filename}",
            parts,
            member.file_size,
            _time_of(member),
            functools.partial(archive.read, member),
        )


def _time_of(member: zipfile.ZipInfo) -> int | None:
    try:
        return calendar.timegm((*member.date_time, 0, 0, 0)) * 10**9
    except ValueError:  # a day that does not exist
        return None


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _named(store: Path) -> list[str]:
    """Images that the store's recordings name; empty where it holds none."""
    names: dict[str, None] = {}
    for path in sorted(store.glob(f"sub-*/{HEADER}")):
        for split in read_header(path.parent).splits.values():
            names |= dict.fromkeys(split.images)
    for name in names:
        parts = PurePosixPath(name).parts
        if len(parts) != 3 or parts[0] not in _SPLITS or ".." in parts or "\\" in name:
            raise UserError(
                f"{store}: recordings name the image {name!r}, which should be like {_LIKE}; make them again by bvsa data"
            )
    return list(names)


def _choose(found: list[_Found], named: list[str], source: Path, store: Path, report: CheckReport) -> dict[str, _Found]:
    """The image of the source for each name in the store."""
    placed: dict[str, _Found] = {}
    by_file: defaultdict[str, list[_Found]] = defaultdict(list)
    for image in found:
        name = _place(image.parts)
        if name and name in placed:
            report.problems.append(f"{image.where}: the same place as {placed[name].where}; keep one of them")
        elif name:
            placed[name] = image
        by_file[image.parts[-1]].append(image)
    if not named:
        return _all(placed, found, source, store, report)
    chosen = {}
    for name in named:
        candidates = [placed[name]] if name in placed else by_file[PurePosixPath(name).name]
        if len(candidates) == 1:
            chosen[name] = candidates[0]
        elif candidates:
            report.problems.append(
                f"{name}: several in {source}, {candidates[0].where} and {candidates[1].where}; keep one of them"
            )
        else:
            report.problems.append(f"{name}: missing in {source}; fetch it")
    if not chosen:
        raise UserError(
            f"{source}: none of the {len(named)} images that recordings in {store} show, as {named[0]}; give their folder"
        )
    if spare := len(found) - len({id(image) for image in chosen.values()}):
        report.found.append(f"{source}: {spare} more images, which no recording names, left alone")
    return chosen


def _all(
    placed: dict[str, _Found], found: list[_Found], source: Path, store: Path, report: CheckReport
) -> dict[str, _Found]:
    """Every image of the source, which is all there is to go by where the store has no recordings yet."""
    good = {name: image for name, image in placed.items() if _NAME.fullmatch(name)}
    if not good:
        raise UserError(
            f"{source}: no image named like {_LIKE}, and no recordings in {store} to say which are needed; bring those first"
        )
    strange = [image.where for image in found if not _NAME.fullmatch(_place(image.parts) or "")]
    report.problems += [f"{where}: not named like {_LIKE}; rename or remove it" for where in strange]
    counts = Counter(name.partition("/")[0] for name in good)
    for split, numbers in _EXPECTED.items():
        if counts[split] not in numbers:
            told = f"{split} are {counts[split]} images, not {' or '.join(map(str, numbers))}"
            report.problems.append(
                f"{source}: {told}; fetch them all, or bring the recordings first if they need no more"
            )
    return dict(sorted(good.items()))


def _place(parts: tuple[str, ...]) -> str | None:
    """An image's name in the store, where its path tells it."""
    if len(parts) < 3 or parts[-3] not in _SPLITS:
        return None
    return "/".join((_SPLITS[parts[-3]], *parts[-2:]))


def _begin(folder: Path, size: int, quality: int) -> dict[str, str]:
    """Make the folder, or go on with it. Returns the checksums of the images that are done.

    Raises:
        UserError: it was made otherwise, or by someone else.
    """
    path = folder / INDEX
    if not folder.exists() or all(_hidden(path.name) for path in folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        _write_index(folder, size, quality, None)
    try:
        there = json.loads(path.read_text())
        made = there["size"], there["quality"]
        known = {entry["name"]: entry["sha256"] for entry in there["images"] or ()}
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: is there already, and not made by 'bvsa data images' ({INDEX} is missing); move it away"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); delete {folder} and make it again") from error
    if made != (size, quality):
        raise UserError(
            f"{folder}: made with size {made[0]} and quality {made[1]}; give these, or delete it to make it again"
        )
    return known


def _bring(stimulus: _Found, folder: Path, name: str, known: str | None, size: int, quality: int) -> Entry | str:
    """Check one image and write it, unless that is done. Returns what is wrong where something is."""
    target = folder / name
    try:
        if target.exists() and target.stat().st_mtime_ns == stimulus.time and known in (None, sha256_of(target)):
            content, made = target.read_bytes(), False
        elif stimulus.size > _MAX_BYTES:
            raise ValueError(f"{stimulus.size} bytes are too many")
        else:
            content, made = _resized(stimulus.read(), target.suffix.lower(), size, quality), True
        with _open(content) as image:
            width = image.width
    except _DAMAGE as error:
        return f"{stimulus.where}: cannot be used ({error}); fetch it again"
    if made:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)
        if stimulus.time is not None:
            os.utime(target, ns=(stimulus.time, stimulus.time))
    return Entry(
        name, concept_of(name), PurePosixPath(name).stem, width, len(content), hashlib.sha256(content).hexdigest()
    )


def _resized(content: bytes, suffix: str, size: int, quality: int) -> bytes:
    """The bytes of an image, decoded and drawn anew only where it is not yet what it shall be."""
    with _open(content) as image:
        if image.width * image.height > _MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        if image.width != image.height:
            raise ValueError(f"{image.width} x {image.height} pixels, not a square")
        image.load()
        if size == 0 or (image.width == size and image.mode == "RGB"):
            return content
        drawn = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    if suffix == ".png":
        drawn.save(stream, "PNG")
    else:
        drawn.save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError("no JPEG or PNG file") from error


def _same(entries: list[Entry]) -> list[list[str]]:
    """Names of images that are equal byte for byte."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for entry in entries:
        names[entry.sha256].append(entry.name)
    return [several for several in names.values() if len(several) > 1]


def _write_index(folder: Path, size: int, quality: int, entries: list[Entry] | None) -> None:
    """images.json; its images are null until all of them are there."""
    images = None if entries is None else [asdict(entry) for entry in entries]
    content = {"size": size, "quality": quality, "images": images}
    write_atomically(folder / INDEX, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
