"""What other servers take too: messages to be continued, names without a step, paths with a slash,
more tokens than fit."""

import httpx
import openai
import pytest
from serving import served, server
from tiny_networks import SPECIAL, TOKENIZER, T, chain, random_gpt, scripted

from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling
from nanochat.tokenizer.conversations import render_prompt

HELLO = [{"role": "user", "content": "hi"}]
CALCULATES = chain("<|assistant_start|>", "7", "=", "<|python_start|>", "1+2", "<|python_end|>") | {
    SPECIAL["<|output_end|>"]: ord("Y"),
    ord("Y"): SPECIAL["<|assistant_end|>"],
}


@pytest.fixture(scope="module")
def calm():
    return random_gpt(std=0.15)


@pytest.fixture(scope="module")
def at(calm):
    models = [served(name, calm) for name in ("sft@100", "sft@20", "rl@7", "rl@7-2")]
    with server(
        *models,
        served("adds", scripted(CALCULATES)),
        defaults=Sampling(temperature=0.0, max_tokens=16),
    ) as found:
        yield found


@pytest.fixture(scope="module")
def client(at):
    return openai.OpenAI(base_url=f"{at[0]}/v1", api_key="none", max_retries=0)


def content(client, messages, **settings):
    got = client.chat.completions.create(
        **({"model": "sft", "messages": messages, "max_tokens": 8} | settings)
    )
    return got.choices[0].message.content, got.usage.prompt_tokens


def continued(gpt, ids: list[int], n: int = 8) -> str:
    """What follows these ids, by the engine alone."""
    engine = Engine(gpt, TOKENIZER)
    request = engine.submit(ids, Sampling(temperature=0, max_tokens=n))
    while not request.done:
        engine.step()
    return "".join(part["text"] for part in request.completions[0].parts if part["type"] == "text")


@pytest.mark.parametrize(
    "said", ["I am", "", [{"type": "text", "text": "I "}, {"type": "text", "text": "am"}]]
)
def test_a_last_message_of_the_assistant_is_continued_without_echo(client, calm, said):
    text = "".join(part["text"] for part in said) if isinstance(said, list) else said
    ids = [*render_prompt(TOKENIZER, {"messages": HELLO}), *TOKENIZER.encode(text)]
    messages = [*HELLO, {"role": "assistant", "content": said}]
    expected = (continued(calm, ids), len(ids))
    assert content(client, messages) == expected
    assert (
        content(
            client,
            messages,
            extra_body={"continue_final_message": True, "add_generation_prompt": False},
        )
        == expected
    )
    with pytest.raises(openai.BadRequestError, match="the last message is of assistant"):
        content(client, messages, extra_body={"continue_final_message": False})
    with pytest.raises(openai.BadRequestError, match="the last message is of user"):
        content(client, HELLO, extra_body={"continue_final_message": True})


def test_the_originals_route_and_tokenize_continue_it_too(at):
    messages = [*HELLO, {"role": "assistant", "content": "I am"}]
    ids = [*render_prompt(TOKENIZER, {"messages": HELLO}), *b"I am"]
    got = httpx.post(
        f"{at[0]}/tokenize", json={"messages": messages, "return_token_strs": True}
    ).json()
    assert (
        got["tokens"] == ids
        and got["count"] == len(ids)
        and got["token_strs"][-4:] == ["I", " ", "a", "m"]
    )
    engine = at[1].default.workers[0].engine
    before = engine.stats.read_tokens + engine.stats.reused_tokens
    assert (
        httpx.post(
            f"{at[0]}/chat/completions", json={"messages": messages, "max_tokens": 1}
        ).status_code
        == 200
    )
    assert engine.stats.read_tokens + engine.stats.reused_tokens - before == len(ids)
    both = httpx.post(f"{at[0]}/tokenize", json={"messages": messages, "prompt": "a"})
    assert both.status_code == 400 and "give either prompt or messages" in both.text


@pytest.mark.parametrize("stop", ["=Y", "7=Y", "7="])
@pytest.mark.parametrize("stream", [False, True])
def test_content_never_holds_a_stop_string_also_across_a_call(client, stop, stream):
    asked = {"model": "adds", "messages": HELLO}
    assert client.chat.completions.create(**asked).choices[0].message.content == "7=Y"
    if stream:
        chunks = [
            chunk.choices[0]
            for chunk in client.chat.completions.create(**asked, stop=stop, stream=True)
        ]
        text = "".join(choice.delta.content or "" for choice in chunks)
        reason = chunks[-1].finish_reason
    else:
        choice = client.chat.completions.create(**asked, stop=stop).choices[0]
        text, reason = choice.message.content, choice.finish_reason
    assert (text, reason) == ("7" if stop == "=Y" else "", "stop")


def test_messages_of_the_user_in_a_row_are_one_with_an_empty_line_between(client):
    two = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert content(client, two) == content(client, [{"role": "user", "content": "a\n\nb"}])
    system = [{"role": "developer", "content": "s"}, {"role": "system", "content": "t"}]
    assert content(client, [*system, *two]) == content(
        client, [{"role": "user", "content": "s\n\nt\n\na\n\nb"}]
    )


def test_more_max_tokens_than_fit_are_as_many_as_fit(client, at):
    for path, body in (
        ("chat/completions", {"messages": HELLO}),
        ("completions", {"prompt": "hi"}),
    ):
        asked = body | {"model": "sft", "max_tokens": 10**6, "min_tokens": T, "temperature": 1}
        got = httpx.post(f"{at[0]}/v1/{path}", json=asked).json()
        assert got["choices"][0]["finish_reason"] == "length" and got["usage"]["total_tokens"] == T
        got = httpx.post(f"{at[0]}/v1/{path}", json=asked | {"strict": True})
        assert got.status_code == 400 and got.json()["error"]["code"] == "context_length_exceeded"
        fits = (
            T - len(render_prompt(TOKENIZER, {"messages": HELLO})) if "messages" in body else T - 3
        )
        exactly = {"max_tokens": fits, "min_tokens": 0, "strict": True}
        assert httpx.post(f"{at[0]}/v1/{path}", json=asked | exactly).status_code == 200
        assert (
            httpx.post(
                f"{at[0]}/v1/{path}", json=asked | exactly | {"max_tokens": fits + 1}
            ).status_code
            == 400
        )


def test_a_model_may_be_named_without_its_step(client):
    assert client.models.retrieve("sft").id == "sft@100"
    assert client.chat.completions.create(model="sft", messages=HELLO).model == "sft@100"
    with pytest.raises(
        openai.NotFoundError, match=r"'rl' may be several models .* name one of: rl@7, rl@7-2"
    ):
        client.models.retrieve("rl")
    with pytest.raises(openai.NotFoundError, match="'sf' is not served here"):
        client.models.retrieve("sf")


@pytest.mark.parametrize(
    "path", ["v1/models", "v1/models/sft", "health", "stats", "metrics", "tokenizer_info"]
)
def test_a_slash_at_the_end_changes_nothing(at, path):
    plain, slash = (httpx.get(f"{at[0]}/{path}{end}") for end in ("", "///"))
    assert plain.status_code == slash.status_code == 200
    assert path in ("stats", "metrics") or plain.json() == slash.json()


def test_a_slash_at_the_end_needs_the_key_too(calm):
    with server(served("calm", calm), api_key="SECRET") as (url, _):
        for path in (
            "stats/",
            "v1/models/",
            "tokenizer_info//",
            "chat/completions/",
            "v1/responses/",
        ):
            assert httpx.get(f"{url}/{path}").status_code == 401
        bearer = {"Authorization": "Bearer SECRET"}
        got = httpx.post(f"{url}/v1/chat/completions/", json={"messages": HELLO}, headers=bearer)
        assert got.status_code == 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias has the id 99999"),
        ({"min_tokens": 9}, "min_tokens=9 is more than max_tokens=8"),
        ({"best_of": 2}, "best_of is not supported here"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_named(client, change, words):
    with pytest.raises(openai.BadRequestError) as caught:
        content(client, HELLO, extra_body=change)
    assert words in caught.value.message


def test_penalties_and_biases_reach_the_engine(client):
    assert content(client, HELLO, logit_bias={"70": 100})[0] == "F" * 8
    letters = content(client, HELLO, logit_bias={"70": 100, "71": 99}, frequency_penalty=2)[0]
    assert letters.count("F") in (4, 5) and set(letters) == set("FG")
