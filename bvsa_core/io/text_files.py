"""Read JSON and YAML files as data; a damaged file is a one-line error."""

import json
from pathlib import Path
from typing import Any

import yaml

from bvsa_core.errors import UserError

# PyYAML's own, and those of its constructors for values such as `!!bool x`, the date 2024-13-45 or 1:59:59:... .5
_YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError, OverflowError)
_MAX_YAML, _MAX_NODES = 2**18, 20_000  # bytes of a file, and values in it with every alias written out


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read the object in a JSON file; an error message ends with `remedy`, which says what the user can do."""
    return parse_json(read_text(path, remedy), path, remedy)


def parse_json(text: str, source: object, remedy: str) -> dict[str, Any]:
    """Read a JSON object from text; `source` is where the text comes from, for messages."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: damaged or incomplete ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{source}: holds {type(content).__name__} where an object is needed; {remedy}")
    return content


def read_yaml(path: Path, remedy: str) -> dict[str, Any]:
    """Read the settings ('name: value') in a YAML file."""
    text = read_text(path, remedy)
    try:
        content = _parse_yaml(text)
    except _YAML_ERRORS as error:
        detail = " ".join(str(error).split("\n")[0].split())
        raise UserError(f"{path}: not a YAML file ({detail}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold settings as 'name: value'; {remedy}")
    return content


def _parse_yaml(text: str) -> Any:
    if len(text) > _MAX_YAML:
        raise ValueError(f"longer than {_MAX_YAML} characters")
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            _count_nodes(node, {})
        return loader.construct_document(node) if node is not None else None
    finally:
        loader.dispose()


def _count_nodes(node: yaml.Node, counts: dict[int, int]) -> int:
    """Return the number of values in a node with every alias written out; aliases of aliases may be billions."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in counts:
        counts[id(node)] = _MAX_NODES  # until it is known: a node that contains itself is too large
        children = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        counts[id(node)] = 1 + sum(_count_nodes(child, counts) for child in children)
    if counts[id(node)] >= _MAX_NODES:
        raise ValueError(f"more than {_MAX_NODES} values, or one that contains itself")
    return counts[id(node)]


def read_text(path: Path, remedy: str) -> str:
    """Read UTF-8 text; an error message ends with `remedy`."""
    if path.exists() and not path.is_file() and not path.is_dir():  # reading a pipe or device might not end
        raise UserError(f"{path}: not a regular file; {remedy}")
    try:
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {remedy}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged (not UTF-8 text); {remedy}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error


def flatten(values: dict[str, Any], separator: str = ".") -> dict[str, Any]:
    """Flatten nested objects into one.

    >>> flatten({"epochs": 2, "encoder_options": {"dropout": 0.3}})
    {'epochs': 2, 'encoder_options.dropout': 0.3}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        parts = flatten(value, separator) if isinstance(value, dict) else None
        flat |= {name: value} if parts is None else {f"{name}{separator}{inner}": each for inner, each in parts.items()}
    return flat
