"""Files into documents: parquet, JSON lines, JSON, and plain text.

One generator per kind, none of which knows about validation or tokens. What cannot be read is a ValueError that names
the file and says what to type instead; what is passed over is counted in `notes`.
"""

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

TEXT_SUFFIXES = (".txt", ".md")
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz", *TEXT_SUFFIXES)
BATCH_ROWS = 1024  # from: facts sheet 4.1, rows of a row group


def suffix(path: str | Path) -> str | None:
    """The known ending of a file name, or None."""
    name = str(path).lower()
    return next((s for s in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(s)), None)


def check_suffix(path: str | Path) -> str:
    if found := suffix(path):
        return found
    raise ValueError(f"{path} is of no known kind; a text file is one of {' '.join(SUFFIXES)}")


def read_rows(path: Path, text_field: str, span: tuple[int, int] | None, notes: Counter[str]) -> Iterator[str]:
    """The documents of a parquet or JSON file, or of its row groups or bytes span[0]..span[1]-1 (see `spans`)."""
    kind = check_suffix(path)
    if kind == ".parquet":
        texts = _parquet(path, text_field, span)
    elif kind in (".jsonl", ".jsonl.gz"):
        texts = _json_lines(path, text_field, span)
    else:
        texts = _json(path, text_field)
    for text in texts:
        if text is None or not text.strip():
            notes["empty_documents"] += 1
        else:
            yield clean(text, notes)


def read_text(path: Path, bad_utf8: str, notes: Counter[str]) -> str:
    """A whole text file. Bytes that are not UTF-8 are an error, or with bad_utf8="replace" become U+FFFD and are
    counted."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if bad_utf8 != "replace":
            raise ValueError(
                f"{path} is not UTF-8 at byte {error.start:,}; convert it, or set data.bad_utf8=replace"
            ) from None
    text = raw.decode("utf-8-sig", "replace")
    notes["replaced_characters"] += text.count("\ufffd") - raw.count("\ufffd".encode())
    return text


def split_text(text: str, documents: str) -> Iterator[str]:
    """The documents of a text: the "file" as it is, each "paragraph" (parted by empty lines), or each "line"."""
    if documents == "file":
        yield text
    elif documents == "paragraph":
        yield from re.split(r"\n[ \t\r]*\n\s*", text)
    elif documents == "line":
        yield from text.splitlines()
    else:
        raise ValueError(f"documents={documents} is not known; choose data.documents=file, paragraph or line")


def cut(text: str, limit: int | None) -> Iterator[str]:
    """A document in pieces of at most `limit` characters that joined give it again, cut at the last paragraph end in
    the second half of the allowance, else the last line end, else the last space, else in the middle of a word.

    >>> list(cut("one two. three", 9))
    ['one two. ', 'three']
    """
    if limit is None or len(text) <= limit:
        yield text
        return
    at = 0
    while len(text) - at > limit:
        end = at + limit
        for mark in ("\n\n\n", "\n\n", "\n", " "):
            found = text.rfind(mark, at + limit // 2, end)
            if found >= 0:
                end = found + len(mark)
                break
        yield text[at:end]
        at = end
    yield text[at:]


def clean(text: str, notes: Counter[str]) -> str:
    """The text without lone surrogates, which JSON can spell and UTF-8 cannot: they become U+FFFD and are counted."""
    if text.isascii():
        return text
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        notes["replaced_characters"] += joined.count("\ufffd") - text.count("\ufffd")
        return joined


def spans(path: Path, part_bytes: int) -> list[tuple[int, int] | None]:
    """How a file is cut into parts of about `part_bytes` bytes that can be read apart: row groups of a parquet file,
    byte ranges of JSON lines (a line belongs to the range its first byte is in). Other files are one part: [None]."""
    size = path.stat().st_size
    if size <= part_bytes:
        return [None]
    kind = suffix(path)
    if kind == ".jsonl":
        count = -(-size // part_bytes)
        edges = [size * i // count for i in range(count + 1)]
        return list(pairwise(edges))
    if kind == ".parquet":
        groups = _open_parquet(path).num_row_groups
        count = min(-(-size // part_bytes), groups)
        edges = [groups * i // count for i in range(count + 1)]
        return list(pairwise(edges)) if count > 1 else [None]
    return [None]


def check_file(path: Path, text_field: str) -> None:
    """What can be found wrong with a file without reading it through: unreadable parquet, a missing column, a first
    line that is not JSON. ValueError."""
    kind = check_suffix(path)
    if kind == ".parquet":
        _check_column(path, _open_parquet(path).schema_arrow, text_field)
    elif kind in (".jsonl", ".jsonl.gz"):
        next(_json_lines(path, text_field, None), None)


def text_bytes(path: Path, text_field: str) -> int:
    """About how many bytes of text a file holds."""
    kind, size = suffix(path), path.stat().st_size
    if kind == ".parquet":
        meta = _open_parquet(path).metadata
        groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
        columns = [g.column(j) for g in groups for j in range(g.num_columns)]
        return sum(c.total_uncompressed_size for c in columns if c.path_in_schema == text_field)
    return size * 4 if str(path).endswith(".gz") else size  # guess: gzip halves text twice


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist") from None
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{path} is not a readable parquet file ({reason}); download or write it again") from None


def _check_column(path: Path, schema: pa.Schema, text_field: str) -> None:
    textual = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    if text_field in textual:
        return
    there = f"its text columns are: {', '.join(textual)}" if textual else f"its columns are: {', '.join(schema.names)}"
    what = "is not a text column of" if text_field in schema.names else "is not a column of"
    raise ValueError(f"text_field={text_field} {what} {path}; {there}; set data.text_field=…")


def _parquet(path: Path, text_field: str, span: tuple[int, int] | None) -> Iterator[str | None]:
    file = _open_parquet(path)
    _check_column(path, file.schema_arrow, text_field)
    groups = range(*span) if span else range(file.num_row_groups)
    try:
        for batch in file.iter_batches(BATCH_ROWS, row_groups=list(groups), columns=[text_field]):
            yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{path} is damaged ({reason}); download or write it again") from None


def _json_lines(path: Path, text_field: str, span: tuple[int, int] | None) -> Iterator[str | None]:
    with _open(path) as file:
        at = 0
        if span and span[0] > 0:
            file.seek(span[0] - 1)
            at = span[0] - 1 + len(file.readline())  # the line that began before belongs to the range before
        for number, line in enumerate(file, 1):
            if span and at >= span[1]:
                return
            at += len(line)
            if line.strip():
                where = f"{path} line {number}" + (f" after byte {span[0]:,}" if span and span[0] else "")
                try:
                    value = json.loads(line)
                except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
                    raise ValueError(f"{where} is not JSON ({error}); JSON lines hold one object a line") from None
                yield _field(value, text_field, where)


def _json(path: Path, text_field: str) -> Iterator[str | None]:
    with _open(path) as file:
        raw = file.read()
    try:
        values = json.loads(raw)
    except ValueError as error:
        try:  # many "json" files are JSON lines
            values = [json.loads(line) for line in raw.splitlines() if line.strip()]
        except ValueError:
            raise ValueError(f"{path} is not JSON ({error}); it should be a list of objects or of strings") from None
    if isinstance(values, dict) and text_field not in values:
        lists = [key for key, value in values.items() if isinstance(value, list)]
        if len(lists) == 1:
            values = values[lists[0]]
    if not isinstance(values, list):
        values = [values]
    for number, value in enumerate(values):
        yield _field(value, text_field, f"{path} item {number}")


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.name.endswith(".gz") else path.open("rb")


def _field(value: Any, text_field: str, where: str) -> str | None:
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a {type(value).__name__}; it should be an object with a text field, or a string")
    if text_field not in value:
        raise ValueError(f"{where} has no field {text_field}; it has: {', '.join(value)}; set data.text_field=…")
    text = value[text_field]
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{where}: field {text_field} is a {type(text).__name__}, not text; set data.text_field=…")
    return text
