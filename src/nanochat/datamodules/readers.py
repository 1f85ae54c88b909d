"""Files into documents: parquet, JSON lines, JSON, and plain text.

There is one generator per kind; none of them knows about validation or tokens. Content that cannot
be read is a ValueError that names the file and the fix. Skipped content is counted in `notes`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.runtime.files import PACKED, byte_lines, read_bytes, text_lines

TEXT_SUFFIXES = (".txt", ".md", ".txt.gz", ".txt.zst", ".md.gz", ".md.zst")
LINES_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
SUFFIXES = (".parquet", *LINES_SUFFIXES, ".json", ".json.gz", ".json.zst", *TEXT_SUFFIXES)
# two line ends with at most spaces between them; the indentation of what follows belongs to the
# next paragraph
PARAGRAPH_END = re.compile(r"(?>\r\n|\r|\n)(?:[ \t]*(?>\r\n|\r|\n))+")
SPLITTING = 2  # version of `split_text` by paragraph and line: a change makes other documents
BATCH_ROWS = 1024  # from: facts sheet 4.1, rows of a row group


def suffix(path: str | Path) -> str | None:
    """The known suffix of a file name, or None."""
    name = str(path).lower()
    return next((s for s in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(s)), None)


def check_suffix(path: str | Path) -> str:
    if found := suffix(path):
        return found
    raise ValueError(f"{path} has no known suffix; text files are {' '.join(SUFFIXES)}")


def read_rows(
    path: Path, text_field: str, span: tuple[int, int] | None, notes: Counter[str]
) -> Iterator[str]:
    """The documents of a parquet or JSON file, or of its row groups or bytes span[0]..span[1]-1
    (see `spans`)."""
    kind = check_suffix(path)
    if kind == ".parquet":
        texts = _parquet(path, text_field, span)
    elif kind in LINES_SUFFIXES:
        texts = _json_lines(path, text_field, span)
    else:
        texts = _json(path, text_field)
    for text in texts:
        if text is None or not text.strip():
            notes["empty_documents"] += 1
        else:
            yield clean(text, notes)


def read_text(path: Path, bad_utf8: str, notes: Counter[str]) -> str:
    """A whole text file. Bytes that are not UTF-8 are an error; with bad_utf8="replace" they become
    U+FFFD and are counted."""
    raw = read_bytes(path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if bad_utf8 != "replace":
            raise ValueError(
                f"{path} is not UTF-8 at byte {error.start:,}; convert it, or set "
                "data.bad_utf8=replace"
            ) from None
    text = raw.decode("utf-8-sig", "replace")
    notes["replaced_characters"] += text.count("\ufffd") - raw.count("\ufffd".encode())
    return text


def split_text(text: str, documents: str) -> Iterator[str]:
    """The documents of a text: the whole "file", each "paragraph" (separated by empty lines), or
    each "line"."""
    if documents == "file":
        yield text
    elif documents == "paragraph":
        yield from PARAGRAPH_END.split(text)
    elif documents == "line":
        yield from text_lines(text)
    else:
        raise ValueError(
            f"documents={documents} is not known; choose data.documents=file, paragraph or line"
        )


def cut(text: str, limit: int | None) -> Iterator[str]:
    """A document in pieces of at most `limit` characters, which joined give the document.

    It is cut at the last paragraph end in the second half of the limit, else at the last line end,
    else at the last space, else within a word.

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
    """The text without lone surrogates, which JSON can contain and UTF-8 cannot: they become U+FFFD
    and are counted."""
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
    """How a file is divided into parts of about `part_bytes` bytes that can be read separately.

    Row groups of a parquet file, byte ranges of JSON lines (a line belongs to the range of its
    first byte). Other files are one part: [None].
    """
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
    """Check what can be checked without reading the whole file: unreadable parquet, a missing
    column, a first line that is not JSON. ValueError."""
    kind = check_suffix(path)
    if kind == ".parquet":
        _check_column(path, _open_parquet(path).schema_arrow, text_field)
    elif kind in LINES_SUFFIXES:
        next(_json_lines(path, text_field, None), None)


def text_bytes(path: Path, text_field: str) -> int:
    """Estimated number of bytes of text in a file."""
    kind, size = suffix(path), path.stat().st_size
    if kind == ".parquet":
        meta = _open_parquet(path).metadata
        groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
        columns = [g.column(j) for g in groups for j in range(g.num_columns)]
        return sum(c.total_uncompressed_size for c in columns if c.path_in_schema == text_field)
    return size * 4 if path.name.lower().endswith(PACKED) else size  # guess: gzip quarters text


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist") from None
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{path} is not a readable parquet file ({reason}); download or write it again"
        ) from None


def _check_column(path: Path, schema: pa.Schema, text_field: str) -> None:
    """ValueError unless text_field is a text column, or a text field inside a column, as
    `doc.text`."""
    columns = dict(_columns(schema))
    if text_field in columns and _is_text(columns[text_field]):
        return
    textual = [name for name, kind in columns.items() if _is_text(kind)]
    there = (
        f"its text columns are: {', '.join(textual)}"
        if textual
        else f"its columns are: {', '.join(schema.names)}"
    )
    what = (
        f"is of type {columns[text_field]}, not text, in"
        if text_field in columns
        else "is not a column of"
    )
    raise ValueError(f"text_field={text_field} {what} {path}; {there}; set data.text_field=…")


def _columns(fields: Any, before: str = "") -> Iterator[tuple[str, pa.DataType]]:
    """Name and type of every column, and of columns inside others as `doc.text`."""
    for field in fields:
        yield before + field.name, field.type
        if pa.types.is_struct(field.type):
            yield from _columns(field.type.fields, f"{before}{field.name}.")


def _is_text(kind: pa.DataType) -> bool:
    """Whether the type is a string, however stored, or bytes, which must be UTF-8."""
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(
        is_kind(kind)
        for is_kind in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
        )
    )


def _parquet(path: Path, text_field: str, span: tuple[int, int] | None) -> Iterator[str | None]:
    file = _open_parquet(path)
    _check_column(path, file.schema_arrow, text_field)
    inside = [] if text_field in file.schema_arrow.names else text_field.split(".")[1:]
    groups = range(*span) if span else range(file.num_row_groups)
    number = 0  # rows of these groups
    try:
        for batch in file.iter_batches(BATCH_ROWS, row_groups=list(groups), columns=[text_field]):
            for text in batch.column(0).to_pylist():
                for name in inside:
                    text = None if text is None else text[name]
                yield _decoded(text, path, number) if isinstance(text, bytes) else text
                number += 1
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{path} is damaged ({reason}); download or write it again") from None


def _decoded(raw: bytes, path: Path, number: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: the bytes of row {number:,} are not UTF-8 at byte {error.start:,}; write the "
            "column as text"
        ) from None


def _json_lines(path: Path, text_field: str, span: tuple[int, int] | None) -> Iterator[str | None]:
    for number, line in enumerate(_lines(path, span), 1):
        if line.strip():
            where = f"{path} line {number}" + (
                f" after byte {span[0]:,}" if span and span[0] else ""
            )
            try:
                value = json.loads(line)
            except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
                if number == 1 and line.lstrip().startswith(b"["):
                    raise ValueError(
                        f"{path} is one JSON list, not one JSON value per line; name it .json"
                    ) from None
                raise ValueError(
                    f"{where} is not JSON ({error}); JSON lines hold one object per line"
                ) from None
            if isinstance(value, list):
                raise ValueError(
                    f"{where} is a list, not an object; if it holds the documents, name the file "
                    ".json"
                )
            yield _field(value, text_field, where)


def _lines(path: Path, span: tuple[int, int] | None) -> Iterator[bytes]:
    """The lines of a file; of an uncompressed one, those that begin in bytes span[0]..span[1]-1."""
    if span is None:
        yield from byte_lines(path)
        return
    with path.open("rb") as file:
        at = 0
        if span[0] > 0:
            file.seek(span[0] - 1)
            # a line that began earlier belongs to the earlier range
            at = span[0] - 1 + len(file.readline())
        for line in file:
            if at >= span[1]:
                return
            at += len(line)
            yield line


def _json(path: Path, text_field: str) -> Iterator[str | None]:
    raw = read_bytes(path)
    try:
        values = json.loads(raw)
    except ValueError as error:
        try:  # many "json" files are JSON lines
            values = [json.loads(line) for line in raw.splitlines() if line.strip()]
        except ValueError:
            raise ValueError(
                f"{path} is not JSON ({error}); it should be a list of objects or of strings"
            ) from None
    if isinstance(values, dict) and text_field not in values:
        lists = [key for key, value in values.items() if isinstance(value, list)]
        if len(lists) == 1:
            values = values[lists[0]]
    if not isinstance(values, list):
        values = [values]
    for number, value in enumerate(values):
        yield _field(value, text_field, f"{path} item {number}")


def _field(value: Any, text_field: str, where: str) -> str | None:
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise ValueError(
            f"{where} is a {type(value).__name__}; it should be an object with a text field, or a "
            "string"
        )
    if (
        text_field not in value
        and "." in text_field
        and isinstance(value.get(text_field.partition(".")[0]), dict)
    ):
        first, _, rest = text_field.partition(".")
        return _field(value[first], rest, where)
    if text_field not in value:
        raise ValueError(
            f"{where} has no field {text_field}; it has: {', '.join(value)}; set data.text_field=…"
        )
    text = value[text_field]
    if text is not None and not isinstance(text, str):
        raise ValueError(
            f"{where}: field {text_field} is a {type(text).__name__}, not text; set "
            "data.text_field=…"
        )
    return text
