"""Which attacks get through which subset of the guards of a model's Python: one row a subset, on
Linux.

    # this user; as root also `uid`, the change to another user
    python experiments/outside_use/guard_subsets.py
    # as root: once more as user 65534, by a Python that this user can start
    python experiments/outside_use/guard_subsets.py ordinary

Every attack is a real one, with bounded harm: a planted secret, a victim process, listening
sockets, 24 MiB of disk, 1 GiB of address space, 24 processes. What it was after is looked at from
outside, or said by the program with a word that it cannot have otherwise. `complete` is what the
product says of the subset; a row with an attack and `complete` is a hole, and the exit code is 1.
Standard library only.
"""

import contextlib
import itertools
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, os.environ.get("GUARDS_FROM") or str(HERE.parents[1] / "src/nanochat/sandbox"))
import execution  # noqa: E402

SWITCHES = [
    "mount",
    "landlock",
    "seccomp",
    "rlimits",
    "pid",
    "net",
    "ipc",
    "uid" if os.geteuid() == 0 else "user",
]
# letter: what it is, and the statement that prints `got` if it worked
SAID = {
    "E": (
        "the environment or an open file of the caller",
        "ok = bool(os.environ) or any(fd_open(n) for n in range(4, 4096))",
    ),  # before others open some
    "H": ("read a file of the home folder", "ok = open(P['secret']).read() == P['word']"),
    "S": (
        "write the standard library or a file outside",
        "open(P['target'], 'w').write('x'); ok = True",
    ),
    "D": ("delete a file outside", "os.remove(P['victim_file']); ok = True"),
    "P": (
        "read another process: its environment, the list of them",
        "ok = bool(open(f\"/proc/{P['pid']}/environ\").read()) or bool(os.listdir('/proc'))",
    ),
    "T": ("attach to another process (ptrace)", "ok = libc.ptrace(16, P['pid'], 0, 0) == 0"),
    "K": ("signal another process", "os.kill(P['pid'], 0); ok = True"),
    "L": (
        "lower another's limits (prlimit)",
        (
            "import resource; resource.prlimit(P['pid'], resource.RLIMIT_NOFILE, (900, 900)); ok = "
            "True"
        ),
    ),
    "N": (
        "connect by TCP",
        "import socket; s = socket.create_connection(('127.0.0.1', P['tcp']), 1); ok = True",
    ),
    "U": (
        "send by UDP or to a Unix socket",
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect(P['unix']); ok = True",
    ),
    "V": ("sockets past namespaces (vsock)", "import socket; socket.socket(40, 1); ok = True"),
    "F": (
        "more processes than allowed",
        """
n, ok = 0, False
for _ in range(24):
    try: child = os.fork()
    except OSError: break
    if child == 0: time.sleep(1); os._exit(0)
    n += 1
ok = n > 8""",
    ),
    "M": ("memory: 1 GiB of address space", "import mmap; m = mmap.mmap(-1, 2**30); ok = True"),
    "m": (
        "memory in no address space (memfd)",
        "f = os.memfd_create('x'); os.ftruncate(f, 1 << 30); ok = os.write(f, bytes(1 << 20)) > 0",
    ),
    "h": (
        "memory of System V or of keyrings",
        (
            "ok = libc.shmget(0, ctypes.c_size_t(1 << 30), 0o1600) >= 0 or libc.syscall(250, 0, "
            "-3, 1) > 0"
        ),
    ),
    "W": ("disk by writing", "take('os.write(fd, bytes(2**20))')"),
    "A": ("disk by fallocate", "take('os.posix_fallocate(fd, 0, 2**20)')"),
    "a": (
        "disk by fallocate beyond the end",
        "take('assert libc.fallocate(fd, 1, ctypes.c_long(0), ctypes.c_long(2**20)) == 0')",
    ),
    "w": (
        "disk by ftruncate and a mapping",
        'take(\'import mmap; os.ftruncate(fd, 2**20); s = os.statvfs("."); assert s.f_bavail * '
        "s.f_frsize > 2**24 or s.f_blocks * s.f_frsize > 2**28; "
        "m = mmap.mmap(fd, 2**20); m[::4096] = bytes(256); m.flush()')",
    ),
    "I": ("disk by folders", "for n in range(1100): os.mkdir(f'i{n}')\nok = True"),
    "O": (
        "mount, a user namespace, chroot",
        (
            "ok = libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == 0 or "
            "libc.unshare(0x10000000) == 0"
        ),
    ),
    "X": (
        "start another program",
        (
            "child = os.fork()\nif child == 0: os.execv('/bin/sh', ['sh', '-c', 'exit 7'])\nok = "
            "os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7"
        ),
    ),
}
execution.START += f"  # {secrets.token_hex(8)}"  # to know the processes of this run by
# in programs of their own: one that takes too much may be ended before it tries the next
DISK = "WAawI"
# seen from outside, after a program that ends by itself or is ended
OUTSIDE = {"Z": "outlive its time as a daemon", "B": "output past its bound"}
PRELUDE = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
P = {places!r}
def fd_open(n):
    try: os.fstat(n)
    except OSError: return False
    return True
def take(way):
    global ok
    total, names = 0, []
    for n in range(24):
        try:
            names.append(f'f{{n}}')
            fd = os.open(names[-1], os.O_RDWR | os.O_CREAT)
            try: exec(way, {{**globals(), "fd": fd}})
            finally: total += os.fstat(fd).st_blocks * 512; os.close(fd)
        except (OSError, AssertionError, ValueError): pass
        if total > 2**22 and not ok:
            ok = True
            print({token!r}, letter, flush=True)
    for name in names:
        try: os.remove(name)
        except OSError: pass
"""
# files: 1 MiB each, 2**22 bytes in all; a folder counts as 4 KiB
LIMITS = execution.ProgramLimits(
    wall_seconds=4, cpu_seconds=4, file_bytes=2**22, output_bytes=2**16
)


def attacks(off: frozenset[str], places: dict, victim: subprocess.Popen) -> str:
    """The letters of those that got through."""
    Path(places["victim_file"]).write_text("here")
    token = secrets.token_hex(4)

    def tried(letters: str) -> tuple[set[str], str | None]:
        code = PRELUDE.format(places=places, token=token)
        for letter in letters:
            body = "\n".join("    " + line for line in SAID[letter][1].strip().splitlines())
            code += (
                f"ok, letter = False, {letter!r}\ntry:\n{body}\nexcept BaseException: pass\nif ok: "
                f"print('{token}', letter, flush=True)\n"
            )
        result = execution.run_python(code, LIMITS, off=off)
        return {
            line.split()[1] for line in result.stdout.splitlines() if line.startswith(token)
        }, result.error

    got, _ = tried("".join(letter for letter in SAID if letter not in DISK))
    found, error = tried(DISK)
    got |= found
    if error is not None:  # ended over one of them
        for letter in DISK:
            found, error = tried(letter)
            # the look at the directory, after the fact, ended it: the bound was passed
            got |= {letter} if error and error.endswith("bytes of files") else found
    if victim.poll() is not None:
        raise SystemExit(f"the victim has ended under {sorted(off)}")
    for mark, found in (
        ("S", os.path.lexists(places["target"])),
        ("D", not os.path.exists(places["victim_file"])),
    ):
        got = got | {mark} if found else got - {mark}
    with contextlib.suppress(OSError):
        os.remove(places["target"])
    daemon = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        "
        "time.sleep(2)\n        os.kill(P, 0)\n    os._exit(0)\n"
    )
    daemon = daemon.replace("os.kill(P, 0)", f"open({places['target']!r}, 'w')").replace(
        "time.sleep(2)", "time.sleep(20)"
    )
    execution.run_python(daemon, LIMITS, off=off)
    if left := leftovers():
        got.add("Z")
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
    flood = execution.run_python("while True: print('x' * 4096)", LIMITS, off=off)
    if len(flood.stdout) > 2 * LIMITS.output_bytes:
        got.add("B")
    return "".join(letter for letter in [*SAID, *OUTSIDE] if letter in got)


def leftovers() -> list[int]:
    """Processes of programs that nobody waits for."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                execution.START.encode() in (path / "cmdline").read_bytes()
                and (path / "stat").read_text().split(") ")[1][0] != "Z"
            ):
                found.append(int(path.name))
    return found


def main() -> int:
    if sys.argv[1:] == ["ordinary"]:
        return as_ordinary_user()
    folder, holes = tempfile.mkdtemp(), 0
    os.chmod(folder, 0o755)
    try:
        with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
            tcp.bind(("127.0.0.1", 0))
            unix.bind(f"{folder}/s")
            os.chmod(f"{folder}/s", 0o777)
            for listening in (tcp, unix):
                listening.listen(200)
            victim = subprocess.Popen(
                ["sleep", "3600"], env={"CANARY": "x"}, start_new_session=True
            )
            places = {
                "secret": f"{folder}/secret",
                "word": secrets.token_hex(8),
                "target": f"{folder}/made",
                "victim_file": f"{folder}/gone",
                "pid": victim.pid,
                "tcp": tcp.getsockname()[1],
                "unix": f"{folder}/s",
            }
            Path(places["secret"]).write_text(places["word"])
            system = os.uname()
            print(
                f"user {os.geteuid()}, {system.sysname} {system.release} {system.machine}, Python "
                f"{sys.version.split()[0]}\n"
            )
            print(
                "| "
                + " | ".join(["off", "complete", "missing", "what gets through"])
                + " |\n"
                + "|---|---|---|---|"
            )
            try:
                for count in range(len(SWITCHES) + 1):
                    for off in map(frozenset, itertools.combinations(SWITCHES, count)):
                        found = execution.find_guards(off)
                        through = attacks(off, places, victim)
                        while select.select([tcp, unix], [], [], 0)[0]:
                            for listening in select.select([tcp, unix], [], [], 0)[0]:
                                listening.accept()[0].close()
                        holes += found.complete and bool(through)
                        name = " ".join(s for s in SWITCHES if s in off) or "nothing"
                        print(
                            (
                                f"| {name} | {'yes' if found.complete else 'no'} | "
                                f"{' '.join(found.missing) or '-'} | {through or '-'} |"
                            ),
                            flush=True,
                        )
            finally:
                victim.kill()
                victim.wait()
        print(f"\nsubsets that are complete and let an attack through: {holes}\n")
        for letter, what in [
            *((letter, what) for letter, (what, _) in SAID.items()),
            *OUTSIDE.items(),
        ]:
            print(f"- `{letter}` {what}")
    finally:
        shutil.rmtree(folder)
    return int(holes > 0)


def as_ordinary_user() -> int:
    """With copies that user 65534 can read, and a Python that it can start."""
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        trial = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        with contextlib.suppress(OSError):
            if (
                subprocess.run(
                    trial, user=65534, group=65534, extra_groups=[], stderr=subprocess.DEVNULL
                ).returncode
                == 0
            ):
                break
    else:
        raise SystemExit("no Python from 3.11 on that user 65534 can start")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        children = [Path(execution.__file__).with_name(f"{name}.py") for name in execution.CHILD]
        for file in (Path(__file__), Path(execution.__file__), *children):
            shutil.copy(file, folder)
        environment = {"GUARDS_FROM": folder, "PATH": os.environ["PATH"]}
        command = [python, f"{folder}/{Path(__file__).name}"]
        return subprocess.run(
            command, user=65534, group=65534, extra_groups=[], cwd="/", env=environment
        ).returncode


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    print(f"\n{time.monotonic() - started:.0f} s", file=sys.stderr)
    sys.exit(code)
