"""Questions about Python's standard library, answered by its docstrings: real questions and answers
without a download.

`data=pydocs` trains on the same text, so a model that is asked here has seen the answer. Source
files are parsed and not imported; built-in types and a few C modules are imported, as their
docstrings exist nowhere else. The test split asks about names that training never asks about.
"""

import ast
import functools
import hashlib
import importlib
import inspect
import platform
import re
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

from nanochat.runtime.held_out import is_held_out
from nanochat.runtime.settings import Portion
from nanochat.tasks.generated import Generated, Size, Split, checked_fraction
from nanochat.tasks.stdlib import sources

# the start of a module, or of a class or function at the start of a line, up to the end of its
# docstring
MODULE = re.compile(r'.*?("""|\'\'\').*?\1', re.S)
TOP_LEVEL = re.compile(r"^(?:async )?(?:def|class) \w", re.M)
DOCSTRING = re.compile(r'.*?:[ \t]*(?:#[^\n]*)?\n\s+[rRuU]?("""|\'\'\'|"|\').*?\1', re.S)
C_MODULES = tuple(
    (
        "builtins array binascii cmath gc itertools math sys time unicodedata zlib _bisect "
        "_collections _functools _heapq _operator _random _struct"
    ).split()
)
WITH_METHODS = ("str", "bytes", "list", "tuple", "dict", "set", "int", "float")
SHORTEST, LONGEST = 15, 160  # guess: characters of an answer, one or two lines
QUESTIONS = {
    "function": (
        "What does {name} do?",
        "What does {name}() do?",
        "what does {name} do",
        "What does the function {name} do?",
        "What is {name} for?",
        "What is the function {name} for?",
        "Explain {name}.",
        "Explain the Python function {name}.",
        "Describe {name} in one sentence.",
        "Tell me what {name} does.",
        "What happens when I call {name}?",
        "In Python, what does {name} do?",
        "Can you tell me what {name}() does?",
        "{name}?",
    ),
    "class": (
        "What is {name}?",
        "what is {name}",
        "What is the class {name}?",
        "What is {name} for?",
        "What is the class {name} for?",
        "Explain {name}.",
        "Explain the Python class {name}.",
        "Describe the class {name} in one sentence.",
        "Tell me about {name}.",
        "In Python, what is {name}?",
        "Can you tell me what {name} is?",
        "{name}?",
    ),
    "module": (
        "What is the module {name}?",
        "What is the module {name} for?",
        "what is the {name} module",
        "What is {name} in Python?",
        "What does the module {name} do?",
        "What can I do with the module {name}?",
        "Explain the module {name}.",
        "Explain Python's {name} module.",
        "Describe the module {name} in one sentence.",
        "Tell me about the {name} module.",
        "Why would I import {name}?",
        "In Python, what is the module {name}?",
    ),
}
SHUFFLE_SEED = 42  # guess: any value works


class Documented(NamedTuple):
    kind: str  # "function", "class" or "module"
    name: str
    text: str


class PyDocsQA(Generated):
    """Every name in turn, in shuffled order, with varying wording. `held_out` is the share of the
    names that only the test split asks about."""

    kind = "chat"

    def __init__(
        self,
        *,
        size: Size,
        split: Split = "train",
        held_out: Portion = 0.1,
        name: str = "pydocs_qa",
        **common: Any,
    ):
        super().__init__(name=name, size=size, split=split, **common)
        self.held_out = checked_fraction("held_out", held_out)

    @cached_property
    def entries(self) -> list[Documented]:
        chosen = [
            e for e in library() if is_held_out(e.name, self.held_out) == (self.split == "test")
        ]
        if not chosen:
            raise ValueError(
                f"no name belongs to the {self.split} split at held_out={self.held_out}; try "
                "held_out: 0.1"
            )
        Random(SHUFFLE_SEED).shuffle(chosen)
        return chosen

    def conversation(self, i: int) -> dict[str, Any]:
        entry = self.entries[i % len(self.entries)]
        question = self.random(i).choice(QUESTIONS[entry.kind]).format(name=entry.name)
        return {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": entry.text},
            ],
            "about": entry.name,
        }

    def settings(self) -> dict[str, Any]:
        hashed = hashlib.sha256(repr([tuple(entry) for entry in self.entries]).encode()).hexdigest()
        own = {"held_out": self.held_out, "python": platform.python_version(), "entries": hashed}
        return {**super().settings(), **own}


@functools.cache
def library() -> tuple[Documented, ...]:
    """Public modules, classes and functions of the standard library with their docstrings, each
    name once, sorted."""
    found: dict[str, Documented] = {}
    in_sources = (entry for module, source in sources() for entry in described(module, source))
    for entry in (*_built_in(), *in_sources):
        found.setdefault(entry.name, entry)
    return tuple(found[name] for name in sorted(found))


def described(module: str, source: str) -> Iterator[Documented]:
    """The module and its public classes and functions whose docstring can serve as an answer.

    Each source is parsed only up to the end of its docstring, which takes a fifth of the time of
    parsing everything.
    """
    starts = [match.start() for match in TOP_LEVEL.finditer(source)]
    heads = [DOCSTRING.match(source, begin, end) for begin, end in pairwise([*starts, len(source)])]
    for number, match in enumerate((MODULE.match(source), *heads)):
        if match is None:
            continue
        try:
            tree: Any = ast.parse(match[0])
        except (SyntaxError, ValueError):
            continue
        kind, name, node = "module", module, tree
        if number:
            node = tree.body[0]  # further statements may follow
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            name = f"{module}.{node.name}"
        text = ast.get_docstring(node)
        if (
            text
            and not name.rpartition(".")[2].startswith("_")
            and (said := first_sentences(name, text))
        ):
            yield Documented(kind, name, said)


def _built_in() -> Iterator[Documented]:
    for module in C_MODULES:
        try:
            values = vars(importlib.import_module(module))
        except ImportError:
            continue
        public = module.strip("_")
        if (
            module == public
            and public != "builtins"
            and (said := first_sentences(public, values.get("__doc__") or ""))
        ):
            yield Documented("module", public, said)
        for key in sorted(k for k in values if not k.startswith("_") and not k.endswith("hook")):
            value = values[key]
            kind = "class" if inspect.isclass(value) else "function"
            if getattr(value, "__module__", "") in (module, public) and (
                inspect.isclass(value) or inspect.isbuiltin(value)
            ):
                name = key if public == "builtins" else f"{public}.{key}"
                if said := first_sentences(name, value.__doc__ or ""):
                    yield Documented(kind, name, said)
                if name in WITH_METHODS and inspect.isclass(value):
                    yield from _methods(name, value)


def _methods(name: str, kind: type) -> Iterator[Documented]:
    for key in sorted(k for k in vars(kind) if not k.startswith("_")):
        if said := first_sentences(f"{name}.{key}", getattr(kind, key).__doc__ or ""):
            yield Documented("function", f"{name}.{key}", said)


def first_sentences(name: str, docstring: str) -> str:
    """The first one or two sentences of a docstring, on one line, as an answer; "" if none is a
    plain sentence.

    >>> first_sentences("m.f", "f(x)\\n\\nReturn `x`, rounded\\nto an :class:`int`.\\n\\nMore.")
    'Return `x`, rounded to an int.'
    """
    last = re.escape(name.rpartition(".")[2])
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        lines = [line.strip() for line in paragraph.splitlines()]
        # signature lines
        while lines and (re.match(rf"(?:\w+\.)*{last}\s*\(", lines[0]) or "->" in lines[0]):
            lines.pop(0)
        text = re.sub(r":[a-z:]+:`~?([^`]+)`", r"\1", " ".join(lines))
        text = re.sub(r"``+", "`", re.sub(r"\s+", " ", text)).strip()
        if text:
            return _sentences(text)
    return ""


def _sentences(text: str) -> str:
    first, *more = re.split(r"(?<=[.!?])\s+(?=[A-Z`])", text)
    if more and len(first) + 1 + len(more[0]) <= LONGEST and more[0].endswith("."):
        first = f"{first} {more[0]}"
    if re.fullmatch(r"[a-z]+", first.split(" ")[0]):
        first = first[0].upper() + first[1:]
    if first[-1].isalnum() or first[-1] in ")`'\"":
        first += "."
    plain = first.endswith(".") and not re.search(r">>>|::|\*{3}|[-=#_]{3}|\$|\\|@", first)
    return first if plain and SHORTEST <= len(first) <= LONGEST and len(first.split()) > 2 else ""
