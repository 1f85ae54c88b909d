"""HumanEval: finish a Python function, judged by running it.

Nothing runs a model's code yet, so nothing is scored yet: its kind is chat, so that an evaluation refuses it before it decodes.
"""

from typing import Any

from nanochat.tasks.hub import HubTask


class HumanEval(HubTask):
    """A conversation also has `entry_point` and `test`, which are what a completion is to be run with."""

    kind = "chat"
    columns = ("prompt", "canonical_solution", "entry_point", "test")

    def __init__(
        self,
        *,
        name: str = "humaneval",
        dataset: str = "openai/openai_humaneval",
        subset: str = "openai_humaneval",
        split: str = "test",
        **common: Any,
    ):
        super().__init__(name=name, dataset=dataset, subset=subset, split=split, **common)

    def conversation(self, i: int) -> dict[str, Any]:
        row = self.row(i)
        return {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": f"{row['prompt']}\n{row['canonical_solution']}"},
            ],
            "entry_point": row["entry_point"],
            "test": row["test"],
        }

    def score(self, conversation: dict[str, Any], completion: str) -> float:
        raise ValueError(
            f"{self.name} is scored by running what the model wrote, which is not supported yet; leave it out of what is scored"
        )
