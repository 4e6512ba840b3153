"""``python -m fovblur.info``: what was built, and which backend serves which tensors. Attach it to a bug report."""

from __future__ import annotations

import itertools
import os
import platform
import sys

import torch

from fovblur import backends


def report() -> str:
    """Return the text that ``python -m fovblur.info`` prints."""
    lines = [f"python {platform.python_version()} on {platform.machine()}, torch {torch.__version__}"]
    try:
        info = backends.build_info()
    except ImportError as error:
        lines.append(f"built: nothing; {error}")
    else:
        native, cuda = backends.load_native("cpu"), info["cuda"]
        lines.append(f"compiler: {info['compiler']}")
        lines.append(f"CPU module: variants {', '.join(info['cpu_variants'])}; in use here: {native.variant()}")
        if "skipped" in cuda:
            lines.append(f"CUDA module: not built: {cuda['skipped']}")
        else:
            lines.append(f"CUDA module: {cuda['compiler']}, architectures {', '.join(cuda['architectures'])}")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        major, minor = torch.cuda.get_device_capability(index)
        lines.append(f"cuda:{index}: {torch.cuda.get_device_name(index)}, compute capability {major}.{minor}")
    lines.append("backends:")
    lines += [f"  {name:<10} {reason or 'can run'}" for name, reason in backends.available_backends().items()]
    for device, op in itertools.product(("cpu", "cuda"), backends.OPS):
        try:
            serving = backends.resolve(None, op, torch.device(device), torch.float16)
        except (RuntimeError, ValueError) as error:
            serving = f"nothing: {error}"
        lines.append(f"{op}: float16 {device.upper()} tensors would be served by {serving}")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        print(report(), flush=True)
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
