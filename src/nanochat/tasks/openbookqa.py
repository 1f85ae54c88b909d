"""OpenBookQA: elementary science questions. Together with ARC it replaces MMLU's auxiliary_train,
which was made from both."""

from typing import Any

from nanochat.tasks.multiple_choice import MultipleChoice


class OpenBookQA(MultipleChoice):
    columns = ("question_stem", "choices", "answerKey")

    def __init__(
        self,
        *,
        name: str = "openbookqa",
        dataset: str = "allenai/openbookqa",
        subset: str = "main",
        split: str = "train",
        **common: Any,
    ):
        super().__init__(name=name, dataset=dataset, subset=subset, split=split, **common)

    def problem(self, row: dict[str, Any]) -> tuple[str, list[str], list[str], str]:
        return (
            row["question_stem"],
            row["choices"]["text"],
            row["choices"]["label"],
            row["answerKey"],
        )
