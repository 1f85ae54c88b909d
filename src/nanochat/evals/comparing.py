"""What is said about the results of checkpoints besides the table: errors and smooth numbers of
each task, two checkpoints paired, and of more which numbers can tell them apart."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat.checkpoint import folder
from nanochat.evals.items import Item
from nanochat.evals.paired import ITEM_NOISE, paired
from nanochat.evals.signal_to_noise import OfRun, lines, signal_to_noise
from nanochat.evals.smooth import measures

# settings of a run that make its recipe; of these, `seed` is left out wherever it is
RECIPE = "phase model arch data tokenizer optim plan max_steps batch_tokens module".split()
COUNTS = ("stderr", "n", "tokens")  # ends of names of numbers that do not rank anything


def task_lines(items: Sequence[Item], results: Mapping[str, Any]) -> list[str]:
    """Of each task the accuracy with its standard error, the number of questions, and the smooth
    numbers; of those that are not among the results already."""
    found = []
    for task, own in measures(items).items():
        if f"{task}_stderr" in results:
            continue
        rest = {key: value for key, value in own.items() if key not in ("accuracy", "stderr", "n")}
        smooth = "".join(f", {key} {value:.4f}" for key, value in rest.items())
        found.append(f"{task}: {own['accuracy']:.4f} ± {own['stderr']:.4f} of {own['n']:,}{smooth}")
    return found


def pair_lines(a: Sequence[Item], b: Sequence[Item]) -> list[str]:
    """Two checkpoints on the same questions, and what their difference does not say."""
    return [*(change.line() for change in paired(a, b)), ITEM_NOISE]


def noise_lines(
    checkpoints: Sequence[Path],
    results: Sequence[Mapping[str, Any]],
    items: Sequence[Sequence[Item]],
) -> list[str]:
    """The signal-to-noise table of three or more checkpoints; why not, where it cannot be made."""
    measured = [
        OfRun(recipe_of(path), str(path.parent.parent), step_of(path), numbers_of(own, asked))
        for path, own, asked in zip(checkpoints, results, items, strict=True)
    ]
    try:
        return lines(signal_to_noise(measured))
    except ValueError as error:
        return [f"no signal-to-noise: {error}"]


def numbers_of(results: Mapping[str, Any], items: Sequence[Item]) -> dict[str, float]:
    """The numbers of a checkpoint that may rank it: those of its tasks, and results that are not of
    a task."""
    tasks = measures(items)
    found = {
        key: value
        for key, value in results.items()
        if isinstance(value, float)
        and not any(task in key for task in tasks)
        and not key.endswith(COUNTS)
    }
    for task, own in tasks.items():
        found |= {f"{task} {key}": value for key, value in own.items() if key not in COUNTS}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def recipe_of(checkpoint: Path) -> str:
    """What its run was set to, without seeds; of a checkpoint without lineage its path."""
    try:
        config = folder.read_lineage(checkpoint)["config"]
    except (OSError, ValueError, KeyError):
        return str(checkpoint)
    return str(_without_seed({key: config.get(key) for key in RECIPE}))


def step_of(checkpoint: Path) -> int:
    digits = checkpoint.name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else 0


def _without_seed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_seed(v) for key, v in sorted(value.items()) if key != "seed"}
