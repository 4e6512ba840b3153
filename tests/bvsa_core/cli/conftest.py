"""Fixtures for tests of several commands."""

from pathlib import Path

import pytest
from command_output import error_of

from bvsa_core.cli import main


@pytest.fixture(scope="session")
def finished(small_data, tmp_path_factory) -> Path:
    """Return the folder of a finished run of BVSA."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "--data", str(small_data), "--out", str(folder), "--epochs", "2", "--batch_size", "64"]) == 0
    return folder


@pytest.fixture
def succeed(capsys):
    """Return a function that runs a command, which must succeed, and returns what it printed."""

    def run(*arguments: object) -> str:
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return run


@pytest.fixture
def fail(capsys):
    """Return a function that runs a command, which must fail with one line that has all parts of "PART ... PART"."""

    def run(message: str, *arguments: object) -> None:
        assert main([str(argument) for argument in arguments]) == 2
        error = error_of(capsys.readouterr().err)
        assert all(part in error for part in message.split(" ... "))

    return run
