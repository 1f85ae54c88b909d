"""HumanEval: finish a Python function, judged by running it with the problem's own tests (facts sheet 4.4 and 8).

A problem is solved if the program ends with code 0 and came to its last line, so that an answer that exits before the tests ran
scores nothing. An answer that looks for the judge in its own process can still claim that it did: answer and tests share an
interpreter, as in everybody's HumanEval.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nanochat.inference.execution import guards, run_python
from nanochat.tasks.hub import HubTask

FENCED = re.compile(r"```(?:python)?\n(.*?)\n```", re.DOTALL)
PROGRAMS = 8  # guess: at once, of at most a core each


class HumanEval(HubTask):
    """A conversation also has `entry_point` and `test`, which are what a completion is run with."""

    kind = "answer"
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
        guards()  # the log says, before the first program, what is not guarded
        return float(run_python(program(conversation, completion)).finished)

    def scores(self, conversations: Sequence[dict[str, Any]], completions: Sequence[str]) -> list[float]:
        guards()
        with ThreadPoolExecutor(min(PROGRAMS, os.cpu_count() or 1)) as pool:
            return list(pool.map(self.score, conversations, completions))


def program(conversation: dict[str, Any], completion: str) -> str:
    """The imports of the question, the code of the completion, the tests, and the call that runs them."""
    parts = [imports(conversation["messages"][0]["content"]), code(completion), conversation["test"]]
    return "\n\n".join(parts) + f"\ncheck({conversation['entry_point']})"


def imports(question: str) -> str:
    """The import lines before its first line of anything else; comments and empty lines are passed over.

    >>> imports("# sums\\nimport math\\n\\ndef f():\\n    import os")
    'import math'
    """
    found = []
    for line in question.split("\n"):
        if line.startswith(("import ", "from ")):
            found.append(line)
        elif line.strip() and not line.startswith("#"):
            break
    return "\n".join(found)


def code(completion: str) -> str:
    """What stands in its first fence, or all of it.

    >>> code("Here it is:\\n```python\\nx = 1\\n```\\nand that is all")
    'x = 1'
    """
    fenced = FENCED.search(completion)
    return (fenced[1] if fenced else completion).strip()
