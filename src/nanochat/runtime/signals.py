"""Signals that reach every process of a run at once: a terminal sends Ctrl-C to all of them, and SIGHUP when it is closed; Slurm and systemd
send SIGTERM.

They are meant for the processes that train, which save and end; those that work for them go on until then.
"""

import atexit
import contextlib
import functools
import multiprocessing
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn, TextIO

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ONE_PRESS = 1.0  # guess: seconds; two SIGINT within it are one Ctrl-C, sent by the terminal and again by a launcher or `timeout`


class StopAtOnce(BaseException):
    """A second Ctrl-C. Lightning would make exit code 1 of a KeyboardInterrupt."""


def stop_at_once() -> NoReturn:
    """For a signal handler: raise StopAtOnce, and again where that came in a `__del__` or an `atexit` function, whose errors Python drops."""
    said = sys.unraisablehook

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if not issubclass(dropped.exc_type, StopAtOnce):
            return said(dropped)
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.01, signal.pthread_kill, (main, signal.SIGINT)).start()

    sys.unraisablehook = hook
    raise StopAtOnce


class EndedBy(BaseException):
    """A signal ended a run before it could save: its number, and the line that says so."""

    def __init__(self, number: int, line: str) -> None:
        super().__init__(line)
        self.number = number


class Unfailing:
    """An output whose reader may be gone: the end of a pipe that Ctrl-C has ended too, or a closed terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


class CtrlC:
    """Tells a second Ctrl-C from the same one arriving twice."""

    def __init__(self) -> None:
        self._first: float | None = None

    def again(self) -> bool:
        """Whether the Ctrl-C that has just come is another one than the first."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
        return now - self._first > ONE_PRESS


def take_ctrl_c(one_press: float = ONE_PRESS) -> None:
    """Ctrl-C is a KeyboardInterrupt, as Python has it, but one press is one: the same one arriving twice would interrupt what the first began.

    `one_press`: seconds within which two are the same.
    """
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        return
    last = -one_press

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= one_press:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
    # the last that is done of what was to be done at exit: from then on Python itself has the signal kill
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def end_undisturbed() -> None:
    """For a process that has its result, or its error, and only ends: Ctrl-C changes neither; pressed twice it ends here and now."""
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        return
    ctrl_c = CtrlC()
    signal.signal(signal.SIGINT, lambda *_: os._exit(130) if ctrl_c.again() else None)


def handle_stops(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Let `handler` take the signals by which a user or a machine stops a run; the handlers before it. What is ignored, as `nohup` has it for
    SIGHUP, stays so."""

    def handle(number: int, frame: FrameType | None) -> None:
        if not isinstance(sys.stdout, Unfailing):
            sys.stdout, sys.stderr = Unfailing(sys.stdout), Unfailing(sys.stderr)  # type: ignore[assignment]
        if number == signal.SIGHUP:
            leave_terminal()
        handler(number, frame)

    old: dict[int, Any] = {number: signal.getsignal(number) for number in STOPS}
    for number, before in old.items():
        if before != signal.SIG_IGN:
            signal.signal(number, handle)
    return old


def leave_terminal() -> None:
    """Write to nowhere instead of a terminal that is gone, Python or not."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(number).st_mode):
                os.dup2(nowhere, number)
    os.close(nowhere)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Inside, what stops a run waits; a process that is forked here keeps it waiting until its `leave_signals`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals() -> None:
    """In a process that works for another one: leave to it what stops a run, however often that comes. See `kill_workers_at_exit`.

    What it was handing to that process when it ended is no error either.
    """
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    said = sys.excepthook
    sys.excepthook = lambda kind, error, trace: (
        None if issubclass(kind, (ConnectionError, EOFError)) else said(kind, error, trace)
    )


@functools.cache
def kill_workers_at_exit() -> None:
    """Workers that leave SIGTERM to this process are not ended by what multiprocessing sends them at its end, which then waits for them."""

    def kill() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch has the death of a worker raise an error
        for child in multiprocessing.active_children():
            child.kill()

    atexit.register(kill)


def stop_with_parent() -> None:
    """In a process whose stdin the one that started it holds open: once that has ended, stop as if told by SIGTERM."""

    once(stdin_ends, lambda: os.kill(os.getpid(), signal.SIGTERM))


def work_for_parent() -> None:
    """In a process of a pool (spawned, not forked): `leave_signals`, and end with the process that started it, however that ends."""
    leave_signals()
    parent = multiprocessing.parent_process()
    assert parent is not None
    once(parent.join, lambda: os._exit(1))


def once(wait: Callable[[], None], act: Callable[[], None]) -> None:
    """`act` in a thread of its own when `wait` returns."""

    def watch() -> None:
        wait()
        act()

    threading.Thread(target=watch, daemon=True).start()


def stdin_ends() -> None:
    while os.read(0, 1024):
        pass
