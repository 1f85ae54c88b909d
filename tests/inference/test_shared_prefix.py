"""Prompts that rows share: against the full forward pass, and against rows that have copies."""

import gc

import pytest
import torch
from tiny_networks import TOKENIZER, T, V, cache_of, plain_greedy, random_gpt

from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling

DRAWN = torch.randint(V, (9, T), generator=torch.Generator().manual_seed(3)).tolist()
ALWAYS, NEVER = 1, 2**60


@pytest.fixture(autouse=True)
def shared(monkeypatch):
    monkeypatch.setattr("nanochat.inference.cache.LEAST_BYTES", ALWAYS)
    monkeypatch.setattr("nanochat.inference.cache.LEAST_COPIES", 2)


class Rows:
    """A cache and the texts that are in it; every step is compared with the full forward pass."""

    def __init__(self, gpt, rows: int = 12) -> None:
        self.gpt, self.cache, self.texts = gpt, cache_of(gpt, rows), []

    def step(self, joining=(), copies=()) -> None:
        for row, text in enumerate(self.texts):
            text.append(DRAWN[row % 9][(7 * row + len(text)) % T])
        logits = self.cache.step([(text[-2], text[-1]) for text in self.texts], joining, copies)
        self.texts += [
            list(text) for text, n in zip(joining, copies, strict=True) for _ in range(n)
        ]
        assert logits.shape == (len(self.texts), V)
        for row, text in zip(logits, self.texts, strict=True):
            torch.testing.assert_close(
                row, self.gpt(torch.tensor([text]))[0, -1], rtol=0, atol=1e-4
            )  # fp32 sums

    def drop(self, row: int) -> None:
        self.cache.drop(row)
        self.texts[row] = self.texts[-1]
        self.texts.pop()

    @property
    def prompts(self) -> list[int]:
        return self.cache.shared.lengths


@pytest.mark.slow
@pytest.mark.parametrize("most_padded", [0, 100])  # a product for each prompt, one for all
@torch.no_grad()
def test_logits_equal_the_full_forward_pass_while_rows_and_prompts_come_and_go(
    any_gpt, monkeypatch, most_padded
):
    """Prompts of 3 to 30 tokens beside texts of their own, so that a layer's window begins before,
    in and after a prompt."""
    monkeypatch.setattr("nanochat.inference.shared_prefix.MOST_PADDED", most_padded)
    rows = Rows(any_gpt)
    rows.step([DRAWN[0][:9], DRAWN[1][:5], DRAWN[2][:3]], [3, 1, 2])
    assert rows.prompts == [9, 3]
    for _ in range(3):
        rows.step()
    # longer than those that are there, and one with a copy
    rows.step([DRAWN[3][:30], DRAWN[4][:30]], [2, 1])
    assert rows.prompts == [9, 3, 30]
    for row in (2, 1, 0):  # the first prompt is left; the last takes its place
        rows.drop(row)
    assert rows.prompts == [30, 3]
    rows.step()
    rows.step([DRAWN[5][:7]], [4])
    for _ in range(T - max(map(len, rows.texts))):
        rows.step()
    assert max(map(len, rows.texts)) == T
    while rows.texts:
        rows.drop(0)
    assert rows.prompts == [] and rows.cache.shared.nbytes() == 0


@pytest.mark.slow
@torch.no_grad()
def test_a_prompt_read_by_itself_is_shared_by_those_who_join_later_too(any_gpt):
    prompt, rows = cache_of(any_gpt, 1), Rows(any_gpt)
    prompt.read(DRAWN[0][:20])
    prompt.read(DRAWN[0][20:26], DRAWN[0][19])
    rows.step([DRAWN[1][:4]], [2])
    for copies in (1, 2):
        rows.cache.adopt(prompt, copies, of=3)
        rows.texts += [DRAWN[0][:26] for _ in range(copies)]
        rows.step()
        assert rows.prompts == [4, 26]
    del prompt
    gc.collect()
    other = cache_of(any_gpt, 1)
    other.read(DRAWN[2][:10])
    rows.cache.adopt(other, 2, of=2)
    rows.texts += [DRAWN[2][:10] for _ in range(2)]
    for _ in range(5):
        rows.step()
    assert rows.prompts == [4, 26, 10]


@torch.no_grad()
def test_a_row_copied_out_goes_on_as_it_was(any_gpt):
    """What is kept of a finished text, and of one that waits for its program: prompt and answer in
    one piece."""
    rows = Rows(any_gpt)
    rows.step([DRAWN[0][:9], DRAWN[1][:30]], [2, 2])
    for steps in (0, 2, 10):
        for _ in range(steps):
            rows.step()
        for row in (1, 3):
            text, alone = rows.texts[row], Rows(any_gpt)
            assert rows.cache.can_begin(row, len(text))
            alone.cache.adopt(rows.cache.copy_of(row, len(text)), 1)
            assert alone.prompts == []
            alone.texts = [list(text)]
            for _ in range(3):
                alone.step()
    beginnings = [n for n in (1, 8, 9, 12) if rows.cache.can_begin(0, n)]
    if None in any_gpt.config.windows and len(set(any_gpt.config.windows)) == 1:
        assert beginnings == [1, 8, 9, 12]
    for n in beginnings:
        alone = Rows(any_gpt)
        alone.cache.adopt(rows.cache.copy_of(0, n), 1)
        alone.texts = [rows.texts[0][:n]]
        alone.step()


@pytest.mark.slow
@pytest.mark.parametrize("max_rows", [2, 4, 32])
def test_samples_are_those_of_rows_with_copies(any_gpt, monkeypatch, max_rows):
    """More samples than rows, as many, and all prompts at once; log-probabilities to rounding."""
    prompts = [DRAWN[0][:12], DRAWN[1][:5], DRAWN[2][:17]]
    sampling = Sampling(max_tokens=12, top_k=20, tools=False)

    def write():
        return Engine(any_gpt, TOKENIZER, max_rows=max_rows).sample(
            prompts, sampling, 4, ["a", "b", "c"]
        )

    mine = write()
    monkeypatch.setattr("nanochat.inference.cache.LEAST_BYTES", NEVER)
    copies = write()
    assert mine == copies
    assert len({tuple(one.ids) for group in mine for one in group}) == 12
    for group, true in zip(mine, copies, strict=True):
        for one, other in zip(group, true, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_a_finished_sample_is_kept_for_the_next_turn():
    gpt = random_gpt()
    engine = Engine(gpt, TOKENIZER)
    with engine.frozen():
        first = engine.submit(DRAWN[0][:20], Sampling(temperature=0, max_tokens=6, tools=False), 3)
        while not first.done:
            engine.step()
        answer = first.completions[0].ids
        prompt = [*DRAWN[0][:20], *answer, 9, 8]
        second = engine.submit(prompt, Sampling(temperature=0, max_tokens=6, tools=False))
        while not second.done:
            engine.step()
    assert engine.stats.reused_tokens >= 20 + len(answer) - 1
    assert second.completions[0].ids == plain_greedy(gpt, prompt, 6)
    assert engine.cache.nbytes() == 0


@torch.no_grad()
def test_it_takes_the_room_of_one_prompt():
    gpt = random_gpt()
    each = 2 * gpt.config.n_kv_head * gpt.config.head_dim * 4  # bytes of a token in a layer
    kept = sum(min(30, T if window is None else window + 1) for window in gpt.config.windows)
    cache = cache_of(gpt, 12)
    cache.step([], [DRAWN[0][:30]], [12])
    assert cache.nbytes() == kept * each


@torch.no_grad()
def test_a_long_prompt_gives_back_the_columns_that_the_others_do_not_need():
    cache = cache_of(random_gpt(), 5)
    cache.step([], [DRAWN[0][:30], DRAWN[1][:4]], [2, 2])
    for row in (1, 0):
        cache.drop(row)
    for layer in range(len(cache.keys)):
        for kept in cache.shared.layer(layer):
            assert kept.shape[::2] == (1, 4)


@torch.no_grad()
def test_memory_of_prompts_that_left_is_given_back_and_counted():
    cache = cache_of(random_gpt(), 40)
    cache.step([], [DRAWN[0][:9]] * 20, [2] * 20)
    all_of_them = cache.shared.nbytes()
    for _ in range(39):
        cache.drop(0)
    assert cache.shared.lengths == [9]
    held = [
        kept.untyped_storage().nbytes()
        for layer in range(len(cache.keys))
        for kept in cache.shared.layer(layer)
    ]
    assert cache.shared.nbytes() == sum(held) <= all_of_them / 5


def test_whether_rows_share_is_decided_by_what_it_saves(monkeypatch):
    """2 sides x 2 heads x 128 numbers of 4 bytes for each token and layer, against 2**20."""
    monkeypatch.undo()
    cache = cache_of(random_gpt(n_embd=256, n_head=2), 64)
    assert not cache.shares(10_000, 3)
    assert not cache.shares(10_000, 1)
    assert [cache.shares(n, 17) for n in (31, 32)] == [False, True]
