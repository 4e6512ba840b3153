"""HTTP for bad connections: answers of publishers, and files that continue where they stopped."""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from bvsa_core.errors import UserError
from bvsa_core.io.atomic import os_errors_to_user_errors

ATTEMPTS = 6  # in a row that bring next to nothing
FIRST_WAIT = 1.0  # seconds before the second attempt; doubled each time
_LONGEST_WAIT, _LONGEST_ASKED = 60.0, 600.0  # of our own, and as a server asks
_TIMEOUTS = 15, 30  # seconds to connect, and between two packets
_CHUNK = 2**16  # bytes written at once: as many may be lost with a connection
_ENOUGH = 2**20  # bytes; a connection that brings less has brought next to nothing
_LARGEST_ANSWER = 2**26  # bytes of a list of files
_PASSING = {202, 408, 425, 429, 500, 502, 503, 504}  # statuses that another attempt may change
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class BrokenAnswer(Exception):
    """An answer that cannot be used; another attempt may bring a better one."""

    def __init__(self, message: str, wait: float = 0.0):
        super().__init__(message)
        self.wait = wait  # seconds that the server asks for


class Client:
    """Connections to publishers, or to mirrors of them.

    Args:
        mirrors: address that takes the place of a host, such as {"huggingface.co": "https://hf-mirror.com"}.
        tell: called with a sentence before each wait for another attempt.
    """

    def __init__(self, mirrors: Mapping[str, str] = {}, tell: Callable[[str], None] | None = None):
        self.tell = tell
        self.mirrors = {host: address.rstrip("/") for host, address in mirrors.items()}
        self.hosts: set[str] = set()  # asked for so far
        self.stopped = threading.Event()  # ends downloads that other threads are at
        self._session = requests.Session()
        self._session.headers["User-Agent"] = "fovblur (https://github.com/fovblur/fovblur)"
        self._open: set[requests.Response] = set()

    def address(self, url: str) -> str:
        """Return where a URL is fetched from."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{url!r} is no address of a file; the publisher's list is not understood")
        self.hosts.add(parts.hostname)
        mirror = self.mirrors.get(parts.hostname)
        return url if mirror is None else mirror + url.split(parts.netloc, 1)[1]

    @contextmanager
    def open(self, url: str, headers: Mapping[str, str] = {}) -> Iterator[requests.Response]:
        """Open a URL for reading; its status is 200, 206 or 416.

        Raises:
            BrokenAnswer: the server is overloaded, or has another error that may pass.
            UserError: the server refuses, or leads from https to http.
        """
        address = self.address(url)
        identity = {"Accept-Encoding": "identity", **headers}
        with self._session.get(address, headers=identity, stream=True, timeout=_TIMEOUTS) as response:
            status = f"{response.status_code} {response.reason}"
            if urlsplit(response.url).scheme != "https" and urlsplit(address).scheme == "https":
                raise UserError(f"{address}: leads to {response.url}, which is not encrypted; nothing was read from it")
            if response.status_code in _PASSING:
                seconds = response.headers.get("Retry-After", "")
                raise BrokenAnswer(f"the server answers {status}", float(seconds) if seconds.isdecimal() else 0.0)
            if response.status_code not in (200, 206, 416):
                remedy = "see the publisher's page, or give a --mirror"
                raise UserError(f"{address}: the server answers {status}; {remedy}")
            self._open.add(response)
            try:
                yield response
            finally:
                self._open.discard(response)

    def stop(self) -> None:
        """End the downloads that other threads are at, also those that wait for a server."""
        self.stopped.set()
        for response in list(self._open):
            if hasattr(response.raw, "shutdown"):  # since urllib3 2.3; others end at the next packet, or their timeout
                with suppress(RuntimeError):  # the answer was complete, and its connection is free again
                    response.raw.shutdown()

    def read(self, url: str) -> tuple[bytes, str | None]:
        """Return the content of a URL, and the URL of the next page that its header names, if any."""

        def attempt() -> tuple[bytes, str | None]:
            content = bytearray()
            with self.open(url) as response:
                for chunk in response.iter_content(_CHUNK):
                    content += chunk
                    if len(content) > _LARGEST_ANSWER:
                        raise UserError(f"{url}: more than {_LARGEST_ANSWER} bytes where a list of files was expected")
                return bytes(content), response.links.get("next", {}).get("url")

        failures = 0
        while True:
            try:
                return attempt()
            except (requests.RequestException, BrokenAnswer) as error:
                failures += 1
                self.pause(failures, error, url)

    def pause(self, failures: int, error: Exception, url: str) -> None:
        """Wait before the next attempt.

        Raises:
            UserError: there were too many, or the download was stopped.
        """
        if failures >= ATTEMPTS:
            remedy = "check the connection, and the same command continues"
            raise UserError(f"{url}: {failures} attempts in a row failed ({_reason(error)}); {remedy}") from error
        own = min(FIRST_WAIT * 2 ** max(0, failures - 1), _LONGEST_WAIT)
        seconds = max(own, min(getattr(error, "wait", 0.0), _LONGEST_ASKED))
        if self.tell:
            self.tell(f"{urlsplit(url).hostname}: {_reason(error)}; another attempt in {seconds:.0f} s")
        if self.stopped.wait(seconds):
            raise UserError("stopped")


def _reason(error: Exception) -> str:
    """Return why a connection failed, without the address that urllib3 repeats."""
    reason = getattr(error.args[0] if error.args else None, "reason", None) or error
    return re.sub(r"^<?[\w.]*Connection\w*\b.*?[)>]: ", "", " ".join(str(reason).split()))


class ResumingDownloader:
    """A downloader for pooch that keeps the part of a file that has come, and continues it.

    Args:
        client: the connections.
        part: file that keeps the part.
        size: bytes of the file.
        etag: version that the publisher's list gives, if it gives no checksum.
        report: called with the number of bytes that are there.
    """

    def __init__(self, client: Client, part: Path, size: int, etag: str | None, report: Callable[[int], None]):
        self.client, self.part, self.size, self.etag, self.report = client, part, size, etag, report

    def __call__(self, url: str, output_file: str, pooch: Any, check_only: bool = False) -> None:
        """Download a URL to a file that pooch then checks and moves to its place."""
        failures = 0
        with os_errors_to_user_errors(self.part):
            self.part.touch()
            while (have := self.part.stat().st_size) != self.size:
                try:
                    self._receive(url, have if have < self.size else 0)
                except (requests.RequestException, BrokenAnswer) as error:
                    brought = self.part.stat().st_size - have
                    failures = 1 if brought >= _ENOUGH else failures + 1
                    self.client.pause(failures, error, url)
            self.report(self.size)
            self.part.replace(output_file)

    def _receive(self, url: str, start: int) -> None:
        """Append what one connection brings; a server that knows no ranges begins again."""
        with self.client.open(url, {"Range": f"bytes={start}-"} if start else {}) as response:
            if response.status_code == 416:
                self._discard("the server does not have the rest of it")
            if response.status_code == 200:
                start = 0
            elif not (match := _RANGE.fullmatch(response.headers.get("Content-Range", ""))):
                raise BrokenAnswer("the server does not say which part it sends")
            elif int(match[1]) != start or match[2] not in ("*", str(self.size)):
                self._discard(f"the server sends {match[0]}, not the rest of {self.size} from {start} on")
            announced = response.headers.get("Content-Length", "")
            if announced.isdecimal() and int(announced) != self.size - start:
                expected = f"{self.size - start} are expected by the publisher's list"
                raise BrokenAnswer(f"the server announces {announced} bytes, and {expected}")
            if self.etag and response.headers.get("ETag", self.etag) != self.etag:
                raise UserError(f"{url}: has changed since the publisher's list was read; start the command again")
            with open(self.part, "ab" if start else "wb") as file:
                for chunk in response.iter_content(_CHUNK):
                    if self.client.stopped.is_set():
                        raise UserError("stopped")
                    start += len(chunk)
                    if start > self.size:
                        break
                    file.write(chunk)
                    self.report(start)
        if start > self.size:
            self._discard(f"the server sends more than {self.size} bytes")
        if start < self.size:
            raise BrokenAnswer(f"the connection ended after {start} of {self.size} bytes")

    def _discard(self, reason: str) -> None:
        """Begin the file again."""
        self.part.write_bytes(b"")
        raise BrokenAnswer(reason)
