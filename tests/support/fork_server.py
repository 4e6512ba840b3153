"""A process that has imported everything and forks others, which start at once and can be killed.

As a program it reads calls from standard input, one a line, and writes the exit codes and outputs of their processes.
"""

import contextlib
import importlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
IMPORTED = """bvsa_core.cli.demo bvsa_core.cli.data bvsa_core.cli.train bvsa_core.cli.reproduce bvsa_core.report.page
bvsa_core.synthetic.openmoji bvsa_core.vision.tiny lightning_fabric open_clip sklearn.svm scipy.stats
torch.distributed.nn.functional"""


@dataclass(frozen=True)
class Ended:
    code: int  # negative: the signal that killed it
    seconds: float
    out: str
    err: str


class Forks:
    """Starts processes of `module:function` through that program."""

    def __init__(self, folder: Path):
        self.folder = folder
        path = (str(REPOSITORY), str(REPOSITORY / "tests" / "support"), os.environ.get("PYTHONPATH", ""))
        environment, pipe = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}, subprocess.PIPE
        command = [sys.executable, __file__]
        self.program = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def run(self, function: str, *args: object, processes: int = 1, **how: object) -> list[Ended]:
        """Call a function in several processes, as torchrun would start them.

        Args:
            how: `after`, seconds or a file that must appear before they get a signal, and `by`, which one; default:
                none and SIGKILL.
        """
        call = {"function": function, "args": args, "processes": processes, "folder": self.folder, **how}
        print(json.dumps(call, default=str), file=self.program.stdin, flush=True)
        return [Ended(**each) for each in json.loads(self.program.stdout.readline())]

    def bvsa(self, *arguments: object, **how: object) -> list[Ended]:
        """Run a command, which saves the training state after every batch."""
        return self.run("fork_server:command", [str(each) for each in arguments], **how)

    def close(self) -> None:
        self.program.kill()  # whose processes have all ended
        self.program.wait()


def command(arguments: list[str]) -> int:
    from bvsa_core.cli import main
    from bvsa_core.training import checkpoint

    checkpoint.SAVE_EVERY_S, checkpoint.MAX_WRITE_SHARE = 0.0, math.inf
    return main(arguments)


def serve() -> None:
    import torch

    torch.set_num_threads(1)
    for name in IMPORTED.split():
        importlib.import_module(name)
    for line in sys.stdin:
        call = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = time.monotonic()
        store = keep_store(port) if call["processes"] > 1 else None
        children = [start(call, rank, port) for rank in range(call["processes"])]
        if (after := call.get("after")) is not None:
            if isinstance(after, str):
                state = os.WEXITED | os.WNOHANG | os.WNOWAIT
                while not Path(after).exists() and os.waitid(os.P_ALL, 0, state) is None:
                    time.sleep(0.01)
            else:
                time.sleep(after)
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, call.get("by", signal.SIGKILL))
        ended = []
        for rank, child in enumerate(children):
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            out, err = (Path(call["folder"], f"{stream}{rank}").read_text() for stream in ("out", "err"))
            ended.append({"code": code, "seconds": time.monotonic() - started, "out": out, "err": err})
        if store:
            os.kill(store, signal.SIGKILL)
            os.waitpid(store, 0)
        print(json.dumps(ended), flush=True)


def keep_store(port: int) -> int:
    """Start the store of the process group, which outlives its processes as torchrun's does."""
    child = os.fork()
    if not child:
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)  # noqa: F841
        signal.pause()
    return child


def start(call: dict, rank: int, port: int) -> int:
    for stream in ("out", "err"):
        Path(call["folder"], f"{stream}{rank}").touch()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for number, stream in ((1, "out"), (2, "err")):
            os.dup2(os.open(Path(call["folder"], f"{stream}{rank}"), os.O_WRONLY | os.O_TRUNC | os.O_CREAT), number)
        if call["processes"] > 1:
            world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
            world |= dict.fromkeys(("RANK", "LOCAL_RANK"), rank)
            world |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), call["processes"])
            os.environ |= {name: str(value) for name, value in world.items()}
        module, _, function = call["function"].partition(":")
        code = getattr(importlib.import_module(module), function)(*call["args"]) or 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
