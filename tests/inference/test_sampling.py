"""The draw against its definition written out token by token, and rows with settings of their own
against each row alone."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_networks import plain_distribution

from nanochat.inference.sampling import Sampling, draw

SETTINGS = [
    Sampling(),
    Sampling(temperature=0.5),
    Sampling(temperature=1e-6),
    Sampling(temperature=2.0, top_k=4),
    Sampling(top_k=1000),
    Sampling(top_p=0.75),
    Sampling(temperature=3.0, top_p=0.5),
    Sampling(min_p=0.2),
    Sampling(min_p=1.0),
    Sampling(repetition_penalty=1.7),
    Sampling(repetition_penalty=0.6, top_k=7),
    Sampling(temperature=1.4, top_k=6, top_p=0.8),
    Sampling(temperature=0.8, top_k=9, top_p=0.9, min_p=0.15, repetition_penalty=1.3),
]
LOGITS = torch.tensor([1.0, -2.0, 0.5, 2.0, 0.0, -0.5, 1.9, -1.0, 0.3, -3.0, 1.2])
SEEN = {0, 3, 5, 9}  # likely and unlikely, above and below 0
MARKS = np.array([token in SEEN for token in range(len(LOGITS))])


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_frequencies_and_logprobs_are_those_of_the_plain_definition(sampling):
    true = plain_distribution(LOGITS, sampling, SEEN)
    n = 4_000
    uniform = [(k + 0.5) / n for k in range(n)]
    drawn = draw(LOGITS.expand(n, -1), [sampling] * n, uniform, [MARKS] * n)
    found = torch.bincount(torch.tensor([token.id for token in drawn]), minlength=len(LOGITS)) / n
    expected = torch.tensor([true.get(token, 0.0) for token in range(len(LOGITS))])
    # evenly spread numbers: off by one at each border
    torch.testing.assert_close(found, expected, rtol=0, atol=2 / n)
    for token in {token.id: token for token in drawn}.values():
        assert token.logprob == pytest.approx(math.log(true[token.id]), abs=1e-5)


def test_the_settings_above_cut_something():
    sizes = [len(plain_distribution(LOGITS, sampling, SEEN)) for sampling in SETTINGS]
    assert sizes == [11, 11, 11, 4, 11, 4, 4, 5, 1, 11, 7, 4, 5]


@pytest.mark.parametrize("penalty", [None, 2.0])
def test_temperature_0_takes_the_likeliest_after_the_penalty(penalty):
    sampling = Sampling(temperature=0, repetition_penalty=penalty, top_k=3, top_p=0.1)
    (token,) = draw(LOGITS[None], [sampling], [0.9], [MARKS])
    assert token.id == (3 if penalty is None else 6)
    of_temperature_1 = plain_distribution(LOGITS, Sampling(repetition_penalty=penalty), SEEN)
    assert token.logprob == pytest.approx(math.log(of_temperature_1[token.id]), abs=1e-5)


def random_rows(
    n: int, V: int
) -> tuple[torch.Tensor, list[Sampling], list[float], list[np.ndarray]]:
    """Logits with many ties, as bf16 gives them, and settings of all sorts."""
    drawn = random.Random(0)
    logits = (3 * torch.randn(n, V, generator=torch.Generator().manual_seed(0))).bfloat16().float()
    samplings = [
        Sampling(
            temperature=drawn.choice([0, 0.5, 1, 1, 2]),
            top_k=drawn.choice([None, None, 1, 5, 40, V + 1]),
            top_p=drawn.choice([None, None, 1, 0.3, 0.9]),
            min_p=drawn.choice([None, None, 0, 0.1]),
            repetition_penalty=drawn.choice([None, None, 1, 0.8, 1.5]),
            top_logprobs=drawn.choice([0, 3]),
        )
        for _ in range(n)
    ]
    marks = np.random.default_rng(0).random((n, V)) < 0.3
    return logits, samplings, [drawn.random() for _ in range(n)], list(marks)


def test_rows_with_their_own_settings_are_as_alone():
    """The same bits: which order a row is drawn in is not for its neighbours to decide, also where
    logits are equal."""
    logits, samplings, uniform, marks = random_rows(60, 500)
    together = draw(logits, samplings, uniform, marks)
    for row in range(60):
        part = slice(row, row + 1)
        assert draw(logits[part], samplings[part], uniform[part], marks[part]) == [together[row]]
    assert len({sampling.order for sampling in samplings}) > 5


def test_a_neighbour_with_top_p_cuts_nothing_of_a_row_without():
    """Here the first token's probability rounds to 1; the others are still possible."""
    logits, sampling = torch.tensor([[30.0, 1.0, 0.0, 2.0]]), Sampling(top_k=3, top_logprobs=3)
    (alone,) = draw(logits, [sampling], [0.5])
    together = draw(logits.expand(2, -1), [sampling, Sampling(top_k=3, top_p=0.9)], [0.5, 0.5])
    assert [token for token, _ in alone.top] == [0, 3, 1]
    assert together[0] == alone


def test_alternatives_are_the_likeliest_of_what_is_left():
    logits, samplings, uniform, marks = random_rows(60, 500)
    for n, sampling, token, mark in zip(
        range(60), samplings, draw(logits, samplings, uniform, marks), marks, strict=True
    ):
        warm = replace(sampling, temperature=1, top_k=None, top_p=None, min_p=None)
        true = plain_distribution(
            logits[n],
            sampling if sampling.temperature else warm,
            set(np.flatnonzero(mark).tolist()),
        )
        best = sorted(true.values(), reverse=True)[: sampling.top_logprobs]
        assert [value for _, value in token.top] == pytest.approx(
            [math.log(p) for p in best], abs=1e-4
        )
        for other, value in token.top:
            assert value == pytest.approx(math.log(true[other]), abs=1e-4)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(top_p=0.999), Sampling(top_k=60), Sampling(min_p=1e-9)],
    ids=str,
)
def test_the_ends_of_the_distribution_are_tokens_that_may_be(sampling):
    logits = torch.full((2, 100), -200.0)
    logits[:, 40:60] = torch.arange(20.0)
    ends = [token.id for token in draw(logits, [sampling] * 2, [0.0, 1 - 2**-24])]
    assert set(ends) <= set(range(40, 60)) and ends[0] != ends[1]


def test_a_number_just_below_1_is_found_however_the_sum_is_rounded():
    logits = torch.rand(500, 3000, generator=torch.Generator().manual_seed(0))
    drawn = draw(logits, [Sampling()] * 500, [1 - 2**-24] * 500)
    assert max(token.id for token in drawn) == 2999


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, 1e-7, math.nan, math.inf, "1", None, True]),
        ("top_k", [0, -1, 2.5]),
        ("top_p", [0, -0.5, 1.01, math.nan]),
        ("min_p", [-0.1, 1.1, math.nan, "0.1"]),
        ("repetition_penalty", [0, -1, math.inf]),
        ("stop", ["end", [""], [1], None, ["a", None]]),
        ("max_tokens", [0, 1.5]),
        ("seed", [None, 0.5]),
        ("tools", [None, 1]),
        ("top_logprobs", [-1, None, 1.5]),
    ],
)
def test_settings_that_make_no_sense_are_one_clear_line(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name}=") as caught:
            Sampling(**{name: value})
        assert "\n" not in str(caught.value)


def test_a_list_of_stop_strings_is_kept_as_it_cannot_change():
    texts = ["a", "b"]
    sampling = Sampling(stop=texts)
    texts.append("c")
    assert sampling.stop == ("a", "b")
    assert hash(sampling) == hash(Sampling(stop=("a", "b")))
