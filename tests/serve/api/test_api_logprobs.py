"""Log-probabilities of the API where tokens are pieces of characters: offsets in the text, a name
for each token."""

import random

import openai
import pytest
from serving import served, server
from tiny_networks import TOKENIZER, V, random_gpt

from nanochat.inference.sampling import Sampling
from nanochat.serve.api.logprobs import Offsets, name_of

HELLO = [{"role": "user", "content": "hi"}]
# bytes of characters of two to four bytes are likely
BIAS = {str(token): 12 for token in (*"é😀日".encode(), 0xFF)}


@pytest.fixture(scope="module")
def client():
    models = (
        served("calm", random_gpt(std=0.15)),
        served("base", random_gpt(std=0.15), phase="base"),
    )
    with server(*models, defaults=Sampling(max_tokens=24)) as (url, _):
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def plain_offsets(ids: list[int], text: str) -> list[int]:
    """By the definition: the character of the whole text that holds the token's first byte."""
    raw = TOKENIZER.decode_bytes(ids)
    character: list[int] = []  # of each byte
    at = 0
    while at < len(raw):
        # the longest piece that decoding replaces or takes as one character
        n = next(n for n in range(4, 0, -1) if len(raw[at : at + n].decode(errors="replace")) == 1)
        while (
            n > 1
            and raw[at : at + n].decode(errors="replace") == "\ufffd"
            and raw[at:].decode(errors="replace")[1:] != raw[at + n :].decode(errors="replace")
        ):
            n -= 1
        character += [character[-1] + 1 if character else 0] * n
        at += n
    starts = [len(TOKENIZER.decode_bytes(ids[:n])) for n in range(len(ids))]
    return [character[start] if start < len(raw) else len(text) for start in starts]


@pytest.mark.parametrize("seed", range(30))
def test_offsets_are_of_the_character_that_holds_the_first_byte(seed):
    drawn = random.Random(seed)
    ids = [
        i
        for _ in range(12)
        for i in drawn.choice(
            [[*"é".encode()], [*"😀".encode()], [0xF0, 0x9F], [0xFF], [65], [0xE6, 0x97]]
        )
    ]
    text, offsets = TOKENIZER.decode(ids), Offsets()
    assert [offsets.next(TOKENIZER.piece(token)) for token in ids] == plain_offsets(ids, text)


def test_every_token_has_a_name_of_its_own():
    assert len({name_of(TOKENIZER.piece(token)) for token in range(V)}) == V
    assert name_of(b"\xf0\x9f") == "bytes:\\xf0\\x9f" and name_of("�".encode()) == "�"


@pytest.mark.parametrize("seed", range(4))
def test_completions_tell_offsets_in_the_text_and_never_hide_the_token_drawn(client, seed):
    asked = {
        "model": "base",
        "prompt": "é😀",
        "max_tokens": 20,
        "seed": seed,
        "temperature": 1,
        "logprobs": 5,
        "logit_bias": BIAS,
        "stop": ["A"],
    }
    got = client.completions.create(**asked, echo=True).choices[0]
    told = got.logprobs
    assert told.text_offset[:6] == [0, 0, 1, 1, 1, 1] and told.text_offset == sorted(
        told.text_offset
    )
    assert max(told.text_offset) <= len(got.text)
    for name, value, top in zip(
        told.tokens[1:], told.token_logprobs[1:], told.top_logprobs[1:], strict=True
    ):
        assert top[name] == value and len(top) in (5, 6)
        assert value <= max(top.values())
    streamed: list = []
    for chunk in client.completions.create(**asked, stream=True):
        if (part := chunk.choices[0].logprobs) is not None:
            streamed += zip(part.tokens, part.text_offset, part.top_logprobs, strict=True)
    whole = client.completions.create(**asked).choices[0].logprobs
    n = len(streamed)
    assert n >= 5 and [row[0] for row in streamed] == whole.tokens[:n]
    assert [row[1] for row in streamed] == whole.text_offset[:n] and [
        row[2] for row in streamed
    ] == whole.top_logprobs[:n]


def test_chat_has_the_same_names_and_the_bytes(client):
    asked = {
        "model": "calm",
        "messages": HELLO,
        "max_tokens": 20,
        "seed": 1,
        "temperature": 1,
        "logprobs": True,
        "top_logprobs": 5,
        "logit_bias": BIAS,
    }
    rows = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert any(row.token.startswith("bytes:\\x") for row in rows)
    for row in rows:
        assert (
            row.token == name_of(bytes(row.bytes))
            and len({other.token for other in row.top_logprobs}) == 5
        )
        assert row.logprob <= row.top_logprobs[0].logprob + 1e-6
    chunks = [
        c.choices[0].logprobs
        for c in client.chat.completions.create(**asked, stream=True)
        if c.choices
    ]
    assert [row.token for chunk in chunks if chunk for row in chunk.content] == [
        row.token for row in rows
    ]
