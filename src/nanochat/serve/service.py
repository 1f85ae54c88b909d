"""The checkpoints being served, by name, with their engines: what the page and the API ask for
answers."""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.inference.dialogue import fit
from nanochat.inference.request import TooLong
from nanochat.inference.sampling import Sampling
from nanochat.serve.worker import Reply, Worker
from nanochat.tokenizer.tokenizer import Tokenizer

MAX_CHARACTERS = 100_000  # guess: 30,000 tokens of English, read in 0.1 s at most
# from: nanochat's web chat, facts sheet 7.5
WEB_CHAT = Sampling(temperature=0.8, top_k=50, max_tokens=512)


class UnknownModel(ValueError):
    """A model name that is not served here."""


class WrongKind(ValueError):
    """A conversation sent to a model that only continues text."""


class Busy(RuntimeError):
    """The queue is full; `retry_after` estimates in how many seconds it will have room."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass
class ServedModel:
    """A checkpoint with one worker per device."""

    name: str
    path: Path
    phase: str | None  # that made it
    tokenizer: Tokenizer
    workers: list[Worker]
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def chats(self) -> bool:
        """False for a model that only continues text."""
        return self.phase != "base"

    @property
    def context(self) -> int:
        return self.workers[0].engine.gpt.config.sequence_len

    def idlest(self) -> Worker:
        return min(self.workers, key=lambda worker: worker.load)


class Service:
    """At most `max_queue` texts wait for a row of their model's engines."""

    def __init__(self, models: list[ServedModel], *, max_queue: int = 128) -> None:
        if max_queue < 0:
            raise ValueError(
                f"limits.queue={max_queue} must not be negative; 0 refuses what finds no free row"
            )
        if not models:
            raise ValueError("no checkpoint to serve; add ckpt=PATH")
        self.models = {model.name: model for model in models}
        self.max_queue = max_queue

    @property
    def default(self) -> ServedModel:
        return next(iter(self.models.values()))

    @property
    def workers(self) -> list[Worker]:
        return [worker for model in self.models.values() for worker in model.workers]

    def model(self, name: str | None) -> ServedModel:
        """The model called `name`, the first one for None; RUN is the latest step there is of it.
        UnknownModel if there is none, or several."""
        if name is None:
            return self.default
        if name in self.models:
            return self.models[name]
        steps = {
            found: int(step[1])
            for found in self.models
            if (step := re.fullmatch(re.escape(name) + r"@(\d+)(-\d+)?", found))
        }
        newest = [found for found in steps if steps[found] == max(steps.values())]
        if len(newest) > 1:
            raise UnknownModel(
                f"{name!r} may be several models that are served here; name one of: "
                f"{', '.join(newest)}"
            )
        if not newest:
            raise UnknownModel(
                f"the model {name!r} is not served here; there are: {', '.join(self.models)}"
            )
        return self.models[newest[0]]

    def chat(
        self,
        name: str | None,
        messages: list[dict[str, Any]],
        sampling: Sampling,
        *,
        num_samples: int = 1,
        forget: bool = False,
        strict: bool = False,
        call: bool = False,
    ) -> tuple[Reply, int]:
        """The answer to a conversation, and how many of its oldest turns were forgotten, which
        `forget` allows. `strict`: all of `max_tokens` must fit. `call`: the answer begins within a
        call.

        UnknownModel, WrongKind, BadConversation, TooLong or Busy where there will be no answer.
        """
        model = self.model(name)
        if not model.chats:
            raise WrongKind(
                f"{model.name} is a base checkpoint, which continues texts and does not chat"
            )
        messages, left_out = without_oldest(messages, MAX_CHARACTERS) if forget else (messages, 0)
        letters = characters(messages)
        if letters > MAX_CHARACTERS:
            raise TooLong(
                f"the conversation has {letters:,} characters; at most {MAX_CHARACTERS:,} are "
                "accepted"
            )
        self.make_room(model, num_samples)
        room = sampling.max_tokens or model.context // 2
        prompt, forgotten = fit(
            model.tokenizer, messages, context=model.context, room=room, forget=forget
        )
        prompt = [*prompt, model.tokenizer.specials["<|python_start|>"]] if call else prompt
        _check_room(model, prompt, sampling, strict)
        return model.idlest().submit(prompt, sampling, num_samples), left_out + forgotten

    def complete(
        self,
        name: str | None,
        prompt: str | list[int],
        sampling: Sampling,
        *,
        num_samples: int = 1,
        strict: bool = False,
    ) -> Reply:
        """Continue a text, with bos prepended, or token ids as they are. Raises as `chat` does."""
        model = self.model(name)
        self.make_room(model, num_samples)
        ids = self.ids(model, prompt)
        _check_room(model, ids, sampling, strict)
        return model.idlest().submit(ids, sampling, num_samples)

    def ids(self, model: ServedModel, prompt: str | list[int]) -> list[int]:
        """Token ids of a prompt, with bos before a text. TooLong if the text is too long even
        before it is tokenized."""
        if not isinstance(prompt, str):
            return prompt
        if len(prompt) > MAX_CHARACTERS:
            raise TooLong(
                f"the prompt has {len(prompt):,} characters; at most {MAX_CHARACTERS:,} are "
                "accepted"
            )
        return [model.tokenizer.bos_id, *model.tokenizer.encode(prompt)]

    def make_room(self, model: ServedModel, texts: int) -> None:
        """Busy if the queue has no room for so many texts; ValueError if it never has."""
        rows = sum(worker.engine.max_rows for worker in model.workers)
        if texts > max(self.max_queue, 0) + rows:
            raise ValueError(
                f"{texts} answers at once are more than this server ever takes "
                f"({self.max_queue + rows})"
            )
        load = sum(worker.load for worker in model.workers)
        if load + texts > self.max_queue + rows:
            waiting = max(0, load - rows)
            raise Busy(
                f"{waiting} answers are waiting already (limits.queue={self.max_queue})",
                retry_after=1 + waiting // 16,
            )

    def start(self) -> None:
        for worker in self.workers:
            worker.start()

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


def characters(messages: list[dict[str, Any]]) -> int:
    return sum(len(str(message.get("content", ""))) for message in messages)


def without_oldest(messages: list[dict[str, Any]], most: int) -> tuple[list[dict[str, Any]], int]:
    """Drop the oldest turns until at most `most` characters are left; also how many turns were
    dropped.

    A system message and the last question stay.

    >>> turns = [{"role": role, "content": "abcd"} for role in ("user", "assistant", "user")]
    >>> [without_oldest(turns, most)[1] for most in (12, 11, 3)]
    [0, 1, 1]
    """
    first = int(bool(messages) and messages[0].get("role") == "system")
    left_out, length = 0, characters(messages)
    while length > most and first + 2 * left_out + 2 < len(messages):
        oldest = first + 2 * left_out
        length -= characters(messages[oldest : oldest + 2])
        left_out += 1
    return [*messages[:first], *messages[first + 2 * left_out :]], left_out


def _check_room(model: ServedModel, prompt: list[int], sampling: Sampling, strict: bool) -> None:
    """TooLong where `strict` and the answer might be cut by the context."""
    room = model.context - len(prompt)
    if strict and (sampling.max_tokens or 0) > room:
        raise TooLong(
            f"max_tokens={sampling.max_tokens:,} is more than the {room:,} that the prompt of "
            f"{len(prompt):,} tokens leaves in the model's "
            f"context of {model.context:,}; lower it, or leave out strict"
        )
