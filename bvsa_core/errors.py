"""Errors that a user can fix."""

import difflib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType


class UserError(ValueError):
    """Something outside the program is wrong. The message names it, where it is and the remedy, in one line."""

    exit_code = 2


class CheckFailed(UserError):
    """The check ran to the end and found problems."""

    exit_code = 1


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name, with the closest known one."""
    known = list(known)
    return f"unknown {kind} {name!r}{did_you_mean(name, known) or ';'} choose one of {', '.join(known)}"


def did_you_mean(name: str, known: Sequence[str], shown: str = "{!r}") -> str:
    """Return the question whether the closest known name was meant; empty if none is close. `shown` formats it."""
    by_letters = {each.lower().replace("-", "_"): each for each in known}
    close = difflib.get_close_matches(name.lower().replace("-", "_"), by_letters, n=1)
    return f"; did you mean {shown.format(by_letters[close[0]])}?" if close else ""


def printable(text: str) -> str:
    r"""Write control characters as escapes: a name from a file must not move the cursor or colour the terminal.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(
        repr(each)[1:-1] if each != "\n" and unicodedata.category(each) in ("Cc", "Cf", "Cs") else each for each in text
    )


def first_few(names: Sequence[str], most: int = 5) -> str:
    """Join the first names, and say how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def changes(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """Return what differs between settings.

    >>> changes({"seed": 0, "epochs": 2}, {"seed": 5, "epochs": 2})
    ['seed 0 -> 5']
    """
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name} {json.dumps(old.get(name))} -> {json.dumps(new.get(name))}" for name in names]


def validate_plugin_name(kind: str, name: str, shipped: Iterable[str]) -> None:
    """Check the name of a registered method or encoder, which becomes part of file names.

    Raises:
        UserError: the name is taken by bvsa_core, or is not an identifier.
    """
    if name in shipped:
        raise UserError(f"{kind} {name!r} is shipped with bvsa_core; register yours under another name")
    if not name.isidentifier():
        raise UserError(f"{kind} {name!r}: give a name of letters, digits and underscores")


def import_mne(needed_by: str) -> ModuleType:
    """Import MNE-Python, which is optional; `needed_by` says in the plural what needs it."""
    try:
        import mne
    except ImportError as error:
        raise UserError(
            f"MNE cannot be imported ({error}); {needed_by} need: pip install 'fovblur[preprocess]'"
        ) from error
    return mne


def import_pandas(needed_by: str) -> ModuleType:
    """Import pandas, which is optional; `needed_by` says in the plural what needs it."""
    try:
        import pandas
    except ImportError as error:
        raise UserError(f"pandas cannot be imported ({error}); {needed_by} need: pip install pandas") from error
    return pandas
