"""A local server that keeps files as OSF, figshare, Hugging Face and OpenNeuro do, and fails on request."""

import hashlib
import json
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

HOSTS = (
    "api.osf.io", "files.osf.io", "api.figshare.com", "ndownloader.figshare.com", "huggingface.co", "s3.amazonaws.com",
)  # fmt: skip
_PAGE = 2  # entries of a list: every list has several pages


class Publishers(ThreadingHTTPServer):
    """The server. `files` has the content of (publisher, id, path); `faults` the next answers to requests of a path.

    A fault is a status such as 503; ("drop", n): n bytes and a closed connection; ("announce", n): another length;
    ("range", text): another Content-Range; "no ranges"; "wrong bytes"; "endless"; or
    ("interrupt", n): n bytes, Ctrl-C in this process, and nothing more until the server ends.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[tuple[str, str, str], bytes] = {}
        self.faults: defaultdict[str, list] = defaultdict(list)
        self.without_checksums: set[str] = set()  # publishers
        self.ended = threading.Event()
        self.asked: list[tuple[str, str]] = []  # path and range of every file asked for

    def add(self, publisher: str, name: str, folder: Path, below: str = "") -> None:
        """Publish the files of a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.files[publisher, name, below + path.relative_to(folder).as_posix()] = path.read_bytes()

    def mirrors(self) -> dict[str, str]:
        """Return the address of each host."""
        return {host: f"http://127.0.0.1:{self.server_port}/{host}" for host in HOSTS}

    def flags(self, *hosts: str) -> list[str]:
        """Return the flags of `bvsa data download` that lead to these hosts here."""
        return ["--mirror", *(f"{host}={self.mirrors()[host]}" for host in hosts)]


class _Handler(BaseHTTPRequestHandler):
    server: Publishers
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None: ...

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        host, _, path = url.path.removeprefix("/").partition("/")
        path, query = unquote(path), {key: values[0] for key, values in parse_qs(url.query).items()}
        kept = self.server.files
        if host == "api.osf.io":
            node, _, folder = path.removeprefix("v2/nodes/").partition("/files/osfstorage/")
            self._osf(node, folder, int(query.get("page", 1)))
        elif host == "api.figshare.com":
            self._figshare(path.split("/")[2], int(query["page"]), int(query["page_size"]))
        elif host == "huggingface.co" and path.startswith("api/datasets/"):
            name, _, folder = path.removeprefix("api/datasets/").partition("/tree/main")
            self._huggingface(name, folder.removeprefix("/"), int(query.get("cursor", 0)))
        elif host == "s3.amazonaws.com" and query:
            self._openneuro(query["prefix"], int(query.get("continuation-token", 0)))
        else:
            places = {
                "files.osf.io": ("osf", *path.partition("/")[::2]),
                "ndownloader.figshare.com": ("figshare", *path.partition("/")[::2]),
                "s3.amazonaws.com": ("openneuro", *path.removeprefix("openneuro.org/").partition("/")[::2]),
                "huggingface.co": ("huggingface", *path.removeprefix("datasets/").partition("/resolve/main/")[::2]),
            }
            place = places[host]
            self._file(place[2], kept[place]) if place in kept else self.send_error(404)

    def _entries(self, publisher: str, name: str) -> list[tuple[str, bytes]]:
        return [
            (path, kept) for (who, what, path), kept in self.server.files.items() if (who, what) == (publisher, name)
        ]

    def _hashes(self, publisher: str, content: bytes) -> dict[str, str]:
        if publisher in self.server.without_checksums:
            return {}
        return {"md5": hashlib.md5(content).hexdigest(), "sha256": hashlib.sha256(content).hexdigest()}

    def _osf(self, node: str, folder: str, page: int) -> None:
        items: dict[str, dict] = {}
        base = f"https://api.osf.io/v2/nodes/{node}/files/osfstorage/"
        for path, content in self._entries("osf", node):
            inside, _, rest = path.removeprefix(folder).partition("/")
            if not path.startswith(folder):
                continue
            if rest:
                link = {"links": {"related": {"href": f"{base}{folder}{inside}/"}}}
                items[inside] = {"attributes": {"kind": "folder", "name": inside}, "relationships": {"files": link}}
                continue
            about = {"kind": "file", "name": inside, "materialized_path": f"/{path}", "size": len(content)}
            about["extra"] = {"hashes": self._hashes("osf", content)}
            items[inside] = {"attributes": about, "links": {"download": f"https://files.osf.io/{node}/{path}"}}
        data = list(items.values())[(page - 1) * _PAGE :]
        following = f"{base}{folder}?page={page + 1}" if len(data) > _PAGE else None
        self._json({"data": data[:_PAGE], "links": {"next": following}})

    def _figshare(self, article: str, page: int, size: int) -> None:
        items = []
        for path, content in self._entries("figshare", article):
            md5 = self._hashes("figshare", content).get("md5", "")
            url = f"https://ndownloader.figshare.com/{article}/{path}"
            items.append({"name": path, "size": len(content), "download_url": url, "computed_md5": md5})
        self._json(items[(page - 1) * size : page * size])

    def _huggingface(self, name: str, folder: str, start: int) -> None:
        items: list[dict] = [{"type": "directory", "path": folder, "size": 0}]
        for path, content in self._entries("huggingface", name):
            if path.startswith(folder):
                sha256 = self._hashes("huggingface", content).get("sha256")
                items.append({"type": "file", "path": path, "size": len(content), "oid": "0" * 40})
                items[-1] |= {"lfs": {"oid": sha256, "size": len(content)}} if sha256 else {}
        following = f"https://huggingface.co/api/datasets/{name}/tree/main/{quote(folder)}?cursor={start + 1000}"
        link = {"Link": f'<{following}>; rel="next"'} if len(items) > start + 1000 else {}
        self._json(items[start : start + 1000], **link)

    def _openneuro(self, prefix: str, start: int) -> None:
        name, _, folder = prefix.partition("/")
        entries = [(path, content) for path, content in self._entries("openneuro", name) if path.startswith(folder)]
        listed = ""
        for path, content in entries[start : start + _PAGE]:
            etag = self._hashes("openneuro", content).get("md5", f"{len(content)}-2")
            listed += f"<Contents><Key>{name}/{path}</Key><ETag>&quot;{etag}&quot;</ETag>"
            listed += f"<Size>{len(content)}</Size></Contents>"
        if len(entries) > start + _PAGE:
            listed += f"<NextContinuationToken>{start + _PAGE}</NextContinuationToken>"
        xmlns = "http://s3.amazonaws.com/doc/2006-03-01/"
        self._send(200, f'<ListBucketResult xmlns="{xmlns}">{listed}</ListBucketResult>'.encode())

    def _json(self, content: object, **headers: str) -> None:
        self._send(200, json.dumps(content).encode(), **headers)

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _file(self, path: str, content: bytes) -> None:
        asked = self.headers.get("Range", "")
        self.server.asked.append((path, asked))
        faults = self.server.faults[path]
        fault = faults.pop(0) if faults else None
        if isinstance(fault, int):
            self._send(fault, b"an error page")
            return
        kind, value = fault if isinstance(fault, tuple) else (fault, None)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and kind != "no ranges" else 0
        body, headers, status = content[start:], {}, 200
        if start:
            status = 206
            headers["Content_Range"] = value if kind == "range" else f"bytes {start}-{len(content) - 1}/{len(content)}"
        if kind == "wrong bytes":
            body = bytes(each ^ 1 for each in body)
        if kind == "announce":
            headers["Content_Length"] = str(value)
        if kind == "endless":
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            self.wfile.write(content + b"more")
            return
        if kind == "interrupt":
            headers["Content_Length"] = str(len(body))
            self._send(status, body[:value], **headers)
            self.wfile.flush()
            time.sleep(0.1)  # for what was sent to be read
            os.kill(os.getpid(), signal.SIGINT)
            self.server.ended.wait()
            return
        if kind == "drop":
            headers["Content_Length"] = str(len(body))
            self._send(status, body[:value], **headers)
            self.close_connection = True
            return
        self._send(status, body, **headers)


@contextmanager
def publishers() -> Iterator[Publishers]:
    """Run a server until the end of the block."""
    server = Publishers()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
