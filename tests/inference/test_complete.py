"""Texts that go on from a beginning, against the full forward pass for every token."""

import pytest
import torch
from tiny_networks import SPECIAL, TOKENIZER, T, chain, random_gpt, scripted

from nanochat.inference.complete import complete

GREEDY = {"temperature": 0.0, "top_k": None, "seed": 0}


def ids_of(prompt: str) -> list[int]:
    return [TOKENIZER.bos_id, *TOKENIZER.encode(prompt)]


@torch.no_grad()
def best(gpt, text: list[int]) -> int:
    return int(gpt(torch.tensor([text]))[0, -1].argmax())


def test_greedy_texts_are_those_of_the_full_forward_pass_in_order():
    gpt, prompts = random_gpt(seed=3), ["", "ab", "a longer beginning"]
    texts = complete(gpt, TOKENIZER, prompts, num_samples=2, max_tokens=12, **GREEDY)
    plain = []
    for prompt in prompts:
        text = ids_of(prompt)
        for _ in range(12):
            token = best(gpt, text)
            if token == TOKENIZER.bos_id:  # nothing else ends it
                break
            text.append(token)
        plain += [TOKENIZER.decode(text[len(ids_of(prompt)) :])] * 2
    assert texts == plain and len(set(texts)) == 3


@pytest.mark.parametrize(
    ("end", "text"), [("<|bos|>", "bc"), ("<|assistant_end|>", "bc<|assistant_end|>")]
)
def test_a_text_ends_before_a_bos_and_not_where_an_answer_would(end, text):
    gpt = scripted({**chain("a", "bc", end), SPECIAL["<|assistant_end|>"]: SPECIAL["<|bos|>"]})
    assert complete(gpt, TOKENIZER, ["a"], max_tokens=9, **GREEDY) == [text]


@pytest.mark.parametrize("prompt", ["abc", "x" * (T - 1), "y" * (2 * T)], ids=len)
def test_a_text_that_outgrows_the_context_goes_on_from_its_last_half(prompt):
    gpt, wanted = random_gpt(seed=1), T + 20
    (text,) = complete(gpt, TOKENIZER, [prompt], max_tokens=wanted, **GREEDY)
    ids = ids_of(prompt)
    seen = ids if len(ids) < T else ids[-T // 2 :]
    written: list[int] = []
    while len(written) < wanted:
        if len(seen) == T:
            seen = seen[-T // 2 :]
        written.append(best(gpt, seen))
        seen = [*seen, written[-1]]
    assert TOKENIZER.bos_id not in written
    assert text == TOKENIZER.decode(written)


def test_samples_are_decided_by_the_seed_and_differ():
    gpt, how = random_gpt(), {"max_tokens": 8, "temperature": 1.0, "top_k": 50}
    first = complete(gpt, TOKENIZER, ["a", "b"], num_samples=3, seed=4, **how)
    assert first == complete(gpt, TOKENIZER, ["a", "b"], num_samples=3, seed=4, **how)
    assert first != complete(gpt, TOKENIZER, ["a", "b"], num_samples=3, seed=5, **how)
    assert len(set(first)) == 6


def test_weights_that_change_between_two_calls_are_used():
    gpt, other = random_gpt(), random_gpt(seed=1)
    before = complete(gpt, TOKENIZER, ["a"], max_tokens=8, **GREEDY)
    gpt.load_state_dict(other.state_dict())
    after = complete(gpt, TOKENIZER, ["a"], max_tokens=8, **GREEDY)
    assert before != after == complete(other, TOKENIZER, ["a"], max_tokens=8, **GREEDY)
    assert gpt.transformer.wte.weight.requires_grad


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"top_k": 0},
        {"num_samples": 0},
        {"num_samples": -2},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_one_clear_line(settings):
    name, value = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name}={value}") as caught:
        complete(random_gpt(), TOKENIZER, ["a"], **{"max_tokens": 4, **GREEDY, **settings})
    assert "\n" not in str(caught.value)
