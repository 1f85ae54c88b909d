"""A prompt and what was asked of it, and what a step of the engine brings."""

from typing import NamedTuple

from torch import Tensor

from nanochat.gpt import GPTConfig
from nanochat.inference.cache import KVCache
from nanochat.inference.sampling import Drawn, Sampling
from nanochat.inference.stream import Fragment
from nanochat.inference.text import Completion, Text
from nanochat.tokenizer.tokenizer import Tokenizer


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


def checked_request(
    name: str,
    prompt: list[int],
    sampling: Sampling,
    seeds: list[str],
    config: GPTConfig,
    tokenizer: Tokenizer,
    ends: tuple[str, ...],
) -> Request:
    """A request with a text for each of `seeds`; `name` is what an error calls the prompt.

    ValueError for one that a model of these sizes cannot answer.
    """
    context, vocab = config.sequence_len, config.vocab_size
    if beyond := [token for token, _ in sampling.logit_bias if token >= vocab]:
        raise ValueError(f"logit_bias has the id {beyond[0]}; ids go from 0 to {vocab - 1}")
    if not prompt:
        raise ValueError(f"{name} has no tokens; start with bos")
    if min(prompt) < 0 or max(prompt) >= vocab:
        wrong = next(token for token in prompt if not 0 <= token < vocab)
        raise ValueError(f"{name} has the id {wrong}; ids go from 0 to {vocab - 1}")
    room = context - len(prompt)
    if room < 1:
        raise TooLong(
            f"{name} has {len(prompt):,} tokens and leaves no room for an answer in the model's "
            f"sequence_len={context:,}; give it at most {context - 1:,}"
        )
    prompt = list(prompt)  # the caller's may grow into the next turn
    most = min(sampling.max_tokens or room, room)
    texts = [
        Text(prompt, sampling, tokenizer, seed=seed, max_tokens=most, vocab=vocab, ends=ends)
        for seed in seeds
    ]
    return Request(prompt, sampling, texts)


class Piece(NamedTuple):
    """What a step brought to one text."""

    request: Request
    sample: int
    drawn: Drawn | None  # its token; None: it ended without another one, or a tool forced it
    fragments: list[Fragment]  # that have become certain; together they are the completion's text
    finish_reason: str | None
