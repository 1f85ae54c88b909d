"""How often one of k sampled answers is right, and how often the greedy one is (facts sheet 5.9; Chen et al. 2021, arXiv:2107.03374)."""

from collections.abc import Sequence
from dataclasses import replace
from math import comb
from typing import Any

import torch

from nanochat.distributed import agreed, summed
from nanochat.evals.evaluation import Context, Evaluation, Result, task_of
from nanochat.gpt import GPT
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling
from nanochat.runtime.settings import Count, Seed, Temperature, TopK
from nanochat.sandbox.execution import python_tool
from nanochat.tasks.task import Task
from nanochat.tokenizer.conversations import render_prompt
from nanochat.tokenizer.tokenizer import Tokenizer

RIGHT = 0.5  # a score above it is a right answer


def unbiased(n: int, right: int, k: int) -> float:
    """Probability that one of k answers is right, drawn from n of which `right` are: 1 - C(n - right, k) / C(n, k).

    >>> unbiased(4, 1, 1), unbiased(4, 1, 2), unbiased(4, 4, 3), unbiased(4, 0, 4)
    (0.25, 0.5, 1.0, 0.0)
    """
    return 1 - comb(n - right, k) / comb(n, k)


class PassAtK(Evaluation):
    """Of a task given by its settings: of `split`, where it has several, the first `limit` questions."""

    lower_is_better = ("error",)

    def __init__(
        self,
        task: dict[str, Any] | None,
        split: str | None = "test",
        limit: Count | None = 400,
        samples: Count = 8,
        max_tokens: Count = 256,
        temperature: Temperature = 1.0,
        top_k: TopK = 50,
        seed: Seed = 42,
        tools: bool = True,
        python: bool = False,
        max_rows: Count = 64,
    ) -> None:
        if task is None:
            raise ValueError(
                "evals.pass_at_k.task must be given: add +task@evals.pass_at_k.task=NAME"
            )
        self.task = task_of(task, split)
        self.settings: dict[str, Any] = {"limit": limit, "samples": samples, "max_rows": max_rows}
        self.sampling = Sampling(
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            tools=tools,
            python=python,
            max_tokens=max_tokens,
        )

    def check(self) -> None:
        len(self.task)

    def __call__(self, context: Context) -> Result:
        ranks = {"rank": context.rank, "world_size": context.world_size}
        return {
            **pass_at_k(
                context.gpt,
                context.tokenizer,
                self.task,
                sampling=self.sampling,
                **self.settings,
                **ranks,
            )
        }


def pass_at_k(
    gpt: GPT,
    tokenizer: Tokenizer,
    task: Task,
    *,
    limit: int | None,
    samples: int,
    sampling: Sampling,
    max_rows: int = 64,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, float]:
    """`pass@k` for k = 1, 2, 4, … and `samples`, and `greedy_accuracy`, over the first `limit` questions of `task`, all processes together.

    A question that leaves no room for an answer counts as wrong. What is drawn for a question follows from the seed and its number. ValueError
    for a task without a score.
    """
    device = gpt.device
    ks = sorted({2**i for i in range(samples.bit_length()) if 2**i <= samples} | {samples})

    def mine() -> list[float]:
        if task.kind == "chat":
            raise ValueError(f"{task.name} cannot be scored: nothing in it is right or wrong")
        total = len(task) if limit is None else min(limit, len(task))
        numbers = list(range(rank, total, world_size))
        rights, greedy = _right(gpt, tokenizer, task, numbers, samples, sampling, max_rows)
        return [
            float(len(numbers)),
            float(sum(greedy)),
            *(sum(unbiased(samples, r, k) for r in rights) for k in ks),
        ]

    sums = torch.tensor(agreed(mine, device), dtype=torch.float32, device=device)
    if world_size > 1:
        summed(sums)
    count, greedy, *passes = sums.tolist()
    found = {f"pass@{k}": value / count for k, value in zip(ks, passes, strict=True)}
    return {**found, "greedy_accuracy": greedy / count, "error": 1 - greedy / count}


def _right(
    gpt: GPT,
    tokenizer: Tokenizer,
    task: Task,
    numbers: Sequence[int],
    samples: int,
    sampling: Sampling,
    max_rows: int,
) -> tuple[list[int], list[bool]]:
    """How many of `samples` answers to each question are right, and whether the greedy one is."""
    asked: list[tuple[dict[str, Any], list[int]]] = [
        (task[n], render_prompt(tokenizer, task[n])) for n in numbers
    ]
    fits = [len(prompt) < gpt.config.sequence_len for _, prompt in asked]
    prompts = [prompt for (_, prompt), ok in zip(asked, fits, strict=True) if ok]
    conversations = [c for (c, _), ok in zip(asked, fits, strict=True) if ok]
    seeds = [f"{sampling.seed}/{n}" for n, ok in zip(numbers, fits, strict=True) if ok]
    engine = Engine(
        gpt,
        tokenizer,
        max_rows=max_rows,
        prefill_tokens=None,
        pool_bytes=0,
        run_python=python_tool if sampling.python else None,
    )
    with engine.frozen():
        sampled = engine.sample(prompts, sampling, samples, seeds)
        greedy = engine.sample(prompts, replace(sampling, temperature=0), 1, seeds)
    texts = [completion.text for group in sampled for completion in group]
    of_each = task.scores([c for c in conversations for _ in range(samples)], texts)
    rights = [
        sum(score > RIGHT for score in of_each[i : i + samples])
        for i in range(0, len(of_each), samples)
    ]
    first = task.scores(conversations, [group[0].text for group in greedy])
    missing = len(numbers) - len(prompts)
    return rights + [0] * missing, [score > RIGHT for score in first] + [False] * missing
