"""What commands print."""

import re

PROGRESS = re.compile(r"[^:]+ \d+/\d+(, .*)?\n")


def error_of(shown: str) -> str:
    """Return the error among lines on standard error: it is the last one, and those before it are of progress."""
    *before, error = shown.splitlines(keepends=True)
    assert not [line for line in before if not PROGRESS.fullmatch(line)], shown
    assert error.startswith("bvsa: error: "), shown
    return error
