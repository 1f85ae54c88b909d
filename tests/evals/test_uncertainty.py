"""Errors, paired differences and smooth numbers against plain computations and repeated draws."""

import math
import random

import numpy as np
import pytest

from nanochat.evals import smooth
from nanochat.evals.items import Item
from nanochat.evals.paired import interval, paired
from nanochat.evals.signal_to_noise import OfRun, lines, signal_to_noise
from nanochat.evals.uncertainty import ratio_error, standard_error


def item(index, correct, task="t", choices=("A", "B"), nats=None, cluster=None, **scores):
    if nats is not None:
        sizes = {"tokens": (1.0,) * len(nats), "bytes": (1.0,) * len(nats)}
        scores = {"nats": tuple(nats), **sizes, **scores}
    answer = 0 if correct else 1
    return Item(task, index, "", choices, 0, answer, float(correct), scores, cluster)


def test_the_error_of_independent_questions_is_the_binomial_one():
    values = [1.0] * 30 + [0.0] * 70
    assert standard_error(values) == pytest.approx(math.sqrt(0.3 * 0.7 / 99))


def test_clustered_and_ratio_errors_are_the_spread_of_repeated_draws():
    """400 draws of 200 questions in 40 passages: the mean of the computed errors is
    the spread of the means."""
    drawn = np.random.default_rng(0)
    means, ratios, errors, ratio_errors, naive = [], [], [], [], []
    clusters = [n // 5 for n in range(200)]
    for _ in range(400):
        passage = drawn.normal(0, 1, 40).repeat(5)
        values = 2 + passage + drawn.normal(0, 1, 200)
        sizes = drawn.integers(1, 20, 40).repeat(5) * 1.0
        means.append(values.mean())
        ratios.append((values * sizes).sum() / sizes.sum())
        errors.append(standard_error(values.tolist(), clusters))
        naive.append(standard_error(values.tolist()))
        ratio_errors.append(ratio_error((values * sizes).tolist(), sizes.tolist(), clusters))
    # the spread of 400 draws is known to 1 / sqrt(800), 4 %; the delta method is of first order
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)
    assert np.mean(ratio_errors) == pytest.approx(np.std(ratios), rel=0.12)
    assert np.mean(naive) < 0.65 * np.std(means)


def test_the_interval_of_a_change_holds_the_true_one_95_times_of_100():
    """Also where few questions change sides, unlike the plain interval of Wald."""
    drawn = random.Random(0)
    for to_right, to_wrong, n in ((0.03, 0.01, 60), (0.2, 0.1, 100)):
        held = 0
        for _ in range(1000):
            u = [drawn.random() for _ in range(n)]
            changes = [1.0 if x < to_right else -1.0 if x < to_right + to_wrong else 0.0 for x in u]
            low, high = interval(changes, range(n))
            held += low <= to_right - to_wrong <= high
        assert held / 1000 > 0.93  # 95 % less three standard errors of 1,000 draws


def test_two_equal_lists_still_have_an_interval():
    items = [item(n, n % 2) for n in range(50)]
    [one] = paired(items, items)
    assert (one.difference, one.to_right, one.to_wrong) == (0, 0, 0)
    assert one.low < 0 < one.high and one.bpb is None


def test_pairs_are_found_by_task_and_index_and_changes_of_sides_are_counted():
    a = [item(n, n < 6, nats=(2.0, 1.0)) for n in range(10)] + [item(99, 1), item(0, 0, task="u")]
    b = [item(n, n % 2, nats=(1.5, 1.0)) for n in reversed(range(10))] + [item(0, 1, task="u")]
    t, u = paired(a, b)
    assert (t.task, t.n, t.a, t.b, t.to_right, t.to_wrong) == ("t", 10, 0.6, 0.5, 2, 3)
    assert t.bpb == pytest.approx((-0.5 / math.log(2),) * 3)
    assert "2 became right, 3 wrong" in t.line() and "better" not in t.line()
    assert (u.n, u.to_right) == (1, 1)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ([item(7, 1)], "no question in common"),
        ([item(0, 1, choices=("A", "C"))], "question 0 of t has other choices"),
    ],
)
def test_unlike_questions_are_refused(other, said):
    with pytest.raises(ValueError, match=said):
        paired([item(0, 1)], other)


def test_the_four_rules_choose_by_their_own_measure():
    """Right is choice 0. Summed, the short one wins; per token 1, per byte 0, over its
    unconditional likelihood 0."""
    one = Item(
        *("t", 0, "", ("long one", "mid", "s"), 0, 2, 0.0),
        scores={
            "nats": (8.0, 4.0, 3.0),
            "tokens": (4.0, 4.0, 1.0),
            "bytes": (16.0, 4.0, 1.0),
            "unconditional": (12.0, 4.5, 3.0),
        },
    )
    assert [r(one) for r in (smooth.by_sum, smooth.by_token, smooth.by_byte, smooth.by_gain)] == [
        *(2, 1, 0, 0)
    ]
    share = math.exp(-8) / (math.exp(-8) + math.exp(-4) + math.exp(-3))
    assert smooth.smooth([one]) == pytest.approx(
        {
            "right_bpb": 0.5 / math.log(2),
            "right_share": share,
            "margin": (1.0 - 0.5) / math.log(2),
            "accuracy_sum": 0,
            "accuracy_token": 0,
            "accuracy_byte": 1,
            "accuracy_unconditional": 1,
        }
    )


def test_questions_that_did_not_fit_have_no_smooth_numbers():
    fit, not_fit = item(0, 1, nats=(1.0, 2.0)), item(1, 0)
    assert smooth.smooth([fit, not_fit]) == smooth.smooth([fit])
    assert smooth.smooth([not_fit]) == {}
    free = Item("t", 0, "", (), "12", "13", 0.0, {"nats": (3.0,), "tokens": (1,), "bytes": (2,)})
    assert smooth.smooth([free]) == {"right_bpb": pytest.approx(1.5 / math.log(2))}


def test_signal_over_noise_is_that_of_a_plain_computation():
    """Two recipes of two seeds with two checkpoints each; `flat` differs by noise alone."""
    values = {("a", "a1"): (1.0, 1.2), ("a", "a2"): (1.1, 1.4), ("b", "b1"): (2.0, 2.1)}
    values[("b", "b2")] = (2.2, 2.5)
    measured = [
        OfRun(recipe, run, step, {"good": value, "flat": value % 0.2, "same": 7.0})
        for (recipe, run), pair in values.items()
        for step, value in enumerate(pair)
    ]
    good, *_, last = signal_to_noise(measured[::-1])  # the order given does not matter
    assert (good.name, last.name, last.least) == ("good", "same", 0)
    assert good.signal == pytest.approx(2.3 - 1.3)
    rms = math.sqrt(np.mean([np.var(pair, ddof=1) for pair in values.values()]))
    seeds = math.sqrt(np.mean([np.var([1.2, 1.4], ddof=1), np.var([2.1, 2.5], ddof=1)]))
    assert (good.checkpoint_noise, good.seed_noise) == pytest.approx((rms, seeds))
    assert good.least == pytest.approx(1 / max(rms, seeds)) and good.same_order == 1
    assert lines([good])[2].startswith("| good | 1.0000 | ")
    [alone] = signal_to_noise(
        [measured[1]._replace(numbers={"x": 1}), measured[5]._replace(numbers={"x": 3})]
    )
    assert (alone.checkpoint_noise, alone.seed_noise, alone.same_order, alone.least) == (
        None,
        None,
        None,
        0,
    )
    with pytest.raises(ValueError, match="all of one"):
        signal_to_noise(measured[:4])
