"""Signals that reach every process of a run at once: a terminal sends Ctrl-C to all of them, and SIGHUP when it is closed; Slurm and systemd
send SIGTERM.

They are meant for the processes that train, which save and end; those that work for them go on until then.
"""

import contextlib
import multiprocessing
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ONE_PRESS = 1.0  # guess: seconds; two SIGINT within it are one Ctrl-C, sent by the terminal and again by a launcher or `timeout`


class CtrlC:
    """Tells a second Ctrl-C from the same one arriving twice."""

    def __init__(self) -> None:
        self._first: float | None = None

    @property
    def came(self) -> bool:
        return self._first is not None

    def again(self) -> bool:
        """Whether the Ctrl-C that has just come is another one than the first."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
        return now - self._first > ONE_PRESS


def handle_stops(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Let `handler` take the signals by which a user or a machine stops a run; the handlers before it. What is ignored, as `nohup` has it for
    SIGHUP, stays so."""

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        handler(number, frame)

    old: dict[int, Any] = {number: signal.getsignal(number) for number in STOPS}
    for number, before in old.items():
        if before != signal.SIG_IGN:
            signal.signal(number, handle)
    return old


def leave_terminal() -> None:
    """Write to nowhere instead of a terminal, which may be gone: what is written there then is an OSError."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(number).st_mode):
                os.dup2(nowhere, number)
    os.close(nowhere)


def leave_signals() -> None:
    """In a process that works for another one: leave Ctrl-C and SIGHUP to it, and the first SIGTERM; by the second it may end this one."""

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, first)


def stop_with_parent() -> None:
    """In a process whose stdin the one that started it holds open: once that has ended, stop as if told by SIGTERM."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def work_for_parent() -> None:
    """In a process of a pool (spawned, not forked): `leave_signals`, and end with the process that started it, however that ends."""
    leave_signals()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
