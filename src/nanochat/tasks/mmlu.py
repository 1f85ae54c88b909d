"""MMLU: four-choice questions over 57 subjects. nanochat trains on the split auxiliary_train and
scores on test."""

from typing import Any

from nanochat.tasks.multiple_choice import MultipleChoice

LETTERS = ("A", "B", "C", "D")


class MMLU(MultipleChoice):
    """A conversation also has its `subject`."""

    carried = ("subject",)
    columns = ("question", "subject", "choices", "answer")

    def __init__(
        self,
        *,
        name: str = "mmlu",
        dataset: str = "cais/mmlu",
        subset: str = "all",
        split: str = "auxiliary_train",
        **common: Any,
    ):
        super().__init__(name=name, dataset=dataset, subset=subset, split=split, **common)

    def problem(self, row: dict[str, Any]) -> tuple[str, list[str], list[str], str]:
        number = row["answer"]
        return (
            row["question"],
            row["choices"],
            list(LETTERS),
            LETTERS[number] if number in range(4) else str(number),
        )
