"""Penalties of frequency and presence, biases and min_tokens, against the definition in float64."""

import math
from collections import Counter

import pytest
import torch
from tiny_networks import STOPS, TOKENIZER, V, plain_distribution, random_gpt

from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling, draw

PROMPT = [TOKENIZER.bos_id, *b"abc"]
BIAS = ((65, 3.5), (66, -100.0), (264, 1.25))


@pytest.fixture(scope="module")
def gpt():
    return random_gpt(std=0.15)


def written(gpt, *samplings: Sampling):
    engine = Engine(gpt, TOKENIZER)
    requests = [engine.submit(PROMPT, sampling) for sampling in samplings]
    while not all(request.done for request in requests):
        engine.step()
    return [request.completions[0] for request in requests]


@pytest.mark.parametrize(
    "settings",
    [
        {"frequency_penalty": 1.5},
        {"presence_penalty": -2.0, "temperature": 0.7},
        {"logit_bias": BIAS, "top_k": 20},
        {
            "frequency_penalty": -0.5,
            "presence_penalty": 1.0,
            "logit_bias": BIAS,
            "repetition_penalty": 1.3,
            "top_p": 0.9,
        },
        {"frequency_penalty": 2.0, "temperature": 0.0},
    ],
    ids=str,
)
@torch.no_grad()
def test_each_token_comes_from_the_plain_distribution(gpt, settings):
    sampling = Sampling(max_tokens=20, seed=3, tools=False, min_tokens=20, **settings)
    (got,) = written(gpt, sampling)
    assert len(got.ids) == 20
    for n, (token, logprob) in enumerate(zip(got.ids, got.logprobs, strict=True)):
        counts = Counter(got.ids[:n])  # of the answer, not of the prompt
        logits = gpt(torch.tensor([PROMPT + got.ids[:n]]))[0, -1].double()
        penalty = sampling.repetition_penalty or 1
        for seen in {*PROMPT, *got.ids[:n]}:
            logits[seen] = logits[seen] / penalty if logits[seen] > 0 else logits[seen] * penalty
        for seen, count in counts.items():
            logits[seen] -= sampling.presence_penalty + count * sampling.frequency_penalty
        for other, value in sampling.logit_bias:
            logits[other] += value
        logits[list(STOPS)] = -1e9  # min_tokens
        if sampling.temperature == 0:
            assert token == int(logits.argmax())
            assert logprob == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-4)
        else:
            plain = Sampling(
                temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
            )
            assert logprob == pytest.approx(
                math.log(plain_distribution(logits, plain, set())[token]), abs=1e-4
            )


def test_rows_without_them_are_what_they_are_alone_and_make_nothing(gpt):
    plain = Sampling(max_tokens=20, seed=1, tools=False)
    others = [
        Sampling(max_tokens=20, seed=2, frequency_penalty=1.0),
        Sampling(max_tokens=20, seed=3, logit_bias=((70, 50.0),)),
    ]
    assert written(gpt, others[0], plain, others[1])[1].ids == written(gpt, plain)[0].ids
    engine = Engine(gpt, TOKENIZER)
    assert engine.submit(PROMPT, plain).texts[0].added() is None
    logits = torch.randn(3, V)
    assert draw(logits, [plain] * 3, [0.5] * 3) == draw(
        logits, [plain] * 3, [0.5] * 3, (), [None] * 3
    )


def test_a_bias_of_100_decides_and_of_minus_100_forbids(gpt):
    assert set(written(gpt, Sampling(max_tokens=9, logit_bias=((70, 100.0),)))[0].ids) == {70}
    free = written(gpt, Sampling(max_tokens=30, temperature=0, tools=False))[0].ids
    assert (
        free[0]
        not in written(
            gpt,
            Sampling(max_tokens=30, temperature=0, tools=False, logit_bias=((free[0], -100.0),)),
        )[0].ids
    )


@pytest.mark.parametrize("least", [0, 1, 7])
def test_no_end_token_before_min_tokens(gpt, least):
    ends = tuple((token, 100.0) for token in STOPS)  # it would end at once
    (got,) = written(gpt, Sampling(max_tokens=20, min_tokens=least, logit_bias=ends, tools=False))
    assert len(got.ids) == least and got.finish_reason == "stop" and got.end_id in STOPS


def test_ids_beyond_the_vocabulary_are_refused(gpt):
    with pytest.raises(ValueError, match=f"logit_bias has the id {V}; ids go from 0 to {V - 1}"):
        Engine(gpt, TOKENIZER).submit(PROMPT, Sampling(logit_bias=((V, 1.0),)))
    with pytest.raises(ValueError, match=r"frequency_penalty=3 must be between -2 and 2"):
        Sampling(frequency_penalty=3)
