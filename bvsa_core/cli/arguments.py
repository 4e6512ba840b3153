"""Arguments that commands share: dataclasses as flags, read by jsonargparse, and errors of one line."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Set
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse
import yaml

from bvsa_core import encoders
from bvsa_core.errors import UserError, unknown_name
from bvsa_core.training.config import RunConfig, method_options, training_of

Config = TypeVar("Config")
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "list": "a list, such as [one,other]"}
jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)  # --help says what the dataclasses say


class Parser(jsonargparse.ArgumentParser):
    """A parser whose complaints are UserErrors."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs, exit_on_error=True, default_env=False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        told = " ".join(line.strip(" -\t") for line in message.splitlines() if line.strip())
        raise UserError(f"{_plainly(told)} (see {self.prog} --help)")


def _plainly(told: str) -> str:
    """What jsonargparse says of a value that does not fit, in the words of the other messages; as it is where it says something else."""
    found = re.fullmatch(r'Parser key "([^"]+)": (.*) (?:Got|Given) value: (.*)', told)
    if found is None:
        return told
    key, expected, value = found.groups()
    if choices := re.search(r"Literal\[(.*?)\]", expected):
        return unknown_name(key, value, re.findall(r"'([^']*)'", choices[1]))
    kinds = [_KINDS[kind] for kind in re.findall(r"Expected an? <class '(\w+)'>", expected) if kind in _KINDS]
    return f"{key} is {value!r}; it must be {' or '.join(kinds)}" if kinds else told


def add_dataclass(parser: Parser, config_class: type, skip: Set[str] = frozenset()) -> None:
    """A flag for every field of a dataclass."""
    parser.add_class_arguments(config_class, skip=set(skip))


def add_run_arguments(parser: Parser, arguments: list[str], skip: Set[str] = frozenset()) -> None:
    """The flags of a RunConfig. Options and defaults depend on method, preset and encoder, so these are read first."""
    parser.add_argument(
        "--config", action="config", help="YAML file with any of these settings, such as a run's run.yaml"
    )
    add_dataclass(parser, RunConfig, {"method_options", "encoder_options", *skip})
    method = _read_ahead(arguments, {"method": RunConfig.method})["method"]
    training = training_of(method)
    parser.set_defaults({name: value for name, value in training.items() if name not in skip})
    defaults = {"preset": RunConfig.preset, "encoder": training.get("encoder", RunConfig.encoder)}
    chosen = {"method": method, **_read_ahead(arguments, defaults)}
    for group, options in (
        ("method_options", method_options(chosen["method"], chosen["preset"])),
        ("encoder_options", encoders.options_class(chosen["encoder"])()),
    ):
        parser.add_class_arguments(type(options), group)
        parser.set_defaults(
            {f"{group}.{field.name}": getattr(options, field.name) for field in dataclasses.fields(options)}
        )


def _read_ahead(arguments: list[str], defaults: dict[str, str]) -> dict[str, str]:
    """Values of a few flags, from the command line or the YAML file it names."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("config", *defaults):
        reader.add_argument(f"--{name}")
    given = vars(reader.parse_known_args(arguments)[0])
    from_file = {}
    if given["config"]:
        path = Path(given["config"])
        if not path.is_file():
            raise UserError(f"--config {path}: no such file")
        try:
            from_file = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"--config {path}: not a YAML file ({str(error).splitlines()[0]})") from error
        if not isinstance(from_file, dict):
            raise UserError(f"--config {path}: must hold settings as 'name: value'")
    return {name: str(given[name] or from_file.get(name, default)) for name, default in defaults.items()}


def make(config_class: type[Config], parsed: jsonargparse.Namespace, **changes: Any) -> Config:
    """A dataclass from parsed flags; flags of other classes are left alone."""
    values = parsed.as_dict() | changes
    for group in ("method_options", "encoder_options"):
        if isinstance(values.get(group), dict):
            values[group] = _options(group, values)
    names = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    return config_class(**{name: value for name, value in values.items() if name in names})


def _options(group: str, values: dict[str, Any]) -> Any:
    if group == "method_options":
        return method_options(values["method"], values["preset"], **values[group])
    return encoders.options_class(values["encoder"])(**values[group])
