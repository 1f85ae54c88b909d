"""Log-probabilities and tokens in the shapes of OpenAI's chat completions and completions."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.inference.scoring import token_logprobs
from nanochat.inference.text import Completion
from nanochat.serve.service import ServedModel
from nanochat.tokenizer.tokenizer import Tokenizer


def name_of(piece: bytes) -> str:
    """A token as a text that no other token has: itself, or `bytes:\\xf0\\x9f` where it is only a
    piece of characters, as OpenAI has it.

    >>> name_of("é".encode()), name_of(b"\\xc3")
    ('é', 'bytes:\\\\xc3')
    """
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def token(tokenizer: Tokenizer, number: int) -> dict[str, Any]:
    piece = tokenizer.piece(number)
    return {"token": name_of(piece), "bytes": list(piece)}


def chat_logprob(
    tokenizer: Tokenizer, number: int, logprob: float, top: list[tuple[int, float]]
) -> dict[str, Any]:
    likeliest = [token(tokenizer, other) | {"logprob": value} for other, value in top]
    return token(tokenizer, number) | {"logprob": logprob, "top_logprobs": likeliest}


def chat_logprobs(completion: Completion, tokenizer: Tokenizer) -> dict[str, Any]:
    rows = zip(completion.ids, completion.logprobs, completion.top_logprobs, strict=True)
    known = [(number, logprob, top) for number, logprob, top in rows if logprob is not None]
    return {"content": [chat_logprob(tokenizer, *row) for row in known]}


class Offsets:
    """Where in the text, in characters, each token begins; one within a character begins where that
    does.

    >>> offsets = Offsets()
    >>> [offsets.next(piece) for piece in ("é".encode(), b"\\xf0\\x9f", b"\\x98\\x80", b"!")]
    [0, 1, 1, 2]
    """

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def next(self, piece: bytes) -> int:
        begins = self._characters
        for n in range(len(piece)):
            self._characters += len(self._utf8.decode(piece[n : n + 1]))
            # its first byte continues an incomplete character, or else the last one
            if n == 0:
                begins = self._characters - (not self._utf8.getstate()[0])
        return begins


@dataclass
class ScoredText:
    """A text with its tokens, in the shape of the completions API."""

    text: str
    tokens: list[str]
    values: list[float | None]
    top: list[dict[str, float] | None]
    offsets: list[int]
    ids: Sequence[int] = ()  # of a prompt

    def __add__(self, other: "ScoredText") -> "ScoredText":
        return ScoredText(
            self.text + other.text,
            self.tokens + other.tokens,
            self.values + other.values,
            self.top + other.top,
            self.offsets + [len(self.text) + at for at in other.offsets],
        )

    def logprobs(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "token_logprobs": self.values,
            "top_logprobs": self.top,
            "text_offset": self.offsets,
        }


EMPTY = ScoredText("", [], [], [], [])


def named(
    tokenizer: Tokenizer, top: list[tuple[int, float]], own: tuple[int, float] | None
) -> dict[str, float]:
    """The most likely tokens by name, and the token itself."""
    return {
        name_of(tokenizer.piece(number)): value for number, value in ([*top, own] if own else top)
    }


def offsets_in(text: str, tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Of `ids` in `text`; a token that is not in it, as the one that ended it, begins at its
    end."""
    offsets = Offsets()
    return [min(offsets.next(tokenizer.piece(number)), len(text)) for number in ids]


def written(completion: Completion, tokenizer: Tokenizer) -> ScoredText:
    """What was written, with the token that ended it where the model did: it has no text, but a
    log-probability."""
    rows = list(zip(completion.ids, completion.logprobs, completion.top_logprobs, strict=True))
    if completion.end_id is not None:
        rows.append((completion.end_id, completion.end_logprob, completion.end_top))
    ids = [number for number, _, _ in rows]
    tops: list[dict[str, float] | None] = [
        named(tokenizer, top, None if value is None else (number, value))
        for number, value, top in rows
    ]
    names = [name_of(tokenizer.piece(number)) for number in ids]
    return ScoredText(
        completion.text,
        names,
        [value for _, value, _ in rows],
        tops,
        offsets_in(completion.text, tokenizer, ids),
    )


async def echoed(
    logprobs: int | None, model: ServedModel, prompt: str | list[int], ids: list[int]
) -> ScoredText:
    """A prompt with the log-probabilities of its tokens."""
    tokenizer = model.tokenizer
    text = prompt if isinstance(prompt, str) else tokenizer.decode(ids)
    values: list[float | None] = [None] * len(ids)
    tops: list[dict[str, float] | None] = [None] * len(ids)
    if logprobs is not None:
        worker = model.idlest()
        found = await worker.call(lambda: token_logprobs(worker.engine.gpt, ids, logprobs))
        values[1:] = [value for value, _ in found]
        tops[1:] = [
            named(tokenizer, likeliest, (number, value))
            for number, (value, likeliest) in zip(ids[1:], found, strict=True)
        ]
    first = 1 if isinstance(prompt, str) else 0  # the bos that was put before a text
    names = [name_of(tokenizer.piece(number)) for number in ids[first:]]
    return ScoredText(
        text, names, values[first:], tops[first:], offsets_in(text, tokenizer, ids[first:]), ids
    )
