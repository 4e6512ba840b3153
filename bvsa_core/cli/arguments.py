"""Arguments that commands share: dataclasses as flags, read by jsonargparse, and errors of one line."""

import argparse
import dataclasses
import re
from collections.abc import Set
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse

from bvsa_core import encoders
from bvsa_core.errors import UserError, unknown_name
from bvsa_core.io.text_files import read_yaml
from bvsa_core.training.config import RunConfig, method_options, training_of

Config = TypeVar("Config")
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "list": "a list, such as [one,other]"}
jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)  # --help shows the fields' docstrings


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Omit empty defaults: the help texts of such flags say what happens without them."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = super()._get_help_string(action), r" \(default: %\(default\)s\)|, default: %\(default\)s"
        return re.sub(default, "", text) if action.default in (None, "", []) else text


class Parser(jsonargparse.ArgumentParser):
    """A parser that raises UserError."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs, exit_on_error=True, default_env=False, formatter_class=_HelpFormatter)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a UserError of one line."""
        message = " ".join(line.strip(" -\t") for line in message.splitlines() if line.strip())
        raise UserError(f"{_simplify_message(message)} (see {self.prog} --help)")


def _simplify_message(message: str) -> str:
    """Rewrite jsonargparse's type errors in our wording; leave other messages unchanged."""
    match = re.fullmatch(r'Parser key "([^"]+)": (.*) (?:Got|Given) value: (.*)', message)
    if match is None:
        return message
    key, expected, value = match.groups()
    if choices := re.search(r"Literal\[(.*?)\]", expected):
        return unknown_name(key, value, re.findall(r"'([^']*)'", choices[1]))
    kinds = [_KINDS[kind] for kind in re.findall(r"Expected an? <class '(\w+)'>", expected) if kind in _KINDS]
    return f"{key} is {value!r}; it must be {' or '.join(kinds)}" if kinds else message


def add_no_lock(parser: Parser) -> None:
    """Add the flag that switches locks of folders off, see `bvsa_core.io.atomic`."""
    text = "lock no folder, where the file system has no locks; only if no other process writes there"
    parser.add_argument("--no_lock", action="store_true", help=text)


def add_run_arguments(parser: Parser, arguments: list[str], skip: Set[str] = frozenset()) -> None:
    """Add the flags of a RunConfig. Options and defaults depend on method, preset and encoder, which are read first."""
    config = "YAML file with any of these settings, such as a run's run.yaml"
    parser.add_argument("--config", action="config", help=config)
    parser.add_class_arguments(RunConfig, skip={"method_options", "encoder_options", *skip})
    method, preset = _read_ahead(arguments, {"method": RunConfig.method, "preset": RunConfig.preset}).values()
    training = training_of(method, preset)
    parser.set_defaults({name: value for name, value in training.items() if name not in skip})
    encoder = _read_ahead(arguments, {"encoder": training.get("encoder", RunConfig.encoder)})["encoder"]
    options = {"method_options": method_options(method, preset), "encoder_options": encoders.options_class(encoder)()}
    for group, values in options.items():
        parser.add_class_arguments(type(values), group)
        names = [field.name for field in dataclasses.fields(values)]
        parser.set_defaults({f"{group}.{name}": getattr(values, name) for name in names})


def _read_ahead(arguments: list[str], defaults: dict[str, str]) -> dict[str, str]:
    """Read a few flags from the command line, or from the YAML file that --config names."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("config", *defaults):
        reader.add_argument(f"--{name}")
    given = vars(reader.parse_known_args(arguments)[0])
    from_file = read_yaml(Path(given["config"]), "give another file with --config") if given["config"] else {}
    # jsonargparse would read files that the file names, and print what is in them.
    for name in ("config", "method_options", "encoder_options"):
        if name in from_file and (name == "config" or not isinstance(from_file[name], dict)):
            raise UserError(f"{given['config']}: {name} cannot name another file; write the settings themselves")
    return {name: str(given[name] or from_file.get(name, default)) for name, default in defaults.items()}


def to_dataclass(config_class: type[Config], parsed: jsonargparse.Namespace) -> Config:
    """Build a dataclass from parsed flags; flags of other classes are ignored."""
    names = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    return config_class(**{name: value for name, value in parsed.as_dict().items() if name in names})
