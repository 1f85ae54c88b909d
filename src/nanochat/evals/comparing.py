"""What follows the table of results: errors and smooth numbers of each task for one checkpoint,
paired differences for two, and signal-to-noise for three or more."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat.checkpoint import folder
from nanochat.evals.items import Item
from nanochat.evals.paired import ITEM_NOISE, paired
from nanochat.evals.signal_to_noise import OfRun, lines, signal_to_noise
from nanochat.evals.smooth import measures

# settings of a run that define its recipe, without any `seed` in them
RECIPE = "phase model arch data tokenizer optim plan max_steps batch_tokens module".split()
COUNTS = ("stderr", "n", "tokens")  # suffixes of numbers that do not rank checkpoints


def task_lines(items: Sequence[Item], results: Mapping[str, Any]) -> list[str]:
    """For each task accuracy with its standard error, number of questions, and smooth numbers,
    where they are not among the results already."""
    found = []
    for task, own in measures(items).items():
        if f"{task}_stderr" in results:
            continue
        rest = {key: value for key, value in own.items() if key not in ("accuracy", "stderr", "n")}
        smooth = "".join(f", {key} {value:.4f}" for key, value in rest.items())
        found.append(f"{task}: {own['accuracy']:.4f} ± {own['stderr']:.4f} of {own['n']:,}{smooth}")
    return found


def pair_lines(a: Sequence[Item], b: Sequence[Item]) -> list[str]:
    """Paired differences of two checkpoints on the same questions, with a note on their limits."""
    return [*(change.line() for change in paired(a, b)), ITEM_NOISE]


def noise_lines(
    checkpoints: Sequence[Path],
    results: Sequence[Mapping[str, Any]],
    items: Sequence[Sequence[Item]],
) -> list[str]:
    """The signal-to-noise table of three or more checkpoints, or the reason why there is none."""
    measured = [
        OfRun(recipe_of(path), str(path.parent.parent), step_of(path), numbers_of(own, asked))
        for path, own, asked in zip(checkpoints, results, items, strict=True)
    ]
    try:
        return lines(signal_to_noise(measured))
    except ValueError as error:
        return [f"no signal-to-noise: {error}"]


def numbers_of(results: Mapping[str, Any], items: Sequence[Item]) -> dict[str, float]:
    """The numbers by which checkpoints may be ranked: those of tasks, and other results."""
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
    """The settings of its run without seeds; for a checkpoint without lineage its path."""
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
