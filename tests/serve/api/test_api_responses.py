"""OpenAI's Responses for text, by its client."""

import openai
import pytest
from pydantic import BaseModel
from serving import served, server
from tiny_networks import random_gpt

from nanochat.inference.sampling import Sampling


class Number(BaseModel):
    value: int


@pytest.fixture(scope="module")
def client():
    with server(
        served("calm", random_gpt(std=0.15, sequence_len=120)),
        defaults=Sampling(temperature=0.0, max_tokens=20),
    ) as (url, _):
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def chat(client, messages, **settings):
    got = client.chat.completions.create(model="calm", messages=messages, **settings)
    return got.choices[0].message.content, got.usage


@pytest.mark.parametrize(
    ("asked", "messages"),
    [
        ({"input": "hi"}, [{"role": "user", "content": "hi"}]),
        (
            {
                "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
                "instructions": "be short",
            },
            [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}],
        ),
    ],
)
def test_an_answer_is_that_of_chat(client, asked, messages):
    got = client.responses.create(model="calm", **asked, metadata={"a": "b"}, store=False)
    text, usage = chat(client, messages)
    assert (got.output_text, got.usage.input_tokens, got.usage.output_tokens) == (
        text,
        usage.prompt_tokens,
        usage.completion_tokens,
    )
    assert got.status in ("completed", "incomplete") and got.metadata == {"a": "b"}
    # what came back may be sent again
    again = [
        {"role": "user", "content": "hi"},
        *(item.model_dump() for item in got.output),
        {"role": "user", "content": "so?"},
    ]
    assert (
        client.responses.create(model="calm", input=again).usage.input_tokens > usage.total_tokens
    )


def test_a_stream_is_the_answer_in_order(client):
    whole = client.responses.create(model="calm", input="hi")
    events = list(client.responses.create(model="calm", input="hi", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert (
        "".join(e.delta for e in events if e.type == "response.output_text.delta")
        == whole.output_text
    )
    assert (
        events[-1].type == f"response.{whole.status}" and events[-1].response.usage == whole.usage
    )
    with client.responses.stream(model="calm", input="hi") as stream:
        for _ in stream:
            pass
        if whole.status == "completed":
            assert stream.get_final_response().output_text == whole.output_text


def test_an_answer_that_was_cut_says_so(client):
    got = client.responses.create(model="calm", input="hi", max_output_tokens=2)
    assert got.status == "incomplete" and got.incomplete_details.reason == "max_output_tokens"
    assert got.usage.output_tokens == 2


def test_a_format_is_kept_to(client):
    got = client.responses.parse(model="calm", input="hi", text_format=Number)
    assert isinstance(got.output_parsed, Number)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools is not supported here"),
        ({"previous_response_id": "resp_1"}, "previous_response_id is not supported here"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0.type",
        ),
        ({"input": ""}, "message 0 (user) is empty"),
        ({"temperature": 3}, "temperature"),
        ({"nothing": 1}, "nothing: not a field of this request"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_named(client, change, words):
    change = {"input": "hi"} | change
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/responses", cast_to=object, body={"model": "calm"} | change)
    assert words in caught.value.message
