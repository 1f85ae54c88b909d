"""The questions of a task that one process asks, and the answers that the engine writes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling
from nanochat.tasks.task import Task
from nanochat.tokenizer.conversations import render_prompt
from nanochat.tokenizer.tokenizer import Tokenizer

RIGHT = 0.5  # a higher score is a right answer


class Question(NamedTuple):
    number: int  # in the task
    conversation: dict[str, Any]
    prompt: list[int]


class Judged(NamedTuple):
    text: str
    score: float

    @property
    def right(self) -> bool:
        return self.score > RIGHT


def asked_of(task: Task, limit: int | None, rank: int = 0, world_size: int = 1) -> range:
    """Every `world_size`-th of the first `limit` questions of `task`, from `rank` on."""
    return range(rank, len(task) if limit is None else min(limit, len(task)), world_size)


def questions(
    tokenizer: Tokenizer, task: Task, *, limit: int | None, rank: int = 0, world_size: int = 1
) -> list[Question]:
    """Those of `asked_of`. ValueError for a task without a score."""
    if task.kind not in ("choice", "answer"):
        raise ValueError(
            f"{task.name} holds conversations of kind {task.kind!r}, which have no score; leave it "
            "out"
        )
    numbers = asked_of(task, limit, rank, world_size)
    return [Question(n, c, render_prompt(tokenizer, c)) for n in numbers for c in [task[n]]]


def judged_answers(
    engine: Engine, task: Task, asked: Sequence[Question], sampling: Sampling, samples: int
) -> list[list[Judged]]:
    """`samples` answers to each question, judged by the task; none if the context leaves no room
    for an answer. The random numbers of a question depend only on the seed and its number."""
    room = engine.gpt.config.sequence_len
    fit = [one for one in asked if len(one.prompt) < room]
    seeds = [f"{sampling.seed}/{one.number}" for one in fit]
    written = engine.sample([one.prompt for one in fit], sampling, samples, seeds)
    conversations = [one.conversation for one in fit for _ in range(samples)]
    texts = [completion.text for group in written for completion in group]
    judged = [Judged(*pair) for pair in zip(texts, task.scores(conversations, texts), strict=True)]
    of = {one.number: judged[i * samples : (i + 1) * samples] for i, one in enumerate(fit)}
    return [of.get(one.number, []) for one in asked]


def engine_for(gpt: Any, tokenizer: Tokenizer, max_rows: int, **more: Any) -> Engine:
    """An engine for questions that are all known in advance: prompts are read in one piece, and
    nothing of finished answers is cached."""
    return Engine(gpt, tokenizer, max_rows=max_rows, prefill_tokens=None, pool_bytes=0, **more)
