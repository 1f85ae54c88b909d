"""Programs that attack: what they were after is looked at from outside, under all guards and under
each that stops them alone."""

import contextlib
import json
import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nanochat.sandbox import execution
from nanochat.sandbox.execution import ProgramLimits, find_guards, run_python

pytestmark = pytest.mark.slow
LINUX = sys.platform == "linux"
MECHANISMS = ("user", "uid", "mount", "pid", "net", "ipc", "landlock", "seccomp")
SECRET = "the-canary-that-must-not-sing"
QUICK = ProgramLimits(wall_seconds=1.5, cpu_seconds=1, file_bytes=2**20, output_bytes=2**16)
LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"


@dataclass
class Attack:
    code: str
    # each alone is enough; "a+b" if it takes both; with nothing listed only all together is tried
    stops: tuple[str, ...]
    says: str = ""  # part of what it prints, or of its error
    limits: ProgramLimits = field(default=QUICK)


def tries(*lines: str) -> str:
    """Each line by itself; one that works and leaves something in `got` has broken out."""
    return (
        LIBC
        + "import sys\ngot = None\n"
        + "".join(
            (
                f"try:\n    {line}\n    if got is not None: print('BROKE OUT', {n}, got)\nexcept "
                "Exception as e: print(type(e).__name__)\ngot = None\n"
            )
            for n, line in enumerate(lines)
        )
    )


# what is on the disk after files of 2**19 bytes each were made in one way, 40 of them
TAKES = """import ctypes, mmap, os
from os import posix_fallocate
libc, off_t, size = ctypes.CDLL(None, use_errno=True), ctypes.c_long, 2**19
def taken(way):
    total = 0
    for n in range(40):
        try:
            fd = os.open(str(n), os.O_RDWR | os.O_CREAT)
            try: exec(way)
            finally: total += os.fstat(fd).st_blocks * 512; os.close(fd)
        except OSError: pass
        if total > 2**20: print('BROKE OUT', total)
    print('bounded')
"""

# {secret}: a file in the home folder; {target}: one that must not come to be; {victim}: a process
# with the secret in its environment
ATTACKS = {
    # processes
    "fork bomb": Attack(
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        ("seccomp", "pid+uid+mount"),
    ),
    "thread bomb": Attack(
        "import threading, time\nn = 0\ntry:\n    while True:\n        "
        "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
        "        n += 1\nexcept RuntimeError: print('at most seven' if n <= 7 else n)",
        ("seccomp", "uid+mount"),
        "at most seven",
    ),
    "a daemon that survives": Attack(
        (
            "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: "
            "time.sleep(60)\n    os._exit(0)"
        ),
        ("seccomp", "pid"),
    ),
    "killing the parent": Attack(
        tries("got = os.kill({victim}, 9) or 1", "got = os.kill(os.getppid(), 9) or 1").replace(
            "'BROKE OUT'", "'sent'"
        ),
        ("seccomp", "pid", "landlock-scope"),
    ),
    "killing its process group": Attack("import os\nos.killpg(0, 9)", ("seccomp", "pid")),
    "killing everybody": Attack(tries("os.kill(-1, 9)"), ()),
    "a signal from the kernel in its name": Attack(
        "import fcntl, os, time\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, "
        "{victim})\nfcntl.fcntl(r, 10, 9)\n"
        "fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\nos.write(w, b'x')\ntime.sleep(0.2)",
        ("seccomp", "pid", "landlock-scope"),
    ),
    "lowering the victim's limits": Attack(
        tries(
            "import resource; got = resource.prlimit({victim}, resource.RLIMIT_CPU, (0, 0)) or 1"
        ),
        ("seccomp", "pid"),
    ),
    "ptrace": Attack(
        tries("got = 1 if libc.ptrace(16, {victim}, 0, 0) == 0 else None"),
        ("seccomp", "pid", "landlock"),
    ),
    "reading another's memory": Attack(
        tries(
            "got = open('/proc/{victim}/mem', 'rb')",
            "got = open('/proc/{victim}/environ').read()",
            "got = open('/proc/1/environ').read()",
            "got = open(f'/proc/{{os.getppid()}}/environ').read()",
        ),
        ("mount", "landlock"),
    ),
    "listing processes": Attack(tries("got = os.listdir('/proc')"), ("mount", "landlock")),
    # files
    "reading the home folder": Attack(
        tries(
            "got = open({secret!r}).read()",
            "got = os.path.basename({secret!r}) in os.listdir(os.path.dirname({secret!r})) or None",
        ),
        ("mount", "landlock"),
    ),
    "reading /etc/passwd": Attack(
        tries("got = open('/etc/passwd').read()", "got = open('/usr/../etc/passwd').read()"),
        ("mount", "landlock"),
    ),
    "writing outside": Attack(
        tries(
            "got = open({target!r}, 'w')",
            "got = os.mkdir({target!r}) or 1",
            "got = os.rename({secret!r}, {target!r}) or 1",
        ),
        ("mount", "landlock"),
    ),
    "deleting outside": Attack(
        tries("os.remove({secret!r})", "os.truncate({secret!r}, 0)"), ("mount", "landlock+seccomp")
    ),
    "changing a mode outside": Attack(
        tries("os.chmod({secret!r}, 0o777)", "os.utime({secret!r}, (1, 1))"), ("mount", "seccomp")
    ),
    "links to the outside": Attack(
        tries(
            "os.symlink({secret!r}, 'soft'); got = open('soft').read()",
            "os.link({secret!r}, 'hard'); got = open('hard').read()",
        ),
        ("mount", "landlock"),
    ),
    "changing the standard library": Attack(
        tries("got = open(os.__file__, 'a')"), ("mount", "landlock")
    ),
    "devices": Attack(
        tries(
            "got = open('/dev/mem', 'rb')",
            "got = open('/dev/kmsg', 'rb')",
            "got = open('/dev/vda', 'rb')",
            "got = open('/dev/sda', 'rb')",
            "os.mknod('disk', 0o60600, os.makedev(8, 0)); got = open('disk', 'rb')",
        ),
        ("mount+seccomp", "landlock"),
    ),
    "open files of the parent": Attack(
        (
            "import os\nfor fd in range(4, 1024):\n    try: print('BROKE OUT', fd, os.fstat(fd))\n "
            "   except OSError: pass"
        ),
        ("rlimits",),
    ),
    "one big file": Attack(
        "n = 0\ntry:\n    with open('big', 'wb', 0) as f:\n        while True: n += f.write(b'x' * "
        "65536)\n"
        "except OSError: print('bounded' if n <= 2**20 else n)",
        ("rlimits", "mount"),
        "bounded",
    ),
    "many files": Attack(
        "n = 0\ntry:\n    while True:\n        with open(str(n), 'wb', 0) as f: n += f.write(b'x' "
        "* 65536)\n"
        "except OSError: print('bounded' if n <= 2**20 else n)",
        ("mount", "landlock", "seccomp"),
        "bounded",
    ),
    "fallocate": Attack(
        TAKES + "taken('posix_fallocate(fd, 0, size)')", ("mount", "landlock", "seccomp"), "bounded"
    ),
    "fallocate beyond the end": Attack(
        TAKES + "taken('libc.fallocate(fd, 1, off_t(0), off_t(size))')",
        ("mount", "landlock", "seccomp"),
        "bounded",
    ),
    "ftruncate and a mapping": Attack(
        # a mapped page that finds no room is a SIGBUS
        TAKES
        + (
            "taken('os.ftruncate(fd, size); m = mmap.mmap(fd, size); m[::4096] = "
            "bytes(len(m[::4096])); m.close()')"
        ),
        ("mount", "landlock", "seccomp"),
        "",
    ),
    "folders without end": Attack(
        (
            "import os\nn = 0\ntry:\n    while n < 5000:\n        os.mkdir(str(n)); n += 1\nexcept "
            "OSError: pass\nprint('bounded' if n <= 1024 else n)"
        ),
        ("mount", "landlock", "seccomp"),
        "bounded",
    ),
    # network
    "TCP": Attack(
        tries(
            "import socket; s = socket.create_connection(('127.0.0.1', {tcp}), 1); got = "
            "s.send(b'x')"
        ),
        ("seccomp", "net", "landlock-tcp"),
    ),
    "listening": Attack(
        tries("import socket; s = socket.socket(); s.bind(('0.0.0.0', 0)); s.listen(); got = 1"),
        ("seccomp", "landlock-tcp"),
    ),
    "UDP": Attack(
        tries(
            "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.sendto(b'x', "
            "('127.0.0.1', {udp}))"
        ),
        ("seccomp", "net"),
    ),
    "a Unix socket": Attack(
        tries("import socket; s = socket.socket(socket.AF_UNIX); s.connect({unix!r}); got = 1"),
        ("seccomp", "mount"),
    ),
    "an abstract Unix socket": Attack(
        tries(
            "import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\0' + {abstract!r}); "
            "got = 1"
        ),
        ("seccomp", "net", "landlock-scope"),
    ),
    "a datagram from a pair": Attack(
        tries(
            "import socket; a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); "
            "a.sendto(b'x', {datagram!r})"
        ),
        ("seccomp", "mount"),
    ),
    "vsock and raw sockets": Attack(
        tries(
            "import socket; got = socket.socket(40, 1)",
            "import socket; got = socket.socket(2, 3, 1)",
        ),
        ("seccomp",),
    ),
    # the kernel
    "mounting": Attack(
        tries("got = 1 if libc.mount(b'tmpfs', b'.', b'tmpfs', 0, None) == 0 else None"),
        ("seccomp", "uid+mount"),
    ),
    "a user namespace for capabilities": Attack(
        tries("got = 1 if libc.unshare(0x10000000) == 0 else None"), ("seccomp",)
    ),
    "calls by their numbers": Attack(
        # socket, execve, ptrace, bpf, io_uring_setup, keyctl, userfaultfd, perf_event_open,
        # open_by_handle_at, setns, process_vm_readv, memfd_create,
        # clone3, kexec_load, init_module, pidfd_open, mount_setattr, add_key, quotactl, and getpid
        # of the other set, x32
        tries(
            "got = [n for n in (41, 59, 101, 321, 425, 250, 323, 298, 304, 308, 310, 319, 435, "
            "246, 175, 434, 442, 248, 179, 0x40000027)"
            " if libc.syscall(n, 2, 1, 0, 0, 0, 0) != -1 or ctypes.get_errno() not in (1, 38)] or "
            "None"
        ),
        ("seccomp",),
    ),
    "exec of a shell": Attack(
        tries("os.execv('/bin/sh', ['sh', '-c', 'echo BROKE OUT; touch {target}'])"),
        ("seccomp", "mount", "landlock"),
    ),
    "a shell through reloaded modules": Attack(
        tries(
            "import importlib; importlib.reload(os); os.system('touch {target}')",
            (
                "import subprocess; importlib.reload(subprocess); got = subprocess.run(['touch', "
                "{target!r}])"
            ),
        ),
        ("seccomp", "mount"),
    ),
    "a core file": Attack(
        (
            "import os, resource\ntry: resource.setrlimit(resource.RLIMIT_CORE, (10**9,) * "
            "2)\nexcept (ValueError, OSError): pass\nos.abort()"
        ),
        ("rlimits",),
        "SIGABRT",
    ),
    # memory, time, output
    "memory": Attack("x = []\nwhile True: x.append(bytearray(2**24))", ("rlimits",), "MemoryError"),
    "memory after raising the limits": Attack(
        (
            "import resource\ntry: resource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nexcept "
            "(ValueError, OSError): pass\nx = bytearray(2**30)"
        ),
        ("rlimits",),
        "MemoryError",
    ),
    "memory in no address space": Attack(
        tries("fd = os.memfd_create('x'); got = os.write(fd, bytes(10**6))"), ("seccomp",)
    ),
    "memory while it is compiled": Attack("x = (" * 10**5 + ")" * 10**5, ("rlimits",)),
    "sleeping for ever": Attack("import time\ntime.sleep(1e6)", ("rlimits",), "TimeoutError"),
    "deaf to signals": Attack(
        "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n  "
        "  except (OSError, ValueError): pass\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\nwhile True: time.sleep(9)",
        ("rlimits",),
        "TimeoutError",
    ),
    "a busy loop": Attack(
        "while True: pass",
        ("rlimits",),
        "TimeoutError",
        ProgramLimits(wall_seconds=30, cpu_seconds=1),
    ),
    "endless stdout": Attack("while True: print('x' * 1000)", ("rlimits",), "bytes of output"),
    "endless stderr": Attack(
        "import sys\nwhile True: sys.stderr.write('x' * 1000)", ("rlimits",), "bytes of output"
    ),
    "no line ends": Attack(
        "import os\nwhile True: os.write(1, b'\\xff' * 99)", ("rlimits",), "bytes of output"
    ),
    "recursion without end": Attack(
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f() + 1\nf()", ("rlimits",)
    ),
    "a segmentation fault": Attack("import ctypes\nctypes.string_at(0)", ("rlimits",), "SIGSEGV"),
    # the judge
    "the environment": Attack(
        tries(
            "got = dict(os.environ) or None",
            "libc.getenv.restype = ctypes.c_char_p; got = libc.getenv(b'CANARY')",
        ),
        ("rlimits",),
    ),
    "claims about its guards": Attack(
        "import os\nos.write(3, b'none of them\\n' * 9)\nos._exit(0)", ("rlimits",)
    ),
}
ALONE = [
    (name, stop) for name, attack in ATTACKS.items() for stop in attack.stops if stop != "rlimits"
]


@dataclass
class Outside:
    """What an attack is after."""

    places: dict
    sockets: dict[str, socket.socket]
    victim: subprocess.Popen
    runs: Path

    def unharmed(self) -> None:
        assert os.path.exists(self.places["secret"])
        assert Path(self.places["secret"]).read_text() == SECRET
        assert oct(os.stat(self.places["secret"]).st_mode & 0o7777) == "0o644"
        assert os.stat(self.places["secret"]).st_mtime > 100
        assert not os.path.lexists(self.places["target"])
        assert self.victim.poll() is None
        assert not select.select(list(self.sockets.values()), [], [], 0)[0]  # nothing came
        assert list(self.runs.iterdir()) == []
        wait_until(lambda: not launched(), "processes are left")


@pytest.fixture
def outside(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY", SECRET)
    # the path of a socket may have 107 characters
    runs, short = (tmp_path / "runs", tempfile.mkdtemp())
    runs.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(runs))
    victim = subprocess.Popen(
        ["sleep", "60"], env={"CANARY": SECRET, "PATH": os.environ["PATH"]}, start_new_session=True
    )
    abstract = f"nanochat-test-{os.getpid()}"
    made = {}
    with contextlib.ExitStack() as stack:
        stack.callback(victim.wait)
        stack.callback(victim.kill)
        stack.callback(shutil.rmtree, short)
        secret = Path.home() / f".nanochat-test-{os.getpid()}"
        stack.callback(secret.unlink, missing_ok=True)
        secret.write_text(SECRET)
        os.chmod(secret, 0o644)
        os.chmod(short, 0o755)
        for name, family, kind, address in (
            ("tcp", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            ("udp", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            ("unix", socket.AF_UNIX, socket.SOCK_STREAM, f"{short}/s"),
            ("datagram", socket.AF_UNIX, socket.SOCK_DGRAM, f"{short}/d"),
            ("abstract", socket.AF_UNIX, socket.SOCK_STREAM, f"\0{abstract}"),
        ):
            if name == "abstract" and not LINUX:
                continue
            made[name] = stack.enter_context(socket.socket(family, kind))
            made[name].bind(address)
            made[name].setblocking(False)
            if kind == socket.SOCK_STREAM:
                made[name].listen()
        places = {
            "secret": str(secret),
            "target": f"{short}/made",
            "victim": victim.pid,
            "tcp": made["tcp"].getsockname()[1],
            "udp": made["udp"].getsockname()[1],
            "unix": f"{short}/s",
            "datagram": f"{short}/d",
            "abstract": abstract,
        }
        for name in ("s", "d"):
            os.chmod(f"{short}/{name}", 0o777)  # the file's mode must not be what stops it
        yield Outside(places, made, victim, runs)


def launched() -> list[int]:
    """The processes of programs that this process started, and orphaned ones."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if execution.START.encode() in (path / "cmdline").read_bytes():
                found[int(path.name)] = int(
                    (path / "stat").read_text().rpartition(")")[2].split()[1]
                )
    return [
        pid
        for pid, parent in found.items()
        if parent in (os.getpid(), 1) or (parent in found and found[parent] == os.getpid())
    ]


def wait_until(holds, what: str, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def assault(attack: Attack, outside: Outside, off=()) -> None:
    code = attack.code
    for name, value in outside.places.items():
        code = code.replace(f"{{{name}!r}}", repr(value)).replace(f"{{{name}}}", str(value))
    code = code.replace("{{", "{").replace("}}", "}")
    started = time.monotonic()
    result = run_python(code, attack.limits, off=off)
    assert time.monotonic() - started < 15  # none has more than 2 s; the rest is for a busy machine
    said = result.stdout + result.stderr + (result.error or "")
    assert SECRET not in said and "BROKE OUT" not in said and "root:" not in said, said
    assert attack.says in said, said
    assert len(said) < 4 * attack.limits.output_bytes
    outside.unharmed()


@pytest.mark.skipif(not LINUX, reason="the guards are Linux's")
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_comes_to_nothing(name, outside):
    stops = {part for stop in ATTACKS[name].stops for part in stop.split("+")} or {"seccomp"}
    if not stops & set(find_guards().had):
        pytest.skip(f"nothing on this machine stops it; {' or '.join(stops)} would")
    assault(ATTACKS[name], outside)


@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason="the guards are Linux's")
@pytest.mark.parametrize(("name", "stop"), ALONE)
def test_what_stops_an_attack_does_so_without_the_other_guards(name, stop, outside):
    needed = stop.split("+")
    off = set(MECHANISMS) - {part.split("-")[0] for part in needed}
    if "calls by" in name and platform.machine() != "x86_64":
        pytest.skip("the numbers are those of x86_64")
    had = set(find_guards(frozenset(off - {"user"})).had) | ({"uid"} if os.geteuid() else set())
    if not set(needed) <= had:
        pytest.skip(f"this machine does not give {stop} to this user")
    if not {"mount", "pid", "net", "ipc"} & set(needed):
        off.add("user")
    else:
        off.discard("user")  # how an ordinary user gets the others
    assault(ATTACKS[name], outside, off)


# those whose harm is small; the others must not be tried without a guard
ARMED = (
    "killing the parent",
    "a signal from the kernel in its name",
    "lowering the victim's limits",
    "listing processes",
    "reading the home folder",
    "reading /etc/passwd",
    "writing outside",
    "deleting outside",
    "changing a mode outside",
    "links to the outside",
    "TCP",
    "UDP",
    "a Unix socket",
    "an abstract Unix socket",
    "a datagram from a pair",
    "exec of a shell",
    "a shell through reloaded modules",
    "a user namespace for capabilities",
    "memory in no address space",
    "fallocate beyond the end",
    "folders without end",
)


@pytest.mark.skipif(not LINUX or os.geteuid() != 0, reason="some of the harm takes root")
@pytest.mark.parametrize("name", ARMED)
def test_without_guards_the_attack_succeeds(name, outside):
    """Or what the tests above show would be worth nothing."""
    # where no file may grow, that one neither
    limits = ("rlimits",) if name == "memory in no address space" else ()
    with pytest.raises(AssertionError):
        assault(ATTACKS[name], outside, (*MECHANISMS, *limits))


def test_the_signal_of_the_cpu_limit_is_a_timeout_however_little_time_was_counted():
    """The kernel counts ticks for the limit and exact times for rusage, so the signal may come
    early."""
    result = run_python("import os, signal\nos.kill(os.getpid(), signal.SIGXCPU)", QUICK)
    assert result.timeout and result.error.startswith("TimeoutError")


def test_sigkill_that_is_not_of_a_limit_is_no_timeout():
    result = run_python("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", QUICK)
    assert not result.timeout and result.error == "ended by SIGKILL"


@pytest.mark.skipif(not LINUX, reason="elsewhere the hard limit does not end a program")
def test_a_program_deaf_to_the_signal_of_the_cpu_limit_is_killed_and_timed_out():
    code = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    result = run_python(code, ProgramLimits(wall_seconds=60, cpu_seconds=1))
    assert result.timeout and result.error.startswith("TimeoutError")


# --- what a result says
# ------------------------------------------------------------------------------------------


def test_a_program_that_works():
    result = run_python("import sys\nprint(__name__, sys.argv, 'é')\nprint('e', file=sys.stderr)")
    assert (
        result.success,
        result.finished,
        result.error,
        result.timeout,
        result.memory_exceeded,
    ) == (True, True, None, False, False)
    assert (result.stdout, result.stderr) == ("__main__ [''] é\n", "e\n")
    assert result.missing == find_guards().missing


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import math\nmath.sqrt(-1)", "ValueError: math domain error"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("x = '\0'", "source code string cannot contain null bytes"),
        ("x = '\udc80'", "can't encode character"),
        ("import sys\nsys.exit(3)", "exit code 3"),
        ("raise SystemExit('enough')", "enough"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("input()", "EOFError: EOF when reading a line"),
        ("assert False", "AssertionError"),
        ("class E(Exception): pass\nraise E('a')", "E: a"),
        ("import pytest", "ModuleNotFoundError: No module named 'pytest'"),
        ("import nanochat", "ModuleNotFoundError: No module named 'nanochat'"),
    ],
)
def test_the_error_is_the_last_line(code, error):
    result = run_python(code)
    assert not result.success and not result.finished and not result.timeout
    assert error in result.error
    assert "confined" not in result.stderr  # no frame of ours


@pytest.mark.parametrize(
    "code", ["import os\nos._exit(0)", "raise SystemExit", "import sys\nsys.exit(0)", "quit()"]
)
def test_an_early_end_is_a_success_that_did_not_finish(code):
    result = run_python(code)
    assert result.success and not result.finished and result.error is None


def test_what_uses_much_of_the_standard_library_works():
    code = (
        "import asyncio, bz2, collections, ctypes, dataclasses, datetime, decimal, fractions, "
        "hashlib, heapq, itertools, json, lzma, math, os\n"
        "import queue, random, re, sqlite3, ssl, statistics, string, tempfile, threading, time, "
        "typing, unittest, zlib\n"
        "async def three():\n    await asyncio.sleep(0)\n    return "
        "3\nprint(asyncio.run(three()))\n"
        "with tempfile.TemporaryDirectory() as d:\n    open(d + '/a', 'w').write('text')\n    "
        "os.mkdir(d + '/c'); os.rename(d + '/a', d + '/c/b')\n"
        "    print(open(d + '/c/b').read(), os.listdir(d), os.path.getsize(d + '/c/b'))\n"
        "print(sqlite3.connect(':memory:').execute('select 1 + 1').fetchone(), len(os.urandom(4)), "
        "hashlib.sha256(b'').hexdigest()[:4])"
    )
    result = run_python(code)
    assert (result.stdout, result.stderr) == ("3\ntext ['c'] 4\n(2,) 4 e3b0\n", "")
    assert result.finished


def test_a_program_of_a_megabyte():
    result = run_python(
        "x = 0\n" + "x += 1\n" * 150_000 + "print(x)",
        ProgramLimits(wall_seconds=30, cpu_seconds=30, memory_bytes=2**30),
    )
    assert (result.finished, result.stdout) == (True, "150000\n")


def test_output_beyond_the_limit_is_cut_and_says_so():
    result = run_python("print('ab' * 500)", ProgramLimits(output_bytes=100))
    assert result.stdout == "ab" * 50 + "\n[cut after 100 bytes]"
    assert (result.success, result.error) == (False, "more than 100 bytes of output")


def test_many_threads_at_once_get_each_its_own():
    with ThreadPoolExecutor(6) as pool:
        results = list(
            pool.map(
                lambda n: run_python(f"open('x', 'w').write('{n}')\nprint(open('x').read())"),
                range(18),
            )
        )
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(18)]


def test_files_without_a_file_system_of_their_own_are_watched_and_removed(outside):
    off = ("user", "mount", "landlock", "seccomp")
    code = "import os\nfor n in range(3000):\n    os.mkdir('d')\n    os.chdir('d')"
    assert run_python(code, ProgramLimits(wall_seconds=20), off=off).error in (
        None,
        "more than 16777216 bytes of files",
    )  # too deep to look
    outside.unharmed()
    assert run_python("import os\nos.mkdir('d', 0)", off=off).finished
    # of no size: what a file holds is limited to none
    code = "n = 0\nwhile True:\n    n += 1\n    open(str(n), 'wb').close()"
    assert (
        run_python(code, ProgramLimits(file_bytes=2**20), off=off).error
        == "more than 1048576 bytes of files"
    )
    outside.unharmed()


@pytest.mark.skipif(not LINUX, reason="the guards are Linux's")
def test_nothing_is_left_when_the_caller_is_killed(tmp_path):
    code = (
        "from nanochat.sandbox.execution import ProgramLimits, run_python\n"
        "run_python('import time; time.sleep(60)', ProgramLimits(wall_seconds=60))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as caller:
        seen: set[int] = set()

        def started() -> bool:
            for path in Path("/proc").glob("[0-9]*/stat"):
                with contextlib.suppress(OSError):
                    pid = int(path.parent.name)
                    parent = int(path.read_text().rpartition(")")[2].split()[1])
                    if parent in {caller.pid, *seen}:
                        seen.add(pid)
            return len(seen & {pid for pid in seen if execution.START in command(pid)}) == (
                3 if "pid" in find_guards().had else 2
            )

        def command(pid: int) -> str:
            with contextlib.suppress(OSError):
                return Path(f"/proc/{pid}/cmdline").read_text()
            return ""

        wait_until(started, "the program did not start", 20)
        caller.send_signal(signal.SIGKILL)
    wait_until(
        lambda: not any(execution.START in command(pid) for pid in seen), "the program lives on"
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"wall_seconds": 0}, "wall_seconds=0 must be a number above 0"),
        ({"wall_seconds": float("inf")}, "wall_seconds=inf"),
        (
            {"memory_bytes": 1000},
            "memory_bytes=1000 must be a whole number from 67108864 up; try memory_bytes=268435456",
        ),
        ({"cpu_seconds": 0.5}, "cpu_seconds=0.5"),
        ({"processes": 0}, "processes=0"),
        ({"file_bytes": True}, "file_bytes=True"),
        ({"output_bytes": -1}, "output_bytes=-1"),
    ],
)
def test_limits_that_make_no_sense_are_one_clear_line(settings, named):
    with pytest.raises(ValueError, match=named):
        ProgramLimits(**settings)


# --- which guards there are
# --------------------------------------------------------------------------------------


@pytest.mark.skipif(not LINUX, reason="the guards are Linux's")
@pytest.mark.parametrize(
    ("off", "missing"),
    [
        (("mount",), set()),
        (("landlock",), set()),
        (("seccomp",), {"network", "memory", "cpu"}),
        (("mount", "landlock"), {"files"}),
        (("pid", "net", "ipc"), set()),
        (("rlimits",), {"memory", "cpu"}),
        (MECHANISMS, set(execution.GUARDED)),
    ],
)
def test_what_is_missing_without_a_mechanism(off, missing, caplog):
    if find_guards().missing:
        pytest.skip(f"already missing here: {', '.join(find_guards().missing)}")
    execution.find_guards.cache_clear()
    found = find_guards(frozenset(off))
    assert find_guards(frozenset(off)) is found
    assert set(found.missing) == missing == set(run_python("", off=off).missing)
    assert found.complete == (not missing)
    assert len(caplog.messages) == (1 if missing else 0)  # once
    assert all(execution.GUARDED[name] in caplog.text for name in missing)


def python_for_everybody() -> str | None:
    """An interpreter that a user without rights can start."""
    for path in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        trial = [path, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        with contextlib.suppress(OSError):
            if (
                subprocess.run(
                    trial, user=65534, group=65534, extra_groups=[], stderr=subprocess.DEVNULL
                ).returncode
                == 0
            ):
                return path
    return None


ORDINARY = r"""
import json, os, subprocess, sys
import execution
secret = os.path.join(os.path.dirname(execution.__file__), "secret")
victim = subprocess.Popen(["sleep", "30"], env={"CANARY": "VICTIM"})
attacks = {
    "works": "print(open(__import__('json').__file__).read()[:1] != '')",
    "file": f"print(open({secret!r}).read())",
    "write": f"open({secret!r}, 'a').write('+')",
    "environ": f"print(open('/proc/{victim.pid}/environ').read())",
    "ptrace": f"import ctypes; assert ctypes.CDLL(None).ptrace(16, {victim.pid}, 0, 0) == 0",
    "kill": f"import os; os.kill({victim.pid}, 9)",
    "fork": "import os; os.fork()",
    "threads": "import threading, time\n"
    "while True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
    "tcp": "import socket; socket.create_connection(('127.0.0.1', 9))",
    "root": "import os; os.setuid(0)",
    "memory": "x = bytearray(10**9)",
}
open_to_all = ("user", "uid", "mount", "pid", "net", "ipc", "landlock", "seccomp")
print(
    execution.run_python(attacks["environ"], off=open_to_all).stdout
    + execution.run_python(attacks["ptrace"], off=open_to_all).stderr
)
offs = [(), ("user",), ("user", "landlock"), ("seccomp",)]
results = []
for off in offs:
    found = execution.find_guards(frozenset(off))
    said = {name: execution.run_python(code, off=off) for name, code in attacks.items()}
    said = {name: (r.stdout, r.error) for name, r in said.items()}
    results.append([found.had, found.missing, said])
alive = victim.poll() is None
victim.kill()
print(json.dumps([results, alive, open(secret).read()]))
"""


@pytest.mark.skipif(not LINUX or os.geteuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_has_the_guards_too():
    python = python_for_everybody()
    if python is None:
        pytest.skip("no Python from 3.11 on that user 65534 can start")
    folder = Path(tempfile.mkdtemp())
    try:
        for name in ("execution.py", "confined.py", "filters.py"):
            shutil.copy(Path(execution.__file__).with_name(name), folder)
        (folder / "secret").write_text(SECRET)
        for path in (folder, *folder.iterdir()):
            os.chown(path, 65534, 65534)
        command = [python, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n" + ORDINARY]
        ran = subprocess.run(
            command,
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            text=True,
            cwd="/",
            env={},
        )
        assert ran.returncode == 0, ran.stderr
        *armed, told = ran.stdout.splitlines()
        # the attacks work where nothing stops them
        assert "VICTIM" in armed[0] and "Error" not in "".join(armed)
        (everything, without_namespaces, without_files, without_seccomp), alive, secret = (
            json.loads(told)
        )
        assert alive and secret == SECRET  # without a file system of its own nothing is written
        if "user" not in everything[0] or not {"landlock", "seccomp"} <= set(everything[0]):
            pytest.skip(f"this machine gives an ordinary user only {everything[0]}")
        assert everything[1] == without_namespaces[1] == [] and without_files[1] == ["files"]
        for had, missing, said in (everything, without_namespaces, without_files, without_seccomp):
            assert said["works"] == ["True\n", None]
            assert said["memory"] == ["", "MemoryError"]
            assert (SECRET in str(said)) == ("files" in missing)
            assert ("VICTIM" in str(said)) == ("files" in missing)
            for name in ("ptrace", "kill", "fork", "threads", "tcp", "root"):
                if had != without_seccomp[0] or name != "fork":
                    assert said[name][1].partition(":")[0].endswith("Error"), (
                        name,
                        said[name],
                        had,
                    )
    finally:
        shutil.rmtree(folder)


def test_a_folder_that_is_still_written_to_is_removed_in_the_end(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    code = (
        "import os, sys, time\nend = time.time() + 1\nn = 0\n"
        "while time.time() < end:\n    n += 1\n    os.makedirs(f'{sys.argv[1]}/{n}', exist_ok=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(place)]) as writer:
        while not any(place.iterdir()):
            pass
        execution._remove(str(place))
        # it came back after each removal for as long as the writer lived, or is gone
        assert not place.exists() or writer.poll() is None
        writer.kill()
