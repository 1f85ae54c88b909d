"""An evaluation is a class whose instances map a `Context` to numbers.

`conf/eval/NAME.yaml` names the class with its settings. The same object runs during training
(callbacks/evaluate.py) and in `python -m nanochat.evaluate`, so both give the same number.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from hydra.utils import instantiate

from nanochat.evals.items import Item
from nanochat.gpt import GPT
from nanochat.tasks.task import Task
from nanochat.tokenizer.tokenizer import Tokenizer


@dataclass
class Context:
    """The input of an evaluation. It runs on all `world_size` processes at once, and its numbers
    cover all of them. `record` takes each question that this process has judged. To continue after
    an interruption an evaluation calls `expect` with the number of its questions, and skips those
    in `recorded`, by task and index.
    """

    gpt: GPT
    tokenizer: Tokenizer
    get_data: Callable[[], Any]
    rank: int = 0
    world_size: int = 1
    record: Callable[[Item], None] = lambda item: None
    recorded: Mapping[tuple[str, int], Item] = field(default_factory=dict)
    expect: Callable[[int], None] = lambda questions: None

    @cached_property
    def data(self) -> Any:
        """The datamodule of the run, attached to the tokenizer. ValueError if the checkpoint has
        none."""
        return self.get_data()

    @property
    def device(self) -> torch.device:
        return self.gpt.device


# numbers are logged as `val/…`; texts are only shown
Result = dict[str, float | str | list[str]]


class Evaluation:
    """Base class. A subclass takes its settings as arguments of `__init__`,
    annotated with their types."""

    # names of numbers that may choose the best checkpoint
    lower_is_better: tuple[str, ...] = ()
    version: int = 1  # raise it when a change of the code changes the numbers
    reads_text: bool = False  # whether it reads `Context.data`
    no_matter: tuple[
        str, ...
    ] = ()  # settings that change no number, such as the place of its files

    def check(self) -> None:
        """Raise ValueError or OSError for what cannot work, such as missing data, before
        anything expensive is built."""

    def identity(self) -> dict[str, Any]:
        """What the numbers depend on besides model and settings, such as the
        hash of the questions."""
        return {}

    def __call__(self, context: Context) -> Result:
        raise NotImplementedError


def build_evaluations(settings: dict[str, Any] | None) -> dict[str, Evaluation]:
    """The evaluations of a composed `evals`, by name; null is left out. `every` is the caller's."""
    kept = {
        name: {k: v for k, v in one.items() if k != "every"}
        for name, one in (settings or {}).items()
        if one
    }
    return {name: instantiate(one) for name, one in kept.items()}


def task_of(settings: dict[str, Any], split: str | None) -> Task:
    """Build a task from its settings, with `split` if it has splits and one is given.
    ValueError if it has no score."""
    task: Task = instantiate(
        {**settings, "split": split} if split and "split" in settings else settings
    )
    if task.kind == "chat":
        raise ValueError(
            f"{task.name} cannot be scored: nothing in it is right or wrong; leave it out"
        )
    return task
