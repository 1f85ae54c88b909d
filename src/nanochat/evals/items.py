"""One question of an evaluation, as it was asked and judged: what tables, error bars and the items
page are made from."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Item:
    """`scores` holds, by name, one number for each of `choices`: `nats` (summed negative
    log-likelihood), `tokens` and `bytes` of the choice, and what else an evaluation computes.

    A free answer has no choices; `gold` and `answer` are then texts, else indices of `choices`, and
    the one number of each of `scores` is that of the right answer. Of a prompt that did not fit,
    `answer` is empty and there are no scores. Questions of one `cluster`, as of one passage, depend
    on each other.
    """

    task: str
    index: int  # in the data of the task, before any subset is drawn
    prompt: str  # what the model read before its answer, special tokens included
    choices: tuple[str, ...]
    gold: int | str
    answer: int | str
    correct: float  # 0 to 1; between them for the share of several samples
    scores: dict[str, tuple[float, ...]] = field(default_factory=dict)
    cluster: str | None = None
    own: int = 0  # characters of `prompt` before the question itself, as of examples


def write_items(path: Path, items: Iterable[Item]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")


def read_items(path: Path) -> list[Item]:
    """What `write_items` wrote. OSError or ValueError if it cannot be read."""
    with path.open(encoding="utf-8") as file:
        return [_item(json.loads(line)) for line in file]


def _item(fields: dict) -> Item:  # type: ignore[type-arg]
    fields["choices"] = tuple(fields["choices"])
    fields["scores"] = {name: tuple(values) for name, values in fields["scores"].items()}
    return Item(**fields)
