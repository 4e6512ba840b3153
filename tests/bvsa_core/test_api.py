"""The public names of bvsa_core, and methods and encoders that users register."""

import importlib
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import bvsa_core
from bvsa_core import encoders, methods, register_encoder, register_method, register_vision_encoder
from bvsa_core.cli.arguments import Parser, add_run_arguments, to_dataclass
from bvsa_core.data.store import read_header
from bvsa_core.errors import UserError
from bvsa_core.methods.base import Method
from bvsa_core.training.config import RunConfig, from_dict, to_dict


def test_every_public_name_is_there():
    missing = [name for name in bvsa_core.__all__ if getattr(bvsa_core, name, None) is None]
    assert not missing and set(bvsa_core.__all__) <= set(dir(bvsa_core))
    assert bvsa_core.__version__ == version("fovblur")
    with pytest.raises(AttributeError, match="no attribute 'fit_all'"):
        bvsa_core.fit_all  # noqa: B018


def test_the_package_is_imported_without_torch():
    command = "import sys, bvsa_core; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], timeout=120).returncode == 0


RENAMED = "Found TopK, Materials RunData, MaterialsConfig RunDataConfig, Rows EmbeddingMatrix, Shape InputSpec"


@pytest.mark.parametrize(("old", "new"), [pair.split() for pair in RENAMED.split(", ")])
def test_renamed_classes_keep_their_old_names_with_a_warning(old, new):
    with pytest.warns(DeprecationWarning, match=f"bvsa_core.{old} is deprecated .*; use bvsa_core.{new}") as warned:
        assert getattr(bvsa_core, old) is getattr(bvsa_core, new)
    assert warned[0].filename == __file__


def test_user_errors_are_value_errors(tmp_path):
    with pytest.raises(ValueError, match="no such file; make the folder again"):
        read_header(tmp_path)


def test_a_missing_dependency_is_reported_with_its_extra(monkeypatch):
    def fail(name: str):
        raise ModuleNotFoundError("No module named 'lightning_fabric'", name="lightning_fabric")

    monkeypatch.delitem(vars(bvsa_core), "train", raising=False)
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(UserError, match=r"bvsa_core.train needs lightning_fabric; pip install 'fovblur\[train\]'"):
        bvsa_core.train  # noqa: B018


@dataclass(frozen=True)
class Options:
    width: int = 3


def test_a_registered_encoder_is_built_by_name_and_survives_run_yaml(registries):
    @register_encoder("mine", Options)
    def mine(shape, options):
        linear = torch.nn.Linear(shape.channels * shape.time, shape.embedding)
        return torch.nn.Sequential(torch.nn.Flatten(), linear, *[torch.nn.Identity()] * options.width)

    assert "mine" in encoders.names()
    config = RunConfig(encoder="mine", encoder_options=Options(width=5))
    again = from_dict(to_dict(config))
    assert to_dict(again) == to_dict(config) and again.encoder_options == Options(width=5)
    assert len(encoders.build("mine", encoders.InputSpec(4, 6, 8), again.encoder_options)) == 7
    flags = ["--encoder", "mine", "--encoder_options.width", "5"]
    parser = Parser()
    add_run_arguments(parser, flags)
    assert to_dict(to_dataclass(RunConfig, parser.parse_args(flags))) == to_dict(config)
    encoders._registered.clear()
    with pytest.raises(UserError, match="unknown encoder 'mine'; .*or register your own first"):
        from_dict(to_dict(config))


REFUSED = {
    "method 'bvsa' is shipped": lambda: register_method("bvsa"),
    "method 'a/b': give a name of letters": lambda: register_method("a/b"),
    "encoder 'tsconv' is shipped .*; register yours under another name": lambda: register_encoder("tsconv"),
    "vision encoder 'tiny' is shipped .*; register yours under another name": lambda: register_vision_encoder("tiny"),
    "vision encoder 'hf:mine': give a name of letters": lambda: register_vision_encoder("hf:mine"),
    "encoder 'mine': options is .*; give a dataclass": lambda: register_encoder("mine", dict),
    "method 'mine': register a subclass of bvsa_core.Method": lambda: register_method("mine")(torch.nn.Linear),
    "'mine': Half lacks forward and Options, a dataclass": lambda: register_method("mine")(type("Half", (Method,), {})),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_registration_that_does_not_fit_is_refused(message, registries):
    with pytest.raises(UserError, match=message):
        REFUSED[message]()
    assert "mine" not in methods.names() and "mine" not in encoders.names()


def test_runconfig_of_a_method_has_its_authors_training():
    config = RunConfig.of("nice", data="somewhere", bank="else", epochs=3)
    assert (config.encoder, config.optimiser, config.epochs) == ("tsconv", "adam", 3)
    assert config.data == Path("somewhere") and config.bank == Path("else") and config.cache_dir is None
    with pytest.raises(UserError, match="unknown method 'nise'; did you mean 'nice'"):
        RunConfig.of("nise")
    with pytest.raises(UserError, match="RunConfig: .*'epoch'"):
        RunConfig.of("nice", epoch=3)
