"""Hashes of the files of a checkpoint: they detect damage (a flipped bit, a file of another run),
not forgery.

XXH3 with 128 bits is used because it keeps up with the disk: measured 26,000 MB/s on one core,
compared with 1,800 MB/s for sha256 with hardware support (experiments/outside_use/sec5_files.md).
"""

import functools
import os
from pathlib import Path

import xxhash

HASH = "xxh3_128"
SWITCH = "NANOCHAT_CHECK_HASHES"  # false: check sizes only, which saves reading huge files twice
# bytes; guess: more than a disk reads at once, small compared with what is loaded
BLOCK = 2**22


def wanted() -> bool:
    """Whether files are compared with their hashes. ValueError if the variable is neither true nor
    false."""
    value = os.environ.get(SWITCH, "true").lower()
    if value not in ("true", "false"):
        raise ValueError(f"{SWITCH}={value} is not known; choose from true, false")
    return value == "true"


def file_hash(path: Path) -> str:
    """The hash of a file in hex. A process reads a file once, as long as the system reports no
    change of it."""
    status = path.stat()
    return _read(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=1024)
def _read(path: Path, *state: int) -> str:
    digest, block = xxhash.xxh3_128(), bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(memoryview(block)[:size])
    return digest.hexdigest()
