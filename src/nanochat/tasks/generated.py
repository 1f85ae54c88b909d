"""Tasks whose conversations are generated, conversation i by a random generator with seed i.

What a model is tested on (a word, a problem, a function) is held out by its hash, so that training
never contains it, whatever the sizes of the two splits.
"""

from random import Random
from typing import Annotated, Any, Literal

from pydantic import Field

from nanochat.tasks.task import Task, whole

TEST_SEEDS = 10_000_000  # from: facts sheet 4.4; first seed of the test split
Size = Annotated[int, Field(ge=1, le=TEST_SEEDS)]
Split = Literal["train", "test"]


class Generated(Task):
    """`size` conversations of `split`, train or test."""

    def __init__(self, *, size: Size, split: Split, **common: Any):
        super().__init__(**common)
        self.size = whole("size", size, 1)
        if size > TEST_SEEDS:
            raise ValueError(
                f"size={size} is above {TEST_SEEDS:,}, the first seed of the test split; lower "
                "`size`"
            )
        if split not in ("train", "test"):
            raise ValueError(f"split={split} is not known; set `split` to train or test")
        self.split = split

    def total(self) -> int:
        return self.size

    def random(self, i: int) -> Random:
        """The random generator of conversation i; train and test use different seeds."""
        return Random(i if self.split == "train" else TEST_SEEDS + i)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "size": self.size, "split": self.split}


def checked_fraction(key: str, value: float, *, zero: bool = False) -> float:
    """`value` if it is between 0 and 1 (0 included with `zero`), else ValueError."""
    if not isinstance(value, int | float) or not (0 < value < 1 or (zero and value == 0)):
        off = ", or 0 to share everything between train and test" if zero else ""
        raise ValueError(f"{key}={value} must be between 0 and 1{off}; try {key}: 0.1")
    return value
