"""Arguments that commands share: dataclasses as flags, read by jsonargparse, and errors of one line."""

import argparse
import dataclasses
import re
import types
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import jsonargparse

from bvsa_core import encoders
from bvsa_core.errors import UserError, did_you_mean, unknown_name
from bvsa_core.io.text_files import read_yaml
from bvsa_core.training.config import RunConfig, method_options, training_of

Config = TypeVar("Config")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list, such as [one,other]",
    "tuple": "two numbers, such as 0 0.5",
}
_TYPES = {Path: "path", int: "whole number", float: "number", str: "text"}  # in help texts
_SPELLINGS = {"optimizer": "optimiser"}  # taken as well
_SYNONYMS = {"learning_rate": "lr"}  # suggested
jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)  # --help shows the fields' docstrings


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Show types in words, and defaults as one types them; an empty default is left to the help text."""

    def _get_help_string(self, action: argparse.Action) -> str:
        expanded = getattr(action, "_jsonargparse_preexpanded_help", False)  # by this function
        if expanded or isinstance(action, argparse._HelpAction) or action.default is argparse.SUPPRESS:
            return super()._get_help_string(action)
        about = [_type_in_words(_type_of(action))]
        if action.nargs != 0 and action.default not in (None, "", []):
            about.append(f"default: {_default_text(action.default)}")
        shown = ", ".join(filter(None, about))
        return " ".join(filter(None, (action.help, shown and f"({shown})")))

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return super()._format_args(action, default_metavar).replace(",null}", "}")


def _type_of(action: argparse.Action | None) -> Any:
    """Return the type hint of a flag; None if it has none."""
    return getattr(action, "_typehint", None) or getattr(action, "type", None)


def _alternatives(hint: Any) -> list[Any]:
    """Return the members of a union without None, or the hint itself."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [member for member in members if member is not type(None)]


def _type_in_words(hint: Any) -> str:
    """Describe a type hint; empty where the flag's name shows its choices."""
    words = []
    for each in _alternatives(hint):
        origin, members = get_origin(each), get_args(each)
        if each is None or each is bool or origin is Literal:
            continue
        if origin is list:
            item = _type_in_words(members[0])
            words.append(f"list of {item}s" if item.endswith("number") else f"list of {item}")
        elif origin is tuple:
            items = list(map(_type_in_words, members))
            words.append("two numbers" if items == ["number", "number"] else f"({', '.join(items)})")
        else:
            words.append(_TYPES.get(each, str(getattr(each, "__name__", each))))
    return " or ".join(words)


def _default_text(value: Any) -> str:
    """Return a default as it is written on the command line."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_default_text, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


class Parser(jsonargparse.ArgumentParser):
    """A parser that raises UserError, takes hyphens for underscores in flags, and has --quiet."""

    @property
    def prog(self) -> str:  # type: ignore[override]
        """The command; jsonargparse adds "[options]" before a subcommand."""
        return self._command

    @prog.setter
    def prog(self, value: str) -> None:
        self._command = value.replace(" [options]", "")

    def __init__(self, **kwargs: Any):
        settings: dict[str, Any] = {"exit_on_error": True, "default_env": False, "allow_abbrev": False}
        super().__init__(**kwargs, **settings, formatter_class=_HelpFormatter)
        self.add_argument("--quiet", action="store_true", help="show no progress")

    def parse_args(self, args: Sequence[str], *rest: Any, **kwargs: Any) -> jsonargparse.Namespace:  # type: ignore[override]
        """Parse the command line."""
        return super().parse_args(self._normalised(args), *rest, **kwargs)

    def _normalised(self, args: Sequence[str]) -> list[str]:
        """Return arguments with flags as they are declared, and two numbers after the flag of a pair as one value."""
        flags, waiting, result = self._option_string_actions, list(args), list[str]()
        while waiting:
            word = waiting.pop(0)
            flag, equals, value = word.partition("=")
            declared = flag[2:].replace("-", "_")
            declared = f"--{_SPELLINGS.get(declared, declared)}"
            if flag.startswith("--") and flag not in flags and declared in flags:
                flag, word = declared, f"{declared}{equals}{value}"
            result.append(word)
            pair = any(get_origin(each) is tuple for each in _alternatives(_type_of(flags.get(flag))))
            if pair and not equals and len(waiting) > 1 and all(map(_is_number, waiting[:2])):
                result.append(f"[{waiting.pop(0)},{waiting.pop(0)}]")
        return result

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a UserError of one line."""
        message = " ".join(line.strip(" -\t") for line in message.splitlines() if line.strip())
        prog = self.prog
        if required := re.fullmatch(r"(the following arguments are required: )(\w+)\..+", message):
            prog, message = f"{prog} {required[2]}", message.replace(f"{required[2]}.", "")  # of a subcommand
        raise UserError(f"{self._unknown(message) or _simplify_message(message)} (see {prog} --help)")

    def _unknown(self, message: str) -> str | None:
        """Return the error for an unknown flag, setting or command, with the nearest one; None for other messages."""
        if self._subcommands_action:
            commands = self._subcommands_action.choices
            if given := re.search(r"invalid choice: '([^']*)'", message):
                return unknown_name(f"command of {self.prog}", given[1], commands)
            if "it was not provided" in message:
                return f"{self.prog} needs a command; choose one of {', '.join(commands)}"
        groups = {name.rpartition(".")[0] for name in self._option_string_actions if "." in name}
        known = [name[2:] for name in self._option_string_actions if name[:2] == "--" and name not in groups]
        if unknown := re.fullmatch("[Uu]nrecognized arguments: (.+)", message):  # upper case in jsonargparse 4.40
            flags = [word.partition("=")[0] for word in unknown[1].split(" ") if word.startswith("-")]
            if not flags:
                return f"{self.prog} takes no argument {unknown[1]!r}"
            return f"{self.prog} has no flag {flags[0]}{_nearest(flags[0].lstrip('-'), known, '--{}')}"
        match = re.search(r"Group '(.+)' does not accept option '([^']+)'|(?:Option|Key) '([^']+)' is not", message)
        if match is None:
            return None
        name = ".".join(filter(None, match.groups()))
        return f"{self.prog} has no setting {name}{_nearest(name, known, '{}')}"


def _nearest(name: str, known: list[str], shown: str) -> str:
    """Return the question whether a known name was meant; empty if none is like it."""
    synonym = _SYNONYMS.get(name.replace("-", "_"))
    return did_you_mean(synonym if synonym in known else name, known, shown)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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


def add_overwrite(parser: Parser) -> None:
    """Add the flag that replaces runs of other settings, see `bvsa_core.training.run_folder`."""
    text = "replace runs of other settings in the folder, each when its data and options have been checked"
    parser.add_argument("--overwrite", action="store_true", help=text)


def add_run_arguments(parser: Parser, arguments: list[str], skip: Set[str] = frozenset()) -> None:
    """Add the flags of a RunConfig. Options and defaults depend on method, preset and encoder, which are read first."""
    config = "YAML file with any of these settings, such as a run's run.yaml"
    parser.add_argument("--config", action="config", help=config)
    parser.add_class_arguments(RunConfig, skip={"method_options", "encoder_options", *skip})
    defaults = {"method": RunConfig.method, "preset": RunConfig.preset, "setting": RunConfig.setting}
    method, preset, setting = _read_ahead(arguments, defaults).values()
    training = training_of(method, preset, setting)
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
