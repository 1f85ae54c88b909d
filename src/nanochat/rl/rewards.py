"""Rewards: plug-in functions over all rollouts of a step at once, and their weighted sum.

A reward is a class with `__call__(rollouts, task)`, or a function with the same arguments, that
returns a number per rollout. A file in `conf/reward` names it with its settings; every reward also
has `weight` and `timeout` (seconds per step).
"""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from hydra.utils import instantiate

from nanochat.rl.grading import same_number, same_text
from nanochat.rl.rollout import Rollout
from nanochat.runtime.settings import Count, Whole
from nanochat.tasks.task import Task

Grader = Literal["lenient", "strict"]
GRADERS = get_args(Grader)
TIMEOUT = 60.0  # guess: seconds, if a reward's file does not say

RewardFunction = Callable[[Sequence[Rollout], Task], Sequence[float]]


class Answer:
    """1 for a right answer, else 0.

    `grader` strict is the task's own score, as in published numbers; lenient accepts "42", "42.",
    "$42", "42.0" and "1,000" as the numbers they are.
    """

    def __init__(self, grader: Grader = "lenient") -> None:
        if grader not in GRADERS:
            raise ValueError(f"grader={grader!r} is not known; choose from {', '.join(GRADERS)}")
        self.grader = grader

    def __call__(self, rollouts: Sequence[Rollout], task: Task) -> list[float]:
        lenient = self.grader == "lenient"
        references = [
            task.reference(rollout.conversation) if lenient else None for rollout in rollouts
        ]
        strict = [
            rollout
            for rollout, reference in zip(rollouts, references, strict=True)
            if reference is None
        ]
        scores = iter(
            task.scores(
                [rollout.conversation for rollout in strict], [rollout.text for rollout in strict]
            )
        )
        return [
            next(scores) if reference is None else float(_same(reference, rollout.text))
            for reference, rollout in zip(references, rollouts, strict=True)
        ]


def _same(reference: str, text: str) -> bool:
    try:
        return same_number(reference, text)
    except ValueError:
        return same_text(reference, text)


class Format:
    """1 for an answer that the model ended itself and that contains `mark` once, if the task's own
    answers contain `mark`."""

    def __init__(self, mark: str | None = "####") -> None:
        self.mark = mark

    def __call__(self, rollouts: Sequence[Rollout], task: Task) -> list[float]:
        return [float(not rollout.truncated and self._marked(rollout)) for rollout in rollouts]

    def _marked(self, rollout: Rollout) -> bool:
        content = rollout.conversation["messages"][-1]["content"]
        said = content if isinstance(content, str) else "".join(part["text"] for part in content)
        return not self.mark or self.mark not in said or rollout.text.count(self.mark) == 1


class Length:
    """0 up to `free` tokens, then down linearly to -1 at `longest`: DAPO's soft punishment of
    overlong answers (arXiv:2503.14476, 3.4)."""

    def __init__(self, free: Whole, longest: Count) -> None:
        if not 0 <= free < longest:
            raise ValueError(
                f"free={free} and longest={longest}: an answer of `free` tokens must be shorter "
                "than one of `longest`"
            )
        self.free, self.longest = free, longest

    def __call__(self, rollouts: Sequence[Rollout], task: Task) -> list[float]:
        over = [(len(r.completion.ids) - self.free) / (self.longest - self.free) for r in rollouts]
        return [-min(max(x, 0.0), 1.0) for x in over]


@dataclass
class Weighted:
    function: RewardFunction
    weight: float
    timeout: float


class Rewards:
    """Several rewards by name; `settings` as composed: `_target_`, its own settings, `weight` and
    `timeout`."""

    def __init__(self, settings: dict[str, dict[str, Any]]) -> None:
        self.of: dict[str, Weighted] = {}
        for name, given in settings.items():
            own = dict(given)
            weight, timeout = own.pop("weight", 1.0), own.pop("timeout", TIMEOUT)
            for key, value, low in (("weight", weight, -math.inf), ("timeout", timeout, 0.0)):
                if (
                    isinstance(value, bool)
                    or not isinstance(value, int | float)
                    or not low < value < math.inf
                ):
                    raise ValueError(
                        f"rewards.{name}.{key}={value} must be a number"
                        + (" above 0" if low == 0 else "")
                    )
            function = instantiate(own)
            if not callable(function):
                raise ValueError(
                    f"rewards.{name} names {own.get('_target_')}, which cannot be called with "
                    "rollouts and a task"
                )
            self.of[name] = Weighted(function, float(weight), float(timeout))
        if not any(reward.weight for reward in self.of.values()):
            raise ValueError(
                "no reward has a weight; add one, for example +reward@rewards.answer=answer"
            )

    def give(self, rollouts: Sequence[Rollout], task: Task) -> None:
        """Set `rewards` and `reward` of each rollout. ValueError, naming function and item, for a
        value that is not a number or came too late."""
        for name, reward in self.of.items():
            for rollout, value in zip(
                rollouts, self._values(name, reward, rollouts, task), strict=True
            ):
                rollout.rewards[name] = value
        for rollout in rollouts:
            rollout.reward = sum(
                self.of[name].weight * value for name, value in rollout.rewards.items()
            )

    def _values(
        self, name: str, reward: Weighted, rollouts: Sequence[Rollout], task: Task
    ) -> list[float]:
        def call() -> Sequence[float]:
            try:
                return reward.function(rollouts, task)
            except Exception as first:
                failed.append(first)
                for rollout in rollouts:  # find the rollout that raises
                    try:
                        reward.function([rollout], task)
                    except Exception as error:
                        raise ValueError(
                            f"rewards.{name} failed for {_named(rollout, task)}: {_said(error)}"
                        ) from error
                raise

        failed: list[Exception] = []
        where = f"{len(rollouts)} rollouts, the first for {_named(rollouts[0], task)}"
        try:
            values = _within(reward.timeout, call, name, where)
        except TooSlow:
            if failed:
                raise ValueError(
                    f"rewards.{name} failed on {where}: {_said(failed[0])}"
                ) from failed[0]
            raise
        try:
            given = list(values)
        except TypeError:
            raise ValueError(
                f"rewards.{name} gave {values!r}, not a number for each of {len(rollouts)} rollouts"
            ) from None
        if len(given) != len(rollouts):
            raise ValueError(
                f"rewards.{name} gave {len(given)} numbers for {len(rollouts)} rollouts"
            )
        for value, rollout in zip(given, rollouts, strict=True):
            try:
                ok = value is not None and math.isfinite(value)
            except TypeError:
                ok = False
            if not ok:
                raise ValueError(
                    f"rewards.{name} gave {value!r} for {_named(rollout, task)}; a reward must be "
                    "a number"
                )
        return [float(value) for value in given]


def _named(rollout: Rollout, task: Task) -> str:
    return (
        f"question {rollout.question} of {task.name}, sample {rollout.sample} "
        f"({rollout.text[:60]!r})"
    )


def _said(error: BaseException) -> str:
    return (
        f"there is no field {error}"
        if isinstance(error, KeyError)
        else f"{type(error).__name__}: {error}"
    )


class TooSlow(ValueError):
    """A reward that took longer than its timeout."""


def _within(seconds: float, call: Callable[[], Any], name: str, where: str) -> Any:
    """`call()`; TooSlow after `seconds`, ValueError for any exception in it. A call that is too
    slow continues in its thread until the process ends.

    A call that never releases the interpreter lock (such as a regular expression with exponential
    backtracking) cannot be stopped; run such a reward in a process of its own.
    """
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    result: list[Any] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)  # of this rank
            result.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True, name=f"reward {name}")
    thread.start()
    thread.join(seconds)
    if failure:
        if isinstance(failure[0], ValueError):
            raise failure[0]
        raise ValueError(f"rewards.{name} failed on {where}: {_said(failure[0])}") from failure[0]
    if not result:
        raise TooSlow(
            f"rewards.{name} took more than {seconds:g} s for {where}; raise "
            f"rewards.{name}.timeout, or make it faster"
        )
    return result[0]
