"""Likelihoods of continuations are those of the whole text, whatever is asked together."""

import pytest
import torch

from nanochat.gpt import GPT
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.inference.likelihood import Continuation, Likelihood, likelihoods

SHARED = list(range(60, 90))
ASKED = [
    Continuation([5], [1, 2, 3]),
    Continuation(SHARED, [7]),
    Continuation(SHARED, [8, 9, 10]),
    Continuation([*SHARED[:20], 3], [8, 9, 10]),
    Continuation([*SHARED, 4], [*range(40)]),  # longer than sequence_len
    Continuation(SHARED, [7]),
]


@torch.no_grad()
def plain(gpt: GPT, one: Continuation) -> Likelihood:
    """The definition: the whole text in one forward pass, log-softmax in float64."""
    logits = gpt(torch.tensor([one.context + one.continuation]))[0].double()  # (T, V)
    ahead = logits[len(one.context) - 1 : -1]
    nats = -ahead.log_softmax(-1).gather(1, torch.tensor(one.continuation)[:, None])[:, 0]
    return Likelihood(tuple(nats.tolist()), ahead.argmax(-1).tolist() == one.continuation)


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_likelihoods_are_those_of_the_whole_text(any_gpt: GPT, batch_tokens: int) -> None:
    best = any_gpt(torch.tensor([SHARED]))[0, -1].argmax()
    asked = [*ASKED, Continuation(SHARED, [int(best)])]
    for gpt in (any_gpt, FrozenGPT.of(any_gpt)):
        found = likelihoods(gpt, asked, batch_tokens=batch_tokens)
        for one, got in zip(asked, found, strict=True):
            wanted = plain(any_gpt, one)
            assert got.greedy == wanted.greedy
            assert got.nats == pytest.approx(wanted.nats, rel=1e-4, abs=1e-4)
        assert found[1] == found[5] and found[-1].greedy


def test_what_has_nothing_to_be_predicted_from_is_refused(gpt: GPT) -> None:
    for one in (Continuation([], [1]), Continuation([1], [])):
        with pytest.raises(ValueError, match="at least one token each"):
            likelihoods(gpt, [one], batch_tokens=64)
