"""The API by OpenAI's own client, against what the engine gives without a server in between."""

import json
import math
import threading
import time

import httpx
import pytest
import torch
from serving import Slow, served, server, wait_until
from tiny_networks import SPECIAL, TOKENIZER, Scripted, T, chain, random_gpt, scripted

from nanochat.inference.engine import Engine
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.inference.sampling import Sampling
from nanochat.tokenizer.conversations import render_prompt

openai = pytest.importorskip(
    "openai", reason="the official client is not installed; pip install openai"
)

HELLO = [{"role": "user", "content": "hi"}]
THERE = [{"role": "user", "content": "hello there"}]
CALCULATES = chain("<|assistant_start|>", "<|python_start|>", "1+2", "<|python_end|>") | {
    SPECIAL["<|output_end|>"]: ord("Y"),
    ord("Y"): SPECIAL["<|assistant_end|>"],
}


class SlowNet(Slow, Scripted):
    """Says the same character for ever, 20 a second."""

    seconds = 0.05


def endless(**sizes) -> SlowNet:
    gpt = scripted({})
    gpt.__class__ = SlowNet
    return gpt


@pytest.fixture(scope="module")
def calm():
    return random_gpt(std=0.15)


@pytest.fixture(scope="module")
def at(calm):
    models = (
        served("calm", calm),
        served("adds", scripted(CALCULATES)),
        served("base", calm, phase="base"),
    )
    with server(*models, defaults=Sampling(temperature=0.0, max_tokens=16)) as (url, service):
        yield url, service


@pytest.fixture(scope="module")
def client(at):
    return openai.OpenAI(base_url=f"{at[0]}/v1", api_key="none", max_retries=0)


def alone(gpt, prompt, sampling, n=1):
    engine = Engine(gpt, TOKENIZER)
    request = engine.submit(prompt, sampling, n)
    while not request.done:
        engine.step()
    return request.completions


def shown(completion) -> str:
    return "".join(part["text"] for part in completion.parts if part["type"] == "text")


# --- chat ---
# -----------------


def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == ["calm", "adds", "base"]
    assert client.models.retrieve("adds").owned_by == "nanochat"
    with pytest.raises(
        openai.NotFoundError, match="'other' is not served here; there are: calm, adds, base"
    ):
        client.models.retrieve("other")


def test_an_answer_is_the_engines(client, calm):
    prompt = render_prompt(TOKENIZER, {"messages": HELLO})
    sampling = Sampling(temperature=0.7, top_p=0.9, seed=5, max_tokens=12, top_logprobs=2)
    true = alone(calm, prompt, sampling, 3)
    got = client.chat.completions.create(
        model="calm",
        messages=HELLO,
        temperature=0.7,
        top_p=0.9,
        seed=5,
        max_tokens=12,
        n=3,
        logprobs=True,
        top_logprobs=2,
    )
    assert got.object == "chat.completion"
    assert [choice.message.content for choice in got.choices] == [
        shown(completion) for completion in true
    ]
    assert [choice.finish_reason for choice in got.choices] == [
        completion.finish_reason for completion in true
    ]
    assert got.usage.prompt_tokens == len(prompt)
    assert got.usage.completion_tokens == sum(len(c.ids) + (c.end_id is not None) for c in true)
    for choice, completion in zip(got.choices, true, strict=True):
        rows = choice.logprobs.content
        assert [bytes(row.bytes) for row in rows] == [
            TOKENIZER.piece(token) for token in completion.ids
        ]
        assert [row.logprob for row in rows] == pytest.approx(completion.logprobs, abs=1e-5)
        for row, top in zip(rows, completion.top_logprobs, strict=True):
            assert [bytes(other.bytes) for other in row.top_logprobs] == [
                TOKENIZER.piece(token) for token, _ in top
            ]


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_is_the_answer_piece_by_piece(client, n):
    asked = {
        "model": "calm",
        "messages": HELLO,
        "temperature": 1.0,
        "seed": 3,
        "n": n,
        "max_tokens": 12,
    }
    whole = client.chat.completions.create(**asked)
    texts, reasons, logprobs, usage = [""] * n, [None] * n, [0] * n, None
    for chunk in client.chat.completions.create(
        **asked, stream=True, logprobs=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            logprobs[choice.index] += len(choice.logprobs.content) if choice.logprobs else 0
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    assert sum(logprobs) + reasons.count("stop") == usage.completion_tokens


def test_a_call_of_the_calculator_is_a_part_beside_the_content_and_may_be_sent_back(client, at):
    answer = client.chat.completions.create(model="adds", messages=THERE).choices[0].message
    assert answer.content == "Y"
    parts = [("python", "1+2"), ("python_output", "3"), ("text", "Y")]
    assert [(part["type"], part["text"]) for part in answer.parts] == parts
    streamed = []
    for chunk in client.chat.completions.create(model="adds", messages=THERE, stream=True):
        delta = chunk.choices[0].delta
        streamed += [(part["type"], part["text"]) for part in getattr(delta, "parts", None) or []]
    assert "".join(text for kind, text in streamed if kind == "python") == "1+2"
    assert "".join(text for kind, text in streamed if kind == "python_output") == "3"
    # as the client returns it, with its nulls, it is a message of the next request: the same ids,
    # so its cache is reused
    engine = at[1].model("adds").workers[0].engine
    before = engine.stats.reused_tokens
    client.chat.completions.create(model="adds", messages=[*THERE, answer.model_dump(), *THERE])
    assert (
        engine.stats.reused_tokens - before
        == len(render_prompt(TOKENIZER, {"messages": THERE})) + 9
    )  # the call, its result and Y
    without = client.chat.completions.create(
        model="adds", messages=THERE, tool_choice="none", max_tokens=9
    ).choices[0]
    assert (
        without.message.content.startswith("<|python_start|>1+2<|python_end|>")
        and without.finish_reason == "length"
    )


def test_content_may_be_a_list_of_parts_and_a_developer_is_the_system(client):
    plain = [{"role": "system", "content": "be short"}, *HELLO]
    parts = [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "short"}],
        },
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    answers = [
        client.chat.completions.create(model="calm", messages=messages)
        for messages in (plain, parts)
    ]
    assert answers[0].choices[0].message == answers[1].choices[0].message
    assert answers[0].usage == answers[1].usage


def test_stop_strings_end_the_answer(client):
    whole = client.chat.completions.create(
        model="calm", messages=HELLO, temperature=1, seed=2, max_tokens=12
    )
    text = whole.choices[0].message.content
    stop = text[3:5]
    for given in (stop, ["never", stop]):
        cut = client.chat.completions.create(
            model="calm", messages=HELLO, temperature=1, seed=2, max_tokens=12, stop=given
        )
        assert cut.choices[0].message.content == text[: text.index(stop)]
        assert cut.choices[0].finish_reason == "stop"


def test_requests_at_once_get_what_they_would_alone(client):
    def ask(seed, into):
        got = client.chat.completions.create(
            model="calm", messages=HELLO, temperature=1, seed=seed, max_tokens=15
        )
        into[seed] = got.choices[0].message.content

    together: dict = {}
    threads = [threading.Thread(target=ask, args=(seed, together)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one_by_one: dict = {}
    for seed in range(12):
        ask(seed, one_by_one)
    assert together == one_by_one and len(set(together.values())) > 6


# --- completions ---
# -----------------


def test_completions_of_text_and_ids(client, calm):
    ids = [TOKENIZER.bos_id, *b"abc"]
    (true,) = alone(calm, ids, Sampling(temperature=0, max_tokens=6, tools=False))
    for prompt in ("abc", ids, ["abc"], [ids]):
        got = client.completions.create(model="base", prompt=prompt, max_tokens=6, temperature=0)
        assert (got.choices[0].text, got.usage.prompt_tokens) == (true.text, 4)
    several = client.completions.create(
        model="base", prompt=["abc", "xyz"], n=2, max_tokens=6, temperature=0
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert [choice.text == true.text for choice in several.choices] == [True, True, False, False]
    streamed = {0: "", 1: ""}
    for chunk in client.completions.create(
        model="base", prompt=["abc", "xyz"], max_tokens=6, temperature=0, stream=True
    ):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed[0] == true.text and streamed[1] == several.choices[2].text


@torch.no_grad()
def test_echoed_logprobs_are_those_of_the_whole_text(client, calm):
    ids = [TOKENIZER.bos_id, *"héllo".encode()]
    logp = calm(torch.tensor([ids]))[0].log_softmax(-1)
    true = [float(logp[i, token]) for i, token in enumerate(ids[1:])]
    text = client.completions.create(
        model="base", prompt="héllo", max_tokens=0, echo=True, logprobs=3
    ).choices[0]
    assert text.text == "héllo" and text.finish_reason == "length"
    assert text.logprobs.token_logprobs == pytest.approx(true, abs=1e-5)
    given = client.completions.create(
        model="base", prompt=ids, max_tokens=2, echo=True, logprobs=1, temperature=0
    )
    values = given.choices[0].logprobs.token_logprobs
    assert values[0] is None and values[1:7] == pytest.approx(true, abs=1e-5) and len(values) == 9
    # <|bos|> has 7 characters, é two tokens
    assert given.choices[0].logprobs.text_offset[:4] == [0, 7, 8, 8]
    best = [max(top, key=top.get) for top in text.logprobs.top_logprobs]
    assert [max(top.values()) for top in text.logprobs.top_logprobs] == pytest.approx(
        logp[:-1].amax(-1).tolist(), abs=1e-5
    )
    # and its own
    assert len(best) == 6 and all(len(top) <= 4 for top in text.logprobs.top_logprobs)


def test_texts_become_tokens_and_tokens_texts(at):
    def post(path, **body):
        return httpx.post(f"{at[0]}/{path}", json=body).json()

    assert post("tokenize", prompt="héllo")["tokens"] == [
        TOKENIZER.bos_id,
        *TOKENIZER.encode("héllo"),
    ]
    ids = post("tokenize", prompt="a<|bos|>b<|nothing|>", add_special_tokens=False)["tokens"]
    assert ids == [ord("a"), TOKENIZER.bos_id, ord("b"), *TOKENIZER.encode("<|nothing|>")]
    assert post("detokenize", tokens=ids)["prompt"] == "a<|bos|>b<|nothing|>"
    assert "9999" in post("detokenize", tokens=[9999])["error"]["message"]
    assert httpx.get(f"{at[0]}/tokenizer_info").json()["bos_token"] == "<|bos|>"


def test_the_token_that_ended_a_text_is_told_with_its_logprob(at):
    """lm_eval leaves out the last token of what comes back: without it that would be one of the
    prompt's."""
    ends = scripted({ord("c"): TOKENIZER.bos_id})
    with server(served("ends", ends, phase="base")) as (url, _):
        own = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        ids = [TOKENIZER.bos_id, *b"abc"]
        got = own.completions.create(
            model="ends", prompt=ids, max_tokens=1, logprobs=1, temperature=0
        ).choices[0]
    assert got.text == "" and got.finish_reason == "stop"
    assert got.logprobs.tokens == ["<|bos|>"] and got.logprobs.token_logprobs[0] < 0
    assert got.logprobs.top_logprobs == [{"<|bos|>": got.logprobs.token_logprobs[0]}]


def test_equal_prompts_of_one_request_get_samples_of_their_own(client):
    got = client.completions.create(
        model="base", prompt=["abc"] * 3, max_tokens=12, temperature=1, seed=1
    )
    alone = client.completions.create(
        model="base", prompt="abc", max_tokens=12, temperature=1, seed=1
    )
    assert (
        len({choice.text for choice in got.choices}) == 3
        and got.choices[0].text == alone.choices[0].text
    )


def test_an_empty_answer_may_be_sent_back(client):
    messages = [*HELLO, {"role": "assistant", "content": ""}, *HELLO]
    assert client.chat.completions.create(model="calm", messages=messages).usage.completion_tokens


# --- what cannot be done
# -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "gpt-4"}, 404, "'gpt-4' is not served here; there are: calm, adds, base"),
        ({"model": "base"}, 400, "base is a base checkpoint"),
        ({"messages": []}, 400, "messages: List should have at least 1 item"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            400,
            "messages.0: a message of the role tool, and no other, has the tool_call_id",
        ),
        (
            {"messages": [*HELLO, {"role": "system", "content": "x"}]},
            400,
            "message 1 has the role 'system'",
        ),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "message 0 (user) is empty"),
        ({"messages": [{"role": "user", "content": "x" * T}]}, 400, f"the model's context of {T}"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
                ]
            },
            400,
            "messages.0.content.0.type: Input",
        ),
        ({"temperature": 3}, 400, "temperature: Input should be less than or equal to 2"),
        ({"top_p": 0}, 400, "top_p"),
        (
            {"max_tokens": T, "extra_body": {"strict": True}},
            400,
            f"in the model's context of {T}; lower it, or leave out strict",
        ),
        ({"n": 100}, 400, "n: Input should be less than or equal to 16"),
        ({"top_logprobs": 2}, 400, "top_logprobs needs logprobs=true"),
        (
            {"presence_penalty": 3.0},
            400,
            "presence_penalty: Input should be less than or equal to 2",
        ),
        ({"functions": [{"name": "f"}]}, 400, "functions is not supported here"),
        ({"stop": ""}, 400, "stop: String should have at least 1 character"),
        ({"stop": ["a", ""]}, 400, "stop.1: String should have at least 1 character"),
        ({"extra_body": {"tempreature": 1}}, 400, "tempreature: not a field of this request"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_in_openais_form(client, change, status, words):
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**({"model": "calm", "messages": HELLO} | change))
    assert caught.value.status_code == status
    assert words in caught.value.message
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_neutral_values_of_what_cannot_be_done_are_taken(client):
    got = client.chat.completions.create(
        model="calm",
        messages=HELLO,
        presence_penalty=0,
        frequency_penalty=0,
        user="me",
        tools=[],
        logit_bias={},
        response_format={"type": "text"},
        metadata={"a": "b"},
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1},
    )
    assert got.choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"messages": 3}',
        b"\xff\xfe",
        b'{"messages": [{"role": "user"}], "n": NaN}',
    ],
)
def test_bodies_that_are_no_request_are_400(at, body):
    got = httpx.post(
        f"{at[0]}/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert got.status_code == 400 and got.json()["error"]["message"]
    assert httpx.get(f"{at[0]}/v1/nothing").json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "v1/chat/completions", "POST"),
        ("TRACE", "v1/models/x", "GET"),
        ("DELETE", "health", "GET"),
    ],
)
def test_a_wrong_method_is_405_and_says_the_right_one(at, method, path, allowed):
    got = httpx.request(method, f"{at[0]}/{path}")
    assert got.status_code == 405 and got.headers["allow"] == allowed
    assert got.json()["error"]["message"] == f"/{path} does not take {method}; use {allowed}"


# --- the original's
# ------------------------------------------------------------------------------------------------


def test_the_originals_stream_works(at):
    with server(served("adds", scripted(CALCULATES))) as (url, _):
        with httpx.stream(
            "POST", f"{url}/chat/completions", json={"messages": HELLO, "temperature": 0}
        ) as got:
            assert got.headers["content-type"].startswith("text/event-stream")
            events = [json.loads(line.removeprefix("data: ")) for line in got.iter_lines() if line]
        assert events[-1] == {"done": True} and all(
            set(event) == {"token", "gpu"} for event in events[:-1]
        )
        text = "".join(event["token"] for event in events[:-1])
        assert text == "<|python_start|>1+2<|python_end|><|output_start|>3<|output_end|>Y"
        for wrong in (
            {"top_k": 201},
            {"max_tokens": 5000},
            {"temperature": 2.1},
            {"messages": []},
            {"messages": [{"role": "user", "content": "x" * 8001}]},
        ):
            assert (
                httpx.post(f"{url}/chat/completions", json={"messages": HELLO} | wrong).status_code
                == 400
            )
        health, stats = httpx.get(f"{url}/health").json(), httpx.get(f"{url}/stats").json()
        assert health == {"status": "ok", "ready": True, "num_gpus": 1, "available_workers": 1}
        assert (stats["total_workers"], stats["workers"][0]["gpu_id"], stats["answers"]) == (
            1,
            0,
            1,
        )


# --- under way ---
# -----------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row_within_a_second(stream):
    with server(served("slow", endless()), defaults=Sampling(temperature=0.0)) as (url, service):
        engine = service.default.workers[0].engine
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=0.4)
        if stream:
            with client.chat.completions.create(
                model="slow", messages=HELLO, stream=True
            ) as answer:
                for _, _ in zip(answer, range(4), strict=False):
                    pass
        else:
            with pytest.raises(openai.APITimeoutError):
                client.chat.completions.create(model="slow", messages=HELLO)
        assert wait_until(lambda: not engine.live and engine.cache.nbytes() == 0, seconds=1)
        assert wait_until(lambda: httpx.get(f"{url}/stats").json()["cancelled"] == 1, seconds=1)
        assert engine.stats.sampled_tokens < 30


@pytest.mark.slow
def test_a_full_queue_is_429_with_retry_after_and_loses_nobody(at):
    with server(
        served("slow", endless(), max_rows=1), max_queue=2, defaults=Sampling(temperature=0.0)
    ) as (url, _):
        codes, waits = [], []

        def ask():
            got = httpx.post(
                f"{url}/v1/chat/completions", json={"messages": HELLO, "max_tokens": 10}, timeout=30
            )
            codes.append(got.status_code)
            waits.append(got.headers.get("retry-after"))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert codes.count(200) in (3, 4) and codes.count(200) + codes.count(429) == 8
        assert all(
            (wait is not None) == (code == 429) for code, wait in zip(codes, waits, strict=True)
        )
        assert "nanochat_refused_total" in httpx.get(f"{url}/metrics").text


def test_what_never_fits_is_400_and_starts_nothing(at, calm):
    with server(served("calm", calm), max_queue=3) as (url, service):
        asked = {"prompt": ["a"] * 8, "max_tokens": 4}
        got = httpx.post(f"{url}/v1/completions", json=asked)
        assert (
            got.status_code == 400
            and "8 answers at once are more than this server ever takes (7)" in got.text
        )
        assert service.default.workers[0].engine.stats.sampled_tokens == 0
        assert (
            httpx.post(f"{url}/v1/completions", json=asked | {"prompt": ["a"] * 7}).status_code
            == 200
        )


def test_scoring_ends_with_its_client_and_lets_others_write(at):
    gpt = FrozenGPT.of(random_gpt(std=0.15))
    counted = []

    class Scores(type(gpt)):
        def hidden(self, idx):
            counted.append(time.sleep(0.05))
            return super().hidden(idx)

    gpt.__class__ = Scores
    with server(served("scores", gpt, phase="base")) as (url, _):
        body = {"prompt": ["ab"] * 60, "max_tokens": 0, "echo": True, "logprobs": 0}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json=body, timeout=0.5)
        done = len(counted)
        assert (
            httpx.post(
                f"{url}/v1/completions", json={"prompt": "ab", "max_tokens": 4}, timeout=5
            ).status_code
            == 200
        )
        assert len(counted) <= done + 2 < 20


@pytest.mark.slow
def test_nobody_waits_for_ever_on_an_engine_that_fails_now_and_then(calm):
    class Breaks(FrozenGPT):
        steps = 0

        def logits(self, hidden):
            Breaks.steps += 1
            if Breaks.steps % 5 == 0:
                raise RuntimeError("again")
            return super().logits(hidden)

    gpt = FrozenGPT.of(random_gpt(std=0.15))
    gpt.__class__ = Breaks
    with server(served("frail", gpt)) as (url, service):
        codes: list[int] = []

        def ask():
            for _ in range(12):
                asked = {"messages": HELLO, "max_tokens": 3}
                codes.append(
                    httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=20).status_code
                )

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(codes) == 96 and set(codes) == {200, 500}
        assert not service.default.workers[0]._replies


def test_an_engine_that_ended_is_not_ready(calm):
    with server(served("calm", calm)) as (url, service):
        service.default.workers[0].close()
        assert httpx.get(f"{url}/health").json()["ready"] is False
        got = httpx.post(f"{url}/v1/chat/completions", json={"messages": HELLO})
        assert got.status_code == 500 and "restart the server" in got.json()["error"]["message"]


def test_an_engine_that_fails_says_so_and_goes_on(calm):
    class Breaks(FrozenGPT):
        broken = False

        def logits(self, hidden):
            if self.broken:
                raise RuntimeError("out of luck")
            return super().logits(hidden)

    gpt = FrozenGPT.of(random_gpt(std=0.15))
    gpt.__class__ = Breaks
    with server(served("frail", gpt)) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        gpt.broken = True
        with pytest.raises(openai.InternalServerError, match="out of luck"):
            client.chat.completions.create(model="frail", messages=HELLO)
        with pytest.raises(openai.APIError, match="out of luck"):
            list(client.chat.completions.create(model="frail", messages=HELLO, stream=True))
        # the original's
        with httpx.stream("POST", f"{url}/chat/completions", json={"messages": HELLO}) as got:
            assert "out of luck" in next(iter(got.iter_lines()))
        gpt.broken = False
        assert client.chat.completions.create(model="frail", messages=HELLO).usage.completion_tokens


@pytest.mark.slow
def test_requests_go_to_the_least_busy_engine():
    with server(
        served("slow", endless(), engines=2, max_rows=8), defaults=Sampling(temperature=0.0)
    ) as (url, service):
        threads = [
            threading.Thread(
                target=httpx.post,
                args=(f"{url}/v1/chat/completions",),
                kwargs={"json": {"messages": HELLO, "max_tokens": 20}, "timeout": 30},
            )
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        assert wait_until(
            lambda: [worker.load for worker in service.default.workers] == [3, 3], seconds=5
        )
        for thread in threads:
            thread.join()


# --- keys, limits and numbers
# --------------------------------------------------------------------------------------


def test_without_the_key_nothing_but_health_answers(calm):
    with server(served("calm", calm), api_key="sesame") as (url, _):
        key = {"Authorization": "Bearer sesame"}
        routes = httpx.get(f"{url}/openapi.json", headers=key).json()["paths"]
        assert {
            "/v1/models",
            "/stats",
            "/metrics",
            "/chat/completions",
            "/tokenize",
        } <= routes.keys()
        for path, methods in (routes | {"/openapi.json": ["get"]}).items():
            for method in methods:
                expected = 200 if path == "/health" else 401
                assert (
                    httpx.request(method, url + path, json={"messages": HELLO}).status_code
                    == expected
                ), path
        with pytest.raises(openai.AuthenticationError, match="Authorization: Bearer KEY"):
            openai.OpenAI(base_url=f"{url}/v1", api_key="other").models.list()
        assert openai.OpenAI(base_url=f"{url}/v1", api_key="sesame").models.list().data


def test_large_bodies_and_too_many_requests_are_refused(calm):
    from nanochat.serve.access.limits import add_limits

    def limited(app, service):
        add_limits(app, 2000, 6, [], local=True)

    with server(served("calm", calm), wrap=limited) as (url, _):
        foreign = httpx.post(
            f"{url}/v1/completions", json={"prompt": "a"}, headers={"origin": "http://evil.example"}
        )
        assert foreign.status_code == 403 and "pages of http://evil.example" in foreign.text
        large = json.dumps({"messages": [{"role": "user", "content": "x" * 3000}]}).encode()
        headers = {"content-type": "application/json"}
        assert (
            httpx.post(f"{url}/v1/chat/completions", content=large, headers=headers).status_code
            == 413
        )
        pieces = iter([large[:1000], large[1000:2500], large[2500:]])  # no length is announced
        assert (
            httpx.post(f"{url}/v1/chat/completions", content=pieces, headers=headers).status_code
            == 413
        )
        asked = {"messages": HELLO, "max_tokens": 1}
        start = time.monotonic()
        got = [httpx.post(f"{url}/v1/chat/completions", json=asked) for _ in range(6)]
        passed = time.monotonic() - start
        assert [response.status_code for response in got] == [200] * 4 + [429] * 2
        assert 9 - passed <= int(got[-1].headers["retry-after"]) <= 11


def test_metrics_are_read_by_prometheus_rules(at, client):
    client.chat.completions.create(model="calm", messages=HELLO)
    text = httpx.get(f"{at[0]}/metrics").text
    families, seen = {}, set()
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            families[name] = kind
        elif not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            assert line not in seen and math.isfinite(float(value))
            seen.add(line)
            bare = name.split("{")[0]
            assert any(bare == family or bare.startswith(f"{family}_") for family in families), line
    counts = [float(line.split()[-1]) for line in seen if line.startswith("nanochat_answers_total")]
    (observed,) = [
        float(line.split()[-1])
        for line in seen
        if line.startswith("nanochat_first_token_seconds_count")
    ]
    assert sum(counts) == observed >= 1
