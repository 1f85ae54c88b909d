"""What an evaluation is: a class whose instances take a `Context` and give numbers.

`conf/eval/NAME.yaml` names the class with its settings. The same object is run while training
(callbacks/evaluate.py) and by `python -m nanochat.evaluate`, so both give the same number.
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
    """What an evaluation may look at. It runs on all `world_size` processes at once; numbers are
    those of all of them together.

    `record` takes each question that this process has judged. An evaluation that can go on where it
    was calls `expect` with the number of its questions, and does not ask those in `recorded` again:
    they are by task and index.
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


# numbers are logged as `val/…`; a text, or a text for each line, is only shown
Result = dict[str, float | str | list[str]]


class Evaluation:
    """Base of the evaluations. A subclass takes its settings as arguments of `__init__`, annotated
    with their types."""

    # those of its numbers that may choose the best checkpoint
    lower_is_better: tuple[str, ...] = ()
    version: int = 1  # one more whenever a change of the code changes its numbers
    reads_text: bool = False  # whether its numbers are those of `Context.data`
    no_matter: tuple[str, ...] = ()  # settings that change no number, as where its files are

    def check(self) -> None:
        """Raise ValueError or OSError for what cannot work, before anything heavy is built: are the
        data there?"""

    def identity(self) -> dict[str, Any]:
        """What its numbers depend on apart from model and settings: which questions are in the
        files."""
        return {}

    def __call__(self, context: Context) -> Result:
        raise NotImplementedError


def build_evaluations(settings: dict[str, Any] | None) -> dict[str, Evaluation]:
    """The evaluations of a composed `evals`, by name; null is left out. `every` is for who runs
    them."""
    kept = {
        name: {k: v for k, v in one.items() if k != "every"}
        for name, one in (settings or {}).items()
        if one
    }
    return {name: instantiate(one) for name, one in kept.items()}


def task_of(settings: dict[str, Any], split: str | None) -> Task:
    """A task from its settings, of `split` where it has several and one is named. ValueError if
    nothing in it is right or wrong."""
    task: Task = instantiate(
        {**settings, "split": split} if split and "split" in settings else settings
    )
    if task.kind == "chat":
        raise ValueError(
            f"{task.name} cannot be scored: nothing in it is right or wrong; leave it out"
        )
    return task
