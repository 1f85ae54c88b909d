"""Smooth numbers of questions with known answers, for models whose accuracy is still at chance.

Accuracy changes only when a choice changes. The likelihood of the right answer changes with every
step, so it ranks small models where accuracy cannot (Schaeffer et al. 2024, arXiv:2406.04391;
DataDecide: Magnusson et al. 2025, arXiv:2504.11393).

Everything is computed from the recorded items: `nats`, `tokens` and `bytes` of each choice, and, if
the evaluation asked for them, `unconditional` nats, those of the choice without its question.
"""

import math
from collections.abc import Sequence

from nanochat.evals.items import Item
from nanochat.evals.uncertainty import standard_error

BITS = 1 / math.log(2)  # of a nat


def smooth(items: Sequence[Item]) -> dict[str, float]:
    """The metrics below that the items of one task allow, by name. Left out are items
    without scores (prompts that did not fit), and rules that cannot differ because all
    choices have the same length."""
    scored = [item for item in items if _is_scored(item)]
    if not scored:
        return {}
    found = {"right_bpb": right_bpb(scored)}
    lettered = [item for item in scored if len(item.choices) > 1]
    if len(lettered) < len(scored):
        return found
    found["right_share"] = _mean([right_share(item) for item in lettered])
    found["margin"] = _mean([margin(item) for item in lettered])
    rules = {}
    if any(len(set(item.scores[size])) > 1 for item in lettered for size in ("tokens", "bytes")):
        rules = {"sum": by_sum, "token": by_token, "byte": by_byte}
    if all("unconditional" in item.scores for item in lettered):
        rules["unconditional"] = by_gain
    for name, rule in rules.items():
        found[f"accuracy_{name}"] = _mean([float(rule(item) == item.gold) for item in lettered])
    return found


def measures(items: Sequence[Item]) -> dict[str, dict[str, float]]:
    """Accuracy, standard error, number of questions and smooth numbers of each task."""
    tasks = dict.fromkeys(item.task for item in items)
    return {task: _measures([item for item in items if item.task == task]) for task in tasks}


def _measures(items: Sequence[Item]) -> dict[str, float]:
    rights = [item.correct for item in items]
    clusters = [item.cluster if item.cluster is not None else item.index for item in items]
    error = standard_error(rights, clusters)
    return {"accuracy": _mean(rights), "stderr": error, "n": len(items), **smooth(items)}


def right_bits(item: Item) -> tuple[float, float]:
    """Bits and bytes of the right answer."""
    gold = _gold(item)
    return item.scores["nats"][gold] * BITS, item.scores["bytes"][gold]


def right_bpb(items: Sequence[Item]) -> float:
    """Bits per byte of the right answers, all bits over all bytes: the task loss of model ladders
    (Bhagia et al. 2024, arXiv:2412.04403), with more signal and less noise than accuracy (Heineman
    et al. 2025, arXiv:2508.13144)."""
    bits, size = zip(*map(right_bits, items), strict=True)
    return math.fsum(bits) / math.fsum(size)


def right_share(item: Item) -> float:
    """Probability of the right choice among the choices (Schaeffer et al. 2024, arXiv:2406.04391,
    p of the correct choice over those offered)."""
    nats = item.scores["nats"]
    least = min(nats)
    weights = [math.exp(least - n) for n in nats]
    return weights[_gold(item)] / math.fsum(weights)


def margin(item: Item) -> float:
    """Bits per byte of the likeliest wrong choice minus those of the right one; above 0 it is
    chosen.

    The margin of DataDecide (arXiv:2504.11393) is a difference of probabilities; these vanish for
    long choices, hence bits per byte here.
    """
    each = [n * BITS / b for n, b in zip(item.scores["nats"], item.scores["bytes"], strict=True)]
    right = each.pop(_gold(item))
    return min(each) - right


def by_sum(item: Item) -> int:
    """The choice with the highest total likelihood, which favours short choices: `acc` of the
    lm-evaluation-harness."""
    return _least(item.scores["nats"])


def by_token(item: Item) -> int:
    """The choice with the highest likelihood per token (Brown et al. 2020, arXiv:2005.14165,
    section 2.4), as CORE scores; it depends on the tokenizer."""
    return _least(_over(item.scores["nats"], item.scores["tokens"]))


def by_byte(item: Item) -> int:
    """The choice with the highest likelihood per byte, whatever the tokenizer: `acc_norm` of the
    lm-evaluation-harness (Biderman et al. 2024, arXiv:2405.14782)."""
    return _least(_over(item.scores["nats"], item.scores["bytes"]))


def by_gain(item: Item) -> int:
    """The choice whose likelihood the question raises most: likelihood over unconditional
    likelihood (Brown et al. 2020, section 2.4; Holtzman et al. 2021, arXiv:2104.08315, PMI)."""
    pairs = zip(item.scores["nats"], item.scores["unconditional"], strict=True)
    return _least([after - alone for after, alone in pairs])


def _is_scored(item: Item) -> bool:
    """Whether every choice has a likelihood and a length above 0."""
    finite = all(map(math.isfinite, item.scores.get("nats", (math.nan,))))
    return finite and all(item.scores["bytes"])


def _gold(item: Item) -> int:
    return item.gold if isinstance(item.gold, int) else 0  # a free answer has a single score


def _over(values: Sequence[float], sizes: Sequence[float]) -> list[float]:
    return [value / size for value, size in zip(values, sizes, strict=True)]


def _least(values: Sequence[float]) -> int:
    """Index of the smallest value; the first of equal ones."""
    return min(range(len(values)), key=values.__getitem__)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
