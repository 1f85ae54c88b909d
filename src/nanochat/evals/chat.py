"""Accuracy on a task of conversations (facts sheet 6.4): letters by their logits, free answers by what the model writes.

A multiple choice is one forward pass and no decoding: of the question's own letters the one with the highest logit right after
<|assistant_start|>. A free answer is decoded greedily with the calculator, many at a time, and the task judges it.
"""

from typing import Any

import torch

from nanochat.distributed import agreed, summed
from nanochat.evals.evaluation import Context, Evaluation, Result, task_of
from nanochat.gpt import GPT
from nanochat.inference.engine import Engine
from nanochat.inference.scoring import last_hidden
from nanochat.runtime.settings import Count
from nanochat.tasks.task import Task
from nanochat.tokenizer.conversations import render_prompt
from nanochat.tokenizer.tokenizer import Tokenizer


class Answers(Evaluation):
    """`NAME_accuracy` of each of the tasks `of`, given by their settings: of `split`, where a task has several, the first `limit`."""

    def __init__(
        self,
        of: dict[str, Any],
        split: str | None = "test",
        limit: Count | None = 256,
        max_tokens: Count = 256,
        rows_per_device: Count = 16,
    ) -> None:
        self.of = {name: task_of(settings, split) for name, settings in of.items() if settings}
        self.settings: dict[str, Any] = {
            "limit": limit,
            "max_tokens": max_tokens,
            "batch_rows": rows_per_device,
        }

    def check(self) -> None:
        for task in self.of.values():
            len(task)

    def __call__(self, context: Context) -> Result:
        found: Result = {}
        for name, task in self.of.items():
            ranks = {"rank": context.rank, "world_size": context.world_size}
            one = accuracy(context.gpt, context.tokenizer, task, **self.settings, **ranks)
            skipped = f", {one['skipped']:g} too long" if one["skipped"] else ""
            found[f"{name}_accuracy"] = one["accuracy"]
            found[f"{name}_of"] = f"{one['correct']:g} of {one['total']:g}{skipped}"
        return found


def accuracy(
    gpt: GPT,
    tokenizer: Tokenizer,
    task: Task,
    *,
    limit: int | None = None,
    max_tokens: int = 128,
    batch_rows: int = 16,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, float]:
    """`accuracy`, `correct`, `total` and `skipped` over the first `limit` conversations of `task`, summed over processes.

    Process `rank` takes every `world_size`-th of them, `batch_rows` at a time. A prompt too long for the model's context is wrong, and counted
    in `skipped` too. ValueError for a task without a score. What raises on one process raises on all.
    """
    device = gpt.device

    def mine() -> tuple[float, int, int]:
        for name, value in (
            ("limit", limit),
            ("max_tokens", max_tokens),
            ("batch_rows", batch_rows),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if task.kind not in ("choice", "answer"):
            raise ValueError(
                f"{task.name} holds conversations of kind {task.kind!r}, which have no score; leave it out"
            )
        total = len(task) if limit is None else min(limit, len(task))
        conversations = [task[i] for i in range(rank, total, world_size)]
        correct, skipped = _score(gpt, tokenizer, task, conversations, max_tokens, batch_rows)
        return correct, len(conversations), skipped

    sums = torch.tensor(
        agreed(mine, device), dtype=torch.float32, device=device
    )  # counts below 2**24 are exact
    if world_size > 1:
        summed(sums)
    correct, total, skipped = sums.tolist()
    return {"accuracy": correct / total, "correct": correct, "total": total, "skipped": skipped}


def _score(
    gpt: GPT,
    tokenizer: Tokenizer,
    task: Task,
    conversations: list[dict[str, Any]],
    max_tokens: int,
    batch_rows: int,
) -> tuple[float, int]:
    """Points of these conversations, and how many did not fit."""
    asked = [
        (render_prompt(tokenizer, conversation), conversation) for conversation in conversations
    ]
    fit = [
        (prompt, conversation)
        for prompt, conversation in asked
        if len(prompt) < gpt.config.sequence_len
    ]
    prompts = [prompt for prompt, _ in fit]
    if task.kind == "choice":
        answers = choose_letters(
            gpt, tokenizer, prompts, [c["letters"] for _, c in fit], batch_rows
        )
    else:
        engine = Engine(gpt, tokenizer, max_rows=batch_rows)
        answers = [
            completion.text for completion in engine.generate(prompts, max_tokens=max_tokens)
        ]
    points = sum(task.scores([conversation for _, conversation in fit], answers))
    return points, len(asked) - len(fit)


@torch.no_grad()
def choose_letters(
    gpt: GPT,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    letters: list[list[str]],
    batch_rows: int,
) -> list[str]:
    """For each prompt the one of its letters whose token is the likeliest to come next."""
    ids = [[_letter_id(tokenizer, letter) for letter in row] for row in letters]
    answers = [""] * len(prompts)
    order = sorted(
        range(len(prompts)), key=lambda i: len(prompts[i])
    )  # side by side, little is padded
    for first in range(0, len(order), batch_rows):
        batch = order[first : first + batch_rows]
        logits = gpt.logits(last_hidden(gpt, [prompts[i] for i in batch])).cpu()  # (B, V)
        for i, row in zip(batch, logits, strict=True):
            answers[i] = letters[i][int(row[ids[i]].argmax())]
    return answers


def _letter_id(tokenizer: Tokenizer, letter: str) -> int:
    ids = tokenizer.encode(letter)
    if len(ids) != 1:
        raise ValueError(
            f"the letter {letter!r} is {len(ids)} tokens in this vocabulary; a choice is read off one, so it must be one token"
        )
    return ids[0]
