"""Two checkpoints on the same questions: their difference, and how much it would
vary with other questions.

That is the noise of the questions alone. Another seed of the same recipe changes results too: CORE
by 0.006, bits per byte by 0.0002 (karpathy/nanochat#807). One pair of checkpoints therefore cannot
decide between recipes; `signal_to_noise` takes several.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from nanochat.evals.items import Item
from nanochat.evals.smooth import right_bits
from nanochat.evals.uncertainty import Z95, ratio_error, standard_error

# from: Agresti and Min 2005, Simple improved confidence intervals for comparing matched
# proportions: two more questions, half of one becoming right and half of one becoming wrong, whose
# squares sum to 1. Without them two equal lists would have an interval of no width.
ADDED = (math.sqrt(0.5), -math.sqrt(0.5))
ITEM_NOISE = (
    "intervals are of the questions alone (95 %): another seed of the same recipe moves CORE by "
    "0.006 and bits per byte by 0.0002 (karpathy/nanochat#807), so one pair of checkpoints does "
    "not decide"
)


class Change(NamedTuple):
    """Results on one task: the accuracies, their difference b - a with its interval, and
    how many questions became right or wrong; the same for bits per byte of the right
    answer, if both have it."""

    task: str
    n: int
    a: float
    b: float
    low: float
    high: float
    to_right: int
    to_wrong: int
    bpb: tuple[float, float, float] | None  # b - a, low, high

    @property
    def difference(self) -> float:
        return self.b - self.a

    def line(self) -> str:
        """One line of a report."""
        text = (
            f"{self.task}: {self.a:.4f} and {self.b:.4f} of {self.n:,}, difference "
            f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}]; {self.to_right} became "
            f"right, {self.to_wrong} wrong"
        )
        if self.bpb is None:
            return text
        middle, low, high = self.bpb
        return f"{text}; bits per byte of the right answer {middle:+.4f} [{low:+.4f}, {high:+.4f}]"


def paired(a: Sequence[Item], b: Sequence[Item]) -> list[Change]:
    """Each task of `a` and `b`, over the questions that both were asked. ValueError if there are
    none, or if a question differs between the two."""
    in_b = {(item.task, item.index): item for item in b}
    both = [(one, in_b[one.task, one.index]) for one in a if (one.task, one.index) in in_b]
    if not both:
        raise ValueError("the two checkpoints have no question in common; evaluate both alike")
    for one, other in both:
        if (one.choices, one.gold) != (other.choices, other.gold):
            raise ValueError(
                f"question {one.index} of {one.task} has other choices or another answer in the "
                "second checkpoint's results; evaluate both with the same data and settings"
            )
    tasks = dict.fromkeys(one.task for one, _ in both)
    return [_task(task, [pair for pair in both if pair[0].task == task]) for task in tasks]


def _task(task: str, pairs: list[tuple[Item, Item]]) -> Change:
    changes = [other.correct - one.correct for one, other in pairs]
    clusters = [one.cluster if one.cluster is not None else one.index for one, _ in pairs]
    low, high = interval(changes, clusters)
    return Change(
        task=task,
        n=len(pairs),
        a=math.fsum(one.correct for one, _ in pairs) / len(pairs),
        b=math.fsum(other.correct for _, other in pairs) / len(pairs),
        low=low,
        high=high,
        to_right=sum(change > 0 for change in changes),
        to_wrong=sum(change < 0 for change in changes),
        bpb=_bpb(pairs, clusters),
    )


def interval(changes: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float]:
    """95 % interval of the mean change, each between -1 and 1, of paired questions (Miller 2024,
    arXiv:2411.00640, section 4; ends as by Agresti and Min 2005)."""
    values = [*changes, *ADDED]
    error = standard_error(values, [*clusters, *(("added", x) for x in ADDED)])
    middle = math.fsum(values) / len(values)
    return max(-1.0, middle - Z95 * error), min(1.0, middle + Z95 * error)


def _bpb(
    pairs: list[tuple[Item, Item]], clusters: Sequence[Hashable]
) -> tuple[float, float, float] | None:
    if not all("nats" in item.scores for pair in pairs for item in pair) or len(pairs) < 2:
        return None
    bits = [right_bits(other)[0] - right_bits(one)[0] for one, other in pairs]
    sizes = [right_bits(one)[1] for one, _ in pairs]
    middle, error = math.fsum(bits) / math.fsum(sizes), ratio_error(bits, sizes, clusters)
    return middle, middle - Z95 * error, middle + Z95 * error
