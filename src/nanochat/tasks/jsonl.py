"""Your own conversations: a file of JSON lines.

A missing file or a line that is no JSON is an error at once. A conversation that breaks the rules is told when it is asked for, with the
number of its line, so that whoever mixes them can refuse or count it.
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from nanochat.runtime.held_out import is_held_out
from nanochat.runtime.settings import Portion
from nanochat.tasks.generated import share
from nanochat.tasks.task import Task
from nanochat.tokenizer.conversations import BadConversation, check


class JSONL(Task):
    """Each line that is not empty is a JSON array of messages, or an object with `messages`; in file order.

    `split`: all of them, or train and test, where the hash of a conversation puts `held_out` of them into test.
    """

    kind = "chat"

    def __init__(
        self,
        *,
        path: str | Path,
        name: str = "jsonl",
        split: Literal["all", "train", "test"] = "all",
        held_out: Portion = 0.05,
        **common: Any,
    ):
        super().__init__(name=name, **common)
        self.path = Path(path).expanduser().absolute()
        if not self.path.is_file():
            raise FileNotFoundError(
                f"path={path} is not a file; set `path` to a file of conversations, one JSON a line"
            )
        if split not in ("all", "train", "test"):
            raise ValueError(f"split={split} is not known; set `split` to all, train or test")
        self.split, self.held_out = split, share("held_out", held_out)

    @cached_property
    def lines(self) -> list[tuple[int, Any]]:
        """(number of the line, value) of each conversation of the split. ValueError for a line that is not JSON, or none at all."""
        found = []
        for number, line in enumerate(self.path.read_bytes().split(b"\n"), 1):
            if line.strip():
                try:
                    value = json.loads(line)
                except ValueError as error:  # no JSON, or no UTF-8
                    raise ValueError(f"{self.path} line {number} is not JSON ({error})") from None
                if self.split == "all" or is_held_out(json.dumps(value), self.held_out) == (self.split == "test"):
                    found.append((number, value))
        if not found and self.split == "all":
            raise ValueError(f"{self.path} holds no conversation; write one JSON a line")
        if not found:
            raise ValueError(
                f"{self.path} holds no conversation for {self.split} at held_out={self.held_out:g}; raise that (data.val_fraction=0.3), or "
                "give another file (data.val_path=FILE)"
            )
        return found

    def total(self) -> int:
        return len(self.lines)

    def conversation(self, i: int) -> dict[str, Any]:
        number, value = self.lines[i]
        conversation = {"messages": value} if isinstance(value, list) else value
        try:
            check(conversation)
        except BadConversation as error:
            raise BadConversation(f"{self.path} line {number}: {error}") from None
        return conversation

    def settings(self) -> dict[str, Any]:
        sha = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return {**super().settings(), "sha256": sha, "split": self.split, "held_out": self.held_out}
