"""Standard errors of results on questions, which are a sample of all that could be asked
(Miller 2024, Adding Error Bars to Evals, arXiv:2411.00640).

The error of one model says how much the result would vary with other questions. It says nothing
about other seeds of the same recipe: that noise needs several runs (evals/signal_to_noise.py).
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

Z95 = 1.96  # from: the normal distribution, 95 % of which is within so many standard deviations


def standard_error(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """Standard error of the mean of `values`, one for each question (Miller, sections 2.1 and 2.2).

    With `clusters`, the passage or subject of each question, questions of one cluster may
    depend on each other: deviations are summed within a cluster before they are squared.
    Without, each question is its own cluster; for right and wrong this is the binomial error
    with n - 1. NaN for one cluster.

    >>> round(standard_error([1, 0, 0, 1]), 4), round(standard_error([1, 1, 0, 0], "aabb"), 4)
    (0.2887, 0.5)
    """
    n = len(values)
    mean = math.fsum(values) / n
    sums: dict[Hashable, float] = defaultdict(float)
    for key, value in zip(clusters or range(n), values, strict=True):
        sums[key] += value - mean
    groups = len(sums)
    if groups < 2:
        return math.nan
    return math.sqrt(math.fsum(s * s for s in sums.values()) * groups / (groups - 1)) / n


def ratio_error(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
) -> float:
    """Standard error of sum(numerators) / sum(denominators), such as bits over bytes: that of the
    mean residual, divided by the mean denominator (the delta method; Cochran 1977, Sampling
    Techniques, section 6.3)."""
    ratio = math.fsum(numerators) / math.fsum(denominators)
    rest = [a - ratio * b for a, b in zip(numerators, denominators, strict=True)]
    return standard_error(rest, clusters) * len(rest) / math.fsum(denominators)


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of a sample, with n - 1; NaN for a single value."""
    return standard_error(values) * math.sqrt(len(values))
