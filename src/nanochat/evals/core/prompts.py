"""The question of a CORE item: texts, few-shot examples and judged tokens, as nanochat renders
them (facts sheet 6.2)."""

import random
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from nanochat.evals.core.bundle import CoreTask
from nanochat.inference.likelihood import Continuation
from nanochat.tokenizer.tokenizer import Tokenizer

EXAMPLES_SEED = 1234  # from: facts sheet 6.2
TEMPLATE = "core"  # identifies this rendering in passports
# what reading tasks have between passage and question; LSAT's the second
PASSAGE_ENDS = re.compile(r"\n(?=Question:|Q:)")


class Asked(NamedTuple):
    """An item as it is asked. `continuations` has one entry for each choice, and
    one for a free answer."""

    prompt: str  # what is read before the answer, as text
    choices: tuple[str, ...]
    judged: tuple[str, ...]  # the text of each continuation
    gold: int | str
    continuations: list[Continuation]
    own: int = 0  # characters of `prompt` that are examples


def examples_of(task: CoreTask, order: Sequence[int], idx: int) -> list[dict[str, Any]]:
    """The few-shot examples of item order[idx], drawn from all other items, also if only a part of
    them is asked; fewer if the task has fewer items."""
    rest = [i for i in range(len(order)) if i != idx]
    drawn = random.Random(EXAMPLES_SEED + idx).sample(rest, min(task.shots, len(rest)))
    return [task.items[order[i]] for i in drawn]


def render(
    task: CoreTask, item: dict[str, Any], examples: Sequence[dict[str, Any]]
) -> tuple[list[str], str]:
    """The texts of an item and their common beginning: one text for each choice or context; for a
    free answer the stripped text without the answer and the text with it."""
    dl = task.delimiter
    blocks = "".join(f"{_solved(task, example)}\n\n" for example in examples)
    if task.kind == "multiple_choice":
        return [f"{blocks}{item['query']}{dl}{c}" for c in item["choices"]], blocks + item["query"]
    if task.kind == "schema":
        texts = [f"{blocks}{c}{dl}{item['continuation']}" for c in item["context_options"]]
        return texts, blocks
    asked = f"{blocks}{item['context'].strip()}{dl}"
    return [asked.strip(), f"{asked}{item['continuation']}"], asked


def _solved(task: CoreTask, example: dict[str, Any]) -> str:
    dl = task.delimiter
    if task.kind == "multiple_choice":
        return f"{example['query']}{dl}{example['choices'][example['gold']]}"
    if task.kind == "schema":
        return f"{example['context_options'][example['gold']]}{dl}{example['continuation']}"
    return f"{example['context'].strip()}{dl}{example['continuation']}"


def ask(
    task: CoreTask,
    item: dict[str, Any],
    examples: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    longest: int | None = None,
) -> Asked:
    """The item in tokens: a choice is judged from where the choices of the item differ to its end,
    a context by the tokens that all texts of the item end with, a free answer by its own tokens.

    A text of more than `longest` tokens loses its beginning (facts sheet 6.2); None: none does.
    """
    texts, prompt = render(task, item, examples)
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    choices = tuple(item.get("choices") or item.get("context_options") or ())
    if task.kind == "schema":
        shared = common_prefix([row[::-1] for row in ids])
        starts = [len(row) - shared for row in ids]
    else:
        starts = [common_prefix(ids)] * len(ids)
    if task.kind == "language_modeling":
        # A tokenizer may join the end of the question with the answer; then both are judged. Where
        # it does not, this is the whole text without the answer.
        ids, starts = ids[1:], starts[1:]
    cut = [max(0, len(row) - longest) if longest else 0 for row in ids]
    # if a text loses even its first judged token, only the rest is judged
    spans = [max(start, n + 1) for start, n in zip(starts, cut, strict=True)]
    continuations = [
        Continuation(row[n:start], row[start:])
        for row, n, start in zip(ids, cut, spans, strict=True)
    ]
    judged = choices if task.kind == "multiple_choice" else (item["continuation"],) * len(ids)
    gold = item["continuation"] if task.kind == "language_modeling" else item["gold"]
    own = len(prompt) - len(render(task, item, [])[1])
    return Asked(prompt, choices, judged, gold, continuations, own)


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Length of the common prefix of all rows."""
    shortest = min(map(len, rows))
    for i in range(shortest):
        if any(row[i] != rows[0][i] for row in rows):
            return i
    return shortest


def reads_a_passage(task: CoreTask) -> bool:
    """Whether every item is a question about a passage."""
    return task.kind != "schema" and all(PASSAGE_ENDS.search(_question(i)) for i in task.items)


def passage_of(item: dict[str, Any]) -> str:
    """What is before the question; of an item without a passage all of it."""
    return PASSAGE_ENDS.split(_question(item), maxsplit=1)[0]


def swapped(task: CoreTask, order: Sequence[int], idx: int) -> dict[str, Any]:
    """Item order[idx] with the passage of the next item that has a different one, to measure what
    reading it is worth. Unchanged if all have the same passage."""
    item = task.items[order[idx]]
    own = passage_of(item)
    for step in range(1, len(order)):
        other = passage_of(task.items[order[(idx + step) % len(order)]])
        if other != own:
            key = "query" if "query" in item else "context"
            return {**item, key: other + _question(item)[len(own) :]}
    return item


def _question(item: dict[str, Any]) -> str:
    return item.get("query") or item.get("context") or ""
