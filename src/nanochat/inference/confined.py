"""The child's side of execution.py: a process gives up what it can, then runs a program. Standard library, and nothing of ours.

Three processes, so that the program is never asked to judge itself: the launcher makes the namespaces, pid 1 of the new pid
namespace keeps the clock and tells how it ended, and the program runs in pid 2, under limits, Landlock and seccomp. When pid 1 ends
the kernel ends everything in its namespace. A guard that the kernel refuses is left out, and `had` says which were got.
Proven on x86_64 Linux 6.18; the numbers for aarch64 are from the kernel's headers and untried, as is macOS.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # signal itself makes enums, which takes 10 ms, and typing 15
import ctypes
import marshal
import os
import resource
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

CLONE = {"mount": 0x20000, "ipc": 0x8000000, "net": 0x40000000, "pid": 0x20000000}  # from: linux/sched.h
CLONE_NEWUSER = 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
ATTRIBUTES = {
    2: 2,
    4: 4,
    8: 8,
    1024: 1024,
    2048: 2048,
    4096: 1 << 21,
}  # statvfs's flag of a mount: mount's (statvfs(3))
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
FIRST_UID = (
    2_000_000_000  # guess: above the ids of people, services and containers, plus a pid (below 2**22): one for each run
)
OPEN_FILES = 64  # guess: bounds pipes, whose buffers no memory limit counts

# What a program may call: name, number on x86_64, on aarch64 (-: it has no such call). From: linux/unistd.h. Anything else is refused, a new call
# of the kernel's too. So there is no socket, exec, fork, ptrace, mount, bpf, keyctl, io_uring, memfd, chmod or truncate by path.
CALLS = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70, open 2 -, openat 257 56, creat 85 -,
close 3 57, close_range 436 436, stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48,
faccessat2 439 439, getdents 78 -, getdents64 217 61, lseek 8 62, readlink 89 -, readlinkat 267 78, getcwd 79 17, chdir 80 49, fchdir 81 50,
mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38, renameat2 316 276, symlink 88 -,
symlinkat 266 36, ftruncate 77 46, fallocate 285 47, fsync 74 82, fdatasync 75 83, flock 73 32, statfs 137 43, fstatfs 138 44, umask 95 166,
sendfile 40 71, copy_file_range 326 285, fadvise64 221 223, dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, poll 7 -, ppoll 271 73,
select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22,
epoll_pwait2 441 441, eventfd 284 -, eventfd2 290 19, sendto 44 206, recvfrom 45 207, shutdown 48 210, getsockopt 55 209, setsockopt 54 208,
getsockname 51 204, getpeername 52 205, mmap 9 222, munmap 11 215, mprotect 10 226, mremap 25 216, madvise 28 233, msync 26 227, mincore 27 232,
brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137,
rt_sigsuspend 130 133, sigaltstack 131 132, pause 34 -, alarm 37 -, getitimer 36 102, setitimer 38 103, nanosleep 35 101,
clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -, times 100 153, futex 202 98,
futex_waitv 449 449, set_robust_list 273 99, rseq 334 293, membarrier 324 283, set_tid_address 218 96, arch_prctl 158 -, getpid 39 172,
gettid 186 178, getppid 110 173, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getgroups 115 158, getresuid 118 148,
getresgid 120 150, getpgrp 111 -, getpgid 121 155, getsid 124 156, getrlimit 97 163, setrlimit 160 164, getrusage 98 165,
getpriority 140 141, sysinfo 99 179, uname 63 160, getrandom 318 278, getcpu 309 168, capget 125 90, sched_yield 24 124,
sched_getaffinity 204 123, sched_getparam 143 121, sched_getscheduler 145 120, sched_get_priority_max 146 125,
sched_get_priority_min 147 126, wait4 61 260, waitid 247 95, exit 60 93, exit_group 231 94, restart_syscall 219 128
"""
# Of them, those that can take room on a disk or change a file; and those that open one: name to the argument with the flags
WRITES = set(
    "creat mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 symlink symlinkat ftruncate fallocate copy_file_range".split()
)
OPENS = {"open": 1, "openat": 2}
OPEN_TO_WRITE = 0o3 | os.O_CREAT | os.O_TRUNC | 0o20000000  # the last is O_TMPFILE's own bit
# Calls that depend on their arguments
CLONE_CALL, KILL, TGKILL = (56, 220), (62, 129), (234, 131)
FCNTL, IOCTL, PRLIMIT, SOCKETPAIR = (72, 25), (16, 29), (302, 261), (53, 199)
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NEWEST = 424  # from 424 on the numbers are the same everywhere; refused as unknown there, so that libc falls back on older calls
ALLOW, DENY, UNKNOWN, KILL_PROCESS = 0x7FFF0000, 0x50000 | 1, 0x50000 | 38, 0x80000000  # errno EPERM, ENOSYS

LANDLOCK = (444, 445, 446)  # create_ruleset, add_rule, restrict_self
READ_FILE, READ_DIR, WRITE_FILE = 1 << 2, 1 << 3, 1 << 1
FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}  # by the version of Landlock that brought them
OWN_RIGHTS = 0x7FFF & ~(1 | 1 << 6 | 1 << 9 | 1 << 11)  # in its own directory all but exec, devices and sockets
# Only a file system of its own has a size. Where there is none, nothing is written: RLIMIT_FSIZE is of each file, fallocate may pass it,
# and a look at the directory comes too late (13 GB in 0.25 s). Landlock, seccomp and the limit each see to it.

libc: Any = None


def call(name: str, *args: Any) -> int:
    """A function of libc, whose -1 is an OSError."""
    result = getattr(libc, name)(*args)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def main(request: dict[str, Any]) -> None:
    """Runs request["program"] and writes on request["status_fd"] what became of it, marshalled."""
    global libc
    had: set[str] = set()
    off, status = set(request["off"]), request["status_fd"]
    os.umask(0o022)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
        isolate(request, off, had)
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)  # again: the kernel forgets it with a change of user
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
    """Waits for the program, ends it at its time, and says on `status` how it ended."""
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
    killed = os.WIFSIGNALED(code) and os.WTERMSIG(code) in (signal.SIGKILL, signal.SIGXCPU)
    spent = used.ru_utime + used.ru_stime > limits["cpu_seconds"] - 0.1
    os.set_blocking(report, False)
    try:
        said = os.read(report, 65536)
    except BlockingIOError:  # never got so far
        said = b""
    os.write(status, marshal.dumps((os.waitstatus_to_exitcode(code), bool(late) or (killed and spent), said)))
    os._exit(0)


def run(request: dict[str, Any], off: set[str], had: set[str], says: int) -> None:
    """The program, in this process: its guards, then its text as the module __main__. Says `had` first, and the token after the last line."""
    if "pid" in had:
        os.setsid()  # out of reach of what signals its own process group
    os.dup2(os.pipe()[0], 0)  # its other end is closed below
    os.dup2(says, 3)
    os.closerange(4, 1024)
    confine(request, off, had)
    program, token = request["program"], request["token"]
    os.write(3, " ".join(had).encode() + b"\n")
    request.clear()

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
        error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)  # without this frame
        sys.__excepthook__(type(error), error, error.__traceback__)
    else:
        os.write(3, token)
        return
    sys.exit(1)


# --- before the program's process: namespaces, files, user ------------------------------------------------------------


def isolate(request: dict[str, Any], off: set[str], had: set[str]) -> None:
    uid, gid = os.geteuid(), os.getegid()
    privileged = uid == 0 and has_admin()
    if not privileged and "user" not in off and CLONE.keys() - off:
        try:
            call("unshare", CLONE_NEWUSER)
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
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
    # Linux counts processes per user and user namespace since 5.14; before, all of this user's would count
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if "uid" in had or ("user" in had and uid != 0 and release >= (5, 14)):
        had.add("counted")


def has_admin() -> bool:
    with open("/proc/self/status") as f:
        return any(line.startswith("CapEff:") and int(line.split()[1], 16) >> 21 & 1 for line in f)


def reachable(request: dict[str, Any]) -> bool:
    """Whether another user could get to the standard library and to the directory."""
    return readable_by_all(request["stdlib"]) and readable_by_all(os.path.dirname(request["directory"]))


def readable_by_all(path: str) -> bool:
    while os.stat(path).st_mode & 0o001:
        if path == "/":
            return True
        path = os.path.dirname(path)
    return False


def mount_own_files(request: dict[str, Any], owner: int) -> None:
    """A root of its own: the standard library and its shared libraries to read, /tmp of limited size to write, and nothing else."""
    root = request["directory"]
    size = request["limits"]["file_bytes"]
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    mount("tmpfs", root, MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=4096,mode=755")
    os.mkdir(root + "/tmp")
    mount("tmpfs", root + "/tmp", MS_NOSUID | MS_NODEV, f"size={size},nr_inodes=1024,mode=700,uid={owner},gid={owner}" if owner >= FIRST_UID
          else f"size={size},nr_inodes=1024,mode=700")  # fmt: skip
    for path in (request["stdlib"], *request["libraries"], *devices()):
        target = root + path
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            open(target, "x").close()
        call("mount", os.fsencode(path), os.fsencode(target), None, MS_BIND | MS_REC, None)
        flags = sum(to for have, to in ATTRIBUTES.items() if os.statvfs(target).f_flag & have)
        call("mount", None, os.fsencode(target), None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | flags, None)
    for hidden in request["hidden"]:
        mount("tmpfs", root + hidden, MS_NOSUID | MS_NODEV | MS_RDONLY, "size=4k,mode=755")
    for link, to in request["links"].items():
        if not os.path.lexists(root + link):
            os.makedirs(os.path.dirname(root + link), exist_ok=True)
            os.symlink(to, root + link)
    call("mount", None, os.fsencode(root), None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, None)
    os.chdir(root)
    call("pivot_root", b".", b".")  # the old root now lies over the new one
    call("umount2", b".", MNT_DETACH)
    os.chdir("/tmp")


def devices() -> list[str]:
    """Those that are harmless, and are devices: a plain file in the place of one could be written."""
    names = ("/dev/null", "/dev/urandom")
    return [path for path in names if os.path.exists(path) and os.stat(path).st_mode & 0o170000 == 0o020000]


def mount(kind: str, target: str, flags: int, options: str) -> None:
    call("mount", kind.encode(), os.fsencode(target), kind.encode(), flags, options.encode())


# --- in the program's process: limits, capabilities, Landlock, seccomp --------------------------------------------------


def confine(request: dict[str, Any], off: set[str], had: set[str]) -> None:
    directory = "/tmp" if "mount" in had else request["directory"]
    os.chdir(directory)
    if "rlimits" not in off:
        set_limits(request["limits"], had)
    if sys.platform != "linux":
        return
    drop_capabilities()
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)  # nobody of the same user can attach, and no core file
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
        "CPU": limits["cpu_seconds"],
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
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))
        except (AttributeError, ValueError, OSError):  # not every system has each
            if name in ("CPU", "FSIZE", "AS"):
                had.discard("rlimits")


def drop_capabilities() -> None:
    header = struct.pack("Ii", 0x20080522, 0)  # version 3
    call("capset", header, struct.pack("6I", 0, 0, 0, 0, 0, 0))


def landlock(request: dict[str, Any], directory: str, had: set[str]) -> None:
    """Only these files may be opened; no TCP from its version 4 on, no signals and abstract sockets out of here from 6 on."""
    version = call("syscall", LANDLOCK[0], None, ctypes.c_size_t(0), 1)
    files = sum(right for since, right in FILE_RIGHTS.items() if since <= version)
    ruleset = struct.pack("QQQ", files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    fd = call("syscall", LANDLOCK[0], ruleset, ctypes.c_size_t(size), 0)
    stdlib, hidden = request["stdlib"], request["hidden"]
    rules = [
        (directory, OWN_RIGHTS if "mount" in had else READ_FILE | READ_DIR),
        *((path, READ_FILE | WRITE_FILE) for path in devices()),
    ]
    rules += [(path, READ_FILE) for path in request["libraries"]]
    if "mount" in had or not hidden:  # the packages are not there to read
        rules.append((stdlib, READ_FILE | READ_DIR))
    else:
        names = [os.path.join(stdlib, name) for name in os.listdir(stdlib)]
        rules += [(stdlib, READ_DIR), *((path, READ_FILE | READ_DIR) for path in names if path not in hidden)]
    for path, rights in rules:
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # what cannot be opened cannot be allowed
        if not os.path.isdir(path):
            rights &= READ_FILE | WRITE_FILE
        call("syscall", LANDLOCK[1], fd, 1, struct.pack("=Qi", rights & files, opened), 0)
        os.close(opened)
    call("syscall", LANDLOCK[2], fd, 0)
    os.close(fd)
    had.update(
        name
        for name, since in (("landlock-truncate", 3), ("landlock-tcp", 4), ("landlock-scope", 6))
        if version >= since
    )


def seccomp(request: dict[str, Any], directory: str, had: set[str]) -> None:
    """The filter of system calls, in the kernel's bytecode: what is not listed fails."""
    machine = os.uname().machine
    if machine not in AUDIT_ARCH or sys.maxsize < 2**32:
        raise OSError("no list of system calls for this machine")
    column = list(AUDIT_ARCH).index(machine)
    own = os.getpid()
    code = [op(0x20, 4), op(0x15, AUDIT_ARCH[machine], 1, 0), op(0x06, KILL_PROCESS), op(0x20, 0)]

    def allow(number: int, *conditions: tuple[int, int, tuple[int, ...]]) -> None:
        """If each argument, masked, is one of its values. Ints, so their lower half is all that the kernel reads."""
        body: list[bytes] = []
        for argument, mask, values in reversed(conditions):
            test = [op(0x20, 16 + 8 * argument), op(0x54, mask)]
            test += [op(0x15, value, len(values) - n) for n, value in enumerate(values)]  # equal: past the refusal
            test.append(op(0x06, DENY))
            body = test + body
        body.append(op(0x06, ALLOW))
        code.extend([op(0x15, number, 0, len(body)), *body])

    writes = "mount" in had or "landlock-truncate" in had  # or else files are for this filter to guard
    for entry in CALLS.split(","):
        name, *numbers = entry.split()
        if numbers[column] == "-" or (name in WRITES and not writes):
            continue
        if name in OPENS and not writes:
            allow(int(numbers[column]), (OPENS[name], OPEN_TO_WRITE, (0,)))
        else:
            allow(int(numbers[column]))
    if "counted" in had and "rlimits" in had:  # threads, and nothing that is not a thread; without a limit on them none
        allow(CLONE_CALL[column], (0, 0x7E030000, (0x10000,)))
    allow(KILL[column], (0, 0xFFFFFFFF, (own,)))
    allow(TGKILL[column], (0, 0xFFFFFFFF, (own,)))
    allow(FCNTL[column], (1, 0xFFFFFFFF, (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)))  # not who gets signals
    allow(IOCTL[column], (1, 0xFFFFFFFF, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)))  # isatty and the like
    allow(PRLIMIT[column], (0, 0xFFFFFFFF, (0,)))  # its own
    allow(SOCKETPAIR[column], (0, 0xFFFFFFFF, (1,)), (1, 0xF, (1,)))  # asyncio's, connected to itself
    code += [op(0x35, NEWEST, 0, 1), op(0x06, UNKNOWN), op(0x06, DENY)]
    if column == 0:  # numbers with this bit are of another set, x32
        code[4:4] = [op(0x35, 0x40000000, 0, 1), op(0x06, DENY)]
    raw = ctypes.create_string_buffer(b"".join(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(raw)))
    call("prctl", PR_SET_SECCOMP, 2, program, 0, 0)


def op(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    """One instruction of classic BPF: load, and, jump if equal (or not less) by `yes` or `no`, return."""
    return struct.pack("HBBI", code, yes, no, k)
