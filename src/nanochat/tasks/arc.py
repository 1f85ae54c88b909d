"""ARC: grade-school science questions of the AI2 Reasoning Challenge, easy and challenge sets. The
letters are those of the row: A to E or 1 to 4."""

from typing import Any

from nanochat.tasks.multiple_choice import MultipleChoice


class ARC(MultipleChoice):
    columns = ("question", "choices", "answerKey")

    def __init__(
        self,
        *,
        name: str = "arc",
        dataset: str = "allenai/ai2_arc",
        subset: str = "ARC-Easy",
        split: str = "train",
        **common: Any,
    ):
        super().__init__(name=name, dataset=dataset, subset=subset, split=split, **common)

    def problem(self, row: dict[str, Any]) -> tuple[str, list[str], list[str], str]:
        return row["question"], row["choices"]["text"], row["choices"]["label"], row["answerKey"]
