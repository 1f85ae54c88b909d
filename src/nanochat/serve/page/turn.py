"""An answer that is being written: its parts so far, its numbers, and a record of how it was
made."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any

from nanochat.inference.sampling import Sampling
from nanochat.inference.stream import Fragment, merge_parts
from nanochat.serve.service import ServedModel
from nanochat.serve.worker import EngineFailed, Reply

# guess: faster is not readable, and a browser that renders Markdown cannot keep up
UPDATES_PER_SECOND = 15
NOTHING = [{"type": "text", "text": "…"}]  # what stands for an answer without a token


class Turn:
    """Reads `reply` in its own task, so that nothing is lost while no page shows it.

    `ended` is called once, after the last token.
    """

    def __init__(
        self,
        reply: Reply,
        model: ServedModel,
        sampling: Sampling,
        *,
        forgotten: int = 0,
        session: str | None = None,
        ended: Callable[["Turn"], None] = lambda turn: None,
    ) -> None:
        self.reply = reply
        self.model = model.name
        self.sampling = sampling
        self.context = model.context
        self.forgotten, self.session, self.ended = forgotten, session, ended
        self.fragments: list[Fragment] = []
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.first = self.last = 0.0  # seconds: when its first and its last token came
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            async for piece in self.reply:
                self.last = time.monotonic()
                self.first = self.first or self.last
                self.fragments += piece.fragments
                self.finish_reason = piece.finish_reason
        except EngineFailed as error:
            self.error, self.finish_reason = str(error), "error"
        finally:  # also where the server stops
            self.finish_reason = self.finish_reason or "cancelled"
            self.ended(self)

    def stop(self) -> None:
        """No more tokens after the next one; what is there stays."""
        if not self.task.done():
            self.reply.cancel()

    async def updates(self) -> AsyncIterator[None]:
        """Ticks a few times a second until the answer has ended; look at it once more after
        that."""
        while not self.task.done():
            await asyncio.wait([self.task], timeout=1 / UPDATES_PER_SECOND)
            if not self.task.done():
                yield

    @property
    def parts(self) -> list[dict[str, str]]:
        return merge_parts(self.fragments)

    @property
    def text(self) -> str:
        return "".join(text for kind, text in self.fragments if kind != "mark")

    def made(self) -> dict[str, Any]:
        """Everything needed to make it again, and its numbers."""
        settings = {
            key: value for key, value in asdict(self.sampling).items() if value != DEFAULTS[key]
        }
        tokens = len(self.reply.request.texts[0].ids)
        return {
            "model": self.model,
            "sampling": settings | {"seed": self.sampling.seed},
            "prompt_tokens": len(self.reply.request.prompt),
            "tokens": tokens,
            "tokens_per_second": round((tokens - 1) / (self.last - self.first), 1)
            if self.last > self.first
            else None,
            "context": self.context,
            "forgotten_turns": self.forgotten,
            "finish_reason": self.finish_reason,
        }

    def message(self) -> dict[str, Any]:
        """The assistant's message, complete or so far."""
        return {"role": "assistant", "content": self.parts or NOTHING, "made": self.made()}


DEFAULTS = asdict(Sampling())


def numbers(made: dict[str, Any]) -> str:
    """One line about an answer, from `Turn.made`; empty if an import has something else there."""
    try:
        return " · ".join(_numbers(made))
    except (KeyError, TypeError, ValueError):
        return ""


def _numbers(made: dict[str, Any]) -> list[str]:
    used = made["prompt_tokens"] + made["tokens"]
    line = [
        made["model"],
        f"prompt {made['prompt_tokens']:,} + answer {made['tokens']:,} tokens",
        f"context {used:,} of {made['context']:,}",
        f"seed {made['sampling']['seed']}",
    ]
    if made["tokens_per_second"]:
        line.insert(1, f"{made['tokens_per_second']:,.0f} tokens/s")
    ends = {"length": "cut off by its length", "cancelled": "stopped", "error": "the engine failed"}
    if made["finish_reason"] in ends:
        line.append(ends[made["finish_reason"]])
    if n := made["forgotten_turns"]:
        line.append(f"the {'oldest turn was' if n == 1 else f'{n} oldest turns were'} forgotten")
    return line
