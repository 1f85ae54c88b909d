"""HumanEval: complete a Python function; scored by running it with the tests of the problem (facts
sheet 4.4 and 8).

A problem is solved if the program exits with code 0 and reached its last line, so that an answer
that exits before the tests scores 0. Answer and tests share an interpreter, as in every HumanEval,
so an answer that manipulates the tests can still pass.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nanochat.sandbox.execution import find_guards, run_python
from nanochat.tasks.hub import HubTask

FENCED = re.compile(r"```(?:python)?\s*\n(.*?)\n```", re.DOTALL)
PROGRAMS = 8  # guess: at once, of at most one core each


class HumanEval(HubTask):
    """A conversation also has `entry_point` and `test`, with which a completion is run."""

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
        find_guards()  # logs, before the first program, what is not guarded
        return float(run_python(program(conversation, completion)).finished)

    def scores(
        self, conversations: Sequence[dict[str, Any]], completions: Sequence[str]
    ) -> list[float]:
        find_guards()
        with ThreadPoolExecutor(min(PROGRAMS, os.cpu_count() or 1)) as pool:
            return list(pool.map(self.score, conversations, completions))


def program(conversation: dict[str, Any], completion: str) -> str:
    """The program to run: imports of the question, code of the completion, tests, and the call of
    the tests."""
    parts = [
        imports(conversation["messages"][0]["content"]),
        code(completion),
        conversation["test"],
    ]
    return "\n\n".join(parts) + f"\ncheck({conversation['entry_point']})"


def imports(question: str) -> str:
    """The import lines before the first line of anything else; comments and empty lines are
    skipped.

    >>> imports("# sums\\nimport math\\n\\ndef f():\\n    import os")
    'import math'
    """
    found = []
    for line in map(str.strip, question.split("\n")):
        if line.startswith(("import ", "from ")):
            found.append(line)
        elif line and not line.startswith("#"):
            break
    return "\n".join(found)


def code(completion: str) -> str:
    """The content of the first fenced block; without a fence, the whole completion.

    >>> code("Here it is:\\n```python\\nx = 1\\n```\\nand that is all")
    'x = 1'
    """
    fenced = FENCED.search(completion)
    return (fenced[1] if fenced else completion).strip()
