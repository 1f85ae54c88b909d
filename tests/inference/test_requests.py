"""Requests that come and go, each with settings of its own; log-probabilities; prompts read in
chunks, or not read again."""

import random
import threading

import pytest
import torch
from tiny_networks import (
    PROMPTS,
    SPECIAL,
    TOKENIZER,
    T,
    V,
    cache_of,
    chain,
    plain_distribution,
    plain_greedy,
    random_gpt,
    scripted,
)

from nanochat.gpt import GPT
from nanochat.inference.cache import KVCache
from nanochat.inference.engine import Engine
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.inference.pool import PrefixPool
from nanochat.inference.request import Request, TooLong
from nanochat.inference.sampling import Sampling
from nanochat.inference.text import Completion
from nanochat.sandbox.execution import python_tool

GREEDY = Sampling(temperature=0, tools=False)
LONG = PROMPTS[4]  # 31 tokens


@pytest.fixture(scope="module")
def calm() -> GPT:
    """Weights so small that fp32 sums in another order differ by less than 1e-5."""
    return random_gpt(std=0.15)


def finish(engine: Engine, *requests: Request) -> list[Completion]:
    """The completions of `requests`, when they are done."""
    while not all(request.done for request in requests):
        engine.step()
    return [completion for request in requests for completion in request.completions]


def alone(gpt: GPT, prompt: list[int], sampling: Sampling, **settings) -> Completion:
    engine = Engine(gpt, TOKENIZER, **settings)
    return finish(engine, engine.submit(prompt, sampling))[0]


def some_sampling(drawn: random.Random) -> Sampling:
    return Sampling(
        temperature=drawn.choice([0, 0.7, 1, 2]),
        top_k=drawn.choice([None, None, 5, 30]),
        top_p=drawn.choice([None, 0.8]),
        min_p=drawn.choice([None, 0.02]),
        repetition_penalty=drawn.choice([None, 1.3]),
        max_tokens=drawn.randint(1, 14),
        seed=drawn.randrange(100),
        tools=False,
        top_logprobs=drawn.choice([0, 2]),
    )


# --- joining, leaving
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefill_tokens", [None, 4])
def test_greedy_tokens_of_requests_that_join_midway_equal_the_full_forward_pass(
    any_gpt, prefill_tokens
):
    engine = Engine(any_gpt, TOKENIZER, max_rows=3, prefill_tokens=prefill_tokens)
    requests = []
    for prompt in PROMPTS:
        requests.append(engine.submit(prompt, Sampling(temperature=0, max_tokens=14, tools=False)))
        for _ in range(3):
            engine.step()
    for prompt, completion in zip(PROMPTS, finish(engine, *requests), strict=True):
        assert completion.ids == plain_greedy(any_gpt, prompt, 14)
    assert not engine.busy


def test_a_row_is_the_same_whoever_is_beside_it_and_whenever_it_joins(calm):
    drawn = random.Random(0)
    asked = [(drawn.choice(PROMPTS), some_sampling(drawn)) for _ in range(25)]
    engine, requests = Engine(calm, TOKENIZER, max_rows=6, prefill_tokens=10), []
    for prompt, sampling in asked:
        requests.append(engine.submit(prompt, sampling))
        for _ in range(drawn.randrange(4)):
            engine.step()
    for (prompt, sampling), completion in zip(asked, finish(engine, *requests), strict=True):
        true = alone(calm, prompt, sampling)
        assert completion == true
        # sums in another order
        assert completion.logprobs == pytest.approx(true.logprobs, abs=1e-5)
    assert len({sampling.order for _, sampling in asked}) > 3


def test_a_step_tells_what_each_text_got(calm):
    engine = Engine(calm, TOKENIZER)
    requests = [
        engine.submit(prompt, Sampling(max_tokens=5, seed=1, tools=False), 2)
        for prompt in PROMPTS[:3]
    ]
    pieces = []
    while engine.busy:
        pieces += engine.step()
    for request in requests:
        for sample, completion in enumerate(request.completions):
            mine = [
                piece for piece in pieces if piece.request is request and piece.sample == sample
            ]
            assert [piece.drawn.id for piece in mine if piece.drawn] == completion.ids
            assert (
                "".join(fragment.text for piece in mine for fragment in piece.fragments)
                == completion.text
                == TOKENIZER.decode(completion.ids)
            )
            assert [piece.finish_reason for piece in mine] == [None] * (len(mine) - 1) + [
                completion.finish_reason
            ]
        assert request.completions[0] != request.completions[1]


def test_the_samples_of_a_request_share_its_prompt_also_where_they_must_wait(calm):
    sampling = Sampling(max_tokens=6, tools=False)
    wide, narrow = Engine(calm, TOKENIZER), Engine(calm, TOKENIZER, max_rows=2)
    first = finish(wide, wide.submit(LONG, sampling, 5))
    assert finish(narrow, narrow.submit(LONG, sampling, 5)) == first
    assert wide.stats.read_tokens == narrow.stats.read_tokens == len(LONG)
    assert len({tuple(completion.ids) for completion in first}) == 5


def test_generate_goes_on_beside_requests(calm):
    engine = Engine(calm, TOKENIZER)
    request = engine.submit(PROMPTS[1], Sampling(max_tokens=20, tools=False))
    engine.step()
    assert engine.generate(PROMPTS, max_tokens=4) == Engine(calm, TOKENIZER).generate(
        PROMPTS, max_tokens=4
    )
    assert finish(engine, request) == [alone(calm, PROMPTS[1], request.sampling)]


def test_room_is_made_for_as_many_rows_as_there_are_and_given_back(calm):
    engine = Engine(calm, TOKENIZER, max_rows=32)
    request = engine.submit([1, 2], Sampling(max_tokens=5, tools=False))
    engine.step()
    assert engine.cache.keys[0].size(0) == 1
    finish(engine, request)
    assert engine.cache.nbytes() == 0


def test_cancelling_ends_a_request_before_its_next_token_and_frees_its_rows(calm):
    sampling = Sampling(max_tokens=30, tools=False)
    engine = Engine(calm, TOKENIZER, max_rows=3)
    stays = engine.submit(PROMPTS[1], sampling)
    leaves = engine.submit(PROMPTS[2], sampling, 2)
    waits = [engine.submit(PROMPTS[3], sampling) for _ in range(2)]
    for _ in range(4):
        engine.step()
    before = [list(text.ids) for text in leaves.texts]
    engine.cancel(leaves)
    engine.cancel(waits[0])
    pieces = engine.step()
    assert [completion.ids for completion in leaves.completions] == before
    ended = [piece.request for piece in pieces if piece.finish_reason == "cancelled"]
    assert sorted(map(id, ended)) == sorted(map(id, [leaves, leaves, waits[0]]))
    assert {
        completion.finish_reason for completion in leaves.completions + waits[0].completions
    } == {"cancelled"}
    # the row went to one that waited
    assert [request for request, _ in engine.live] == [stays, waits[1]]
    assert finish(engine, stays, waits[1]) == [
        alone(calm, prompt, sampling) for prompt in (PROMPTS[1], PROMPTS[3])
    ]
    assert engine.cache.nbytes() == 0


def test_cancelling_while_the_prompt_is_read_and_after_the_end(calm):
    engine = Engine(calm, TOKENIZER, prefill_tokens=10)
    request, other = engine.submit(LONG, GREEDY), engine.submit([1], Sampling(max_tokens=2))
    assert engine.step() == []
    engine.cancel(request)
    (completion,) = finish(engine, request)
    assert (completion.ids, completion.text, completion.finish_reason) == ([], "", "cancelled")
    finish(engine, other)
    engine.cancel(other)
    engine.step()
    assert other.completions[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("method", "before"), [("step", 1), ("step", 0), ("read", 0), ("adopt", 1)]
)
def test_what_raises_ends_the_requests_and_not_the_engine(calm, monkeypatch, method, before):
    engine = Engine(calm, TOKENIZER, max_rows=1, prefill_tokens=None if method == "step" else 2)
    requests = [engine.submit([1, 2, 3], GREEDY) for _ in range(2)]
    for _ in range(before):
        engine.step()

    def full(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(KVCache, method, full)
        with pytest.raises(MemoryError):
            engine.step()
    assert [request.completions[0].finish_reason for request in requests] == ["error"] * 2
    assert not engine.busy
    assert finish(engine, engine.submit([1, 2, 3], GREEDY)) == [alone(calm, [1, 2, 3], GREEDY)]


# --- log-probabilities
# --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logprobs_are_those_of_the_trainer(calm):
    """Plain sampling; also of the token that ended the text, if one did."""
    engine = Engine(calm, TOKENIZER)
    requests = [
        engine.submit(prompt, Sampling(seed=seed, tools=False))
        for prompt in PROMPTS
        for seed in range(8)
    ]
    ended = 0
    for request, completion in zip(requests, finish(engine, *requests), strict=True):
        new = completion.ids + ([completion.end_id] if completion.end_id is not None else [])
        text = torch.tensor([request.prompt + new])
        targets = torch.cat((torch.full((1, len(request.prompt) - 1), -1), torch.tensor([new])), 1)
        true = -calm.losses(text[:, :-1], targets)[0, len(request.prompt) - 1 :]
        also = (
            calm(text)[0]
            .log_softmax(-1)[len(request.prompt) - 1 : -1]
            .gather(1, torch.tensor(new)[:, None])[:, 0]
        )
        found = completion.logprobs + (
            [completion.end_logprob] if completion.end_id is not None else []
        )
        torch.testing.assert_close(torch.tensor(found), true, rtol=0, atol=1e-5)
        torch.testing.assert_close(true, also, rtol=0, atol=1e-5)
        ended += completion.end_id is not None
    assert ended


@torch.no_grad()
def test_logprobs_and_alternatives_are_those_of_what_was_sampled_from(calm):
    drawn = random.Random(1)
    for _ in range(12):
        sampling = some_sampling(drawn)
        completion = alone(calm, PROMPTS[2], sampling)
        text = list(PROMPTS[2])
        for token, logprob, top in zip(
            completion.ids, completion.logprobs, completion.top_logprobs, strict=True
        ):
            logits = calm(torch.tensor([text]))[0, -1]
            warm = Sampling(repetition_penalty=sampling.repetition_penalty)
            true = plain_distribution(logits, sampling if sampling.temperature else warm, set(text))
            # top_p may cut at a tie
            assert logprob == pytest.approx(torch.tensor(true[token]).log().item(), abs=1e-4)
            assert len(top) == min(sampling.top_logprobs, len(true))
            assert [value for _, value in top] == sorted((value for _, value in top), reverse=True)
            assert not top or top[0][1] == pytest.approx(
                torch.tensor(max(true.values())).log().item(), abs=1e-4
            )
            text.append(token)


def test_forced_tokens_have_no_logprob():
    script = {
        **chain("a", "<|python_start|>", "1+2", "<|python_end|>"),
        **chain("<|output_end|>", "Y", "<|assistant_end|>"),
    }
    completion = alone(scripted(script), [ord("a")], Sampling(temperature=0, top_logprobs=2))
    assert completion.text == "<|python_start|>1+2<|python_end|><|output_start|>3<|output_end|>Y"
    assert [value is None for value in completion.logprobs] == [
        not sampled for sampled in completion.mask
    ]
    assert [len(top) for top in completion.top_logprobs] == [
        2 * sampled for sampled in completion.mask
    ]
    assert completion.end_id == SPECIAL["<|assistant_end|>"]


# --- streaming and stop strings
# -----------------------------------------------------------------------------------


def test_a_stream_gives_characters_of_several_tokens_whole():
    script = chain("a", "é日🙂", "z", "<|assistant_end|>")
    engine = Engine(scripted(script), TOKENIZER)
    request = engine.submit([ord("a")], GREEDY)
    assert [fragment.text for fragment in engine.stream(request)] == ["é", "日", "🙂", "z"]
    assert request.completions[0].text == "é日🙂z"
    request = engine.submit([ord("a")], Sampling(temperature=0, max_tokens=4))
    # half a character is left in the end
    assert [fragment.text for fragment in engine.stream(request)] == ["é", "\ufffd"]


def test_streams_read_in_turn_go_on_together(calm):
    sampling = Sampling(max_tokens=9, tools=False)
    engine = Engine(calm, TOKENIZER)
    requests = [engine.submit(prompt, sampling) for prompt in PROMPTS[:2]]
    streams = [engine.stream(request) for request in requests]
    texts = ["", ""]
    for pair in zip(*streams, strict=False):
        texts = [text + fragment.text for text, fragment in zip(texts, pair, strict=True)]
    rest = ["".join(fragment.text for fragment in stream) for stream in streams]
    true = [alone(calm, prompt, sampling).text for prompt in PROMPTS[:2]]
    for text, more, whole in zip(texts, rest, true, strict=True):
        assert whole.startswith(text) and whole.endswith(more)
    assert engine.stats.steps <= 10


def test_a_stream_that_is_closed_cancels_its_request(calm):
    engine = Engine(calm, TOKENIZER)
    request = engine.submit([1], Sampling(max_tokens=40, seed=2, tools=False))
    stream = engine.stream(request)
    next(stream)
    stream.close()
    engine.step()
    assert request.done and not engine.busy


@pytest.mark.parametrize(
    ("stop", "text", "ids"),
    [
        (["cd"], "ab", "ab"),
        (["b", "never"], "a", "a"),
        (["abc"], "", ""),
        (["f|"], "abcdef", None),
        (["f<|assistant"], "abcdef", None),  # what ends a text is not in it
    ],
    ids=str,
)
def test_a_stop_string_over_several_tokens_ends_the_text_before_it(stop, text, ids):
    script = chain("x", "abcdef", "<|assistant_end|>")
    engine = Engine(scripted(script), TOKENIZER)
    request = engine.submit([ord("x")], Sampling(temperature=0, stop=stop, top_logprobs=1))
    assert "".join(fragment.text for fragment in engine.stream(request)) == text
    (completion,) = request.completions
    assert (completion.text, completion.finish_reason) == (text, "stop")
    assert completion.ids == list((text if ids is None else ids).encode())
    assert (completion.end_id is None) == (ids is not None)
    lengths = {
        len(part)
        for part in (completion.ids, completion.mask, completion.logprobs, completion.top_logprobs)
    }
    assert lengths == {len(completion.ids)}


def test_a_stop_string_that_cuts_off_several_tokens_leaves_the_others_alone(calm):
    """Their cache rows may have been written over in layers with a window: then nothing of them is
    kept."""
    sampling = Sampling(max_tokens=20, seed=3, tools=False)
    text = alone(calm, LONG[:25], sampling).text
    with (engine := Engine(calm, TOKENIZER)).frozen():
        stopped = engine.submit(
            LONG[:25], Sampling(max_tokens=20, seed=3, tools=False, stop=[text[-6:]])
        )
        other = engine.submit([1, 2, 3], sampling)
        first, second = finish(engine, stopped, other)
    assert first.finish_reason == "stop" and first.text == text[: text.index(text[-6:])]
    assert second == alone(calm, [1, 2, 3], sampling)


def test_each_row_has_its_own_stop_strings():
    engine = Engine(scripted(chain("x", "abcdef", "<|assistant_end|>")), TOKENIZER)
    asked = [["c"], [], ["ef", "a b"], ["a"]]
    requests = [engine.submit([ord("x")], Sampling(temperature=0, stop=stop)) for stop in asked]
    assert [completion.text for completion in finish(engine, *requests)] == [
        "ab",
        "abcdef",
        "abcd",
        "",
    ]


# --- prompts in chunks
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 5, 13])
@torch.no_grad()
def test_a_prompt_read_in_chunks_is_one_read_at_once(any_gpt, chunk):
    """With smear, windows shorter and longer than a chunk, value embeddings, bigrams; then it goes
    on as a row among others."""
    frozen = FrozenGPT.of(any_gpt)
    cache = cache_of(frozen, 1)
    for start in range(0, len(LONG), chunk):
        hidden = cache.read(LONG[start : start + chunk], LONG[start - 1] if start else None)
        full = any_gpt(torch.tensor([LONG[: start + chunk]]))[0, -1:]
        # fp32 sums in another order
        torch.testing.assert_close(any_gpt.logits(hidden), full, rtol=0, atol=1e-4)
    rows = cache_of(frozen, 4)
    rows.step([], [[7, 8]], [1])
    rows.adopt(cache, 2)
    texts = [[7, 8], list(LONG), list(LONG)]
    for token in ([1, 2, 3], [4, 5, 6]):
        for text, new in zip(texts, token, strict=True):
            text.append(new)
        logits = rows.step([(text[-2], text[-1]) for text in texts])
        for row, text in zip(logits, texts, strict=True):
            torch.testing.assert_close(row, any_gpt(torch.tensor([text]))[0, -1], rtol=0, atol=1e-4)


def test_a_long_prompt_does_not_keep_the_others_waiting(calm):
    engine = Engine(calm, TOKENIZER, prefill_tokens=4)
    short = engine.submit([1, 2, 3], Sampling(max_tokens=20, tools=False))
    engine.step()
    long = engine.submit(LONG, Sampling(max_tokens=5, tools=False))
    reads = []
    while not long.texts[0].ids:
        read, written = engine.stats.read_tokens, len(short.texts[0].ids)
        engine.step()
        reads.append(engine.stats.read_tokens - read)
        assert len(short.texts[0].ids) == written + 1
    assert reads == [4] * 7 + [3]
    true = [alone(calm, request.prompt, request.sampling) for request in (short, long)]
    assert finish(engine, short, long) == true


def test_short_prompts_beside_live_texts_are_as_many_as_the_chunk_holds(calm):
    engine = Engine(calm, TOKENIZER, prefill_tokens=8)
    engine.submit([1], Sampling(max_tokens=20, tools=False))
    engine.step()
    requests = [engine.submit([k, k, k], Sampling(max_tokens=20, tools=False)) for k in range(5)]
    seen = []
    for _ in range(3):
        engine.step()
        seen.append(len(engine.live))
    assert seen == [3, 5, 6]
    assert finish(engine, *requests) == [
        alone(calm, request.prompt, request.sampling) for request in requests
    ]


# --- prompts that are not read again
# ------------------------------------------------------------------------------


def two_turns(engine: Engine, first: Sampling, second: Sampling) -> tuple[Completion, Completion]:
    (answer,) = finish(engine, engine.submit(LONG[:20], first))
    return answer, finish(engine, engine.submit([*LONG[:20], *answer.ids, 9, 8, 7], second))[0]


@pytest.mark.parametrize("prefill_tokens", [None, 2])
def test_the_next_turn_reads_only_what_is_new_and_says_the_same(any_gpt, prefill_tokens):
    first, second = (Sampling(temperature=0, max_tokens=n, tools=False) for n in (8, 10))
    engine = Engine(any_gpt, TOKENIZER, prefill_tokens=prefill_tokens)
    with engine.frozen():
        answer, next_answer = two_turns(engine, first, second)
    prompt = [*LONG[:20], *answer.ids, 9, 8, 7]
    assert answer.ids == plain_greedy(any_gpt, LONG[:20], 8)
    assert next_answer.ids == plain_greedy(any_gpt, prompt, 10)
    # the last token of the answer was sampled and never read, unless another one ended it
    known = len(prompt) - 3 - (answer.finish_reason == "length")
    assert engine.stats.reused_tokens == known
    assert engine.stats.read_tokens == 20 + len(prompt) - known


def test_logprobs_of_a_turn_that_reuses_are_those_of_one_that_does_not(calm):
    sampling = Sampling(max_tokens=8, seed=4, tools=False, repetition_penalty=1.2)
    with (engine := Engine(calm, TOKENIZER)).frozen():
        reused = two_turns(engine, sampling, sampling)
    with (other := Engine(calm, TOKENIZER, pool_bytes=0)).frozen():
        true = two_turns(other, sampling, sampling)
    assert engine.stats.reused_tokens and not other.stats.reused_tokens
    assert reused == true
    # rows written a token at a time sum in another order
    for mine, theirs in zip(reused, true, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


@pytest.mark.parametrize(("arch", "reused"), [("classic", 18), ("modern", 0)])
def test_a_prompt_that_differs_midway_reuses_what_is_still_there(arch, reused):
    gpt = random_gpt(arch, std=0.15)
    with (engine := Engine(gpt, TOKENIZER)).frozen():
        finish(engine, engine.submit(LONG, GREEDY))
        other = [*LONG[:18], 3, *LONG[19:25]]
        (found,) = finish(engine, engine.submit(other, GREEDY))
        # layers with a window have written over what precedes token 18
        assert engine.stats.reused_tokens == reused
        assert found.ids == plain_greedy(gpt, other, T)
        # all of it is there; its last token is read again
        (again,) = finish(engine, engine.submit(LONG, GREEDY))
        assert engine.stats.reused_tokens == (reused and reused + len(LONG) - 1)
        assert again.ids == plain_greedy(gpt, LONG, T)


def test_little_in_common_is_read_again(calm):
    with (engine := Engine(calm, TOKENIZER)).frozen():
        finish(engine, engine.submit([1, 2, 3, 4], GREEDY))
        finish(engine, engine.submit([1, 2, 3, 5], GREEDY))
    assert engine.stats.reused_tokens == 0


def test_nothing_is_kept_where_weights_may_change():
    gpt, other = random_gpt("classic"), random_gpt("classic", seed=1)
    engine = Engine(gpt, TOKENIZER)
    finish(engine, engine.submit(LONG, GREEDY))
    assert not engine.pool.entries
    with engine.frozen():
        finish(engine, engine.submit(LONG, GREEDY))
        assert engine.pool.entries
        engine.generate([LONG], max_tokens=3)  # inside, generate does not end it
        assert engine.stats.reused_tokens == len(LONG) - 1
    assert not engine.pool.entries
    gpt.load_state_dict(other.state_dict())
    with engine.frozen():
        (completion,) = finish(engine, engine.submit(LONG, GREEDY))
    assert completion.ids == plain_greedy(other, LONG, T)


def test_cancelled_texts_are_not_kept(calm):
    with (engine := Engine(calm, TOKENIZER)).frozen():
        request = engine.submit(LONG, GREEDY)
        engine.step()
        engine.cancel(request)
        engine.step()
        assert request.done and not engine.pool.entries


class Rows:
    """Stands for the cache of a text of n tokens, a byte each."""

    def __init__(self, n: int) -> None:
        self.n = n

    def can_begin(self, row, tokens) -> bool:
        return True

    def nbytes(self) -> int:
        return self.n

    def copy_of(self, row: int, tokens: int) -> tuple[int, int, int]:
        assert tokens <= self.n
        return (row, tokens, self.n)


def test_the_pool_stays_within_its_memory_and_the_least_recently_used_leaves():
    pool = PrefixPool(100)
    a, b, c = ([k] * 40 for k in (1, 2, 3))

    def put(ids: list[int]) -> None:
        pool.put(ids, Rows(len(ids)))

    put(a)
    put(b)
    assert pool.find([*a, 9]).copy() == (0, 40, 40)
    put(c)  # b was used least recently
    assert [ids[0] for ids, _ in pool.entries] == [1, 3]
    put([4] * 101)  # never fits
    assert pool.bytes == 80
    put([*a, 9, 9])  # what a became takes its place
    assert [ids[0] for ids, _ in pool.entries] == [3, 1] and pool.bytes == 82
    assert pool.find([*a, 9]).copy() == (0, 40, 42)  # the last token of a prompt is always read
    assert pool.find(a[:16]) is None  # 15 tokens: too few
    assert pool.find([7] * 40) is None
    put([5] * 100)
    assert [ids[0] for ids, _ in pool.entries] == [5] and pool.bytes == 100
    pool.clear()
    assert pool.bytes == 0 and pool.find(a) is None


# --- the limits ---
# ----------------


def test_a_full_context_ends_the_text_or_refuses_the_request():
    gpt = scripted({})
    assert alone(gpt, [65] * 5, Sampling(temperature=0, max_tokens=1000)).text == "?" * (T - 5)
    assert alone(gpt, [65] * 5, Sampling(temperature=0)).finish_reason == "length"
    with pytest.raises(TooLong, match=f"the prompt has {T} tokens .* sequence_len={T}"):
        Engine(gpt, TOKENIZER).submit([65] * T, Sampling(temperature=0))


@pytest.mark.parametrize(
    ("prompt", "samples", "named"),
    [
        ([], 1, "no tokens"),
        ([1] * T, 1, f"sequence_len={T}"),
        ([1, V], 1, f"id {V}"),
        ([-1], 1, "id -1"),
        ([1], 0, "num_samples=0"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_prompt_that_makes_no_sense_is_one_clear_line(calm, prompt, samples, named):
    engine = Engine(calm, TOKENIZER)
    with pytest.raises(ValueError, match=named) as caught:
        engine.submit(prompt, Sampling(), samples)
    assert "\n" not in str(caught.value) and not engine.busy


@pytest.mark.parametrize(
    "settings", [{"max_rows": 0}, {"prefill_tokens": 0}, {"pool_bytes": -1}], ids=str
)
def test_an_engine_that_makes_no_sense_is_one_clear_line(calm, settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}=") as caught:
        Engine(calm, TOKENIZER, **settings)
    assert "\n" not in str(caught.value)


# --- programs ---
# ----------------

PROGRAM = chain("x", "<|python_start|>", "f()", "<|python_end|>") | {
    SPECIAL["<|output_end|>"]: SPECIAL["<|assistant_end|>"]
}
RUNS = Sampling(temperature=0, python=True, max_tokens=30)


def test_a_text_waits_for_its_program_without_a_row_and_others_go_on():
    release, ran = threading.Event(), []

    def run(program: str) -> str | None:
        ran.append(program)
        release.wait(10)
        return "41"

    engine = Engine(scripted(PROGRAM), TOKENIZER, max_rows=1, run_python=run)
    request = engine.submit([ord("x")], RUNS)
    other = engine.submit([ord("a")], Sampling(temperature=0, max_tokens=5))
    (quick,) = finish(engine, other)  # the only row was free
    assert quick.finish_reason == "length" and not request.done and ran == ["f()"] and engine.busy
    release.set()
    (completion,) = finish(engine, request)
    assert completion.text == "<|python_start|>f()<|python_end|><|output_start|>41<|output_end|>"
    assert completion.parts == [
        {"type": "python", "text": "f()"},
        {"type": "python_output", "text": "41"},
    ]
    assert completion.mask == [1] * 5 + [0] * 4 and completion.finish_reason == "stop"
    assert not engine.busy and engine.cache.nbytes() == 0


@pytest.mark.parametrize("arch", ["modern", "classic"])
def test_after_a_program_the_tokens_are_those_of_the_whole_text(arch):
    """A network with random weights, but that it opens a call first and closes it at once."""
    gpt = FrozenGPT.of(random_gpt(arch, std=0.15))
    opens, closes = SPECIAL["<|python_start|>"], SPECIAL["<|python_end|>"]

    class Calls(type(gpt)):
        steps = 0

        def logits(self, hidden):
            logits = super().logits(hidden)
            if self.steps < 2:
                logits = torch.nn.functional.one_hot(
                    torch.tensor([(opens, closes)[self.steps]]), V
                ).float()
            self.steps += 1
            return logits

    gpt.__class__ = Calls
    prompt = [*range(60, 75)]
    engine = Engine(gpt, TOKENIZER, run_python=lambda program: "ok")
    (completion,) = finish(
        engine, engine.submit(prompt, Sampling(temperature=0, python=True, max_tokens=16))
    )
    forced = [opens, closes, SPECIAL["<|output_start|>"], *b"ok", SPECIAL["<|output_end|>"]]
    assert completion.ids[: len(forced)] == forced and len(completion.ids) > len(forced)
    assert completion.ids[len(forced) :] == plain_greedy(gpt, [*prompt, *forced], 16 - len(forced))


def test_a_tool_that_raises_has_no_result():
    script = chain("x", "<|python_start|>", "f()", "<|python_end|>", "<|assistant_end|>")

    def run(program: str) -> str:
        raise OSError("no processes left")

    engine = Engine(scripted(script), TOKENIZER, run_python=run)
    (completion,) = finish(engine, engine.submit([ord("x")], RUNS))
    assert completion.finish_reason == "stop" and completion.parts == [
        {"type": "python", "text": "f()"}
    ]


@pytest.mark.parametrize("called", ["1+2", "f()"])
def test_the_calculator_comes_first_and_a_program_without_output_adds_nothing(called):
    script = chain("x", "<|python_start|>", called, "<|python_end|>", "<|assistant_end|>")
    script[SPECIAL["<|output_end|>"]] = SPECIAL["<|assistant_end|>"]
    engine = Engine(scripted(script), TOKENIZER, run_python=lambda program: None)
    (completion,) = finish(engine, engine.submit([ord("x")], RUNS))
    assert [part["text"] for part in completion.parts] == [called] + ["3"] * (called == "1+2")


def test_a_cancelled_text_does_not_come_back_from_its_program():
    release = threading.Event()

    def run(program: str) -> None:
        release.wait(10)

    engine = Engine(scripted(PROGRAM), TOKENIZER, run_python=run)
    request = engine.submit([ord("x")], RUNS)
    while not engine.parked:
        engine.step()
    engine.cancel(request)
    engine.step()
    release.set()
    assert request.completions[0].finish_reason == "cancelled" and not engine.busy


def test_programs_are_run_only_where_the_engine_was_made_for_it():
    with pytest.raises(ValueError, match="no Python is run here"):
        Engine(scripted(PROGRAM), TOKENIZER).submit([ord("x")], RUNS)


def test_a_real_program_answers():
    script = chain("x", "<|python_start|>", "print(2*3)", "<|python_end|>")
    script[SPECIAL["<|output_end|>"]] = SPECIAL["<|assistant_end|>"]
    engine = Engine(scripted(script), TOKENIZER, run_python=python_tool)
    (completion,) = finish(engine, engine.submit([ord("x")], RUNS))
    assert completion.parts[-1] == {"type": "python_output", "text": "6"}
