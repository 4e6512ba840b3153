"""The error a person caused and can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something outside the program is wrong; the message says what, where, and what to do about it, in one line."""

    exit_code = 2


class CheckFailed(UserError):
    """What was asked for is done, and what it was to look at is not in order."""

    exit_code = 1


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not one of those known, with the likeliest one meant."""
    known = list(known)
    close = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ";"
    return f"unknown {kind} {name!r}{meant} choose one of {', '.join(known)}"


def validate_plugin_name(kind: str, name: str, shipped: Iterable[str]) -> None:
    """Whether something of one's own can be registered under a name, which becomes part of the names of files.

    Raises:
        UserError: it cannot.
    """
    if name in shipped:
        raise UserError(f"{kind} {name!r} is shipped with bvsa_core; register yours under another name")
    if not name.isidentifier():
        raise UserError(f"{kind} {name!r}: give a name of letters, digits and underscores")
