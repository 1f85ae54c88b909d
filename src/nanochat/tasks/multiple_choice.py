"""Questions with lettered answers. The wording equals nanochat's byte for byte, because published
models were trained on it.

The letter directly follows `=`, so that it is the same token there and in the answer (facts sheet
4.4).
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from nanochat.tasks.hub import HubTask
from nanochat.tokenizer.conversations import BadConversation


def prompt(question: str, choices: Sequence[str], letters: Sequence[str]) -> str:
    lines = "".join(
        f"- {choice}={letter}\n" for choice, letter in zip(choices, letters, strict=True)
    )
    return (
        f"Multiple Choice question: {question}\n{lines}\nRespond only with the letter of the "
        "correct answer."
    )


class MultipleChoice(HubTask):
    """A conversation has `letters`, one of which is the answer, and the fields of its row that
    `carried` names."""

    kind = "choice"
    carried: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def problem(self, row: dict[str, Any]) -> tuple[str, list[str], list[str], str]:
        """Question, choices, letters of the choices, and the right letter."""

    def conversation(self, i: int) -> dict[str, Any]:
        row = self.row(i)
        question, choices, letters, answer = self.problem(row)
        if len(choices) != len(letters) or answer not in letters:
            raise BadConversation(
                f"{self.where(i)}: the answer {answer!r} is not one of {len(choices)} choices "
                f"{letters}"
            )
        return {
            "messages": [
                {"role": "user", "content": prompt(question, choices, letters)},
                {"role": "assistant", "content": answer},
            ],
            "letters": letters,
            **{key: row[key] for key in self.carried},
        }

    def score(self, conversation: dict[str, Any], completion: str) -> float:
        return float(completion.strip() == conversation["messages"][-1]["content"])

    def reference(self, conversation: dict[str, Any]) -> str | None:
        return str(conversation["messages"][-1]["content"])
