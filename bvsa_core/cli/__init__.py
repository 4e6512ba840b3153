"""The command `bvsa`: one module per command, each with `add_arguments(parser, arguments)` and `run(parsed)`."""

import importlib
import importlib.util
import os
import platform
import shlex
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version

from bvsa_core import allocator
from bvsa_core.cli.output import say
from bvsa_core.errors import UserError, unknown_name
from bvsa_core.stopping import Stopped, stop_on_preemption

COMMANDS = {
    "demo": "data, features, training, table and page in one go, on synthetic data",
    "data": "fetch, make, convert or check a data set",
    "features": "fill the feature bank",
    "train": "train one method on one or all subjects",
    "evaluate": "score a run, or embeddings made elsewhere",
    "reproduce": "run a grid of methods, subjects, seeds and settings and compare it with the published table",
    "retrieve": "find the best images of a gallery for given recordings",
    "report": "write one self-contained HTML page about runs, and its figures",
}
_NEEDED = (  # third-party packages of the extra `train`
    "jsonargparse", "open_clip", "lightning_fabric", "safetensors", "scipy", "PIL", "rich", "torchvision", "matplotlib",
    "jinja2", "joblib", "filelock",
)  # fmt: skip
_USAGE = "usage: bvsa COMMAND [options]      bvsa help COMMAND      bvsa --version\n" + "".join(
    f"\n  {name:<10} {text}" for name, text in COMMANDS.items()
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. User errors print one line.

    Returns:
        The exit code: 0 for success, 1 for a check that found problems, 2 for an error; 130 after Ctrl-C,
        143 after SIGTERM and 138 after SIGUSR1 (128 and the signal's number).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with stop_on_preemption():
            try:
                return _dispatch(arguments)
            finally:
                sys.stdout.flush()
    except UserError as error:
        say(f"bvsa: error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        say(f"bvsa: error: {path}{error.strerror or error}", file=sys.stderr)
    except KeyboardInterrupt as stopped:  # its message names the epoch that was saved, if any
        say(f"bvsa: {str(stopped) or 'stopped'}; the same command continues", file=sys.stderr)
        return 128 + (stopped.number if isinstance(stopped, Stopped) else signal.SIGINT)
    return 2


def _dispatch(arguments: list[str]) -> int:
    """Import and run the command that the first argument names; other commands stay unimported."""
    if arguments and arguments[0] == "help":
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    if arguments[0] == "--version":
        print(f"bvsa {version('fovblur')} (torch {version('torch')}, Python {platform.python_version()})")
        return 0
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed; the command needs: pip install 'fovblur[train]'")
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise UserError(unknown_name("command", name, COMMANDS))
    allocator.tune_allocator()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads of torch, imported next, sleep while they wait
    command = importlib.import_module(f"{__name__}.{name}")
    from bvsa_core.cli.arguments import Parser
    from bvsa_core.io.atomic import NO_LOCK
    from bvsa_core.progress import Display

    parser = Parser(prog=f"bvsa {name}", description=command.__doc__)
    command.add_arguments(parser, rest)
    parsed = parser.parse_args(rest)
    parsed.command_line = shlex.join(["bvsa", *arguments])
    chosen = parsed[parsed.what] if "what" in parsed else parsed
    if chosen.get("no_lock"):
        os.environ[NO_LOCK] = "1"
    Display.quiet = parsed.quiet or chosen.quiet
    try:
        command.run(parsed)
    finally:
        Display.quiet = False
    return 0
