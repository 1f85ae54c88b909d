"""A dictionary on disk that several processes can append to: results that are slow to compute and
small to store.

Each record is one JSON line, written with a single append. An incomplete line is skipped; a record
written twice is the same record. Losing the file costs time and nothing else.
"""

import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from nanochat.runtime.paths import base_dir


class Journal:
    """Records by key, in memory and in the file `path`. If the file cannot be written they are kept
    in memory only."""

    def __init__(self, path: Path):
        self.path = path
        self._records: dict[str, Any] = {}
        self._seen = 0  # bytes of the file at the last read

    def get(self, key: str) -> Any:
        if key not in self._records:
            with contextlib.suppress(OSError):
                if self.path.stat().st_size != self._seen:  # other processes may have appended
                    self._read()
        return self._records.get(key)

    def _read(self) -> None:
        raw = self.path.read_bytes()
        self._seen = len(raw)
        for line in raw.splitlines():
            with contextlib.suppress(ValueError, TypeError):
                known, value = json.loads(line)
                self._records[known] = value

    def put(self, key: str, value: Any) -> None:
        if self.get(key) == value:
            return
        self._records[key] = value
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                # the leading line break ends a line that a killed process may have left incomplete
                os.write(file, f"\n{json.dumps([key, value])}\n".encode())
            finally:
                os.close(file)


@functools.cache
def _journal(path: Path) -> Journal:
    return Journal(path)


def file_sha256(path: Path) -> str:
    """The sha256 of a file in hex. A file with known path, size, times of change and inode is not
    read again."""
    status = path.stat()
    # the time of modification alone does not suffice: it can be set back, as `cp -p` does
    changed = f"{status.st_mtime_ns}|{status.st_ctime_ns}"
    key = f"{path.resolve()}|{status.st_size}|{changed}|{status.st_ino}"
    journal = _journal(base_dir() / "file-sha256.jsonl")
    if known := journal.get(key):
        return known
    found = read_sha256(path)
    journal.put(key, found)
    return found


def read_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any, length: int = 16) -> str:
    """The first `length` hex digits of the sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]
