"""Zip archives with all of their files."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

_END = struct.Struct("<4s4H2LH")  # the last record, before the archive's comment
_MOST = 0xFFFF  # files that it counts; it says so much of larger archives, too


def open_zip(path: str | Path) -> zipfile.ZipFile:
    """Open a zip archive to read it.

    Raises:
        zipfile.BadZipFile: it is damaged, or lists fewer files than it counts, which zipfile lets pass: a damaged
            length in its table of contents swallows the entries that follow.
        OSError: it cannot be read.
    """
    archive = zipfile.ZipFile(path)
    with open(path, "rb") as stream:
        start = max(0, stream.seek(0, 2) - _MOST - _END.size)
        stream.seek(start)
        tail = stream.read()
    last = tail[tail.rfind(b"PK\5\6") :][: _END.size]
    listed, counted = len(archive.infolist()), _END.unpack(last)[4] if len(last) == _END.size else -1
    if counted not in (listed, _MOST):
        archive.close()
        raise zipfile.BadZipFile(f"its table of contents lists {listed} files of {counted}")
    return archive
