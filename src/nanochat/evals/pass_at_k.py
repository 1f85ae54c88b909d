"""How often one of k sampled answers is right, and how often the greedy one is (facts sheet 5.9;
Chen et al. 2021, arXiv:2107.03374)."""

import math
from dataclasses import replace
from math import comb
from typing import Any

from nanochat.distributed import agreed, gathered
from nanochat.evals.asking import engine_for, judged_answers, questions
from nanochat.evals.evaluation import Context, Evaluation, Result, task_of
from nanochat.evals.items import Item
from nanochat.inference.sampling import Sampling
from nanochat.runtime.settings import Count, Seed, Temperature, TopK
from nanochat.sandbox.execution import python_tool


def unbiased(n: int, right: int, k: int) -> float:
    """Probability that one of k answers is right, drawn from n of which `right` are: 1 - C(n -
    right, k) / C(n, k).

    >>> unbiased(4, 1, 1), unbiased(4, 1, 2), unbiased(4, 4, 3), unbiased(4, 0, 4)
    (0.25, 0.5, 1.0, 0.0)
    """
    return 1 - comb(n - right, k) / comb(n, k)


def counts(samples: int) -> list[int]:
    """The k of pass@k that `samples` answers allow: powers of two, and all of them.

    >>> counts(6)
    [1, 2, 4, 6]
    """
    return sorted({2**i for i in range(samples.bit_length()) if 2**i <= samples} | {samples})


class PassAtK(Evaluation):
    """pass@k on the first `limit` questions of a task, given by its settings, of
    `split` if it has splits.

    `pass@k` for k = 1, 2, 4, … and `samples`, and `greedy_accuracy`. A question that leaves no room
    for an answer counts as wrong.
    """

    lower_is_better = ("error",)
    no_matter = ("max_rows",)

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
        self.limit, self.samples, self.max_rows = limit, samples, max_rows
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

    def identity(self) -> dict[str, Any]:
        return {"task": self.task.settings()}

    def __call__(self, context: Context) -> Result:
        judged = agreed(lambda: self._judged(context), context.device)
        for item, _ in judged:
            context.record(item)
        counted = [(round(item.correct * self.samples), greedy) for item, greedy in judged]
        everywhere = [pair for part in gathered(counted) for pair in part]
        n = len(everywhere)
        found: Result = {
            f"pass@{k}": math.fsum(unbiased(self.samples, right, k) for right, _ in everywhere) / n
            for k in counts(self.samples)
        }
        greedy = sum(right for _, right in everywhere) / n
        return {**found, "greedy_accuracy": greedy, "error": 1 - greedy}

    def _judged(self, context: Context) -> list[tuple[Item, bool]]:
        """Each question of this process, with the fraction of sampled answers that are right and
        whether the greedy one is."""
        task, tokenizer = self.task, context.tokenizer
        ranks = {"rank": context.rank, "world_size": context.world_size}
        asked = questions(tokenizer, task, limit=self.limit, **ranks)
        tool = python_tool if self.sampling.python else None
        engine = engine_for(context.gpt, tokenizer, self.max_rows, run_python=tool)
        with engine.frozen():
            sampled = judged_answers(engine, task, asked, self.sampling, self.samples)
            greedy = judged_answers(engine, task, asked, replace(self.sampling, temperature=0), 1)
        return [
            (
                Item(
                    task=task.name,
                    index=task.place(question.number),
                    prompt=tokenizer.decode(question.prompt),
                    choices=(),
                    gold=task.answer(question.conversation),
                    answer=best[0].text if best else "",
                    correct=sum(a.right for a in each) / self.samples,
                ),
                bool(best and best[0].right),
            )
            for question, each, best in zip(asked, sampled, greedy, strict=True)
        ]
