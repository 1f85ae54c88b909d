"""One question of an evaluation, as it was asked and judged: the source of tables, error
bars and the items page."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Item:
    """`scores` maps a name to one number for each of `choices`: `nats` (summed negative
    log-likelihood), `tokens` and `bytes` of the choice, and whatever else an evaluation computes.
    `gold` and `answer` are indices of `choices`. A free answer has no choices: then `gold` and
    `answer` are texts, and each score is one number, that of the right answer. For a prompt that
    did not fit, `answer` is empty and there are no scores. Questions of one `cluster`, such as
    those about one passage, depend on each other.
    """

    task: str
    index: int  # index index in the data of the task, before any subset is drawn
    prompt: str  # text that the model read before its answer, special tokens included
    choices: tuple[str, ...]
    gold: int | str
    answer: int | str
    correct: float  # 0 to 1; a fraction if there were several samples
    scores: dict[str, tuple[float, ...]] = field(default_factory=dict)
    cluster: str | None = None
    own: int = 0  # characters of `prompt` before the question itself, as of examples


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write one JSON object per line."""
    with path.open("w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")


def read_items(path: Path) -> list[Item]:
    """Read what `write_items` wrote. OSError or ValueError if that fails."""
    with path.open(encoding="utf-8") as file:
        return [_item(json.loads(line)) for line in file]


def _item(fields: dict) -> Item:  # type: ignore[type-arg]
    fields["choices"] = tuple(fields["choices"])
    fields["scores"] = {name: tuple(values) for name, values in fields["scores"].items()}
    return Item(**fields)
