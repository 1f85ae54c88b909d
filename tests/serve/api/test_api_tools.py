"""JSON by a schema and calls of functions, by the openai client: what comes is by the schema,
whatever the network wants."""

import json
from typing import Literal

import httpx
import openai
import pytest
from pydantic import BaseModel
from serving import served, server
from tiny_networks import SPECIAL, TOKENIZER, Scripted, V, chain, random_gpt

from nanochat.gpt import GPTConfig
from nanochat.inference.sampling import Sampling
from nanochat.tokenizer.conversations import render_prompt

HELLO = [{"role": "user", "content": "hi"}]
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "op": {"enum": ["plus", "minus"]}},
            "required": ["a", "op"],
        },
    },
}
LOOK = {"type": "function", "function": {"name": "look"}}
NAMED = {"type": "function", "function": {"name": "look"}}


class Person(BaseModel):
    name: str
    kind: Literal["cat", "dog"]


def scripted(script: dict[int, int]) -> Scripted:
    gpt = Scripted.build(GPTConfig(400, V, 2, 2, 2, 32))
    gpt.script = script
    return gpt


@pytest.fixture(scope="module")
def at():
    calls = chain("<|assistant_start|>", "Hm", "<|python_start|>", "{") | {
        ord("}"): SPECIAL["<|assistant_end|>"]
    }
    adds = chain("<|assistant_start|>", "<|python_start|>", "1+2", "<|python_end|>") | {
        SPECIAL["<|output_end|>"]: ord("Y"),
        ord("Y"): SPECIAL["<|assistant_end|>"],
    }
    models = (
        served("random", random_gpt(std=0.15, sequence_len=400)),
        served("calls", scripted(calls)),
        served("adds", scripted(adds)),
    )
    with server(*models, defaults=Sampling(temperature=0.0, max_tokens=300)) as found:
        yield found


@pytest.fixture(scope="module")
def client(at):
    return openai.OpenAI(base_url=f"{at[0]}/v1", api_key="none", max_retries=0)


# --- JSON ---
# -----------------


@pytest.mark.parametrize("seed", range(3))
def test_a_response_format_is_kept_to(client, seed):
    asked = {
        "model": "random",
        "messages": HELLO,
        "seed": seed,
        "temperature": 1.5,
        "max_tokens": 60,
    }
    got = client.chat.completions.parse(**asked, response_format=Person).choices[0]
    assert isinstance(got.message.parsed, Person) and got.finish_reason == "stop"
    got = client.chat.completions.create(**asked, n=2, response_format={"type": "json_object"})
    assert all(isinstance(json.loads(choice.message.content), dict) for choice in got.choices)
    schema = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "array", "items": {"type": "integer"}}},
    }
    chunks = client.chat.completions.create(**asked, response_format=schema, stream=True)
    numbers = json.loads("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    assert all(isinstance(number, int) and abs(number) < 2**53 for number in numbers)


# --- calls ---
# -----------------


@pytest.mark.parametrize("choice", ["required", NAMED])
@pytest.mark.parametrize("seed", range(3))
def test_a_call_that_has_to_come_does_so_by_the_schema(client, choice, seed):
    asked = {
        "model": "random",
        "messages": HELLO,
        "tools": [ADD, LOOK],
        "tool_choice": choice,
        "seed": seed,
        "temperature": 1,
        "n": 2,
    }
    got = client.chat.completions.create(**asked)
    whole = []
    for answer in got.choices:
        assert answer.finish_reason == "tool_calls" and answer.message.content is None
        (call,) = answer.message.tool_calls
        arguments = json.loads(call.function.arguments)
        whole.append((call.function.name, call.function.arguments))
        if call.function.name == "add" and choice == "required":
            assert (
                set(arguments) == {"a", "op"}
                and type(arguments["a"]) is int
                and arguments["op"] in ("plus", "minus")
            )
        else:
            assert (call.function.name, arguments) == ("look", {})
    with client.chat.completions.stream(**asked) as events:
        for _ in events:
            pass
        streamed = events.get_final_completion().choices
    assert [
        (c.message.tool_calls[0].function.name, c.message.tool_calls[0].function.arguments)
        for c in streamed
    ] == whole
    assert {c.finish_reason for c in streamed} == {"tool_calls"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_the_model_opens_by_itself_is_one(client, stream):
    asked = {"model": "calls", "messages": HELLO, "tools": [LOOK]}
    if stream:
        with client.chat.completions.stream(**asked) as events:
            for _ in events:
                pass
            got = events.get_final_completion().choices[0]
    else:
        got = client.chat.completions.create(**asked).choices[0]
    call = got.message.tool_calls[0]
    assert (got.message.content, got.finish_reason) == ("Hm", "tool_calls")
    assert (call.function.name, call.function.arguments) == ("look", "{}") and call.id.startswith(
        "call_"
    )
    assert getattr(got.message, "parts", None) in (None, [{"type": "text", "text": "Hm"}])


def test_without_tools_or_with_none_nothing_is_called(client):
    for extra in ({}, {"tools": [LOOK], "tool_choice": "none"}):
        got = client.chat.completions.create(
            model="calls", messages=HELLO, max_tokens=20, **extra
        ).choices[0]
        assert got.message.tool_calls is None and got.finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_the_calculator_stays_beside_functions(client, stream):
    asked = {"model": "adds", "messages": HELLO, "tools": [LOOK]}
    if not stream:
        message = client.chat.completions.create(**asked).choices[0].message
        assert message.content == "Y" and message.tool_calls is None
        assert [part["text"] for part in message.parts] == ["1+2", "3", "Y"]
        return
    deltas = [
        chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)
    ]
    parts = [part for delta in deltas for part in getattr(delta, "parts", None) or []]
    assert "".join(part["text"] for part in parts if part["type"] == "python") == "1+2"
    assert "".join(delta.content or "" for delta in deltas) == "Y" and not any(
        delta.tool_calls for delta in deltas
    )


def test_a_call_and_its_result_are_the_turn_that_goes_on(client, at):
    """`render_prompt` by hand: the answer goes on after the result, in the same turn, and the ids
    are those that were written."""
    asked = {"model": "calls", "tools": [LOOK]}
    message = client.chat.completions.create(messages=HELLO, **asked).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sun"}
    told = "You can call these functions:\nlook()"
    parts = [("text", "Hm"), ("python", '{"name":"look","arguments":{}}'), ("python_output", "sun")]
    talk = [
        {"role": "system", "content": told},
        *HELLO,
        {"role": "assistant", "content": [{"type": k, "text": t} for k, t in parts]},
    ]
    ids = render_prompt(TOKENIZER, {"messages": talk}, go_on=True)
    engine = at[1].model("calls").workers[0].engine
    before = engine.stats.reused_tokens
    got = client.chat.completions.create(messages=[*HELLO, message, result], max_tokens=4, **asked)
    assert got.usage.prompt_tokens == len(ids) and ids[-1] == SPECIAL["<|output_end|>"]
    # all up to the end of the call
    assert engine.stats.reused_tokens - before >= len(ids) - len("sun") - 4
    later = [*HELLO, message, result, {"role": "assistant", "content": "It shines."}, *HELLO]
    assert client.chat.completions.create(
        messages=later, max_tokens=4, **asked
    ).usage.prompt_tokens > len(ids)


def test_two_calls_of_a_message_have_their_results_by_id(client):
    calls = [
        {"id": i, "type": "function", "function": {"name": "look", "arguments": "{}"}}
        for i in ("x", "y")
    ]
    results = [{"role": "tool", "tool_call_id": i, "content": i} for i in ("y", "x")]
    spoken = {"role": "assistant", "content": None, "tool_calls": calls}
    got = [
        client.chat.completions.create(
            model="random", messages=[*HELLO, spoken, *order], max_tokens=5
        )
        for order in (results, results[::-1])
    ]
    assert got[0].choices[0].message == got[1].choices[0].message and got[0].usage == got[1].usage


# --- what cannot be done
# -------------------------------------------------------------------------------------------

CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
RESULT = {"role": "tool", "tool_call_id": "x", "content": "1"}
OBJECT = {"type": "json_object"}


def schema(found: dict, **more) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": found} | more}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tool_choice": "required"}, "tool_choice=required needs tools"),
        (
            {"tools": [LOOK], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "there is no function 'g' among tools: look",
        ),
        ({"tools": [LOOK, LOOK]}, "two functions have the same name"),
        (
            {"tools": [LOOK], "response_format": OBJECT},
            "response_format=json_object is not supported together with tools and tool_choice=auto",
        ),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "parameters": {"type": "objekt"}},
                    }
                ]
            },
            "tools: f: Invalid type: objekt",
        ),
        ({"tools": [LOOK], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        (
            {"response_format": schema({"not": {}}, strict=True)},
            'response_format.json_schema: Unimplemented keys: ["not"]',
        ),
        (
            {
                "response_format": OBJECT,
                "messages": [*HELLO, {"role": "assistant", "content": "{"}],
            },
            "response_format=json_object cannot continue",
        ),
        ({"messages": [*HELLO, CALL]}, "a message of the role tool must answer the call 'x'"),
        (
            {"messages": [*HELLO, CALL, *HELLO]},
            "messages.2: a message of the role tool must answer the call 'x' first",
        ),
        ({"messages": [*HELLO, RESULT]}, "messages.1: there is no call 'x' before it"),
        (
            {"messages": [*HELLO, CALL, RESULT, RESULT]},
            "messages.3: there is no call 'x' before it",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "tool_calls": CALL["tool_calls"]}]},
            "only a message of the assistant has tool_calls",
        ),
        ({"functions": [{"name": "f"}]}, "functions is not supported here"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_named(at, change, words):
    got = httpx.post(
        f"{at[0]}/v1/chat/completions", json={"model": "random", "messages": HELLO} | change
    )
    assert got.status_code == 400 and words in got.json()["error"]["message"]


def test_arguments_that_are_no_object_are_refused(at):
    for text in ("[1]", "{", "1"):
        call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": text}}
        messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}, RESULT]
        got = httpx.post(f"{at[0]}/v1/chat/completions", json={"messages": messages})
        assert (
            got.status_code == 400
            and "messages.1.tool_calls.0.function.arguments: not " in got.json()["error"]["message"]
        )


def test_many_at_once_beside_plain_answers(client):
    """Rows with grammars of their own side by side: each is what it is alone."""
    from concurrent.futures import ThreadPoolExecutor

    def ask(n):
        kinds = [{}, {"response_format": OBJECT}, {"tools": [ADD], "tool_choice": "required"}]
        got = client.chat.completions.create(
            model="random", messages=HELLO, seed=n, temperature=1, max_tokens=30, **kinds[n % 3]
        )
        message = got.choices[0].message
        return message.tool_calls[0].function.arguments if message.tool_calls else message.content

    with ThreadPoolExecutor(9) as pool:
        together = list(pool.map(ask, range(9)))
    assert together == [ask(n) for n in range(9)]
