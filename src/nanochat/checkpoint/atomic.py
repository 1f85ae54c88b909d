"""Writing so that a kill at any instant leaves the old content or the new: under a temporary name,
fsynced, then renamed."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from nanochat import distributed
from nanochat.runtime.disk import fsync

TEMPORARY = ".writing-"
T = TypeVar("T")


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write(temporary folder)`, fsync its content and rename it to `path`. After a failure
    nothing is left."""
    with tidied(path) as temporary:
        begin(temporary)
        write(temporary)
        put(temporary, path)


def write_together(
    path: Path, part: Callable[[Path], T], write: Callable[[Path, list[T]], None]
) -> None:
    """As `write_atomic`, called on every rank. Each calls `part(temporary folder)`, and then the
    first `write(temporary folder, results of part)`. A failure on one raises on all."""
    first = distributed.rank() == 0
    with tidied(path) as temporary:
        place = distributed.everywhere(lambda: begin(temporary) if first else temporary)[0]
        parts = distributed.everywhere(lambda: part(place))

        def finish() -> None:
            write(place, parts)
            put(place, path)

        distributed.everywhere(finish if first else lambda: None)


def begin(temporary: Path) -> Path:
    temporary.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    return temporary


def put(temporary: Path, path: Path) -> None:
    """Fsync a folder and its content, and give it the name `path`."""
    for inner in [*temporary.rglob("*"), temporary]:
        fsync(inner)
    if path.exists():
        old = path.with_name(f"{temporary.name}-old")
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old)
    else:
        temporary.rename(path)
    fsync(path.parent)


@contextmanager
def tidied(path: Path) -> Iterator[Path]:
    """The temporary name for `path`. After a failure nothing is left under it; a full disk is said
    in words."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    try:
        yield temporary
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if disk_was_full(error):
            free = shutil.disk_usage(path.parent).free
            raise OSError(
                f"no space left on the disk of {path.parent} ({free / 2**20:.0f} MiB free) while "
                f"writing {path.name}; "
                "earlier checkpoints are unchanged: free some space, then continue with resume=auto"
            ) from error
        raise


def disk_was_full(error: BaseException | None) -> bool:
    """Whether the error, or one that caused it, is a full disk: torch and safetensors replace the
    system's error by their own."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_json(path: Path, data: Any) -> None:
    """Write JSON under a temporary name, fsync it and rename it."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    temporary.write_text(json.dumps(data, indent=2, default=str) + "\n", encoding="utf-8")
    fsync(temporary)
    temporary.rename(path)
