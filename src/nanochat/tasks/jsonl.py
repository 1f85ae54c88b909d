"""Your own conversations: a file of JSON lines or of one JSON list, plain or compressed, in one of
the shapes of `shapes.py`.

A missing file or a line that is not JSON is an error at once. A conversation that breaks the rules
raises when it is read, with its line number, so that the data module can stop or count it.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from nanochat.runtime.files import byte_lines, read_bytes
from nanochat.runtime.held_out import is_held_out
from nanochat.runtime.settings import Portion
from nanochat.tasks.generated import checked_fraction
from nanochat.tasks.shapes import NAMES, to_conversation
from nanochat.tasks.task import Task
from nanochat.tokenizer.conversations import BadConversation, check


class JSONL(Task):
    """One conversation per non-empty line, in file order: a JSON array of messages, an object with
    `messages`, or another known shape.

    `split` is all, train or test; the hash of a conversation puts the share `held_out` into test.
    """

    kind = "chat"

    def __init__(
        self,
        *,
        path: str | Path,
        name: str = "jsonl",
        split: Literal["all", "train", "test"] = "all",
        held_out: Portion = 0.05,
        ignore: Sequence[str] = (),
        **common: Any,
    ):
        super().__init__(name=name, **common)
        self.path = Path(path).expanduser().absolute()
        if not self.path.is_file():
            raise FileNotFoundError(
                f"path={path} is not a file; set `path` to a file of conversations, one JSON value "
                "per line"
            )
        if split not in ("all", "train", "test"):
            raise ValueError(f"split={split} is not known; set `split` to all, train or test")
        self.split, self.held_out = split, checked_fraction("held_out", held_out)
        self.ignore = tuple(ignore)

    @cached_property
    def lines(self) -> list[tuple[str, Any]]:
        """(line or item number, value) of each conversation of the split. ValueError for a line
        that is not JSON, or if there are none."""
        found = [
            (where, value)
            for where, value in self._values()
            if self.split == "all"
            or is_held_out(json.dumps(value), self.held_out) == (self.split == "test")
        ]
        if not found and self.split == "all":
            raise ValueError(f"{self.path} holds no conversation; write one JSON value per line")
        if not found:
            raise ValueError(
                f"{self.path} holds no conversation for {self.split} at "
                f"held_out={self.held_out:g}; raise it "
                "(data.val_fraction=0.3), or give another file (data.val_path=FILE)"
            )
        return found

    def _values(self) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        for number, line in enumerate(byte_lines(self.path), 1):
            if line.strip():
                try:
                    found.append((f"line {number}", json.loads(line)))
                except ValueError as error:  # not JSON, or not UTF-8
                    whole = None if found else self._whole()
                    if whole is None:
                        raise ValueError(
                            f"{self.path} line {number} is not JSON ({error})"
                        ) from None
                    found = [("item 1", whole)]
                    break
        if len(found) == 1 and _is_list_of_conversations(found[0][1]):
            found = [(f"item {number}", value) for number, value in enumerate(found[0][1], 1)]
        return found

    def _whole(self) -> Any:
        """The file as one JSON value over several lines; None if it is not one."""
        try:
            return json.loads(read_bytes(self.path))
        except ValueError:
            return None

    def notes(self) -> list[str]:
        shapes: Counter[str] = Counter()
        for _, value in self.lines:
            with contextlib.suppress(BadConversation):
                shapes[to_conversation(value, self.ignore)[1]] += 1
        return [
            f"{self.path.name}: {count:,} conversations read as {NAMES[shape]}"
            for shape, count in shapes.items()
            if shape in NAMES
        ]

    def total(self) -> int:
        return len(self.lines)

    def conversation(self, i: int) -> dict[str, Any]:
        where, value = self.lines[i]
        try:
            found, _ = to_conversation(value, self.ignore)
            check(found)
        except BadConversation as error:
            raise BadConversation(error.reason, f"{self.path} {where}") from None
        return found

    def settings(self) -> dict[str, Any]:
        sha = hashlib.sha256(self.path.read_bytes()).hexdigest()
        own = {
            "sha256": sha,
            "split": self.split,
            "held_out": self.held_out,
            "ignore": list(self.ignore),
        }
        return {**super().settings(), **own}


def _is_list_of_conversations(value: Any) -> bool:
    """Whether a JSON list holds conversations (and not messages)."""
    return isinstance(value, list) and any(
        isinstance(item, list)
        or (isinstance(item, dict) and not {"role", "content", "from", "value"} & set(item))
        for item in value
    )
