"""Provenance of a report: command, code version, package versions, machine and date."""

import platform
import subprocess
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path

import torch

import bvsa_core

_PACKAGES = ("fovblur", "torch", "numpy", "open-clip-torch", "lightning-fabric", "matplotlib")


def origin(command: str) -> dict[str, str]:
    """Describe how and where a report is written now, by `command`."""
    about = {"command": command, "page written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")}
    if commit := commit_of(Path(bvsa_core.__file__).parents[1]):
        about["commit"] = commit
    installed = {(each.name or "").lower().replace("_", "-"): each.version for each in distributions()}
    versions = [f"{name} {installed[name]}" for name in _PACKAGES if name in installed]
    about["versions"] = ", ".join([f"Python {platform.python_version()}", *versions])
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"CPU with {torch.get_num_threads()} threads"
    about["machine"] = f"{platform.system()} {platform.machine()}, {device}"
    return about


def commit_of(folder: Path) -> str | None:
    """Return the commit of a git checkout, marked if tracked files have changed; None if it is no checkout."""
    if not (folder / ".git").exists():
        return None
    describe = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty= with changes"]
    try:
        described = subprocess.run(["git", "-C", str(folder), *describe], capture_output=True, text=True)
    except OSError:
        return None
    return described.stdout.strip() or None
