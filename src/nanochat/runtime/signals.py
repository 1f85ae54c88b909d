"""Signals that reach every process of a run at once: Ctrl-C and SIGHUP from a terminal, SIGTERM
from Slurm or systemd, SIGUSR1 (of submitit SIGUSR2) from Slurm ahead of the end of a job.

Only the training processes act on them: they save and end. Their workers continue until then.
"""

import _thread
import atexit
import contextlib
import multiprocessing
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from types import FrameType
from typing import Any, NoReturn, TextIO

# Windows has the first two
STOPS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
CAN_BLOCK = hasattr(signal, "pthread_sigmask")
received: list[int] = []  # those that `handle_stops` has handled
# guess: seconds; two SIGINT within it are one Ctrl-C, sent by the terminal and again by a launcher
# or `timeout`
ONE_PRESS = 1.0


class StopAtOnce(BaseException):
    """Raised by a second Ctrl-C. Lightning would turn a KeyboardInterrupt into exit code 1."""


def raise_stop_at_once() -> NoReturn:
    """For signal handlers: raise StopAtOnce, and again if it was raised in a `__del__` or an
    `atexit` function, whose exceptions Python drops."""
    said = sys.unraisablehook

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if not issubclass(dropped.exc_type, StopAtOnce):
            return said(dropped)
        threading.Timer(0.01, _interrupt_main).start()

    sys.unraisablehook = hook
    raise StopAtOnce


def _interrupt_main() -> None:
    """SIGINT to the main thread, out of a wait too where the system can do that."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGINT)
    else:
        _thread.interrupt_main()


class EndedBy(BaseException):
    """A signal that ended a run before it could save: its number, and the line that reports it."""

    def __init__(self, number: int, line: str) -> None:
        super().__init__(line)
        self.number = number


class Unfailing:
    """An output whose reader may be gone: a pipe whose reader was ended by the same Ctrl-C, or a
    closed terminal."""

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
    """Distinguishes a second Ctrl-C from the first one arriving twice."""

    def __init__(self) -> None:
        self._first: float | None = None

    def again(self) -> bool:
        """Whether the Ctrl-C that has just arrived is a second one."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
        return now - self._first > ONE_PRESS


def take_ctrl_c(one_press: float = ONE_PRESS) -> None:
    """Make Ctrl-C a KeyboardInterrupt, as is Python's default, but count one press once: a
    duplicate signal would interrupt the shutdown that the first one started.

    `one_press`: seconds within which two signals count as one press.
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
    # the last function run at exit: from here on the signal ends Python itself
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def end_undisturbed() -> None:
    """For a process that has its result or its error and is about to end: Ctrl-C changes neither;
    pressed twice, it ends the process at once."""
    # A KeyboardInterrupt out of `exec` of a string (an import makes dataclasses so)
    # leaves a flag in CPython, by which `python -m` dies of SIGINT although it was
    # caught; the next `exec` clears it.
    exec("")
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        return
    ctrl_c = CtrlC()
    signal.signal(signal.SIGINT, lambda *_: os._exit(130) if ctrl_c.again() else None)


def handle_stops(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Set `handler` for the signals with which a user or a machine stops a run; returns the
    previous handlers. Ignored signals, such as SIGHUP under `nohup`, stay ignored."""

    def handle(number: int, frame: FrameType | None) -> None:
        if not isinstance(sys.stdout, Unfailing):
            sys.stdout = Unfailing(sys.stdout)  # type: ignore[assignment]
            sys.stderr = Unfailing(sys.stderr)  # type: ignore[assignment]
        if number == getattr(signal, "SIGHUP", None):
            leave_terminal()
        received.append(number)
        handler(number, frame)

    old: dict[int, Any] = {number: signal.getsignal(number) for number in STOPS}
    for number, before in old.items():
        if before != signal.SIG_IGN:
            signal.signal(number, handle)
    return old


def restore_stops(old: dict[int, Any], *, stopped: bool) -> None:
    """Put the handlers from before `handle_stops` back. After a stop that was obeyed, ignore
    SIGTERM and SIGHUP instead: the process is about to end, the same signal may arrive again, and
    Python removes its own handlers (not an ignored signal) before it has ended."""
    for number, handler in old.items():
        if not stopped:
            signal.signal(number, handler)
        elif number != signal.SIGINT:  # a second Ctrl-C still ends the process; see `take_ctrl_c`
            signal.signal(number, signal.SIG_IGN)


def leave_terminal() -> None:
    """Redirect output from a closed terminal to nowhere, for Python and for C code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(number).st_mode):
                os.dup2(nowhere, number)
    os.close(nowhere)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Block stop signals in this context. A process forked in it keeps them blocked until its
    `leave_signals`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS) if CAN_BLOCK else ()
    try:
        yield
    finally:
        if CAN_BLOCK:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals() -> None:
    """For worker processes: leave stop signals to the process they work for, however many arrive.
    See `kill_workers_at_exit`.

    A broken pipe to that process after it has ended is not an error either.
    """
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    if CAN_BLOCK:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    said = sys.excepthook
    sys.excepthook = lambda kind, error, trace: (
        None if issubclass(kind, (ConnectionError, EOFError)) else said(kind, error, trace)
    )


@cache
def kill_workers_at_exit() -> None:
    """Kill workers at exit: they ignore the SIGTERM that multiprocessing sends before it waits for
    them."""

    def kill() -> None:
        if hasattr(signal, "SIGCHLD"):
            # torch raises an error when a worker dies
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in multiprocessing.active_children():
            child.kill()

    atexit.register(kill)


def stop_with_parent() -> None:
    """For a process whose stdin is held open by its parent: when the parent has ended, stop as for
    SIGTERM."""

    # os.kill ends a process of Windows at once
    stop = signal.raise_signal if os.name == "nt" else partial(os.kill, os.getpid())
    once(stdin_ends, lambda: stop(signal.SIGTERM))


def work_for_parent() -> None:
    """For a process of a pool (spawned, not forked): `leave_signals`, and end when the parent has
    ended for whatever reason."""
    leave_signals()
    parent = multiprocessing.parent_process()
    assert parent is not None
    once(parent.join, lambda: os._exit(1))


def once(wait: Callable[[], None], act: Callable[[], None]) -> None:
    """Call `act` in a thread when `wait` returns."""

    def watch() -> None:
        wait()
        act()

    threading.Thread(target=watch, daemon=True).start()


def stdin_ends() -> None:
    while os.read(0, 1024):
        pass
