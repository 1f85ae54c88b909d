"""Text sources: where documents come from.

A source lists parts (a file, a piece of a large file, or some small files) and reads the documents
of a part in a fixed order. Whether a document is for training or validation depends on its text,
not on its location: the hash of the text decides (`val_by=hash`). It stays in its split when files
are added, moved or renamed, and an exact copy of it gets the same split. Sources that have a
validation file name it instead (`val_by=files`). `val_by=tail` takes the end of each text, as
nanoGPT does.
"""

import glob
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from nanochat.datamodules.journal import digest, file_sha256
from nanochat.datamodules.readers import (
    SPLITTING,
    SUFFIXES,
    TEXT_SUFFIXES,
    check_file,
    check_suffix,
    cut,
    read_rows,
    read_text,
    spans,
    split_text,
    suffix,
    text_bytes,
)
from nanochat.runtime.held_out import is_held_out
from nanochat.runtime.paths import base_dir
from nanochat.runtime.settings import Count, Portion

SPLITS = ("train", "val")
# guess: smaller files are read together, so that a folder of notes does not make thousands of
# shards
GROUP_BYTES = 4 * 2**20
SMALL_BYTES = (
    10 * 2**20
    # guess: of less plain text a tenth is for validation, as in nanoGPT; a hundredth would be a few
    # rows
)
# guess: of fewer documents the share for validation may be none by hash, so the end of each is
# taken
FEW_DOCUMENTS = 100
HEAD_CHARS = 10_000  # from: what a tokenizer reads of a document (doc_cap)
# guess: larger files are read in pieces, so that one file keeps several processes busy
PART_BYTES = 256 * 2**20


@dataclass(frozen=True)
class SourcePart:
    """The documents of one token shard: files, or row groups or bytes span[0]..span[1]-1 of one
    file.

    `paths` are the names of the files in the source; empty for text that is in no file.
    """

    name: str
    paths: tuple[str, ...]
    size: int  # bytes on disk
    sha256: str  # of the content, independent of the name
    span: tuple[int, int] | None = None

    @property
    def path(self) -> str:
        return self.paths[0] if self.paths else ""


class TextSource(ABC):
    """Documents in parts. Picklable, as worker processes read the parts."""

    name: str

    @abstractmethod
    def parts(self, split: str) -> list[SourcePart]:
        """The parts that hold documents of `split` ("train" or "val"), in a fixed order."""

    @abstractmethod
    def read(
        self, part: SourcePart, split: str, notes: Counter[str] | None = None
    ) -> Iterator[str]:
        """The documents of `part` that belong to `split`, in order; `notes` counts what was skipped
        or replaced.

        Downloads the part first if needed. ValueError or OSError names the file.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What determines the documents besides the content of the parts, as JSON."""

    @abstractmethod
    def validation(self) -> str:
        """How the documents for validation are chosen, in words."""

    def origin(self) -> dict[str, Any]:
        """Where the text comes from, as JSON; it does not affect the documents."""
        return {}

    def files(self, split: str) -> list["SourceFile"]:
        """The files (or their equivalents) that may contain documents of `split`, in order."""
        return [SourceFile(part.name, part.size, part.sha256) for part in self.parts(split)]

    def head(self, max_chars: int | None) -> "TextSource":
        """What a tokenizer is trained on: this source, or its beginning if that is known to have
        `max_chars` characters. The tokenizer then stays the same when training uses more of the
        source."""
        return self

    def notes(self) -> list[str]:
        """Automatic decisions and skipped content, one line each."""
        return []

    def more(self, split: str, documents: int) -> str:
        """What to do about a split that is too small, with `documents` documents in all."""
        return "raise data.val_fraction" if split == "val" else "give more text"

    def at_hand(self, part: SourcePart) -> bool:
        """Whether a part can be read without a download."""
        return True

    def check(self) -> None:  # noqa: B027
        """Check what can be checked without reading everything. ValueError or OSError."""

    def text_bytes(self, part: SourcePart) -> int:
        """Estimated number of bytes of text in a part."""
        return part.size

    def download_bytes(self) -> int:
        """Bytes still to be downloaded."""
        return 0

    def documents(self, split: str) -> Iterator[str]:
        """All documents of `split`, part after part."""
        for part in self.parts(split):
            yield from self.read(part, split)

    def manifest(self) -> dict[str, Any]:
        """Settings and parts with their sha256, as JSON: together with a tokenizer they determine
        the tokens."""
        parts = {
            split: [[p.name, p.sha256, p.size, p.span] for p in self.parts(split)]
            for split in SPLITS
        }
        return {"source": self.name, "settings": self.settings(), "parts": parts}

    @cached_property
    def manifest_hash(self) -> str:
        """16 hex digits of the sha256 of `manifest()`."""
        return digest(self.manifest())


@dataclass(frozen=True)
class SourceFile:
    """A file as a source lists it without opening it: its name there, bytes, and sha256 (or git
    blob hash) in hex."""

    name: str
    size: int
    sha256: str


class FileSource(TextSource):
    """Documents in files, local or not; `LocalFiles` and `HubFiles` locate them.

    `text_field` is the column or key of parquet and JSON. `documents` says how a .txt or .md file
    is divided into documents: the whole "file", each "paragraph", or each "line". `document_chars`
    cuts longer documents at paragraph or line ends; with packing=best_fit and short rows this saves
    most of a long document from being cropped.
    """

    group_bytes = GROUP_BYTES
    part_bytes: int | None = PART_BYTES

    def __init__(
        self,
        name: str,
        text_field: str = "text",
        documents: Literal["file", "paragraph", "line"] = "file",
        document_chars: Count | None = None,
        val_by: Literal["hash", "tail"] = "hash",
        val_fraction: Portion = 0.01,
        bad_utf8: Literal["error", "replace"] = "error",
    ):
        next(split_text("", documents), None)
        if val_by not in ("hash", "tail", "files"):
            raise ValueError(
                f"val_by={val_by} is not known; choose data.val_by=hash or data.val_by=tail"
            )
        if val_by != "files" and not (
            isinstance(val_fraction, int | float) and 0 < val_fraction < 1
        ):
            raise ValueError(
                f"val_fraction={val_fraction} is not between 0 and 1; try data.val_fraction=0.01"
            )
        if bad_utf8 not in ("error", "replace"):
            raise ValueError(
                f"bad_utf8={bad_utf8} is not known; choose data.bad_utf8=error or "
                "data.bad_utf8=replace"
            )
        if document_chars is not None and not (
            isinstance(document_chars, int) and document_chars >= 1
        ):
            raise ValueError(
                f"document_chars={document_chars} is below 1; try data.document_chars=4000 or null"
            )
        self.name = name
        self.text_field = text_field
        self.rule = documents
        self.document_chars = document_chars
        self.val_by = val_by
        self.val_fraction = val_fraction
        self.bad_utf8 = bad_utf8
        self._parts: dict[str, list[SourcePart]] = {}

    @abstractmethod
    def files(self, split: str) -> list[SourceFile]:
        """The files that may contain documents of `split`, in order."""

    @abstractmethod
    def locate(self, name: str) -> Path:
        """Path of the file with that name, downloaded if needed."""

    def present(self, name: str) -> Path | None:
        """Path of the file with that name if it needs no download, else None."""
        return self.locate(name)

    def at_hand(self, part: SourcePart) -> bool:
        return all(self.present(name) for name in part.paths)

    def settings(self) -> dict[str, Any]:
        return {
            "text_field": self.text_field,
            "documents": self.rule,
            **({} if self.rule == "file" else {"splitting": SPLITTING}),
            "document_chars": self.document_chars,
            "val_by": self.val_by,
            "val_fraction": None if self.val_by == "files" else self.val_fraction,
            "bad_utf8": self.bad_utf8,
        }

    def validation(self) -> str:
        return {
            "hash": (
                "the documents whose hash (blake2b of the text) is in the lowest "
                f"{self.val_fraction:g} of all"
            ),
            "tail": f"the last {self.val_fraction:g} of each file's characters",
            "files": "all documents of the files under val",
        }[self.val_by]

    def parts(self, split: str) -> list[SourcePart]:
        if split not in SPLITS:
            raise ValueError(f"split={split} is not known; choose train or val")
        if split not in self._parts:
            self._check_settings(self.files("train"))
            self._parts[split] = self._group(self.files(split))
        return self._parts[split]

    def _group(self, files: Sequence[SourceFile]) -> list[SourcePart]:
        parts: list[SourcePart] = []
        group: list[SourceFile] = []

        def close() -> None:
            if group:
                name = group[0].name + (f"+{len(group) - 1}" if len(group) > 1 else "")
                content = (
                    group[0].sha256 if len(group) == 1 else digest([f.sha256 for f in group], 64)
                )
                parts.append(
                    SourcePart(
                        name, tuple(f.name for f in group), sum(f.size for f in group), content
                    )
                )
                group.clear()

        for file in files:
            pieces = spans(self.locate(file.name), self.part_bytes) if self.part_bytes else [None]
            if len(pieces) > 1:
                close()
                for i, span in enumerate(pieces):
                    size = file.size // len(pieces)
                    parts.append(
                        SourcePart(
                            f"{file.name}~{i}",
                            (file.name,),
                            size,
                            digest([file.sha256, span], 64),
                            span,
                        )
                    )
                continue
            group.append(file)
            if sum(f.size for f in group) >= self.group_bytes:
                close()
        close()
        return parts

    def _check_settings(self, files: Sequence[SourceFile]) -> None:
        kinds = {check_suffix(file.name) for file in files}
        plain = kinds & set(TEXT_SUFFIXES)
        if self.rule != "file" and not plain:
            raise ValueError(
                f"documents={self.rule} is for .txt and .md files and there is none; leave "
                "data.documents out"
            )
        if self.text_field != "text" and kinds and kinds == plain:
            raise ValueError(
                f"text_field={self.text_field} is for parquet and JSON and there is none; leave "
                "data.text_field out"
            )
        if self.val_by == "tail" and kinds != plain:
            raise ValueError(
                f"val_by=tail is for .txt and .md files, not {' '.join(sorted(kinds - plain))}; "
                "set data.val_by=hash"
            )

    def check(self) -> None:
        for split in SPLITS:
            for file in self.files(split):
                if path := self.present(file.name):
                    check_file(path, self.text_field)

    def text_bytes(self, part: SourcePart) -> int:
        paths = [self.present(name) for name in part.paths]
        if part.span is None and all(paths):
            return sum(text_bytes(path, self.text_field) for path in paths if path)
        if part.path.endswith(".parquet"):
            return part.size * 10 // 3  # measured: 3.3, open-prose shards (zstd)
        return part.size

    def read(
        self, part: SourcePart, split: str, notes: Counter[str] | None = None
    ) -> Iterator[str]:
        notes = Counter() if notes is None else notes
        for name in part.paths:
            path = self.locate(name)
            if suffix(path) in TEXT_SUFFIXES:
                text = read_text(path, self.bad_utf8, notes)
                if self.val_by == "tail":
                    border = int(len(text) * (1 - self.val_fraction))
                    text = text[:border] if split == "train" else text[border:]
                texts = split_text(text, self.rule)
            else:
                texts = read_rows(path, self.text_field, part.span, notes)
            for text in texts:
                if not text.strip():
                    notes["empty_documents"] += 1
                elif self.val_by != "hash" or is_held_out(text, self.val_fraction) == (
                    split == "val"
                ):
                    yield from cut(text, self.document_chars)


class LocalFiles(FileSource):
    """The text files of a folder (with its subfolders), a glob, or a single file.

    `val_path` names the files for validation instead of val_by. `auto` settings are chosen by the
    text and reported by `notes`: few texts are split by val_by=tail, others by hash; of little
    plain text a tenth is for validation, else a hundredth; plain text files that are one document
    each are cut every `auto_chars` characters, other documents are kept whole.
    """

    def __init__(
        self,
        path: str | Path,
        val_path: str | Path | None = None,
        *,
        documents: Literal["file", "paragraph", "line"] = "file",
        val_by: Literal["auto", "hash", "tail", "files"] = "hash",
        val_fraction: Portion | Literal["auto"] = 0.01,
        document_chars: Count | Literal["auto"] | None = None,
        auto_chars: int | None = None,
        **options: Any,
    ):
        self.root = Path(path).expanduser().absolute()
        self.val_root = Path(val_path).expanduser().absolute() if val_path else None
        self.found, self.skipped = find_files(path)
        self.val_found = find_files(val_path)[0] if val_path else []
        self.found = [p for p in self.found if p not in set(self.val_found)]
        self.decided: list[str] = []
        self.given = {
            "documents": documents,
            "val_by": val_by,
            "val_fraction": val_fraction,
            **options,
        }
        self.cut_by_auto = False
        plain = all(suffix(p) in TEXT_SUFFIXES for p in self.found)
        whole = plain and documents == "file"
        if val_path:
            val_by, val_fraction = "files", 0.01
        if val_fraction == "auto":
            small = plain and sum(p.stat().st_size for p in self.found) < SMALL_BYTES
            val_fraction = 0.1 if small else 0.01
        if val_by == "auto":
            val_by = "tail" if whole and len(self.found) < FEW_DOCUMENTS else "hash"
            if plain and isinstance(val_fraction, int | float):
                self.decided.append(_split_note(val_by, val_fraction, documents))
        if document_chars == "auto":
            document_chars = auto_chars if whole else None
            self.cut_by_auto = document_chars is not None
            if document_chars and any(p.stat().st_size > document_chars for p in self.found):
                self.decided.append(
                    f"long documents are cut into pieces of up to {document_chars:,} characters "
                    "(data.document_chars; null keeps them whole)"
                )
        super().__init__(
            "local",
            documents=documents,
            document_chars=document_chars,
            val_by=val_by,  # type: ignore[arg-type]  # "files" is set here only
            val_fraction=val_fraction,
            **options,
        )
        if not self.found:
            raise ValueError(
                f"val_path={val_path} leaves no file of {path} for training; name other files in "
                "data.path"
            )

    def files(self, split: str) -> list[SourceFile]:
        if split == "train":
            return self._listed
        if self.val_found:
            return [self._file(path) for path in self.val_found]
        return sorted(self._listed, key=lambda file: file.sha256)  # so that names do not matter

    def notes(self) -> list[str]:
        passed = ", ".join(f"{count:,} {ending}" for ending, count in sorted(self.skipped.items()))
        return [*([f"passed over: {passed}"] if passed else []), *self.decided]

    def more(self, split: str, documents: int) -> str:
        if documents or self.val_by != "hash":
            return super().more(split, documents)
        plain = {suffix(p) for p in self.found} <= set(TEXT_SUFFIXES)
        ways = ["data.val_by=tail"] if plain else []
        ways += ["data.documents=paragraph"] if plain and self.rule == "file" else []
        ways += ["data.val_path=FILE"]
        return (
            f"a document is in one split as a whole, and there are too few: set {' or '.join(ways)}"
        )

    def head(self, max_chars: int | None) -> "TextSource":
        """The source for training a tokenizer. It must not depend on the length of a row, so where
        `auto` cut documents the pieces have HEAD_CHARS characters here."""
        if not self.cut_by_auto or self.document_chars == HEAD_CHARS:
            return self
        return LocalFiles(self.root, self.val_root, **{**self.given, "document_chars": HEAD_CHARS})

    def origin(self) -> dict[str, Any]:
        return {"path": str(self.root), "val_path": str(self.val_root) if self.val_root else None}

    @cached_property
    def _listed(self) -> list[SourceFile]:
        return [self._file(path) for path in self.found]

    def _file(self, path: Path) -> SourceFile:
        return SourceFile(self._name(path), path.stat().st_size, file_sha256(path))

    def _name(self, path: Path) -> str:
        base = self.root if self.root.is_dir() else self.root.parent
        return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()

    def locate(self, name: str) -> Path:
        return (self.root if self.root.is_dir() else self.root.parent) / name


def _split_note(val_by: str, share: float, documents: str) -> str:
    how = (
        f"the last {share:.0%} of each file"
        if val_by == "tail"
        else f"{share:.0%} of the documents"
    )
    return (
        f"for validation: {how} (data.val_by={val_by} data.val_fraction={share:g} "
        f"data.documents={documents})"
    )


def find_files(path: str | Path) -> tuple[list[Path], Counter[str]]:
    """The text files that a path names (a file, a folder, a glob), sorted, and the number of other
    files by suffix. ValueError if there is none."""
    given, hidden = Path(path).expanduser().absolute(), []
    if given.is_dir():
        names = [p for p in sorted(given.rglob("*")) if p.is_file()]
        hidden = [
            p for p in names if any(part.startswith(".") for part in p.relative_to(given).parts)
        ]
        names = [p for p in names if p not in set(hidden)]
        if base_dir().is_relative_to(given):  # this project's own files are not the user's text
            names = [p for p in names if not p.is_relative_to(base_dir())]
    elif given.is_file():
        check_suffix(given)
        names = [given]
    else:
        names = [
            Path(p) for p in sorted(glob.glob(str(given), recursive=True)) if Path(p).is_file()
        ]
        if not names:
            raise FileNotFoundError(
                f"path={path} matches no file; set data.path to a folder, a file or a glob in "
                "quotes"
            )
    found = [p for p in names if suffix(p)]
    skipped = Counter(_ending(p) for p in names if not suffix(p))
    if hidden:
        skipped["hidden"] = len(hidden)
    if not found:
        there = f"; it holds {', '.join(sorted(skipped))}" if skipped else "; it is empty"
        raise ValueError(f"path={path} has no text file ({' '.join(SUFFIXES)}){there}")
    return found, skipped


def _ending(path: Path) -> str:
    """The suffixes of a name, such as `.jsonl.lz4` of talks.jsonl.lz4; the whole name if it has
    none."""
    inner = Path(path.stem).suffix if path.suffix else ""
    return ((inner if inner in SUFFIXES else "") + path.suffix or path.name).lower()
