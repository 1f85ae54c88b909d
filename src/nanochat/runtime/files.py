"""Reading plain, gzip or zstandard files, with the file named in every error."""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

PACKED = (".gz", ".zst")
LINE_END = re.compile(r"\r\n|\r|\n")
# exceptions of reading a damaged compressed file
DAMAGE = (EOFError, zlib.error, pa.ArrowException, OSError)


def text_lines(text: str) -> list[str]:
    r"""The lines of a text, which end only at \n, \r\n or \r.

    `str.splitlines` also splits at U+2028, U+2029, \x85, \x0b, \x0c and \x1c to \x1e, which are
    characters of the text.

    >>> text_lines("a\u2028b\r\nc\n")
    ['a\u2028b', 'c']
    """
    lines = LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def byte_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their line ends, decompressed if it is .gz or .zst. ValueError with
    file and line if it is damaged."""
    count = 0
    try:
        with _open(path) as file:
            for line in _split(file) if isinstance(file, pa.NativeFile) else file:
                yield line
                count += 1
    except DAMAGE as error:
        raise _damaged(path, error, f" after line {count:,}" if count else "") from None


def read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed if it is .gz or .zst. ValueError with the file if it is
    damaged."""
    try:
        with _open(path) as file:
            return bytes(file.read())
    except DAMAGE as error:
        raise _damaged(path, error) from None


def _open(path: Path) -> Any:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path)
    if path.name.lower().endswith(".zst"):
        path.open("rb").close()  # raises the system's error for a missing file
        return pa.input_stream(str(path), compression="zstd")
    return path.open("rb")


def _split(file: pa.NativeFile) -> Iterator[bytes]:
    """The lines of a file, as iterating over a Python file gives them; pyarrow's own readline reads
    byte by byte."""
    rest = b""
    while block := file.read(2**20):
        *whole, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest


def _damaged(path: Path, error: Exception, where: str = "") -> Exception:
    if not path.name.lower().endswith(PACKED) or (
        isinstance(error, OSError) and error.errno and error.filename
    ):
        return error
    reason = str(error).split("\n")[0].rstrip(".")
    return ValueError(f"{path} is damaged{where} ({reason}); download or write it again")
