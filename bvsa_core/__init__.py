"""Brain-to-image retrieval with blur-aligned image features, built on fovblur.

The command `bvsa` is made of the names below, which __init__.pyi lists. Each is imported at its first use.

    import bvsa_core

    config = bvsa_core.RunConfig.of("bvsa", data="FOLDER", subject="sub-01")
    run_data = bvsa_core.RunData(config)
    trained = bvsa_core.train(config, run_data)
    print(bvsa_core.evaluate(trained, config, run_data).scores.top1)
"""

import warnings
from typing import Any

import lazy_loader

_import_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
_RENAMED = {
    "Found": "TopK",
    "Materials": "RunData",
    "MaterialsConfig": "RunDataConfig",
    "Rows": "EmbeddingMatrix",
    "Shape": "InputSpec",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fovblur")
    if name in _RENAMED:
        message = f"bvsa_core.{name} is deprecated and will be removed; use bvsa_core.{_RENAMED[name]}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return _import_name(name)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in ("bvsa_core", "fovblur"):
            raise
        from bvsa_core.errors import UserError

        raise UserError(f"bvsa_core.{name} needs {error.name}; pip install 'fovblur[train]'") from error
