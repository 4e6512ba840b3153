"""Systems, one file each: options, loss, per-sample state, and what it retrieves with. The file's name is the system's.

Systems that live elsewhere are asked for by name too, once `register_method` knows them.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import TypeVar

from bvsa_core.errors import UserError, unknown_name, validate_plugin_name
from bvsa_core.methods.base import Method

_NOT_METHODS = ("base",)
_registered: dict[str, type[Method]] = {}  # in this process
OwnMethod = TypeVar("OwnMethod", bound=type[Method])


def names() -> list[str]:
    """Every method that can be asked for by name."""
    return sorted([*_builtin(), *_registered])


def register_method(name: str) -> Callable[[OwnMethod], OwnMethod]:
    """A decorator: a method of one's own is asked for by this name from now on, in this process.

    What a run leaves on disk holds the name alone, so whoever reads it registers the method first. A name that is
    registered again, as in a notebook, is the newer class from then on.

    >>> from bvsa_core.methods.vanilla import Vanilla
    >>> @register_method("plain")
    ... class Plain(Vanilla):
    ...     NOTE = "Vanilla by another name."
    >>> method_class("plain").NOTE
    'Vanilla by another name.'

    Raises:
        UserError: a name that is taken or is none, or a class that is no complete Method.
    """
    validate_plugin_name("method", name, _builtin())

    def keep(own: OwnMethod) -> OwnMethod:
        if not (inspect.isclass(own) and issubclass(own, Method)):
            raise UserError(f"method {name!r}: register a subclass of bvsa_core.Method")
        lacking = [*sorted(own.__abstractmethods__), *([] if hasattr(own, "Options") else ["Options, a dataclass"])]
        if lacking:
            raise UserError(f"method {name!r}: {own.__name__} lacks {' and '.join(lacking)}")
        _registered[name] = own
        return own

    return keep


def method_class(name: str) -> type[Method]:
    """The class of a method by name.

    Raises:
        UserError: there is no such method.
    """
    if name in _registered:
        return _registered[name]
    if name not in _builtin():
        raise UserError(f"{unknown_name('method', name, names())}, or register your own first")
    return importlib.import_module(f"{__name__}.{name}").METHOD


def _builtin() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_METHODS]
