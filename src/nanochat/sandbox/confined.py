"""The child's side of execution.py: a process gives up what it can, then runs a program.

Three processes, so that the program never judges itself: the launcher makes the namespaces, pid 1
of the new pid namespace keeps the clock and reports how the program ended, and the program runs as
pid 2 under limits, Landlock and seccomp (filters.py). When pid 1 ends, the kernel ends everything
in its namespace. A guard that the kernel refuses is left out; `had` lists those that are active.
Standard library only: the child imports nothing of nanochat but these two files, which it is sent.
Tested on Linux 6.18; macOS is untested.
"""

from __future__ import annotations

# not signal, which makes enums in 10 ms, and not typing: 15 ms
import _signal as signal  # type: ignore[import-not-found]
import marshal
import os
import resource
import struct
import sys

from nanochat.sandbox.filters import call, devices, landlock, libc, seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

# from: linux/sched.h
CLONE = {"mount": 0x20000, "ipc": 0x8000000, "net": 0x40000000, "pid": 0x20000000}
CLONE_NEWUSER = 0x10000000
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
# flag of statvfs(3): flag of mount(2)
ATTRIBUTES = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
# guess: above the ids of people, services and containers; plus a pid (below 2**22), one for each
# run
FIRST_UID = 2_000_000_000
CPU_GRACE = 1  # seconds between SIGXCPU and SIGKILL, the least that the kernel can tell apart
OPEN_FILES = 64  # guess: bounds pipes, whose buffers no memory limit counts


def main(request: dict[str, Any]) -> None:
    """Run request["program"]; write how it ended to request["status_fd"], marshalled."""
    had: set[str] = set()
    off, status = set(request["off"]), request["status_fd"]
    os.umask(0o022)
    if sys.platform == "linux":
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
        isolate(request, off, had)
        # again: the kernel forgets it with a change of user
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
    if "pid" in had:
        first = os.fork()
        if first:
            os.waitpid(first, 0)
            os._exit(0)
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
    report, says = os.pipe()
    pid = os.fork()
    if pid:
        os.close(says)
        supervise(pid, report, status, request["limits"])
    os.close(report)
    os.close(status)
    run(request, off, had, says)


def supervise(pid: int, report: int, status: int, limits: dict[str, Any]) -> NoReturn:
    """Wait for the program, end it at its wall-clock limit, and write to `status` how it ended."""
    late: list[bool] = []

    def stop(*_: Any) -> None:
        late.append(True)
        try:  # noqa: SIM105 (contextlib takes 5 ms to import)
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it ended just now
            pass

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limits["wall_seconds"], 0.1)
    ended = 0
    while ended != pid:  # others are orphans of the program
        ended, code, used = os.wait3(0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    late_by_cpu = os.WIFSIGNALED(code) and ended_by_cpu_limit(
        os.WTERMSIG(code), used.ru_utime + used.ru_stime, limits["cpu_seconds"]
    )
    os.set_blocking(report, False)
    try:
        said = os.read(report, 65536)
    except BlockingIOError:  # never got so far
        said = b""
    os.write(
        status, marshal.dumps((os.waitstatus_to_exitcode(code), bool(late) or late_by_cpu, said))
    )
    os._exit(0)


def ended_by_cpu_limit(number: int, used_seconds: float, cpu_seconds: int) -> bool:
    """Whether a program that signal `number` ended had used up its processor time.

    The kernel sends SIGXCPU at the limit, and SIGKILL `CPU_GRACE` later to a program that ignores
    it. It counts ticks for the limit and exact times for `used_seconds`, so the two differ on a
    busy machine: 0.881 to 1.017 s were reported at a limit of 1 s with six other busy processes.
    SIGXCPU alone is proof. For SIGKILL, which has other causes too, half the limit is taken as
    enough.
    """
    return number == signal.SIGXCPU or (number == signal.SIGKILL and used_seconds > cpu_seconds / 2)


def run(request: dict[str, Any], off: set[str], had: set[str], says: int) -> None:
    """Run the program in this process: first the guards, then its text as the module __main__.

    Writes `had` to descriptor 3 before the program starts, and the token after its last line.
    """
    if "pid" in had:
        os.setsid()  # out of reach of what signals its own process group
    os.dup2(os.pipe()[0], 0)  # its other end is closed below
    os.dup2(says, 3)
    os.closerange(4, 1024)
    confine(request, off, had)
    program, token = request["program"], request["token"]
    os.write(3, " ".join(had).encode() + b"\n")
    request.clear()
    for name in [name for name in sys.modules if name.startswith("nanochat")]:
        del sys.modules[name]

    import builtins
    import site  # without its main(): it adds no folder

    site.setquit()
    os.environ.clear()
    sys.argv = [""]
    module = type(sys)("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    try:
        exec(compile(program, "<program>", "exec"), module.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        # without this frame
        error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        sys.__excepthook__(type(error), error, error.__traceback__)
    else:
        os.write(3, token)
        return
    sys.exit(1)


# --- before the program's process: namespaces, files, user ---


def isolate(request: dict[str, Any], off: set[str], had: set[str]) -> None:
    uid, gid = os.geteuid(), os.getegid()
    privileged = uid == 0 and has_admin()
    if not privileged and "user" not in off and CLONE.keys() - off:
        try:
            call("unshare", CLONE_NEWUSER)
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{uid} {uid} 1"),
                ("gid_map", f"{gid} {gid} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as f:
                    f.write(text)
            had.add("user")
        except OSError:
            pass  # each namespace then fails below, for itself
    for name, flag in CLONE.items():
        if name not in off:
            try:
                call("unshare", flag)
                had.add(name)
            except OSError:
                pass
    become = FIRST_UID + os.getpid() if privileged and "uid" not in off else uid
    if "mount" in had:
        try:
            mount_own_files(request, become)
        except OSError:
            had.discard("mount")
            libc.umount2(request["directory"].encode(), MNT_DETACH)
    if become != uid and ("mount" in had or reachable(request)):
        try:
            if "mount" not in had:
                os.chown(request["directory"], become, become)
            os.setgroups([])
            os.setresgid(become, become, become)
            os.setresuid(become, become, become)
            had.add("uid")
        except OSError:  # an id that this container has not
            pass
    # Linux counts processes per user and user namespace since 5.14; before, all of this user's
    # would count
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if "uid" in had or ("user" in had and uid != 0 and release >= (5, 14)):
        had.add("counted")


def has_admin() -> bool:
    with open("/proc/self/status") as f:
        return any(line.startswith("CapEff:") and int(line.split()[1], 16) >> 21 & 1 for line in f)


def reachable(request: dict[str, Any]) -> bool:
    """Whether another user can reach the standard library and the directory."""
    return readable_by_all(request["stdlib"]) and readable_by_all(
        os.path.dirname(request["directory"])
    )


def readable_by_all(path: str) -> bool:
    while os.stat(path).st_mode & 0o001:
        if path == "/":
            return True
        path = os.path.dirname(path)
    return False


def mount_own_files(request: dict[str, Any], owner: int) -> None:
    """Make a root with the standard library and its shared libraries, read-only, and a /tmp of
    limited size."""
    root = request["directory"]
    size = request["limits"]["file_bytes"]
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    mount("tmpfs", root, MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=4096,mode=755")
    os.mkdir(root + "/tmp")
    mount(
        "tmpfs",
        root + "/tmp",
        MS_NOSUID | MS_NODEV,
        f"size={size},nr_inodes=1024,mode=700,uid={owner},gid={owner}"
        if owner >= FIRST_UID
        else f"size={size},nr_inodes=1024,mode=700",
    )
    for path in (request["stdlib"], *request["libraries"], *devices()):
        target = root + path
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            open(target, "x").close()
        call("mount", os.fsencode(path), os.fsencode(target), None, MS_BIND | MS_REC, None)
        flags = sum(to for have, to in ATTRIBUTES.items() if os.statvfs(target).f_flag & have)
        call(
            "mount",
            None,
            os.fsencode(target),
            None,
            MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | flags,
            None,
        )
    for hidden in request["hidden"]:
        mount("tmpfs", root + hidden, MS_NOSUID | MS_NODEV | MS_RDONLY, "size=4k,mode=755")
    for link, to in request["links"].items():
        if not os.path.lexists(root + link):
            os.makedirs(os.path.dirname(root + link), exist_ok=True)
            os.symlink(to, root + link)
    call(
        "mount",
        None,
        os.fsencode(root),
        None,
        MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV,
        None,
    )
    os.chdir(root)
    call("pivot_root", b".", b".")  # the old root is now mounted over the new one
    call("umount2", b".", MNT_DETACH)
    os.chdir("/tmp")


def mount(kind: str, target: str, flags: int, options: str) -> None:
    call("mount", kind.encode(), os.fsencode(target), kind.encode(), flags, options.encode())


# --- in the program's process: limits, capabilities, Landlock, seccomp
# --------------------------------------------------


def confine(request: dict[str, Any], off: set[str], had: set[str]) -> None:
    directory = "/tmp" if "mount" in had else request["directory"]
    os.chdir(directory)
    if "rlimits" not in off:
        set_limits(request["limits"], had)
    if sys.platform != "linux":
        return
    drop_capabilities()
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # nobody of the same user can attach, and no core file
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    for name, guard in (("landlock", landlock), ("seccomp", seccomp)):
        if name not in off:
            try:
                guard(request, directory, had)
                had.add(name)
            except OSError:
                pass


def set_limits(limits: dict[str, Any], had: set[str]) -> None:
    wanted = {
        "CORE": 0,
        "CPU": limits["cpu_seconds"],  # the soft limit
        "FSIZE": limits["file_bytes"] if "mount" in had or sys.platform != "linux" else 0,
        "NOFILE": OPEN_FILES,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "AS": limits["memory_bytes"],
        "DATA": limits["memory_bytes"],
    }
    if "counted" in had:
        wanted["NPROC"] = limits["processes"] + (2 if "pid" in had else 1)  # those that wait for it
    had.add("rlimits")
    for name, value in wanted.items():
        try:
            kind = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(kind)[1]
            most = value + CPU_GRACE * (name == "CPU")
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (min(value, most), most))
        except (AttributeError, ValueError, OSError):  # not every system has each
            if name in ("CPU", "FSIZE", "AS"):
                had.discard("rlimits")


def drop_capabilities() -> None:
    header = struct.pack("Ii", 0x20080522, 0)  # version 3
    call("capset", header, struct.pack("6I", 0, 0, 0, 0, 0, 0))
