"""Typed objects from plain data, such as the content of a JSON or YAML file: every name and type is checked."""

import re
import types
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from bvsa_core.errors import UserError

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
_PLURALS = {str: "names", int: "whole numbers", float: "numbers"}
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which no file can hold
_LARGEST = 2**63 - 1  # of whole numbers, which become int64


def build(kind: Any, value: Any, source: str, remedy: str) -> Any:
    """Return plain data as what an annotation says.

    Args:
        kind: int, float, bool, str, Path, Literal; a union, list, dict or tuple of these; a TypedDict or a dataclass.
            Of a dataclass unknown names are ignored; a TypedDict keeps them. Any other annotation takes any value.
        value: plain data; a list stands for a tuple, and text for a Path.
        source: begins the error messages.
        remedy: ends them.

    Raises:
        UserError: a name is missing, or a value is of another kind.
    """
    if kind is Any:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    of_kind = lambda plain: value if isinstance(value, plain) else _refuse(kind, source, remedy)  # noqa: E731
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, kind, source, remedy)
    if origin is Literal:
        return value if isinstance(value, str) and value in arguments else _refuse(kind, source, remedy)
    if kind is type(None):
        return value if value is None else _refuse(kind, source, remedy)
    if kind is bool:
        return of_kind(bool)
    if kind in (int, float, str):
        return value if _is_plain(kind, value) else _refuse(kind, source, remedy)
    if kind is Path:
        return Path(build(str, value, source, remedy))
    if origin is list and arguments[0] in _PLURALS:
        return value if all(_is_plain(arguments[0], each) for each in of_kind(list)) else _refuse(kind, source, remedy)
    if origin is list:
        return [build(arguments[0], each, source, remedy) for each in of_kind(list)]
    if origin is tuple:
        items = of_kind((list, tuple))
        kinds = [arguments[0]] * len(items) if arguments[1:] == (...,) else arguments
        if len(kinds) != len(items):
            _refuse(kind, source, remedy)
        return tuple(build(each, item, source, remedy) for each, item in zip(kinds, items))
    if origin is dict:
        items = of_kind(dict).items()
        return {
            build(arguments[0], k, source, remedy): build(arguments[1], v, f"{source}: {k}", remedy) for k, v in items
        }
    if is_typeddict(kind):
        required = [name for name in kind.__annotations__ if name in kind.__required_keys__]
        return of_kind(dict) | _fields(kind, required, of_kind(dict), source, remedy)
    if isinstance(kind, type) and is_dataclass(kind):
        required = [each.name for each in fields(kind) if each.default is each.default_factory is MISSING]
        return kind(**_fields(kind, required, of_kind(dict), source, remedy))
    return value


def _is_plain(kind: type, value: Any) -> bool:
    """Return whether a value is text that can be written, or a number of a usual size; true and false are none."""
    if isinstance(value, int):
        return kind in (int, float) and not isinstance(value, bool) and abs(value) <= _LARGEST
    return isinstance(value, kind) and not (isinstance(value, str) and _SURROGATE.search(value))


def _fields(kind: Any, required: list[str], content: dict, source: str, remedy: str) -> dict[str, Any]:
    """Return the checked values of the names that a class and the content share."""
    if missing := [name for name in required if name not in content]:
        raise UserError(f"{source}: {', '.join(missing)} missing; {remedy}")
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name in content}
    return {name: build(hint, content[name], f"{source}: {name}", remedy) for name, hint in hints.items()}


def _one_of(kinds: tuple, value: Any, kind: Any, source: str, remedy: str) -> Any:
    """Build the first of several kinds that fits; if a single one is possible, its error says what is wrong."""
    possible = [each for each in kinds if each is not type(None)]
    if value is None and len(possible) < len(kinds):
        return None
    if len(possible) == 1:
        return build(possible[0], value, source, remedy)
    for each in possible:
        try:
            return build(each, value, source, remedy)
        except UserError:
            continue
    return _refuse(kind, source, remedy)


def _refuse(kind: Any, source: str, remedy: str) -> Any:
    raise UserError(f"{source} must be {_words(kind)}; {remedy}")


def _words(kind: Any) -> str:
    """Return an annotation in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(each) for each in arguments if each is not type(None))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (list, tuple):
        return f"a list of {_PLURALS.get(arguments[0], 'values')}"
    return _WORDS.get(kind, "an object")
