"""CORE of a model: v1 as nanochat scores it and v2 with DCLM's corrected baselines, from the same
answers (facts sheet 6.2; mlfoundations/dclm#114 and #115)."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nanochat.distributed import agreed, gathered
from nanochat.evals.core.bundle import TASKS, Bundle, CoreTask, download, find
from nanochat.evals.core.judge import judge
from nanochat.evals.core.prompts import (
    TEMPLATE,
    ask,
    examples_of,
    passage_of,
    reads_a_passage,
    swapped,
)
from nanochat.evals.evaluation import Context, Evaluation, Result
from nanochat.evals.items import Item
from nanochat.evals.results import short_hash
from nanochat.evals.uncertainty import standard_error
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.runtime.settings import Count, Positive, Seed

SHUFFLE = 1337  # from: facts sheet 6.2; another seed gives another order than nanochat's
TOGETHER = 128  # guess: items tokenized at once; an interruption loses as many
SWAPPED = "_swapped"  # suffix of a task whose items have passages of other items


class Core(Evaluation):
    """Accuracy on the tasks of the bundle, and their mean after centring.

    `limit` takes the first items of each task after the shuffle. Few-shot examples are drawn from
    all items, so an item is asked as in a full evaluation. `passage_swap` asks reading tasks again
    with passages of other items: a model that scores the same does not read them. An evaluation
    that exceeds `budget_seconds` stops with an error that names the limit that fits, since a
    partial result would not be comparable.
    """

    version = 2
    no_matter = ("bundle", "budget_seconds")  # `identity` has the bundle's hash instead

    def __init__(
        self,
        bundle: str | None = None,
        tasks: list[str] | None = None,
        limit: Count | None = None,
        seed: Seed = SHUFFLE,
        batch_tokens: Count | None = None,
        passage_swap: bool = True,
        budget_seconds: Positive | None = None,
    ) -> None:
        self.path, self.names, self.limit, self.seed = bundle, tasks, limit, seed
        self.batch_tokens, self.swap, self.budget = batch_tokens, passage_swap, budget_seconds

    def check(self) -> None:
        self.tasks_of(find(self.path) or download())

    def tasks_of(self, bundle: Bundle) -> list[CoreTask]:
        """The tasks to evaluate. ValueError for a name that is not in the bundle."""
        known = [task.label for task in bundle.tasks]
        for name in self.names or ():
            if name not in known:
                raise ValueError(
                    f"evals.core.tasks has {name}, which is not in {bundle.path}; choose from "
                    f"{', '.join(known)}"
                )
        return [task for task in bundle.tasks if self.names is None or task.label in self.names]

    def identity(self) -> dict[str, Any]:
        bundle = find(self.path) or download()
        tasks = {task.label: len(self._part(task)) for task in self.tasks_of(bundle)}
        return {
            "bundle": bundle.hash,
            "items": tasks,
            "subset seed": self.seed,
            "template": TEMPLATE,
        }

    def __call__(self, context: Context) -> Result:
        def mine() -> tuple[list[CoreTask], list[Item]]:
            tasks = self.tasks_of(find(self.path) or download())
            return tasks, self._judged(context, tasks)

        tasks, items = agreed(mine, context.device)
        without_text = [replace(i, prompt="", choices=(), scores={}) for i in items]
        asked: dict[str, list[Item]] = {}
        for item in (one for part in gathered(without_text) for one in part):
            asked.setdefault(item.task, []).append(item)
        return numbers(tasks, asked)

    def _names(self, task: CoreTask) -> list[str]:
        """The names under which the items of a task are counted."""
        twice = self.swap and reads_a_passage(task)
        return [task.label, task.label + SWAPPED] if twice else [task.label]

    def _part(self, task: CoreTask) -> range:
        """Positions, in the order of `task`, of the items to ask."""
        return range(min(self.limit or len(task.items), len(task.items)))

    def _judged(self, context: Context, tasks: Sequence[CoreTask]) -> list[Item]:
        """This process's items of all tasks; each is recorded when it is judged."""
        context = replace(context, gpt=FrozenGPT.of(context.gpt))  # once, not for every batch
        started = time.monotonic()
        mine = {
            (task, name): self._part(task)[context.rank :: context.world_size]
            for task in tasks
            for name in self._names(task)
        }
        total = sum(map(len, mine.values()))
        context.expect(total)
        found: list[Item] = []
        for (task, name), part in mine.items():
            order = task.order(self.seed)
            known = [context.recorded.get((name, order[i])) for i in part]
            found += [item for item in known if item is not None]
            ahead = [i for i, item in zip(part, known, strict=True) if item is None]
            for first in range(0, len(ahead), TOGETHER):
                for item in self._items(
                    context, task, name, order, ahead[first : first + TOGETHER]
                ):
                    context.record(item)
                    found.append(item)
                self._within_budget(time.monotonic() - started, len(found), total)
        return found

    def _items(
        self, context: Context, task: CoreTask, name: str, order: list[int], places: list[int]
    ) -> list[Item]:
        """Judge the items at these positions of `order` together."""
        gpt, tokenizer = context.gpt, context.tokenizer
        asked = []
        for i in places:
            item = task.items[order[i]] if name == task.label else swapped(task, order, i)
            examples = examples_of(task, order, i)
            asked.append((order[i], ask(task, item, examples, tokenizer, gpt.longest)))
        items = judge(gpt, tokenizer, name, asked, batch_tokens=self.batch_tokens)
        if not reads_a_passage(task):
            return items
        return [replace(i, cluster=short_hash(passage_of(task.items[i.index]))) for i in items]

    def _within_budget(self, seconds: float, done: int, total: int) -> None:
        if self.budget is None or seconds <= self.budget or done == total:
            return
        most = max(len(self._part(task)) for task in self.tasks_of(find(self.path) or download()))
        fits = max(1, int(most * done / total))
        raise ValueError(
            f"evals.core.budget_seconds={self.budget:g} are over after {done} of {total} items; "
            f"try evals.core.limit={fits}"
        )


def centred(accuracy: float, baseline: float) -> float:
    """0 for guessing, 1 if all answers are right. `baseline` in percent, as in the bundle.

    >>> centred(0.625, 25.0)
    0.5
    """
    return (accuracy - 0.01 * baseline) / (1 - 0.01 * baseline)


def numbers(tasks: Sequence[CoreTask], asked: Mapping[str, Sequence[Item]]) -> Result:
    """The accuracies by name, of the items `asked`, and the means under a name that says what they
    are of: CORE is that of all items of the 22 tasks and of nothing else."""
    accuracy = {
        name: math.fsum(i.correct for i in asked[name]) / len(asked[name])
        for task in tasks
        for name in (task.label, task.label + SWAPPED)
        if name in asked
    }
    v1 = [centred(accuracy[task.label], task.baseline) for task in tasks]
    v2 = [centred(accuracy[task.label], task.corrected_baseline) for task in tasks]
    items = sum(len(asked[task.label]) for task in tasks)
    whole = {task.label: task.uri for task in tasks} == TASKS and all(
        len(asked[task.label]) == len(task.items) for task in tasks
    )
    name = "CORE" if whole else f"centred_{len(tasks)}of22_{items}items"
    found: Result = {name: sum(v1) / len(v1), f"{name}_v2": sum(v2) / len(v2)}
    found.update({f"core/{label}": value for label, value in accuracy.items()})
    what = "" if whole else f", not CORE: {len(tasks)} of its 22 tasks, {items:,} items"
    found["core"] = [
        f"{name}: as nanochat centres it, comparable with nanochat{what}",
        f"{name}_v2: with the baselines that DCLM corrected (mlfoundations/dclm#114, #115){what}",
        *(
            passage_line(asked[task.label], asked[task.label + SWAPPED])
            for task in tasks
            if task.label + SWAPPED in asked
        ),
    ]
    return found


def passage_line(own: Sequence[Item], other: Sequence[Item]) -> str:
    """Whether the score of a reading task depends on its passage: the same questions with their
    passage and with another one, paired; questions of one passage depend on each other."""
    swap = {item.index: item.correct for item in other}
    changes = [item.correct - swap[item.index] for item in own]
    error = standard_error(changes, [item.cluster for item in own])
    n, passages = len(own), len({item.cluster for item in own})
    mean, without = (math.fsum(values) / n for values in ([i.correct for i in own], swap.values()))
    says = "depends" if mean - without > 2 * error else "is not seen to depend"
    return (
        f"{own[0].task} {mean:.4f}, with passages of other items {without:.4f} ({n:,} items of "
        f"{passages:,} passages, difference ± {error:.4f}): the score {says} on the passage"
    )
