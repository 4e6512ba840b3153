"""The lists of files that publishers keep: paths, addresses, sizes and checksums."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from bvsa_core.data.downloads.http import Client
from bvsa_core.data.downloads.registry import Source
from bvsa_core.errors import UserError

_PAGES = 1000  # of one list
_S3 = "{http://s3.amazonaws.com/doc/2006-03-01/}"
_HASH = {"sha256": re.compile(r"[0-9a-f]{64}"), "md5": re.compile(r"[0-9a-f]{32}")}
_PART = re.compile(r"[^/\\:\x00-\x1f\x7f]{1,200}")


@dataclass(frozen=True)
class RemoteFile:
    """A file in a publisher's list."""

    path: str  # in the list; then below the destination
    url: str
    size: int  # bytes
    checksum: str | None = None  # such as "md5:..."
    etag: str | None = None  # version, where there is no checksum
    unpack: bool = False


def list_files(source: Source, client: Client) -> list[RemoteFile]:
    """Return the files that a source selects, with their paths below the destination.

    Raises:
        UserError: the list cannot be had, is not understood, or names nothing that is selected.
    """
    by_hand = f"get the files by hand from {source.page}"
    try:
        found = [
            _checked(file) for file in _LISTS[source.publisher](source, client) if _selected(file.path, source.select)
        ]
    except UserError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError, ElementTree.ParseError) as error:
        detail = f"{type(error).__name__}: {error}"
        raise UserError(f"{source.page}: its list of files is not understood ({detail}); {by_hand}") from error
    if not found:
        names = ", ".join(source.select)
        raise UserError(f"{source.page}: no file is called {names}; the publisher has renamed them, {by_hand}")
    prefix = f"{source.folder}/" if source.folder else ""
    zipped = lambda file: source.unpack and file.path.endswith(".zip")  # noqa: E731
    return [replace(file, path=prefix + file.path, unpack=zipped(file)) for file in found]


def _selected(path: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _checked(file: RemoteFile) -> RemoteFile:
    """Return a file whose path stays below a folder, with a size that can be right."""
    parts = file.path.split("/")
    if not all(_PART.fullmatch(part) and not part.startswith(".") for part in parts):
        raise UserError(f"{file.url}: is called {file.path!r}, which is no safe name; nothing was fetched")
    if isinstance(file.size, bool) or not isinstance(file.size, int) or file.size < 0:
        raise ValueError(f"size of {file.path} is {file.size!r}")
    if not isinstance(file.url, str):
        raise ValueError(f"address of {file.path} is {file.url!r}")
    return file


def _checksum(**known: Any) -> str | None:
    """Return the first checksum that there is."""
    values = ((name, str(value or "").lower()) for name, value in known.items())
    return next((f"{name}:{value}" for name, value in values if _HASH[name].fullmatch(value)), None)


def _pages(client: Client, url: str | None, next_of: Callable[[Any, str | None], str | None]) -> Iterator[Any]:
    """Yield the pages of a list in JSON."""
    for _ in range(_PAGES):
        if url is None:
            return
        content, linked = client.read(url)
        page = json.loads(content)
        yield page
        url = next_of(page, linked)
    raise ValueError(f"more than {_PAGES} pages")


def _osf(source: Source, client: Client) -> Iterator[RemoteFile]:
    folders = [f"https://api.osf.io/v2/nodes/{source.id}/files/osfstorage/?page%5Bsize%5D=100"]
    for number, folder in enumerate(folders):  # grows
        if number == _PAGES:
            raise ValueError(f"more than {_PAGES} folders")
        for page in _pages(client, folder, lambda page, _: page["links"].get("next")):
            for item in page["data"]:
                about = item["attributes"]
                if about["kind"] == "folder":
                    folders.append(item["relationships"]["files"]["links"]["related"]["href"])
                    continue
                hashes = about["extra"].get("hashes") or {}
                checksum = _checksum(sha256=hashes.get("sha256"), md5=hashes.get("md5"))
                path = about["materialized_path"].removeprefix("/")
                yield RemoteFile(path, item["links"]["download"], about["size"], checksum)


def _figshare(source: Source, client: Client) -> Iterator[RemoteFile]:
    base, size = f"https://api.figshare.com/v2/articles/{source.id}/files?page_size=", 100
    for number in range(1, _PAGES):
        page = json.loads(client.read(f"{base}{size}&page={number}")[0])
        for item in page:
            checksum = _checksum(md5=item.get("computed_md5")) or _checksum(md5=item.get("supplied_md5"))
            yield RemoteFile(item["name"], item["download_url"], item["size"], checksum)
        if len(page) < size:
            return


def _huggingface(source: Source, client: Client) -> Iterator[RemoteFile]:
    base = "https://huggingface.co"
    for folder in source.within or [""]:
        inside = f"/{quote(folder)}" if folder else ""
        first = f"{base}/api/datasets/{source.id}/tree/main{inside}?recursive=true&limit=1000"
        for page in _pages(client, first, lambda _, linked: linked):
            for item in page:
                if item["type"] == "file":
                    url = f"{base}/datasets/{source.id}/resolve/main/{quote(item['path'])}"
                    kept = item.get("lfs") or {}  # large files have a checksum, small ones a hash of git's own
                    yield RemoteFile(item["path"], url, item["size"], _checksum(sha256=kept.get("oid")))


def _openneuro(source: Source, client: Client) -> Iterator[RemoteFile]:
    base = "https://s3.amazonaws.com/openneuro.org"
    for folder in source.within or [""]:
        query, token = f"?list-type=2&prefix={quote(f'{source.id}/{folder}')}", ""
        for _ in range(_PAGES):
            content, _ = client.read(base + query + token)
            if b"<!" in content:  # a document type, which may define entities
                raise ValueError("a document type in the list")
            page = ElementTree.fromstring(content)
            for item in page.iter(f"{_S3}Contents"):
                key, etag = item.findtext(f"{_S3}Key", ""), item.findtext(f"{_S3}ETag", "")
                size, checksum = int(item.findtext(f"{_S3}Size", "")), _checksum(md5=etag.strip('"'))
                path = key.removeprefix(f"{source.id}/")
                yield RemoteFile(path, f"{base}/{quote(key)}", size, checksum, None if checksum else etag)
            following = page.findtext(f"{_S3}NextContinuationToken")
            if not following:
                break
            token = f"&continuation-token={quote(following, safe='')}"


_LISTS = {"osf": _osf, "figshare": _figshare, "huggingface": _huggingface, "openneuro": _openneuro}
