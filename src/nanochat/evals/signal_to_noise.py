"""Which metrics can distinguish runs of this size: the spread between recipes over the spread
within a recipe (Heineman et al. 2025, Signal and Noise, arXiv:2508.13144).

Signal is the largest difference between two recipes, each the mean of its seeds' last checkpoints.
Noise is the standard deviation over the neighbouring checkpoints of one run, and over the seeds of
one recipe; each is the root mean square over runs or recipes. The paper divides both by the mean,
which cancels in their ratio.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import NamedTuple

from nanochat.evals.uncertainty import deviation


class OfRun(NamedTuple):
    """The numbers of a checkpoint, with its run and recipe."""

    recipe: str
    run: str
    step: int
    numbers: Mapping[str, float]


class Ratio(NamedTuple):
    """Signal and noise of one metric. A noise is None without two checkpoints of a run, or two
    seeds of a recipe, and so are the ratios that need it."""

    name: str
    signal: float
    checkpoint_noise: float | None
    seed_noise: float | None
    same_order: (
        float | None
    )  # fraction of pairs of runs, of two recipes, whose order is that of the means

    @property
    def per_checkpoint(self) -> float | None:
        return _over(self.signal, self.checkpoint_noise)

    @property
    def per_seed(self) -> float | None:
        return _over(self.signal, self.seed_noise)

    @property
    def least(self) -> float:
        """The smaller of the two ratios; 0 if neither is known."""
        return min((r for r in (self.per_checkpoint, self.per_seed) if r is not None), default=0.0)


def signal_to_noise(measured: Sequence[OfRun]) -> list[Ratio]:
    """Each metric that all checkpoints have, the most discriminating first. ValueError for
    fewer than two recipes."""
    names = [name for name in measured[0].numbers if all(name in m.numbers for m in measured)]
    if len({m.recipe for m in measured}) < 2:
        raise ValueError(
            "signal-to-noise compares recipes, and these checkpoints are all of one; add those of "
            "another run"
        )
    return sorted((_ratio(name, measured) for name in names), key=lambda ratio: -ratio.least)


def _ratio(name: str, measured: Sequence[OfRun]) -> Ratio:
    runs: dict[tuple[str, str], list[OfRun]] = defaultdict(list)
    for one in measured:
        runs[one.recipe, one.run].append(one)
    last: dict[str, list[float]] = defaultdict(list)  # for each recipe, a value for each seed
    for (recipe, _), each in runs.items():
        last[recipe].append(max(each, key=lambda m: m.step).numbers[name])
    means = {recipe: math.fsum(values) / len(values) for recipe, values in last.items()}
    within = [[m.numbers[name] for m in each] for each in runs.values()]
    pairs = [
        (x - y) * (means[a] - means[b]) > 0
        for a, b in combinations(last, 2)
        for x, y in product(last[a], last[b])
    ]
    seeded = any(len(values) > 1 for values in last.values())
    return Ratio(
        name,
        signal=max(means.values()) - min(means.values()),
        checkpoint_noise=_rms([deviation(v) for v in within if len(v) > 1]),
        seed_noise=_rms([deviation(v) for v in last.values() if len(v) > 1]),
        same_order=sum(pairs) / len(pairs) if seeded else None,
    )


def lines(ratios: Sequence[Ratio]) -> list[str]:
    """A table in Markdown, with a title line that defines the ratio."""
    rows = ["| number | signal | noise of checkpoints | of seeds | signal/noise | same order |"]
    rows.append("|---|---|---|---|---|---|")
    for r in ratios:
        share = "" if r.same_order is None else f"{r.same_order:.0%}"
        cells = (r.signal, r.checkpoint_noise, r.seed_noise)
        shown = " | ".join("" if cell is None else f"{cell:.4f}" for cell in cells)
        rows.append(f"| {r.name} | {shown} | {r.least:.1f} | {share} |")
    return rows


def _rms(values: Sequence[float]) -> float | None:
    return math.sqrt(math.fsum(v * v for v in values) / len(values)) if values else None


def _over(signal: float, noise: float | None) -> float | None:
    """0 without a difference, whatever the noise; infinite for a difference without noise."""
    if noise is None:
        return None
    return signal / noise if noise else math.inf if signal else 0.0
