"""Systems, one file each: options, loss, per-sample state, and what it retrieves with. The file's name is the system's."""

from __future__ import annotations

import importlib
import pkgutil

from bvsa_core.errors import UserError, unknown_name
from bvsa_core.methods.base import Method

_NOT_METHODS = ("base",)


def names() -> list[str]:
    """Every method that can be asked for by name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_METHODS)


def method_class(name: str) -> type[Method]:
    """The class of a method by name.

    Raises:
        UserError: there is no such method.
    """
    if name not in names():
        raise UserError(unknown_name("method", name, names()))
    return importlib.import_module(f"{__name__}.{name}").METHOD
