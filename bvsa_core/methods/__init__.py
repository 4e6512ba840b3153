"""Methods, one file each, named after the file: options, loss, per-sample state and embeddings for retrieval.

`METHOD` in a file is its class. Methods from elsewhere are available by name too, once `register_method` has been
called.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import TypeVar

from bvsa_core.errors import UserError, unknown_name, validate_plugin_name
from bvsa_core.methods.base import Method

_registered: dict[str, type[Method]] = {}  # in this process
OwnMethod = TypeVar("OwnMethod", bound=type[Method])


def names() -> list[str]:
    """Return the names of all methods."""
    return sorted([*_builtin(), *_registered])


def register_method(name: str) -> Callable[[OwnMethod], OwnMethod]:
    """Return a decorator that makes a method of your own available by name, in this process.

    A run on disk holds only the name, so register the method before you load one. Registering a name again, as in a
    notebook, replaces the class.

    Examples:
        >>> from bvsa_core.methods.vanilla import Vanilla
        >>> @register_method("plain")
        ... class Plain(Vanilla):
        ...     TABLE_NOTE = "Vanilla by another name."
        >>> method_class("plain").TABLE_NOTE
        'Vanilla by another name.'

    Raises:
        UserError: the name is taken or not a name, or the class is not a complete Method.
    """
    validate_plugin_name("method", name, _builtin())

    def keep(own: OwnMethod) -> OwnMethod:
        if not (inspect.isclass(own) and issubclass(own, Method)):
            raise UserError(f"method {name!r}: register a subclass of bvsa_core.Method")
        missing = [*sorted(own.__abstractmethods__), *([] if hasattr(own, "Options") else ["Options, a dataclass"])]
        if missing:
            raise UserError(f"method {name!r}: {own.__name__} lacks {' and '.join(missing)}")
        _registered[name] = own
        return own

    return keep


def method_class(name: str) -> type[Method]:
    """Return the class of a method."""
    if name in _registered:
        return _registered[name]
    if name not in _builtin():
        raise UserError(f"{unknown_name('method', name, names())}, or register your own first")
    module = importlib.import_module(f"{__name__}.{name}")
    if not hasattr(module, "METHOD"):
        raise UserError(f"{module.__file__}: names no method; end it with METHOD = its class")
    return module.METHOD


def _builtin() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"]
