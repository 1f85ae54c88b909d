"""Locks on files, which end with the process that holds them, however it ends."""

import sys
from typing import IO, Any


def try_lock(file: IO[Any], *, shared: bool = False) -> bool | None:
    """Lock an open file, `shared` only to see whether that is possible.

    True: it is locked while `file` is open, here or in a child (`child_fds`). False: another
    process holds the lock. None: the system or this file system has no such locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # Linux and macOS; Windows
        return False
    except (ImportError, OSError):
        return None
    return True


def child_fds(*files: IO[Any]) -> list[int]:
    """For `pass_fds` of subprocess.Popen: the child holds the locks of `files` too. Empty on
    Windows, whose locks belong to one process."""
    try:
        import fcntl  # noqa: F401
    except ImportError:
        return []
    return [file.fileno() for file in files]
