"""The next step begun before the tokens of this one are known, as on a GPU: it changes nothing that
anybody sees."""

import random
from copy import deepcopy

import pytest
import torch
from tiny_networks import ARCHS, SPECIAL, TOKENIZER, T, V, cache_of, chain, random_gpt, scripted

from nanochat.inference.cache import KVCache
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling

DRAWN = torch.randint(V, (40, T), generator=torch.Generator().manual_seed(5)).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_logits_equal_the_full_forward_pass_whether_the_guess_was_right_or_not(
    arch, share, monkeypatch
):
    """Rows come and go at random; a third of the guesses are wrong, and some steps are not looked
    ahead to at all."""
    monkeypatch.setattr("nanochat.inference.cache.FIRST_CAPACITY", 4)
    monkeypatch.setattr("nanochat.inference.cache.LEAST_BYTES", 1 if share else 2**60)
    monkeypatch.setattr("nanochat.inference.cache.LEAST_COPIES", 2)
    gpt, drawn = random_gpt(arch), random.Random(arch)
    cache, texts, guesses, used = cache_of(gpt, 8), [], [], 0
    for _ in range(150):
        for row in reversed(range(len(texts))):
            if len(texts[row]) == T or drawn.random() < 0.1:
                left = cache.copy_of(row, cache.lengths[row])  # as the pool takes it
                cache.drop(row)
                text, texts[row], guesses[row] = texts[row], texts[-1], guesses[-1]
                texts.pop(), guesses.pop()
                if len(text) < T and drawn.random() < 0.3:
                    cache.adopt(left, 1)
                    texts.append(text), guesses.append(0)
        right = drawn.random() < 0.7
        for row, text in enumerate(texts):
            text.append(guesses[row] if right else drawn.randrange(V))
        new = [
            DRAWN[drawn.randrange(40)][: drawn.randrange(1, T // 2)]
            for _ in range(drawn.choice([0, 0, 1, 2]))
        ]
        copies = [drawn.choice([1, 1, 3]) for _ in new]
        while len(texts) + sum(copies) > 8:
            new.pop(), copies.pop()
        if not texts and not new:
            continue
        begun = cache._ahead
        logits = cache.step([(text[-2], text[-1]) for text in texts], new, copies)
        used += begun is not None and right and len(begun.tokens) == len(texts)
        texts += [list(text) for text, n in zip(new, copies, strict=True) for _ in range(n)]
        for row, text in zip(logits, texts, strict=True):
            # fp32 sums
            torch.testing.assert_close(row, gpt(torch.tensor([text]))[0, -1], rtol=0, atol=1e-4)
        guesses = [drawn.randrange(V) for _ in texts]
        if drawn.random() < 0.8:
            ahead = cache.look_ahead([text[-1] for text in texts], torch.tensor(guesses))
            assert (
                ahead is not None or max(cache.own()) == cache.capacity or max(cache.lengths) == T
            )
            if ahead is not None:
                ahead.tokens = list(guesses)
    assert used > 30


@pytest.mark.parametrize("begun", [False, True])
@torch.no_grad()
def test_a_copy_of_a_full_window_begins_nothing_shorter_once_a_step_is_begun(begun):
    """The next token stands where the first did, in layers with a window."""
    gpt = random_gpt()
    cache = cache_of(gpt, 2)
    n = min(cache.slots)
    cache.step([], [DRAWN[0][: n - 1]], [1])
    cache.step([(DRAWN[0][n - 2], DRAWN[0][n - 1])])
    if begun:
        assert cache.look_ahead([DRAWN[0][n - 1]], torch.tensor([7])) is not None
    copy = cache.copy_of(0, n)
    assert (
        [cache.can_begin(0, k) for k in (n - 1, n)]
        == [copy.can_begin(0, k) for k in (n - 1, n)]
        == [not begun, True]
    )
    rows = cache_of(gpt, 2)
    rows.adopt(copy, 1)
    logits = rows.step([(DRAWN[0][n - 1], DRAWN[0][n])])
    torch.testing.assert_close(
        logits, gpt(torch.tensor([DRAWN[0][: n + 1]]))[:, -1], rtol=0, atol=1e-4
    )


def requests(seed: int) -> list[tuple[list[int], Sampling, int]]:
    """Prompts with settings and samples of all sorts; some share a beginning."""
    drawn = random.Random(seed)
    found = []
    for _ in range(14):
        prompt = DRAWN[drawn.randrange(6)][: drawn.randrange(1, 40)]
        greedy = {"temperature": 0}
        cold = {"temperature": 0.7, "top_k": 20, "top_p": drawn.choice([None, 0.9])}
        hot = {"repetition_penalty": 1.3, "top_logprobs": 3}
        settings = drawn.choice([greedy, cold, hot])
        most = drawn.choice([None, 1, 2, 9, 30])
        stop = drawn.choice([(), ("a", "Q"), ("e",)])
        found.append(
            (
                prompt,
                Sampling(max_tokens=most, seed=drawn.randrange(99), stop=stop, **settings),
                drawn.choice([1, 1, 4]),
            )
        )
    return found


def run(
    engine: Engine, asked: list[tuple[list[int], Sampling, int]], cancelled: random.Random
) -> list:
    """Every other request comes while others are written; some are cancelled after a few steps."""
    done = []
    with engine.frozen():
        for i, (prompt, sampling, samples) in enumerate(asked):
            done.append(engine.submit(prompt, sampling, samples))
            for _ in range(3 * (i % 2)):
                engine.step()
            if cancelled.random() < 0.2:
                engine.cancel(done[cancelled.randrange(len(done))])
        while engine.busy:
            engine.step()
    return [completion for request in done for completion in request.completions]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_completions_are_the_same_with_and_without(any_gpt, seed, monkeypatch):
    """In double precision: other rows beside a text change the last bits of its logits, and one in
    10,000 draws of fp32 with them."""
    any_gpt = deepcopy(any_gpt)
    any_gpt.compute_dtype = torch.float64
    monkeypatch.setattr("nanochat.inference.cache.FIRST_CAPACITY", 4)
    monkeypatch.setattr("nanochat.inference.pool.MIN_SHARED", 4)  # fewer than a window has
    plain = run(
        Engine(any_gpt, TOKENIZER, max_rows=5, prefill_tokens=16),
        requests(seed),
        random.Random(seed),
    )
    engine = Engine(any_gpt, TOKENIZER, max_rows=5, prefill_tokens=16)
    engine.looks_ahead = True
    assert run(engine, requests(seed), random.Random(seed)) == plain
    assert len({completion.finish_reason for completion in plain}) >= 2


def counted(cache: KVCache, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often rows are looked ahead to, and how often `step` has to compute them."""
    counts = {"ahead": 0, "step": 0}
    look_ahead, eager = cache.look_ahead, cache._eager_step
    monkeypatch.setattr(
        cache, "look_ahead", lambda *a: counts.update(ahead=counts["ahead"] + 1) or look_ahead(*a)
    )
    monkeypatch.setattr(
        cache,
        "_eager_step",
        lambda rows, *a: counts.update(step=counts["step"] + bool(rows)) or eager(rows, *a),
    )
    return counts


def test_every_token_but_the_last_is_looked_ahead_from_also_forced_ones(monkeypatch):
    """The scripted network calls the calculator: what it is told comes from the host, and the steps
    after it are begun all the same."""
    engine = Engine(
        scripted(chain("S", "<|python_start|>", "12*3", "<|python_end|>", "Z")), TOKENIZER
    )
    engine.looks_ahead = True
    counts = counted(engine.cache, monkeypatch)
    (completion,) = engine.generate([[SPECIAL["<|bos|>"], *TOKENIZER.encode("S")]], max_tokens=11)
    assert "<|output_start|>36<|output_end|>" in completion.text and len(completion.ids) == 11
    assert counts == {"ahead": 10, "step": 0}


def test_a_text_that_ends_costs_the_others_nothing(monkeypatch, gpt):
    engine = Engine(gpt, TOKENIZER)
    engine.looks_ahead = True
    counts = counted(engine.cache, monkeypatch)
    sampling = [Sampling(temperature=0, max_tokens=most, tools=False) for most in (12, 3, 7)]
    asked = [engine.submit(DRAWN[i][:5], one) for i, one in enumerate(sampling)]
    with engine.frozen():
        while engine.busy:
            engine.step()
    longest = max(len(request.completions[0].ids) for request in asked)
    assert counts["step"] == 0 and counts["ahead"] >= longest - 1


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="only a GPU works on while the host looks at tokens"
)
@pytest.mark.parametrize("compile", [False, True])
def test_a_gpu_looks_ahead_and_completions_are_the_same(compile):
    gpt = random_gpt(std=0.15).to("cuda")
    gpt.compute_dtype = torch.float64  # as above
    found = []
    for looks_ahead in (False, True):
        engine = Engine(gpt, TOKENIZER, max_rows=5, prefill_tokens=16, compile=compile)
        assert engine.looks_ahead
        engine.looks_ahead = looks_ahead
        found.append(run(engine, requests(0), random.Random(0)))
    assert found[0] == found[1]
