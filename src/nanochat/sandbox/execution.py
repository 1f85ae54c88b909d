"""Runs Python that a model wrote, in a confined process: for HumanEval and as an optional tool of
the chat.

How confined it is depends on the kernel, so each result lists what was not guarded. On Linux, with
seccomp and either namespaces or Landlock, a program can read the standard library and has no
socket, no second process and bounded memory. With a mount namespace it also has one directory of
bounded size to write to; without one it can write no file. It still shares the kernel with
everything else, so a hole in the kernel is a hole here. It sees the machine's name and clock and,
without a mount namespace, which files exist. On macOS there are only rlimits and a clock
(untested). The child's side is confined.py.
"""

import contextlib
import errno
import functools
import json
import logging
import marshal
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

# guess: for the launcher, on top of the program's own time; 0.04 measured when idle
START_SECONDS = 10.0
TOOL_CHARACTERS = 1000  # guess: a few hundred tokens of the context
REMOVALS = 50  # guess: tries, a tenth of a second apart
LOOK_SECONDS = 0.05  # guess: between two checks of a directory that is not a file system of its own
# the child's modules come as compiled code: it can then read none of our files, and compiles
# nothing
CHILD = ("filters", "confined")
START = """import marshal, sys; f = sys.stdin.buffer
for name, code in marshal.load(f): sys.modules[name] = m = type(sys)(name); exec(code, m.__dict__)
m.main(marshal.load(f))"""
READABLE = """
import json, os, sys
found = [p for p in sys.path if p.endswith("lib-dynload")]
for name in sorted(n.split(".")[0] for p in found if os.path.isdir(p) for n in os.listdir(p)):
    if name != "_tkinter" and "test" not in name and not name.startswith("xx"):
        try:
            __import__(name)
        except Exception:
            pass
try:
    import ctypes
    ctypes.CDLL("libgcc_s.so.1")
    ctypes.CDLL(None)
except Exception:
    pass
try:
    lines = [line for line in open("/proc/self/maps") if line.count("/") and ".so" in line]
    maps = {line.split(None, 5)[5].strip() for line in lines}
except OSError:
    maps = set()
print(json.dumps([os.path.dirname(os.__file__), sorted(maps)]))
"""


@dataclass(frozen=True)
class ProgramLimits:
    """What a program may use.

    `memory_bytes` bounds the address space, `file_bytes` the directory and each file in it.
    `processes` counts the program and its threads; with seccomp there is no second process.
    """

    wall_seconds: float = 5.0  # from: facts sheet 8
    cpu_seconds: int = 5  # guess: a single thread reaches the wall-clock limit first
    memory_bytes: int = 256 * 2**20  # from: facts sheet 8
    file_bytes: int = 16 * 2**20  # guess
    processes: int = 8  # guess
    # guess: of stdout and of stderr each; a program that writes more is killed
    output_bytes: int = 2**20

    def __post_init__(self) -> None:
        if not (isinstance(self.wall_seconds, int | float) and 0 < self.wall_seconds < math.inf):
            raise ValueError(
                f"wall_seconds={self.wall_seconds} must be a number above 0; try wall_seconds=5"
            )
        # the interpreter itself takes 30 MiB of address space, and more with its libraries loaded
        low = {
            "cpu_seconds": 1,
            "memory_bytes": 64 * 2**20,
            "file_bytes": 4096,
            "processes": 1,
            "output_bytes": 1,
        }
        for name, least in low.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**62:
                default = getattr(type(self), name)
                raise ValueError(
                    f"{name}={value} must be a whole number from {least} up; try {name}={default}"
                )


@dataclass(frozen=True)
class Result:
    success: bool  # it ended by itself, with exit code 0
    # it reached its last line; os._exit(0) before that is a success, but not finished
    finished: bool
    stdout: str
    stderr: str
    error: str | None  # "Type: message", or what ended it
    timeout: bool
    memory_exceeded: bool  # an uncaught MemoryError
    missing: tuple[str, ...]  # what was not guarded, of GUARDED


@dataclass(frozen=True)
class Guards:
    """What this machine offers: `had` are mechanisms, `missing` is what nothing guards (of
    GUARDED)."""

    had: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Nothing is missing: required before programs of strangers run.

        Every subset of the mechanisms was tested: experiments/outside_use/guard_subsets.py.
        """
        return not self.missing


GUARDED = {
    "files": "reading and writing outside its directory",
    "network": "the network",
    "processes": "other processes, and their number",
    "memory": "memory in all",
    "cpu": "processor time in all",
    "disk": "the size of its directory, which is only checked now and then",
}


def run_python(
    program: str, limits: ProgramLimits | None = None, *, off: Collection[str] = ()
) -> Result:
    """Run `program` as __main__ in a new interpreter, with no environment, no stdin and a temporary
    directory.

    Can be called from any thread, many at once. An empty program takes 40 to 55 ms, of which a bare
    interpreter takes 15 (measured, two shared cores). Site-packages cannot be imported. The result
    is not proof: a program that tries can claim, in its own process, that it finished. `off`
    switches off mechanisms of `Guards.had`, for tests. RuntimeError if the process cannot be
    started at all.
    """
    result, had = _run(program, limits or ProgramLimits(), off)
    # ended before it could tell
    return result if had else replace(result, missing=find_guards(frozenset(off)).missing)


def python_tool(program: str) -> str | None:
    """The end of what a program printed, or its error, for the chat model that wrote it; None if
    there is neither."""
    result = run_python(program)
    return (result.stdout.strip() or result.error or "")[-TOOL_CHARACTERS:] or None


@functools.cache
def find_guards(off: frozenset[str] = frozenset()) -> Guards:
    """Find them by running a program once; the log lists what is missing, once."""
    result, had = _run("", ProgramLimits(), off)
    if not result.finished:
        raise RuntimeError(
            f"an empty program cannot be run: {result.error}; on a machine this busy, try again "
            "later"
        )
    found = Guards(tuple(sorted(had)), _missing(had))
    if found.missing:
        what = "; ".join(GUARDED[name] for name in found.missing)
        log.warning("Python that a model wrote runs on this machine without a guard of: %s", what)
    return found


def _missing(had: set[str]) -> tuple[str, ...]:
    one_process = "seccomp" in had  # it can neither start nor signal another, and has no sockets
    given = {
        "files": "mount" in had
        or {"landlock", "seccomp"} <= had,  # Landlock alone covers neither chmod nor Unix sockets
        "network": one_process,  # a network namespace alone leaves vsock open
        "processes": one_process or {"pid", "counted", "rlimits"} <= had,
        "memory": one_process and "rlimits" in had,  # the limit is per process
        "cpu": one_process and "rlimits" in had,
        "disk": bool(
            {"mount", "landlock", "seccomp"} & had
        ),  # a file system with a size, or nothing to write
    }
    return tuple(name for name in GUARDED if not given[name])


def _run(program: str, limits: ProgramLimits, off: Collection[str]) -> tuple[Result, set[str]]:
    if os.name == "nt":
        raise ValueError("a model's Python is not run on Windows, where nothing could guard it")
    token = secrets.token_hex(8).encode()
    directory = os.path.realpath(tempfile.mkdtemp(prefix="nanochat-run-"))
    request = {
        **_readable(),
        "program": program,
        "limits": asdict(limits),
        "off": list(off),
        "directory": directory,
        "token": token,
    }
    # to start at all
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    read_status, write_status = os.pipe()
    try:
        with tempfile.TemporaryFile() as given, os.fdopen(read_status, "rb", 0) as status:
            try:
                given.write(_launcher() + marshal.dumps({**request, "status_fd": write_status}))
                given.seek(0)
                process = subprocess.Popen(
                    [_python(), "-I", "-S", "-B", "-X", "utf8", "-c", START],
                    stdin=given,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=environment,
                    cwd="/",
                    start_new_session=True,
                    pass_fds=[write_status],
                )
            finally:
                os.close(write_status)
            with process:
                try:
                    report, stdout, stderr, reason = _follow(process, status, directory, limits)
                finally:
                    _kill(process)
    finally:
        _remove(directory)
    errors = _text(stderr, limits)
    code, late, said = marshal.loads(report) if report else (-signal.SIGKILL, False, b"")
    first, newline, rest = said.partition(b"\n")
    if not newline and not late and not reason and (report or process.returncode > 0):
        raise RuntimeError(
            f"a program cannot be run: {errors.strip()[-500:] or process.returncode}"
        )
    had = {"wall", *first.decode().split()} if newline else set()
    late = late or reason == "time"
    error = _error(code, late, reason, errors, limits)
    success = code == 0 and error is None
    finished = success and rest == token
    return Result(
        success,
        finished,
        _text(stdout, limits),
        errors,
        error,
        late,
        (error or "").startswith("MemoryError"),
        _missing(had),
    ), had


def _error(
    code: int, late: bool, reason: str | None, errors: str, limits: ProgramLimits
) -> str | None:
    """Why a program failed, in a line; None if it did not."""
    if late:
        return (
            f"TimeoutError: more than {limits.wall_seconds:g} s, or {limits.cpu_seconds} s of "
            "processor time"
        )
    if reason:
        return reason
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return (errors.strip().splitlines() or [f"exit code {code}"])[-1] if code else None


def _follow(
    process: subprocess.Popen, status: Any, directory: str, limits: ProgramLimits
) -> tuple[bytes, bytes, bytes, str | None]:
    """(report of the supervisor, stdout, stderr, why it was killed from here); keeps no more output
    than allowed."""
    got = {status: b"", process.stdout: b"", process.stderr: b""}
    deadline = time.monotonic() + limits.wall_seconds + START_SECONDS
    reason = None
    with selectors.DefaultSelector() as selector:
        for stream in got:
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(LOOK_SECONDS):
                stream = key.fileobj
                data = os.read(key.fd, 2**16)
                got[stream] += data
                if not data:
                    selector.unregister(stream)
                    # the program has ended; leftovers must not hold the pipes open
                    if stream is status:
                        _kill(process)
                        deadline = time.monotonic() + 1
                elif (
                    stream is not status
                    and len(got[stream]) > limits.output_bytes
                    and reason is None
                ):
                    reason = f"more than {limits.output_bytes} bytes of output"
            over = status not in [key.fileobj for key in selector.get_map().values()]
            if not over and reason is None:
                if _size(directory) > limits.file_bytes:
                    reason = f"more than {limits.file_bytes} bytes of files"
                elif time.monotonic() > deadline:
                    reason = "time"
            if (reason and not over) or (over and time.monotonic() > deadline):
                break
    return got[status], got[process.stdout], got[process.stderr], reason


def _kill(process: subprocess.Popen) -> None:
    """Kill the launcher, pid 1 and, without a pid namespace, the rest of its process group.

    The process has not been waited for, so its number cannot have been reused.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _text(output: bytes, limits: ProgramLimits) -> str:
    text = output[: limits.output_bytes].decode("utf-8", "replace")
    return (
        text + f"\n[cut after {limits.output_bytes} bytes]"
        if len(output) > limits.output_bytes
        else text
    )


def _size(directory: str) -> float:
    """Bytes on disk; an empty file or folder counts as a block, folders too deep to list as
    infinite."""
    total, folders = 0, [directory]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    total += max(entry.stat(follow_symlinks=False).st_blocks * 512, 4096)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError as error:  # the program is still writing, so a name may be gone
            if error.errno == errno.ENAMETOOLONG:
                return math.inf
    return total


def _remove(directory: str) -> None:
    """Remove it, also with folders that have no permissions or are nested thousands deep."""
    try:
        os.rmdir(directory)
    except OSError:
        # without a pid namespace only the supervisor is waited for: the program it ran was killed
        # at the same time, and until it has ended on a busy machine it may go on making files
        for _ in range(REMOVALS):
            subprocess.run(["chmod", "-R", "u+rwX", directory], stderr=subprocess.DEVNULL)
            subprocess.run(["rm", "-rf", directory], stderr=subprocess.DEVNULL)
            if not os.path.lexists(directory):
                return
            time.sleep(0.1)


def _python() -> str:
    """The interpreter itself, not a virtual environment's link to it, whose packages would come
    along."""
    return os.path.realpath(sys.executable)


@functools.cache
def _launcher() -> bytes:
    """The modules of the child, compiled."""
    files = {name: Path(__file__).with_name(f"{name}.py").read_bytes() for name in CHILD}
    return marshal.dumps(
        [
            (f"nanochat.sandbox.{name}", compile(text, f"{name}.py", "exec"))
            for name, text in files.items()
        ]
    )


@functools.cache
def _readable() -> dict[str, Any]:
    """What a running interpreter must read: the standard library, and the shared libraries of its
    modules by name."""
    ran = subprocess.run(
        [_python(), "-I", "-S", "-B", "-c", READABLE],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        check=True,
    )
    stdlib, maps = json.loads(ran.stdout.splitlines()[-1])
    libraries = [
        path for path in maps if not path.startswith(stdlib + "/") and os.path.isfile(path)
    ]
    folders = {os.path.dirname(path) for path in libraries}
    entries = [entry for folder in folders for entry in os.scandir(folder) if entry.is_symlink()]
    links = {entry.path: os.path.realpath(entry.path) for entry in entries}
    links = {path: to for path, to in links.items() if to in libraries}
    links |= {
        path: os.path.realpath(path)
        for path in ("/lib", "/lib64", "/usr/lib64")
        if os.path.islink(path)
    }
    hidden = [
        path
        for name in ("site-packages", "dist-packages")
        if os.path.isdir(path := os.path.join(stdlib, name))
    ]
    if os.path.isfile("/etc/ld.so.cache"):
        libraries.append("/etc/ld.so.cache")
    return {"stdlib": stdlib, "libraries": libraries, "links": links, "hidden": hidden}
