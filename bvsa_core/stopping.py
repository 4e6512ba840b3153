"""Signals that stop a command: Ctrl-C, and SIGTERM and SIGUSR1, which clusters send before they take a machine back."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

PREEMPTION = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """A signal has stopped the command; the message says where, if a training state is saved."""

    def __init__(self, message: str = "", number: int = signal.SIGINT):
        super().__init__(message)
        self.number = number


@contextmanager
def handled(numbers: Sequence[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals in this block; only the main thread can, and in others nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def stop_on_preemption() -> Iterator[None]:
    """Raise Stopped at SIGTERM or SIGUSR1, once: clusters repeat them, which must not disturb what ends then."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in PREEMPTION:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number=number)

    with handled(PREEMPTION, stop):
        yield


def exit_with_parent() -> None:
    """Make this worker exit on signals, which the parent reports, and, as joblib does not, when the parent dies."""
    for number in (signal.SIGINT, *PREEMPTION):
        signal.signal(number, lambda number, _: os._exit(128 + number))
    parent = os.getppid()

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
