"""The guards that the kernel checks at each call: Landlock for files, seccomp for the calls
themselves.

Part of the child's side, like confined.py: standard library only. The numbers for x86_64 are tested
on Linux 6.18; those for aarch64 are from the kernel's headers and untested.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

libc: Any = ctypes.CDLL(None, use_errno=True)
PR_SET_SECCOMP = 22

# System calls a program may make: name, number on x86_64, number on aarch64 (-: it has no such
# call). From: linux/unistd.h. Every other call is refused, also those that later kernels add: no
# socket, exec, fork, ptrace, mount, bpf, keyctl, io_uring, memfd, chmod or truncate by path.
CALLS = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69,
pwritev 296 70, open 2 -, openat 257 56, creat 85 -, close 3 57, close_range 436 436, stat 4 -,
fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48,
faccessat2 439 439, getdents 78 -, getdents64 217 61, lseek 8 62, readlink 89 -, readlinkat 267 78,
getcwd 79 17, chdir 80 49, fchdir 81 50, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -,
unlinkat 263 35, rename 82 -, renameat 264 38, renameat2 316 276, symlink 88 -, symlinkat 266 36,
ftruncate 77 46, fallocate 285 47, fsync 74 82, fdatasync 75 83, flock 73 32, statfs 137 43,
fstatfs 138 44, umask 95 166, sendfile 40 71, copy_file_range 326 285, fadvise64 221 223, dup 32 23,
dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, poll 7 -, ppoll 271 73, select 23 -,
pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -,
epoll_pwait 281 22, epoll_pwait2 441 441, eventfd 284 -, eventfd2 290 19, sendto 44 206,
recvfrom 45 207, shutdown 48 210, getsockopt 55 209, setsockopt 54 208, getsockname 51 204,
getpeername 52 205, mmap 9 222, munmap 11 215, mprotect 10 226, mremap 25 216, madvise 28 233,
msync 26 227, mincore 27 232, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135,
rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133,
sigaltstack 131 132, pause 34 -, alarm 37 -, getitimer 36 102, setitimer 38 103, nanosleep 35 101,
clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169,
time 201 -, times 100 153, futex 202 98, futex_waitv 449 449, set_robust_list 273 99, rseq 334 293,
membarrier 324 283, set_tid_address 218 96, arch_prctl 158 -, getpid 39 172, gettid 186 178,
getppid 110 173, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177,
getgroups 115 158, getresuid 118 148, getresgid 120 150, getpgrp 111 -, getpgid 121 155,
getsid 124 156, getrlimit 97 163, setrlimit 160 164, getrusage 98 165, getpriority 140 141,
sysinfo 99 179, uname 63 160, getrandom 318 278, getcpu 309 168, capget 125 90, sched_yield 24 124,
sched_getaffinity 204 123, sched_getparam 143 121, sched_getscheduler 145 120,
sched_get_priority_max 146 125, sched_get_priority_min 147 126, wait4 61 260, waitid 247 95,
exit 60 93, exit_group 231 94, restart_syscall 219 128
"""
# Of these, the ones that can take room on a disk or change a file; and those that open a file, with
# the index of the argument that holds the flags.
WRITES = set(
    "creat mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 symlink symlinkat "
    "ftruncate fallocate copy_file_range".split()
)
OPENS = {"open": 1, "openat": 2}
OPEN_TO_WRITE = 0o3 | os.O_CREAT | os.O_TRUNC | 0o20000000  # the last is O_TMPFILE's own bit
# Calls whose arguments decide
CLONE_CALL, KILL, TGKILL = (56, 220), (62, 129), (234, 131)
FCNTL, IOCTL, PRLIMIT, SOCKETPAIR = (72, 25), (16, 29), (302, 261), (53, 199)
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# From 424 on the numbers are the same on every machine. These are refused as unknown (ENOSYS), so
# that libc falls back on older calls.
NEWEST = 424
ALLOW, KILL_PROCESS = 0x7FFF0000, 0x80000000
DENY, UNKNOWN = 0x50000 | 1, 0x50000 | 38  # fails with EPERM, with ENOSYS

LANDLOCK = (444, 445, 446)  # create_ruleset, add_rule, restrict_self
READ_FILE, READ_DIR, WRITE_FILE = 1 << 2, 1 << 3, 1 << 1
# by the version of Landlock that brought them
FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
# in its own directory all but exec, devices and sockets
OWN_RIGHTS = 0x7FFF & ~(1 | 1 << 6 | 1 << 9 | 1 << 11)
# Only a file system of its own has a size. Without one nothing may be written: RLIMIT_FSIZE bounds
# each file by itself, fallocate can pass it, and a check of the directory comes too late (13 GB in
# 0.25 s). Landlock, seccomp and the limit each enforce this.


def call(name: str, *args: Any) -> int:
    """Call a function of libc; OSError where it returns -1."""
    result = getattr(libc, name)(*args)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def devices() -> list[str]:
    """Those that are harmless, and are devices: a plain file in the place of one could be
    written."""
    names = ("/dev/null", "/dev/urandom")
    return [
        path
        for path in names
        if os.path.exists(path) and os.stat(path).st_mode & 0o170000 == 0o020000
    ]


def landlock(request: dict[str, Any], directory: str, had: set[str]) -> None:
    """Only these files may be opened. From version 4 on no TCP; from 6 on no signals or abstract
    sockets to the outside."""
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
        rules += [
            (stdlib, READ_DIR),
            *((path, READ_FILE | READ_DIR) for path in names if path not in hidden),
        ]
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
    """Install the filter of system calls, as classic BPF: what is not listed fails."""
    machine = os.uname().machine
    if machine not in AUDIT_ARCH or sys.maxsize < 2**32:
        raise OSError("no list of system calls for this machine")
    column = list(AUDIT_ARCH).index(machine)
    own = os.getpid()
    code = [op(0x20, 4), op(0x15, AUDIT_ARCH[machine], 1, 0), op(0x06, KILL_PROCESS), op(0x20, 0)]

    def allow(number: int, *conditions: tuple[int, int, tuple[int, ...]]) -> None:
        """Allow a call if each argument, masked, is one of its values (ints: the kernel reads their
        lower half)."""
        body: list[bytes] = []
        for argument, mask, values in reversed(conditions):
            test = [op(0x20, 16 + 8 * argument), op(0x54, mask)]
            # equal: past the refusal
            test += [op(0x15, value, len(values) - n) for n, value in enumerate(values)]
            test.append(op(0x06, DENY))
            body = test + body
        body.append(op(0x06, ALLOW))
        code.extend([op(0x15, number, 0, len(body)), *body])

    writes = "mount" in had or "landlock-truncate" in had  # otherwise this filter guards the files
    for entry in CALLS.split(","):
        name, *numbers = entry.split()
        if numbers[column] == "-" or (name in WRITES and not writes):
            continue
        if name in OPENS and not writes:
            allow(int(numbers[column]), (OPENS[name], OPEN_TO_WRITE, (0,)))
        else:
            allow(int(numbers[column]))
    # threads only, and none without a limit on their number
    if "counted" in had and "rlimits" in had:
        allow(CLONE_CALL[column], (0, 0x7E030000, (0x10000,)))
    allow(KILL[column], (0, 0xFFFFFFFF, (own,)))
    allow(TGKILL[column], (0, 0xFFFFFFFF, (own,)))
    # not F_SETOWN and the like
    allow(FCNTL[column], (1, 0xFFFFFFFF, (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)))
    # isatty and the like
    allow(IOCTL[column], (1, 0xFFFFFFFF, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)))
    allow(PRLIMIT[column], (0, 0xFFFFFFFF, (0,)))  # its own
    allow(SOCKETPAIR[column], (0, 0xFFFFFFFF, (1,)), (1, 0xF, (1,)))  # asyncio needs one
    code += [op(0x35, NEWEST, 0, 1), op(0x06, UNKNOWN), op(0x06, DENY)]
    if column == 0:  # numbers with this bit are of another set, x32
        code[4:4] = [op(0x35, 0x40000000, 0, 1), op(0x06, DENY)]
    raw = ctypes.create_string_buffer(b"".join(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(raw)))
    call("prctl", PR_SET_SECCOMP, 2, program, 0, 0)


def op(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    """One instruction of classic BPF: load, and, jump if equal (or not less) by `yes` or `no`,
    return."""
    return struct.pack("HBBI", code, yes, no, k)
