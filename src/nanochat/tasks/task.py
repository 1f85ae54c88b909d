"""The task interface: conversations by index, and a score of a model's answer.

A conversation depends only on the settings of the task, its data and the index, not on time,
process or earlier calls. A trainer can therefore address a conversation by (task, index), and
worker processes that each take a slice see what one process would see.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

from nanochat.runtime.settings import Count, Whole
from nanochat.tokenizer.conversations import BadConversation

# guess: conversations hashed into the settings; takes a tenth of a second, and detects a changed
# template or row
SAMPLE = 1000


class Task(ABC):
    """The conversations start, start + step, ... before `stop` (None: up to the end) of all
    `total()` ones.

    `repeat` is how often a mixture takes each conversation per epoch; it is not applied here. A
    task is picklable and cheap to construct: each process loads the data at first use.
    """

    # "chat": nothing to score | "choice": the answer is one of conversation["letters"] | "answer":
    # free text, scored by `score`
    kind: ClassVar[str]

    def __init__(
        self,
        *,
        name: str,
        start: Whole = 0,
        stop: Count | None = None,
        step: Count = 1,
        repeat: Count = 1,
    ):
        self.name = name
        self.start = whole("start", start, 0)
        self.stop = None if stop is None else whole("stop", stop, self.start + 1)
        self.step = whole("step", step, 1)
        self.repeat = whole("repeat", repeat, 1)

    @abstractmethod
    def total(self) -> int:
        """Number of conversations before start, stop and step are applied."""

    @abstractmethod
    def conversation(self, i: int) -> dict[str, Any]:
        """Conversation i of all. BadConversation for one that breaks the rules; the message names
        row or line and the reason."""

    def score(self, conversation: dict[str, Any], completion: str) -> float:
        """1.0 for a right completion, 0.0 for a wrong one. `completion` is the generated text after
        the prompt."""
        raise ValueError(
            f"{self.name} is chat, which has no right or wrong answers; leave it out of what is "
            "scored"
        )

    def scores(
        self, conversations: Sequence[dict[str, Any]], completions: Sequence[str]
    ) -> list[float]:
        """The score of each completion; a task with slow scores may compute several at once."""
        return [self.score(*pair) for pair in zip(conversations, completions, strict=True)]

    def reference(self, conversation: dict[str, Any]) -> str | None:
        """The right answer, short and bare, for a grader that compares as a person would; None if
        only `score` can decide."""
        return None

    def answer(self, conversation: dict[str, Any]) -> str:
        """The right answer as text: `reference`, or else the last text of the conversation."""
        return self.reference(conversation) or last_answer(conversation)

    @cached_property
    def _indices(self) -> range:
        total = self.total()
        for key, value in (("start", self.start + 1), ("stop", self.stop or 0)):
            if value > total:
                given = getattr(self, key)
                raise ValueError(
                    f"{key}={given} is past the end of {self.name}: it has {total:,} "
                    f"conversations; lower {key}"
                )
        return range(self.start, total if self.stop is None else self.stop, self.step)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name} has no conversation {i}; it has {len(self):,}")
        return self.conversation(self._indices[i])

    def place(self, i: int) -> int:
        """The number of conversation i among all `total()` ones."""
        return self._indices[i]

    def notes(self) -> list[str]:
        """Decisions about the data that were made automatically, one line each."""
        return []

    def settings(self) -> dict[str, Any]:
        """Everything that determines the conversations, as JSON: equal settings mean equal
        conversations. Loads the data.

        Besides the arguments it contains a hash of up to SAMPLE evenly spaced conversations, which
        changes with the data and with the wording of generated ones.
        """
        return {
            "task": f"{type(self).__module__}.{type(self).__qualname__}",
            "start": self.start,
            "stop": self.stop,
            "step": self.step,
            "total": self.total(),
            "sample": self._sample,
        }

    @cached_property
    def _sample(self) -> str:
        hashed = hashlib.sha256()
        count = len(self)
        for k in range(min(count, SAMPLE)):
            try:
                text = json.dumps(self[k * count // min(count, SAMPLE)], sort_keys=True)
            except BadConversation:  # its reason may contain a path, which must not change the hash
                text = "bad"
            hashed.update(text.encode() + b"\n")
        return hashed.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without loaded data: another process loads it again."""
        loaded = {
            key
            for kind in type(self).__mro__
            for key, v in vars(kind).items()
            if isinstance(v, cached_property)
        }
        return {key: value for key, value in vars(self).items() if key not in loaded}


def whole(key: str, value: Any, low: int) -> int:
    """`value` if it is an integer of at least `low`, else ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{key}={value} must be a whole number from {low} up")
    return value


def last_answer(conversation: dict[str, Any]) -> str:
    """The assistant's last text: the content of its last message, or the last text part of it."""
    content = conversation["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return [part["text"] for part in content if part["type"] == "text"][-1]
