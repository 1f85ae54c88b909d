"""A prompt and what was asked of it, and what a step of the engine brings."""

from typing import NamedTuple

from torch import Tensor

from nanochat.inference.cache import KVCache
from nanochat.inference.sampling import Drawn, Sampling
from nanochat.inference.stream import Fragment
from nanochat.inference.text import Completion, Text


class TooLong(ValueError):
    """What does not fit the context of the model."""


class Request:
    """A prompt with its settings and the samples asked for: `texts`, which are written together."""

    def __init__(self, prompt: list[int], sampling: Sampling, texts: list[Text]) -> None:
        self.prompt, self.sampling, self.texts = prompt, sampling, texts
        self.cancelled = False
        self.seated = 0  # texts that have a row or had one
        self.cache: KVCache | None = None  # a prompt that is read by itself: what was read so far …
        self.hidden: Tensor | None = None  # … and the hidden state after its last token, (1, C)

    @property
    def done(self) -> bool:
        return all(text.finish_reason for text in self.texts)

    @property
    def completions(self) -> list[Completion]:
        """One per sample, in order; before `done` as far as they are."""
        return [text.completion() for text in self.texts]


class Piece(NamedTuple):
    """What a step brought to one text."""

    request: Request
    sample: int
    drawn: Drawn | None  # its token; None: it ended without another one, or a tool forced it
    fragments: list[Fragment]  # that have become certain; together they are the completion's text
    finish_reason: str | None
