"""Fetch a published data set: list its files, then fetch, check and unpack what is missing.

DEST/images/training_images.zip       files, below the folder of their source
DEST/Raw_data/sub-01/ses-01/...       what zip files of recordings held
DEST/dataset.json                     name and modality, where the files are used as they are
DEST/downloads.json                   size and checksum of every file, and what was unpacked from it
"""

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bvsa_core.data.downloads.registry import parse_subjects, published_datasets
from bvsa_core.data.layouts.destination import write_description
from bvsa_core.errors import UserError, first_few, unknown_name
from bvsa_core.io.atomic import (
    free_disk,
    lock,
    os_errors_to_user_errors,
    refuse_links,
    remove_temporary,
    write_atomically,
)
from bvsa_core.io.text_files import read_json
from bvsa_core.io.typed import build
from bvsa_core.io.unpack import unpack
from bvsa_core.progress import Progress, no_progress

try:
    import pooch

    from bvsa_core.data.downloads.http import Client, ResumingDownloader
    from bvsa_core.data.downloads.publishers import RemoteFile, list_files
except ImportError as error:
    raise UserError(f"{error.name} is not installed; downloads need: pip install 'fovblur[download]'") from error

RECORD = "downloads.json"
_CONNECTIONS = 4  # at once; image sets are thousands of small files
_MEGABYTE = 1e6


@dataclass
class _Fetched:
    """What is known of a file that was fetched."""

    size: int
    checksum: str
    published: bool  # the checksum is the publisher's
    unpacked: dict[str, int] = field(default_factory=dict)  # sizes of what a zip file held


class Download:
    """A download that is planned: its files are listed, and nothing is written.

    Args:
        name: of the data set.
        folder: destination.
        subjects: such as "1-10" or "1,3"; default: all.
        mirrors: address that takes the place of a host.
        tell: called with a sentence before each wait for another attempt.

    Raises:
        UserError: a name or number is unknown, or a publisher's list cannot be had.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        subjects: str = "",
        mirrors: Mapping[str, str] = {},
        tell: Callable[[str], None] | None = None,
    ):
        known = published_datasets()
        if name not in known:
            raise UserError(unknown_name("data set", name, known))
        self.name, self.folder, self.dataset = name, folder, known[name]
        self.subjects = parse_subjects(subjects, self.dataset.subjects)
        self.client = Client(mirrors, tell)
        self.files: list[RemoteFile] = []
        self.summary: list[str] = []
        self._fetched = self._read_record()
        self._lock = threading.Lock()
        for source in self.dataset.sources:
            files = list_files(source, self.client)
            of = {file.path: source.subject_of(file.path.removeprefix(f"{source.folder}/")) for file in files}
            files = [file for file in files if of[file.path] in (None, *self.subjects)]
            lacking = [f"sub-{n:02d}" for n in self.subjects if n not in of.values()]
            if source.subject and lacking:
                raise UserError(f"{source.page}: has no files of {first_few(lacking)}; choose others by --subjects")
            size = sum(file.size for file in files)
            self.summary.append(f"{source.page}: {len(files)} files, {_gigabytes(size)}")
            if source.unverified:
                self.summary.append(f"unverified of {source.page}: {source.unverified}")
            self.files += files
        if unused := set(self.client.mirrors) - self.client.hosts - {self._host(file) for file in self.files}:
            hosts = sorted(self.client.hosts | {self._host(file) for file in self.files})
            raise UserError(unknown_name("host of --mirror", sorted(unused)[0], hosts))
        self._missing = [file for file in self.files if not self._is_there(file)]
        self.bytes_missing = sum(file.size - min(file.size, self._kept(file)) for file in self._missing)

    def _host(self, file: RemoteFile) -> str:
        return file.url.split("/")[2].split(":")[0]

    def describe(self) -> list[str]:
        """Return lines about the data set, the sizes and the disk."""
        there = sum(file.size for file in self.files) - self.bytes_missing
        disk = f"about {self.dataset.gigabytes * len(self.subjects):.0f} GB of recordings once unpacked (estimate)"
        return [
            f"{self.name}: {self.dataset.title}; {len(self.subjects)} of {self.dataset.subjects} subjects",
            f"licence: {self.dataset.license}",
            f"please cite: {self.dataset.citation}",
            *self.summary,
            f"to fetch: {_gigabytes(self.bytes_missing)}, and {_gigabytes(there)} are there; {disk}; "
            f"{_gigabytes(free_disk(self.folder))} of disk are free",
        ]

    def run(self, progress: Progress = no_progress) -> list[str]:
        """Fetch what is missing, check everything, and return lines about it. The same call continues a stopped one.

        Raises:
            UserError: the disk is too small, a file cannot be fetched, or its bytes are not the publisher's.
        """
        if self.bytes_missing > (free := free_disk(self.folder)):
            needed = f"{_gigabytes(self.bytes_missing)} are to be fetched, and {_gigabytes(free)} of disk are free"
            raise UserError(f"{self.folder}: {needed}; make room, or take fewer with --subjects")
        pooch.get_logger().setLevel("WARNING")
        with lock(self.folder, activity="a download"):
            self._fetched = self._read_record()
            here = {file.path: file.size for file in self.files}
            here |= {file.path: min(file.size, self._kept(file)) for file in self._missing}
            done, total = sum(here.values()), round(sum(file.size for file in self.files) / _MEGABYTE)

            def report(path: str, count: int) -> None:
                nonlocal done
                with self._lock:
                    done += count - here[path]
                    here[path] = count
                    progress("megabytes", done / _MEGABYTE, total)

            with ThreadPoolExecutor(_CONNECTIONS) as pool:
                jobs = [pool.submit(self._fetch, file, report) for file in self.files]
                try:
                    for job in as_completed(jobs):
                        job.result()
                except BaseException:
                    self.client.stop()
                    pool.shutdown(cancel_futures=True)
                    raise
                finally:
                    self._write_record()
            try:
                for file in self.files:
                    if file.unpack:
                        self._unpack(file, progress)
            finally:
                self._write_record()
            if self.dataset.layout == "ubp":  # used as it is; conversions write it themselves
                write_description(self.folder, self.dataset.name, self.dataset.modality)
        fetched = [self._fetched[file.path] for file in self.files]
        own = sum(not each.published for each in fetched)
        checked = f"{len(fetched) - own} files have the publisher's checksums"
        kept = f"those of the other {own} are in {self.folder / RECORD} and are compared from now on"
        return [checked + (f"; {kept}" if own else ""), *self._next()]

    def _next(self) -> list[str]:
        """Return what to do with the files."""
        images = f"bvsa data images {self.folder / 'images'}"
        if self.dataset.layout == "ubp":
            return [f"next: {images} {self.folder}"]
        return [f"next: bvsa data {self.dataset.modality.lower()} {self.folder} STORE && {images} STORE"]

    def _fetch(self, file: RemoteFile, report: Any) -> None:
        """Fetch one file, or check that it is what it should be."""
        if file.unpack and self._is_there(file):
            return
        target = self.folder / file.path
        for path in (target, self._part(file)):
            refuse_links(path, below=self.folder)
        with os_errors_to_user_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        known = file.checksum or self._recorded(file)
        if known is None and target.is_file() and target.stat().st_size != file.size:
            differs = f"has {target.stat().st_size} bytes, and the publisher's {file.size}"
            raise UserError(f"{target}: {differs}; remove it, and the same command fetches it again")
        part = self._part(file)
        downloader = ResumingDownloader(self.client, part, file.size, file.etag, lambda n: report(file.path, n))
        for attempt in (1, 2):
            try:
                pooch.retrieve(file.url, known, target.name, target.parent, downloader=downloader)
                break
            except UserError:
                raise
            except ValueError as error:  # another checksum; what was kept of an earlier attempt may be to blame
                if attempt == 2 or self.client.stopped.is_set():
                    which = "publisher's" if file.checksum else "first download's"
                    remedy = "try again later, or with another --mirror"
                    raise UserError(f"{file.url}: what comes does not have the {which} checksum; {remedy}") from error
        for left in target.parent.glob(f".{target.name}.*.download"):
            left.unlink()
        checksum = known or f"sha256:{pooch.file_hash(str(target))}"
        with self._lock:
            self._fetched[file.path] = _Fetched(file.size, checksum, file.checksum is not None)
        report(file.path, file.size)

    def _unpack(self, file: RemoteFile, progress: Progress) -> None:
        """Unpack a zip file beside itself, and remove it."""
        if self._is_there(file):
            return
        archive = self.folder / file.path
        with os_errors_to_user_errors(archive):
            remove_temporary(archive.parent, archive.stem)
            self._fetched[file.path].unpacked = unpack(archive, archive.with_suffix(""), progress)
            self._write_record()
            archive.unlink()

    def _part(self, file: RemoteFile) -> Path:
        """Return the path that keeps what has come of a file; another version of the file has another."""
        version = (file.checksum or file.etag or "").rpartition(":")[2].strip('"')[:12] or str(file.size)
        target = self.folder / file.path
        return target.with_name(f".{target.name}.{version}.download")

    def _kept(self, file: RemoteFile) -> int:
        """Return how many bytes of a file have come, be it whole or in part."""
        paths = (self.folder / file.path, self._part(file))
        return max(path.stat().st_size if path.is_file() else 0 for path in paths)

    def _recorded(self, file: RemoteFile) -> str | None:
        """Return the checksum of a file's first download."""
        fetched = self._fetched.get(file.path)
        return fetched.checksum if fetched and fetched.size == file.size else None

    def _is_there(self, file: RemoteFile) -> bool:
        """Return whether a file, or what was in it, is there with the right sizes."""
        fetched, target = self._fetched.get(file.path), self.folder / file.path
        if not file.unpack:
            return _has_size(target, file.size)
        if fetched is None or fetched.size != file.size or file.checksum not in (None, fetched.checksum):
            return False
        inside = fetched.unpacked.items()
        return bool(inside) and all(_has_size(target.with_suffix("") / name, size) for name, size in inside)

    def _read_record(self) -> dict[str, _Fetched]:
        path, remedy = self.folder / RECORD, "delete it, and the same command makes it again"
        if not path.exists():
            return {}
        return build(dict[str, _Fetched], read_json(path, remedy).get("files", {}), str(path), remedy)

    def _write_record(self) -> None:
        with self._lock:
            files = {path: vars(each) for path, each in sorted(self._fetched.items())}
        content = json.dumps({"dataset": self.name, "files": files}, indent=1)
        write_atomically(self.folder / RECORD, content.encode() + b"\n")


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
