"""What has been written, on the disk. Imports nothing heavy: builders of token shards use it."""

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    try:
        # Windows flushes what is open for writing
        handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # and opens no folder
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
