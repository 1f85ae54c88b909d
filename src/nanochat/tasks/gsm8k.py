"""GSM8K: grade-school word problems, answered step by step with calls of the calculator (facts
sheet 4.4).

The data set writes a calculation as `<<48/2=24>>`; here it becomes a tool call and its result. The
grader is the strict one of published scores: the first `#### number` of the completion, compared as
a string.
"""

import re
from typing import Any

from nanochat.tasks.hub import HubTask
from nanochat.tasks.task import last_answer

CALL = re.compile(r"(<<[^>]+>>)")
ANSWER = re.compile(r"#### (\-?[0-9\.\,]+)")


class GSM8K(HubTask):
    kind = "answer"
    columns = ("question", "answer")

    def __init__(
        self,
        *,
        name: str = "gsm8k",
        dataset: str = "openai/gsm8k",
        subset: str = "main",
        split: str = "train",
        **common: Any,
    ):
        super().__init__(name=name, dataset=dataset, subset=subset, split=split, **common)

    def conversation(self, i: int) -> dict[str, Any]:
        row = self.row(i)
        return {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": parts(row["answer"])},
            ]
        }

    def score(self, conversation: dict[str, Any], completion: str) -> float:
        return score_marked(conversation, completion)

    def reference(self, conversation: dict[str, Any]) -> str | None:
        return marked(last_answer(conversation))


def parts(answer: str) -> list[dict[str, str]]:
    """An answer of the data set as parts.

    >>> [part["text"] for part in parts("48/2 = <<48/2=24>>24 clips")]
    ['48/2 = ', '48/2', '24', '24 clips']
    """
    made = []
    for piece in CALL.split(answer):
        if CALL.fullmatch(piece):
            inside = piece[2:-2]
            expression, equals, result = inside.rpartition("=")
            made.append({"type": "python", "text": expression if equals else inside})
            made.append({"type": "python_output", "text": result if equals else ""})
        else:
            made.append({"type": "text", "text": piece})
    return made


def marked(text: str) -> str | None:
    """The number after the first `#### `, without commas; None if there is none. "12." and "12.0"
    are not "12".

    >>> marked("so she has #### 1,200")
    '1200'
    """
    match = ANSWER.search(text)
    return match[1].strip().replace(",", "") if match else None


def score_marked(conversation: dict[str, Any], completion: str) -> float:
    """1.0 if completion and last text of the conversation mark the same number, else 0.0."""
    wanted = marked(last_answer(conversation))
    return float(wanted is not None and marked(completion) == wanted)
