"""Batched decoding with a cache against the full forward pass, the tool, and what must not depend
on neighbours."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import (
    ARCHS,
    PROMPTS,
    SPECIAL,
    TOKENIZER,
    T,
    V,
    cache_of,
    chain,
    plain_greedy,
    random_gpt,
    scripted,
)

from nanochat.gpt.elementary import NORM_EPS, norm
from nanochat.inference.cache import KVCache
from nanochat.inference.engine import Engine
from nanochat.inference.frozen import FrozenWeight, packs
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.inference.sampling import Drawing, Drawn, Part, Sampling, draw
from nanochat.inference.text import Completion, Text

# sums in another order: fp32 keeps 24 bits; bf16 8, of logits up to 15
ATOL = {torch.float32: 1e-4, torch.bfloat16: 0.2}


@torch.no_grad()
def come_and_go(gpt, cache: KVCache) -> None:
    """Rows of 1 to 31 tokens step together; three leave, three join (one text twice), and all go
    on; the cache grows."""
    device = gpt.device
    rest = torch.randint(V, (8, T), generator=torch.Generator().manual_seed(1)).tolist()
    texts = [list(p) for p in PROMPTS]

    def compare(logits, texts):
        assert logits.shape == (len(texts), V)
        for row, text in zip(logits, texts, strict=True):
            full = gpt(torch.tensor([text], device=device))[0, -1]
            torch.testing.assert_close(row, full, rtol=0, atol=ATOL[gpt.compute_dtype])

    def go_on(steps, joining=(), copies=()):
        for _ in range(steps):
            for row, text in enumerate(texts):
                text.append(rest[row][len(text)])
            logits = cache.step([(text[-2], text[-1]) for text in texts], joining, copies)
            texts.extend(
                list(text) for text, n in zip(joining, copies, strict=True) for _ in range(n)
            )
            compare(logits, texts)

    compare(cache.step([], texts, [1] * 5), texts)
    go_on(6)
    for row in (1, 3):  # from the middle: the last one moves there
        cache.drop(row)
        texts[row] = texts[-1]
        texts.pop()
    cache.drop(2)  # the last itself
    texts.pop()
    go_on(2)
    go_on(1, [list(range(40, 45)), [3]], [2, 1])
    go_on(1, [[9, 8, 7]], [1])
    go_on(T - max(map(len, texts)))
    assert max(cache.lengths) == cache.capacity == T
    kept = [min(T, T if window is None else window + 1) for window in gpt.config.windows]
    assert (
        [keys.size(2) for keys in cache.keys] == [values.size(2) for values in cache.values] == kept
    )


@pytest.mark.parametrize("products_pay", [0, 2**40], ids=["products", "sdpa"])
def test_cached_logits_equal_the_full_forward_pass_while_rows_come_and_go(
    any_gpt, monkeypatch, products_pay
):
    monkeypatch.setattr("nanochat.inference.one_query.PRODUCTS_PAY", products_pay)
    # 32 tokens at first, 48 in the end
    monkeypatch.setattr("nanochat.inference.cache.FIRST_CAPACITY", 4)
    come_and_go(any_gpt, cache_of(any_gpt, 6))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("fixed", [False, True])
def test_so_do_those_in_bf16(arch, fixed, monkeypatch):
    """On a CPU keys and values are in fp32 all the same."""
    monkeypatch.setattr("nanochat.inference.cache.FIRST_CAPACITY", 4)
    monkeypatch.setattr("nanochat.inference.cache.LEAST_BYTES", 1)
    monkeypatch.setattr("nanochat.inference.cache.LEAST_COPIES", 2)
    monkeypatch.setattr("nanochat.inference.cache.COMPILED_ROWS", 6)
    monkeypatch.setattr(torch, "compile", lambda step, **options: step)
    gpt = random_gpt(arch, std=0.15)
    gpt.compute_dtype = torch.bfloat16
    cache = cache_of(gpt, 6, compile=fixed)
    come_and_go(gpt, cache)
    assert {kept.dtype for kept in (*cache.keys, *cache.values)} == {torch.float32}


@pytest.mark.slow
def test_so_do_steps_of_fixed_shapes(any_gpt, monkeypatch):
    """Room for 1 text, for 4, then for 6: rows without a text take part and change nothing."""
    monkeypatch.setattr("nanochat.inference.cache.FIRST_FIXED", 8)
    monkeypatch.setattr("nanochat.inference.cache.FIXED_ROWS", (1, 4))
    monkeypatch.setattr("nanochat.inference.cache.COMPILED_ROWS", 6)  # on a CPU, as on a GPU
    monkeypatch.setattr(torch, "compile", lambda step, **options: step)
    cache = cache_of(any_gpt, 6, compile=True)
    come_and_go(any_gpt, cache)
    room = cache.keys[0].data_ptr()
    cache.clear()
    come_and_go(any_gpt, cache)
    # a recorded step finds it where it was
    assert cache.keys[0].data_ptr() == room and cache.keys[0].size(0) == 6


@torch.no_grad()
def test_on_a_cpu_one_row_alone_runs_compiled_beside_texts_that_join(monkeypatch):
    gpt, sizes = random_gpt(std=0.15), []

    def counting(step, **options):
        def call(gpt, numbers, keys, values):
            sizes.append((numbers.size(0), keys[0].size(2)))
            return step(gpt, numbers, keys, values)

        return call

    monkeypatch.setattr(torch, "compile", counting)
    monkeypatch.setattr("nanochat.inference.cache.FIRST_FIXED", 8)
    cache = cache_of(gpt, 4, compile=True)
    texts = [[1, 2, 3]]

    def compare(logits):
        for row, text in zip(logits, texts, strict=True):
            torch.testing.assert_close(row, gpt(torch.tensor([text]))[0, -1], rtol=0, atol=1e-4)

    def go_on(joining=(), copies=()):
        for text in texts:
            text.append(7)
        logits = cache.step([(text[-2], 7) for text in texts], joining, copies)
        texts.extend(list(text) for text, n in zip(joining, copies, strict=True) for _ in range(n))
        compare(logits)

    compare(cache.step([], texts, [1]))
    go_on([list(range(20, 32)), [5]], [1, 2])
    assert sizes == [(1, 8)], "room for those who join is made after the step"
    go_on()
    for _ in range(3):
        cache.drop(1)
    del texts[1:]
    go_on()
    assert [rows for rows, _ in sizes] == [1, 1]


@pytest.mark.slow
def test_compiled_steps_write_the_same_text(monkeypatch):
    """By the compiler's front, which takes the step apart; its back end takes half a minute and is
    run by nanochat.bench."""
    monkeypatch.setattr("nanochat.inference.cache.COMPILED_ROWS", 4)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    plain = [Engine(random_gpt(n_layer=2, seed=seed), TOKENIZER, max_rows=4) for seed in (0, 1)]
    compiled = [
        Engine(random_gpt(n_layer=2, seed=seed), TOKENIZER, max_rows=4, compile=True)
        for seed in (0, 1)
    ]
    graphs = 0
    for prompts in (PROMPTS[2:3], PROMPTS):  # room for 1, then for 4
        # networks of one shape do not take each other's numbers
        for one, other in zip(plain, compiled, strict=True):
            true = one.generate(prompts, max_tokens=12, tools=False)
            assert max(len(completion.ids) for completion in true) > 1
            assert other.generate(prompts, max_tokens=12, tools=False) == true
            graphs += 1
            assert counted["unique_graphs"] == before + graphs


def test_where_compiling_fails_one_line_says_so_and_it_goes_on(monkeypatch, caplog):
    def broken(step, **how):
        def call(*inputs):
            raise RuntimeError("no such instruction\nand so on")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    plain, compiled = Engine(random_gpt(), TOKENIZER), Engine(random_gpt(), TOKENIZER, compile=True)
    for _ in range(2):
        true = plain.generate(PROMPTS[2:3], max_tokens=6, tools=False)
        assert compiled.generate(PROMPTS[2:3], max_tokens=6, tools=False) == true
    assert [r.getMessage() for r in caplog.records] == [
        "steps run uncompiled, compiling failed: RuntimeError: no such instruction"
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("arch", ["modern", "classic", "bigram"])
def test_recorded_steps_equal_the_full_forward_pass(arch):
    gpt = random_gpt(arch).to("cuda")
    gpt.grow_rope(T)
    come_and_go(gpt, cache_of(gpt, 6, compile=True))


def test_greedy_tokens_equal_the_full_forward_pass_together_and_alone(any_gpt):
    together = Engine(any_gpt, TOKENIZER).generate(PROMPTS, max_tokens=14, tools=False)
    for prompt, completion in zip(PROMPTS, together, strict=True):
        true = plain_greedy(any_gpt, prompt, 14)
        assert completion.ids == true
        (alone,) = Engine(any_gpt, TOKENIZER).generate([prompt], max_tokens=14, tools=False)
        assert alone == completion
        assert completion.mask == [1] * len(true)
        assert completion.text == TOKENIZER.decode(true)
    # not one token over and over
    assert len({token for completion in together for token in completion.ids}) > 10


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 2.0, "top_k": 5}], ids=str
)
def test_fewer_slots_than_prompts_give_the_same_completions(gpt, settings):
    prompts = [*PROMPTS, *(p[:2] for p in PROMPTS[1:])]
    settings = {"max_tokens": 16, "num_samples": 2, **settings}
    wide = Engine(gpt, TOKENIZER, max_rows=64).generate(prompts, **settings)
    assert len(wide) == 18
    for rows in (2, 5):
        assert Engine(gpt, TOKENIZER, max_rows=rows).generate(prompts, **settings) == wide
    # rows came and went between
    assert len({len(c.ids) for c in wide}) > 1 + bool(settings.get("temperature"))


def test_samples_do_not_depend_on_the_company(gpt):
    settings = {"max_tokens": 12, "temperature": 1.0, "top_k": 50, "seed": 5}
    together = Engine(gpt, TOKENIZER).generate(PROMPTS, num_samples=3, **settings)
    assert Engine(gpt, TOKENIZER).generate(PROMPTS[:1], num_samples=3, **settings) == together[:3]
    assert Engine(gpt, TOKENIZER).generate(PROMPTS[:2], num_samples=1, **settings) == [
        together[0],
        together[3],
    ]
    assert (
        Engine(gpt, TOKENIZER).generate(PROMPTS, num_samples=3, **{**settings, "seed": 6})
        != together
    )


def test_samples_of_a_prompt_differ_and_equal_prompts_too(gpt):
    completions = Engine(gpt, TOKENIZER).generate(
        [[1, 2], [1, 2]], num_samples=8, max_tokens=6, temperature=2.0
    )
    assert len({tuple(c.ids) for c in completions}) == 16


def test_greedy_samples_are_all_the_same(gpt):
    first, *others = Engine(gpt, TOKENIZER).generate([[1, 2]], num_samples=3, max_tokens=6)
    assert others == [first, first]


# --- where a text ends
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_tokens", "length"), [(1000, T - 5), (T - 5, T - 5), (7, 7)])
def test_max_tokens_and_the_context_end_a_text(max_tokens, length):
    (completion,) = Engine(scripted({}), TOKENIZER).generate([[65] * 5], max_tokens=max_tokens)
    assert completion.text == "?" * length
    assert completion.finish_reason == "length"


def test_a_prompt_one_short_of_the_context_gets_one_token(gpt):
    (completion,) = Engine(gpt, TOKENIZER).generate([[65] * (T - 1)], max_tokens=5)
    assert completion.ids == plain_greedy(gpt, [65] * (T - 1), 1)
    assert len(completion.ids) == 1


@pytest.mark.parametrize(
    ("prompts", "settings", "named"),
    [
        ([[1], []], {}, "prompt 1"),
        ([[1], [1] * T], {}, f"sequence_len={T}"),
        ([[1]], {"max_tokens": 0}, "max_tokens=0"),
        ([[1]], {"temperature": -0.1}, "temperature=-0.1"),
        ([[1]], {"top_k": 0}, "top_k=0"),
        ([[1]], {"num_samples": 0}, "num_samples=0"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_settings_that_make_no_sense_are_one_clear_line(gpt, prompts, settings, named):
    with pytest.raises(ValueError, match=named) as caught:
        Engine(gpt, TOKENIZER).generate(prompts, **{"max_tokens": 4, **settings})
    assert "\n" not in str(caught.value)


def test_no_rows_are_one_clear_line(gpt):
    with pytest.raises(ValueError, match="max_rows=0"):
        Engine(gpt, TOKENIZER, max_rows=0)


def test_no_prompts_are_no_completions(gpt):
    assert Engine(gpt, TOKENIZER).generate([], max_tokens=4) == []


# --- the tool ---
# ----------------


def completions(script, *, prompt="<|assistant_start|>", **settings) -> Completion:
    (completion,) = Engine(scripted(script), TOKENIZER).generate(
        [[SPECIAL[prompt]]], **{"max_tokens": 40, **settings}
    )
    return completion


CALL = {
    **chain(
        "<|assistant_start|>",
        "So ",
        "<|python_start|>",
        "12*3",
        "<|python_end|>",
        "Z",
        "<|assistant_end|>",
    ),
    **chain("<|output_end|>", "Y", "<|assistant_end|>"),
}


def test_the_result_of_a_call_is_forced_in():
    completion = completions(CALL)
    # forced tokens also are what the text goes on from: Y, not Z
    assert (
        completion.text == "So <|python_start|>12*3<|python_end|><|output_start|>36<|output_end|>Y"
    )
    assert completion.mask == [1] * 9 + [0] * 4 + [1]
    assert completion.finish_reason == "stop"
    assert TOKENIZER.decode(completion.ids) == completion.text


def test_forced_tokens_are_in_the_cache_like_any_others(gpt, monkeypatch):
    """After the result, a random network goes on as it does from the whole text up to there."""
    before = [SPECIAL["<|python_start|>"], *TOKENIZER.encode("6*7")]
    prompt = [SPECIAL["<|bos|>"], 65]
    script = [*before, SPECIAL["<|python_end|>"]]
    whole = [
        *prompt,
        *script,
        SPECIAL["<|output_start|>"],
        *TOKENIZER.encode("42"),
        SPECIAL["<|output_end|>"],
    ]
    left = iter(script)

    def first_the_script(logits, *settings):
        (best,) = draw(logits, *settings)
        token = next(left, best.id)
        return Drawing(
            torch.tensor([token]), [Part([0], settings[0], torch.tensor([[token, 0.0]]))]
        )

    monkeypatch.setattr("nanochat.inference.engine.begin_draw", first_the_script)
    (completion,) = Engine(gpt, TOKENIZER).generate([prompt], max_tokens=20)
    assert completion.ids[: len(whole) - len(prompt)] == whole[len(prompt) :]
    assert completion.mask[: len(whole) - len(prompt)] == [1] * 5 + [0] * 4
    rest = completion.ids[len(whole) - len(prompt) :]
    assert rest == plain_greedy(gpt, whole, 20 - (len(whole) - len(prompt)))
    assert rest


def test_nothing_is_forced_without_tools_or_without_a_result():
    assert completions(CALL, tools=False).text == "So <|python_start|>12*3<|python_end|>Z"
    wrong = {**CALL, **chain("2", "x", "<|python_end|>")}
    completion = completions(wrong)
    assert completion.text == "So <|python_start|>12x<|python_end|>Z"
    assert completion.mask == [1] * len(completion.ids)


def test_an_end_without_a_start_is_no_call():
    script = chain("<|assistant_start|>", "1+2", "<|python_end|>", "Z", "<|assistant_end|>")
    assert completions(script).text == "1+2<|python_end|>Z"


def test_the_second_start_begins_anew():
    call = [
        SPECIAL["<|python_start|>"],
        ord("9"),
        SPECIAL["<|python_start|>"],
        ord("4"),
        SPECIAL["<|python_end|>"],
    ]
    text = Text([1], Sampling(), TOKENIZER, seed="0", max_tokens=20)
    for token in call:
        text.take(Drawn(token, 0.0, []))
    assert list(text.forced) == [SPECIAL["<|output_start|>"], ord("4"), SPECIAL["<|output_end|>"]]


def test_a_call_ends_once():
    text = Text([1], Sampling(), TOKENIZER, seed="0", max_tokens=20)
    end = SPECIAL["<|python_end|>"]
    for token in [SPECIAL["<|python_start|>"], ord("1"), ord("+"), end, ord("1"), end]:
        text.take(Drawn(token, 0.0, []))
    assert not text.forced  # 1+1 stands on both sides of the first end


def test_rows_have_their_own_tool_state():
    """Calls at once that begin at different times, one that was never opened, and a text without
    any."""
    script = {
        **chain(
            "c", "b", "a", "<|python_start|>", "7/2", "<|python_end|>", "Z", "<|assistant_end|>"
        ),
        **chain("<|output_end|>", "<|assistant_end|>"),
        **chain("d", "e", "<|assistant_end|>"),
        **chain("f", "1", "<|python_end|>"),
    }
    call = "<|python_start|>7/2<|python_end|><|output_start|>3.5<|output_end|>"
    for rows in (5, 2):
        engine = Engine(scripted(script), TOKENIZER, max_rows=rows)
        texts = [c.text for c in engine.generate([[ord(p)] for p in "abcdf"], max_tokens=40)]
        assert texts == [call, "a" + call, "ba" + call, "e", "1<|python_end|>Z"]


@pytest.mark.parametrize("end", ["<|assistant_end|>", "<|bos|>"])
def test_both_terminal_tokens_end_a_text_and_are_not_in_it(end):
    completion = completions(chain("<|assistant_start|>", "abc", end))
    assert (completion.text, completion.finish_reason) == ("abc", "stop")


def test_forced_tokens_count_against_max_tokens():
    completion = completions(CALL, max_tokens=11)
    assert completion.text == "So <|python_start|>12*3<|python_end|><|output_start|>3"
    assert completion.mask == [1] * 9 + [0] * 2
    assert completion.finish_reason == "length"


# --- the network afterwards
# ---------------------------------------------------------------------------------------


def test_weights_that_change_between_two_calls_are_used():
    gpt = random_gpt()
    engine = Engine(gpt, TOKENIZER)
    before = engine.generate(PROMPTS, max_tokens=8)
    other = random_gpt(seed=1)
    gpt.load_state_dict(other.state_dict())
    after = engine.generate(PROMPTS, max_tokens=8)
    assert after == Engine(other, TOKENIZER).generate(PROMPTS, max_tokens=8) != before


# other layouts sum in another order: fp32 keeps 24 bits; bf16 8, of logits up to 15
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.06)], ids=str
)
def test_frozen_weights_give_the_same_logits_and_leave_the_network_as_it_is(arch, dtype, atol):
    gpt = random_gpt(arch)
    gpt.prepare(compute_dtype=dtype)
    before = {name: p.clone() for name, p in gpt.state_dict().items()}
    idx = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        frozen, free = FrozenGPT.of(gpt), gpt(idx)
        torch.testing.assert_close(frozen(idx), free, rtol=0, atol=atol)
        assert torch.equal(gpt(idx), free)
    assert all(torch.equal(p, before[name]) for name, p in gpt.state_dict().items())
    gpt.loss_sum(idx[:, :-1], idx[:, 1:]).backward()
    assert all(p.grad is not None for p in gpt.parameters())
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("shape", [(3, 1, 32), (2, 40, 3, 96), (5, 7, 33)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_the_norm_without_gradients_is_the_other(shape, scale):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[0] *= 1e-4  # where the epsilon counts
    with torch.no_grad():
        for y in (x, x.mT):
            torch.testing.assert_close(
                norm(y, scale), scale * F.rms_norm(y, (y.size(-1),), eps=NORM_EPS)
            )


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("rows", "columns"), [(768, 256), (256, 1024), (263, 250), (64, 100), (2, 12)], ids=str
)
@pytest.mark.parametrize("texts", [0, 1, 5, 70, 1100])
def test_a_frozen_weight_gives_the_product(rows, columns, texts, dtype, by_rows, monkeypatch):
    monkeypatch.undo()
    x = torch.randn(texts, 1, 2 * columns, dtype=dtype)[..., :columns]
    weight = torch.randn(rows, columns, dtype=dtype)
    with torch.inference_mode():
        frozen, pays = FrozenWeight.of(weight), 2**16 if dtype == torch.float32 else 2**12
        frozen = frozen.unpacked() if by_rows else frozen
        assert frozen.weight.is_mkldnn == (
            packs(weight.device, dtype) and not by_rows and rows * columns >= pays
        )
        exact = (x.double() @ weight.double().T).to(dtype)
        tolerance = (
            {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
        )
        torch.testing.assert_close(frozen.times(x), exact, **tolerance)
    assert all(map(torch.equal, frozen.parts([rows - 1, 1]), weight.split([rows - 1, 1])))


def test_training_goes_on_after_generation(gpt):
    """Nothing that generation leaves behind is out of bounds for autograd."""
    Engine(gpt, TOKENIZER).generate(PROMPTS, max_tokens=4)
    gpt.loss_sum(torch.tensor([PROMPTS[2]]), torch.tensor([PROMPTS[2]])).backward()
    gpt.zero_grad()
