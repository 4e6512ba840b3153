"""JSON and YAML files, read as data and refused in one line where they are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from bvsa_core.errors import UserError


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read the object that a JSON file holds.

    Args:
        remedy: what a user can do about a damaged file; ends the message.

    Raises:
        UserError: the file is missing, damaged, or holds no object.
    """
    try:
        return parse_json(path.read_text("utf-8"), path, remedy)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {remedy}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged (not UTF-8 text); {remedy}") from error


def parse_json(text: str, source: object, remedy: str) -> dict[str, Any]:
    """Read a JSON object from text; `source` is where the text comes from, for messages.

    Raises:
        UserError: the text is damaged, or holds no object.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: damaged or incomplete ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{source}: holds {type(content).__name__} where an object is needed; {remedy}")
    return content


def read_yaml(path: Path, remedy: str) -> dict[str, Any]:
    """Read the settings ('name: value') that a YAML file holds.

    Raises:
        UserError: the file is missing, damaged, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {remedy}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        detail = str(error).splitlines()[0]
        raise UserError(f"{path}: not a YAML file ({detail}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold settings as 'name: value'; {remedy}")
    return content
