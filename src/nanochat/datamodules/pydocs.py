"""The documentation and source of the running Python as text: real prose and code without a
download.

Files are read in place and not imported, except for the built-in types and a few C modules whose
docstrings exist nowhere else. For a given Python version the documents are the same on every
machine: tests, generated tables and machine-specific files are excluded.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import platform
import re
import sysconfig
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nanochat.datamodules.journal import digest
from nanochat.datamodules.readers import cut
from nanochat.datamodules.sources import SourcePart, TextSource
from nanochat.runtime.held_out import is_held_out
from nanochat.runtime.settings import Count, Portion

# C code: docstrings that are in no source file
C_MODULES = tuple(
    (
        "builtins array atexit binascii cmath errno faulthandler gc itertools marshal math sys "
        "time unicodedata zlib _bisect _collections _csv _datetime _functools _heapq _io _json "
        "_operator _random _socket _sre _struct _thread _weakref"
    ).split()
)
# not prose, not hand-written code, or different between builds
LEFT_OUT_FOLDERS = {
    "test",
    "tests",
    "idle_test",
    "__pycache__",
    "site-packages",
    "dist-packages",
    "lib2to3",
    "pydoc_data",
}
LEFT_OUT_FILES = re.compile(
    r"_sysconfigdata.*|sitecustomize|usercustomize|cp\d+|mac_.*|iso.*|koi8.*|_vendored|this"
)
# guess: a quarter of a second of tokenizing, so that two processes share the work evenly
PART_BYTES = 2**20
SCIENTIFIC = ("numpy", "scipy", "pandas", "sklearn", "matplotlib", "torch", "sympy")


class PyDocs(TextSource):
    """Language reference, docstrings and source of the standard library, and of `packages` if
    given.

    `packages` is a list of importable names, "scientific" for those of a known few that are
    installed, or None. Documents longer than `document_chars` are cut at blank lines. All documents
    of one file belong to one split, which the hash of the file decides.
    """

    def __init__(
        self,
        packages: Sequence[str] | str | None = None,
        document_chars: Count | None = 2000,
        val_fraction: Portion = 0.05,
    ):
        if not 0 < val_fraction < 1:
            raise ValueError(
                f"val_fraction={val_fraction} is not between 0 and 1; try data.val_fraction=0.05"
            )
        self.name = "pydocs"
        self.document_chars = document_chars
        self.val_fraction = val_fraction
        if packages == "scientific":
            packages = [name for name in SCIENTIFIC if importlib.util.find_spec(name)]
        elif isinstance(packages, str):
            packages = [packages]
        self.packages = list(packages or [])
        self._roots = {"": Path(sysconfig.get_path("stdlib"))}
        for name in self.packages:
            found = importlib.util.find_spec(name)
            if found is None or not found.submodule_search_locations:
                raise ValueError(
                    f"packages: {name} is not an installed package; leave it out of data.packages "
                    "or install it"
                )
            self._roots[name] = Path(next(iter(found.submodule_search_locations)))
        self._parts: list[SourcePart] | None = None

    def settings(self) -> dict[str, Any]:
        return {
            "packages": self.packages,
            "document_chars": self.document_chars,
            "val_fraction": self.val_fraction,
        }

    def validation(self) -> str:
        return (
            "all documents of the files whose hash (blake2b of the text) is in the lowest "
            f"{self.val_fraction:g} of all"
        )

    def origin(self) -> dict[str, Any]:
        return {"python": platform.python_version(), "path": str(self._roots[""])}

    def parts(self, split: str) -> list[SourcePart]:
        if self._parts is None:
            self._parts = self._list_parts()
        return self._parts

    def _list_parts(self) -> list[SourcePart]:
        texts = list(self._built_in())
        parts = [SourcePart("language", (), sum(map(len, texts)), digest(texts, 64))]
        for package, root in self._roots.items():
            group: list[tuple[str, int, str]] = []
            for path in sorted(root.rglob("*.py")):
                inside = path.relative_to(root)
                if not (set(inside.parts[:-1]) & LEFT_OUT_FOLDERS) and not LEFT_OUT_FILES.fullmatch(
                    path.stem
                ):
                    raw = path.read_bytes()
                    group.append(
                        (
                            f"{package}/{inside.as_posix()}",
                            len(raw),
                            hashlib.sha256(raw).hexdigest(),
                        )
                    )
            for i, files in enumerate(_chunks(group, PART_BYTES)):
                name = f"{package or 'library'}-{i:02d}"
                content = digest([[file, code] for file, _, code in files], 64)
                parts.append(
                    SourcePart(
                        name, tuple(f for f, _, _ in files), sum(s for _, s, _ in files), content
                    )
                )
        return parts

    def text_bytes(self, part: SourcePart) -> int:
        # measured: docstrings repeat parts of the source, 1.2 times its size together
        return part.size * 5 // 4

    def read(
        self, part: SourcePart, split: str, notes: Counter[str] | None = None
    ) -> Iterator[str]:
        if not part.paths:
            yield from self._language(split)
        for text in self._texts(part, split):
            if text.strip():
                yield from cut(text, self.document_chars)
            elif notes is not None:
                notes["empty_documents"] += 1

    def _language(self, split: str) -> Iterator[str]:
        """Topics of the language reference. Sections share footnotes, so a piece may occur twice;
        only the first is kept, or it could be in both splits."""
        seen: set[str] = set()
        for text in self._built_in():
            side = "val" if is_held_out(text, self.val_fraction) else "train"
            for piece in cut(text, self.document_chars):
                if piece not in seen and side == split:
                    yield piece
                seen.add(piece)

    def _texts(self, part: SourcePart, split: str) -> Iterator[str]:
        def wanted(work: str) -> bool:
            return is_held_out(work, self.val_fraction) == (split == "val")

        for name in part.paths:
            package, _, inside = name.partition("/")
            source = (self._roots[package] / inside).read_text(encoding="utf-8", errors="replace")
            if wanted(source):
                module = ".".join(p for p in (package, *Path(inside).with_suffix("").parts) if p)
                if text := docstrings(module, source):
                    yield text
                yield source

    def _built_in(self) -> Iterator[str]:
        from pydoc_data.topics import topics  # the language reference, as help("if") shows it

        sections = [text.strip() + "\n" for _, text in sorted(topics.items())]
        for text in sections:
            # without its heading, whose underline depends on the depth
            body = text.split("\n", 2)[-1].strip()
            if not any(body in other and len(other) > len(text) for other in sections):
                yield text  # a section that is part of another one is skipped
        for name in C_MODULES:
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue
            for key in sorted(
                k for k in vars(module) if not k.startswith("_") and not k.endswith("hook")
            ):
                # hooks are replaced by programs, so their value depends on the running program
                value = vars(module)[key]
                here = getattr(value, "__module__", "") in (name, name.strip("_"))
                native = inspect.isclass(value) or inspect.isbuiltin(value)
                if here and native and (text := described(f"{name.strip('_')}.{key}", value)):
                    yield text


def described(name: str, value: Any) -> str:
    """The docstrings of a built-in and of its methods; "" if it has none."""
    lines: list[str] = []
    own = getattr(value, "__doc__", None)
    if isinstance(own, str) and own.strip():
        lines += [name, "", textwrap.indent(inspect.cleandoc(own), "    "), ""]
    if inspect.isclass(value):
        for key in sorted(vars(value)):
            text = getattr(vars(value)[key], "__doc__", None)
            if not key.startswith("_") and isinstance(text, str) and text.strip():
                lines += [f"{name}.{key}", "", textwrap.indent(inspect.cleandoc(text), "    "), ""]
    return "\n".join(lines)


def docstrings(module: str, source: str) -> str:
    """The docstrings of a source file with their names and parameters, as `help` shows them; "" if
    there are none."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # templates are not valid Python
        return ""
    lines: list[str] = []

    def describe(node: Any, title: str) -> None:
        if text := ast.get_docstring(node):
            lines.extend([title, "", textwrap.indent(text, "    "), ""])

    def walk(node: Any, prefix: str) -> None:
        for child in node.body:
            if isinstance(child, ast.ClassDef):
                describe(child, f"class {prefix}.{child.name}")
                walk(child, f"{prefix}.{child.name}")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                describe(child, f"{prefix}.{child.name}({ast.unparse(child.args)})")

    describe(tree, module)
    walk(tree, module)
    return "\n".join(lines)


def _chunks(files: list[tuple[str, int, str]], limit: int) -> Iterator[list[tuple[str, int, str]]]:
    chunk: list[tuple[str, int, str]] = []
    for file in files:
        chunk.append(file)
        if sum(size for _, size, _ in chunk) >= limit:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
