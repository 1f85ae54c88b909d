"""Takes from an interpreter, and from those that it starts, what Windows or macOS do not have, and
makes files behave as on Windows. In force where this folder is in PYTHONPATH.

What torch and the standard library use because `sys.platform` is "linux" has to stay: SIGCHLD,
SIGKILL, os.statvfs, os.register_at_fork. Under the base directory names are checked, and a file
that is open or mapped can neither be deleted nor renamed.
"""

import builtins
import errno
import io
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys

BASE = os.path.realpath(os.environ["NANOCHAT_BASE_DIR"])
LONGEST = 200  # characters below the base directory: Windows has 260 for the whole path
WRONG = re.compile(r'[<>:"|?*\\\x00-\x1f]|[ .]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.I)

for name in "fcntl resource pwd grp termios tty pty readline uvloop".split():
    sys.modules[name] = None  # type: ignore[assignment]
gone = "SIGHUP SIGUSR1 SIGUSR2 SIGALRM SIGVTALRM SIGPROF SIGQUIT SIGTSTP setitimer alarm"
for name in f"{gone} pthread_sigmask pthread_kill sigwait pause".split():
    delattr(signal, name)
gone = "fork forkpty getuid geteuid getgid getegid sched_getaffinity sysconf nice"
for name in f"{gone} killpg setsid getpgid mkfifo chown O_DIRECTORY O_NOFOLLOW O_CLOEXEC".split():
    delattr(os, name)
multiprocessing.set_start_method("spawn")
shutil._use_fd_functions = False  # type: ignore[attr-defined]

before = {name: getattr(os, name) for name in "open stat listdir readlink".split()}
plain_open = io.open


def is_open(path: str) -> bool:
    """Whether this process has the file, or one in the folder, open or mapped."""
    found = []
    for number in before["listdir"]("/proc/self/fd"):
        try:
            found.append(before["readlink"](f"/proc/self/fd/{number}"))
        except OSError:
            continue
    with plain_open("/proc/self/maps") as lines:
        found += [line.split(None, 5)[-1].strip() for line in lines if BASE in line]
    return any(one == path or one.startswith(f"{path}/") for one in found)


def check(path: object, *, moves: bool = False) -> None:
    if not isinstance(path, str | os.PathLike):
        return
    whole = os.path.abspath(os.fspath(path))
    if isinstance(whole, str) and whole.startswith("/proc/"):
        raise FileNotFoundError(errno.ENOENT, "no /proc", whole)
    if not isinstance(whole, str) or not whole.startswith(f"{BASE}/"):
        return
    below = whole.removeprefix(f"{BASE}/")
    if len(below) > LONGEST or any(map(WRONG.search, below.split("/"))):
        raise OSError(errno.EINVAL, "not a name of Windows", whole)
    if moves and is_open(whole):
        raise PermissionError(errno.EACCES, "it is being used", whole)


def replaced(name: str, *, paths: int = 1, moves: bool = False, new: bool = False) -> None:
    """os.`name` with its first `paths` arguments checked; `new`: the last must not be there."""
    given = getattr(os, name)

    def call(*args, **more):
        for path in args[:paths]:
            check(path, moves=moves)
        if new and os.path.exists(args[paths - 1]):
            raise FileExistsError(errno.EEXIST, "it is there", args[paths - 1])
        return given(*args, **more)

    setattr(os, name, call)


for name in ("stat", "lstat", "listdir", "mkdir", "scandir"):
    replaced(name)
for name in ("unlink", "remove", "rmdir"):
    replaced(name, moves=True)
replaced("rename", paths=2, moves=True, new=True)
replaced("replace", paths=2, moves=True)


def open_number(path, flags, *args, **more):
    check(path)
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "a folder cannot be opened", path)
    return before["open"](path, flags, *args, **more)


def open_file(file, *args, **more):
    check(file)
    return plain_open(file, *args, **more)


class Popen(subprocess.Popen):
    def __init__(self, *args, pass_fds=(), preexec_fn=None, **more):
        assert not pass_fds and preexec_fn is None, "not supported on Windows"
        super().__init__(*args, **more)


os.open, io.open, builtins.open = open_number, open_file, open_file
subprocess.Popen = Popen  # type: ignore[misc]
