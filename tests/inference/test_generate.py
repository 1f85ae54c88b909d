"""Sampling against the logits of the full forward pass."""

import pytest
import torch

from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.generate import complete, generate, sample_next

V, T = 70, 24
GREEDY = {"temperature": 0.0, "top_k": None, "seed": 0}


@pytest.fixture(scope="module")
def gpt() -> GPT:
    gpt = GPT.build(GPTConfig(T, V, 3, 2, 2, 32))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in gpt.parameters():
            p.normal_(0, 0.5, generator=draw)
    return gpt


def columns(gpt, prompt, **settings):
    return list(generate(gpt, prompt, **settings))


@torch.no_grad()
def logits_after(gpt, text):
    return gpt(torch.tensor([text[-T:]]))[0, -1]


@pytest.mark.parametrize("prompt", [[5], [1, 2, 3], list(range(30))], ids=len)
def test_greedy_is_the_argmax_of_the_full_forward_pass(gpt, prompt):
    """Also beyond the training length, where only the last T tokens are seen."""
    text = list(prompt)
    for (token,) in columns(gpt, prompt, max_tokens=T + 6, **GREEDY):
        best = logits_after(gpt, text)
        assert best[token] >= best.max() - 1e-5  # fp32: a tie may fall either way
        text.append(token)
    assert len(text) == len(prompt) + T + 6
    assert len(set(text[len(prompt) :])) > 2  # not one token over and over


def test_a_seed_is_a_text(gpt):
    sampled = {"num_samples": 3, "max_tokens": 12, "temperature": 1.0, "top_k": None}
    a, b, c = (columns(gpt, [1, 2], seed=s, **sampled) for s in (4, 4, 5))
    assert a == b
    assert a != c
    torch.manual_seed(99)
    assert columns(gpt, [1, 2], seed=4, **sampled) == a  # whatever else draws random numbers


def test_samples_of_one_prompt_differ_from_the_first_token_on(gpt):
    first = columns(gpt, [1, 2], num_samples=64, max_tokens=1, temperature=2.0, top_k=None, seed=0)[0]
    assert len(set(first)) > 5


def test_greedy_samples_are_all_the_same(gpt):
    for column in columns(gpt, [1, 2], num_samples=3, max_tokens=5, **GREEDY):
        assert len(set(column)) == 1


@pytest.mark.parametrize("top_k", [1, 3])
def test_top_k_keeps_the_k_likeliest(gpt, top_k):
    texts = [[1, 2] for _ in range(8)]
    for column in columns(gpt, [1, 2], num_samples=8, max_tokens=6, temperature=3.0, top_k=top_k, seed=1):
        for text, token in zip(texts, column, strict=True):
            logits = logits_after(gpt, text)
            assert (logits > logits[token] + 1e-5).sum() < top_k
            text.append(token)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 4), (1.0, 1000)])
def test_frequencies_follow_the_softmax(temperature, top_k):
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -2.0])
    kept = logits.clone()
    kept[kept < kept.sort(descending=True).values[min(top_k or 6, 6) - 1]] = -torch.inf
    expected = (kept / temperature).softmax(0)
    n = 40_000
    drawn = sample_next(logits.expand(n, -1), temperature, top_k, torch.Generator().manual_seed(0))
    found = torch.bincount(drawn, minlength=6) / n
    # five standard errors of a frequency, at most 5 * sqrt(0.25 / 40,000)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.0125)
    assert not found[expected == 0].any()


def test_it_ends_when_every_sample_has_met_a_stop_token(gpt):
    settings = {"num_samples": 4, "max_tokens": 200, "temperature": 1.5, "top_k": None, "seed": 3}
    stop = frozenset([7, 8, 9, 10, 11, 12])
    free, stopped = columns(gpt, [1], **settings), columns(gpt, [1], stop=stop, **settings)
    assert 1 < len(stopped) < len(free) == 200
    assert stopped == free[: len(stopped)]
    rows = list(zip(*stopped, strict=True))
    assert all(stop & set(row) for row in rows)
    assert not all(stop & set(row[:-1]) for row in rows)  # not one column later than it must


@pytest.mark.parametrize(
    "settings",
    [{"max_tokens": 0}, {"max_tokens": -5}, {"temperature": -0.1}, {"top_k": 0}, {"top_k": -1}, {"num_samples": 0}],
    ids=str,
)
def test_settings_that_make_no_sense_are_one_clear_line(gpt, settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}=") as caught:
        columns(gpt, [1, 2], **{"max_tokens": 4, **GREEDY, **settings})
    assert "\n" not in str(caught.value)


def test_an_empty_prompt_is_one_clear_line(gpt):
    with pytest.raises(ValueError, match="prompt"):
        columns(gpt, [], max_tokens=4, **GREEDY)


class Letters:
    """Ids 1 to 26 are letters, 0 is the start of a document."""

    bos_id = 0

    def encode(self, text):
        return [ord(c) - 96 for c in text]

    def decode(self, ids):
        assert self.bos_id not in ids
        return "".join(chr(i + 96) for i in ids)


def test_completions_are_in_order_and_end_before_a_bos():
    gpt = GPT.build(GPTConfig(T, 27, 2, 2, 2, 32))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in gpt.parameters():
            p.normal_(0, 0.5, generator=draw)
    settings = {"num_samples": 5, "max_tokens": 30, "temperature": 1.0, "top_k": None, "seed": 0}
    texts = complete(gpt, Letters(), ["ab", "q"], **settings)
    expected = []
    for prompt in ([0, 1, 2], [0, 17]):
        for row in zip(*columns(gpt, prompt, **settings), strict=True):
            row = list(row)
            expected.append(Letters().decode(row[: row.index(0)] if 0 in row else row))
    assert texts == expected
    assert len({len(t) for t in texts}) > 1  # some met a bos, at different places
