"""OpenAI's API over a service (chat completions, completions, models), and the original's stream of an answer.

What a small model cannot do is refused by name. Beyond OpenAI's fields a request may set top_k, min_p and repetition_penalty, and the
message of an answer that called the calculator has `parts`, which may be sent back. Settings of sampling that a request leaves out are
the server's.
"""

import asyncio
import hmac
import json
import random
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from nanochat.inference.engine import Completion, Piece
from nanochat.inference.generate import TooLong
from nanochat.inference.sampling import Sampling
from nanochat.inference.scoring import token_logprobs
from nanochat.serve.address import canonical
from nanochat.serve.metrics import Metrics
from nanochat.serve.requests import ChatRequest, CompletionRequest, DetokenizeRequest, OriginalRequest, TokenizeRequest
from nanochat.serve.requests import Request as Asked
from nanochat.serve.service import WEB_CHAT, Busy, Model, Service, UnknownModel
from nanochat.serve.worker import EngineFailed, Reply
from nanochat.tokenizer.tokenizer import Tokenizer

# in the place of an error as pydantic has it, beside "list[int]", "function-after[…]" …
NOT_FIELDS = ("body", "str", "int")
NOT_A_FIELD = re.compile(r"[^\w]")
# with /v1/…, what needs the key; /health does not
GUARDED = (
    "/chat/completions", "/stats", "/metrics", "/openapi.json", "/tokenizer_info", "/tokenize", "/detokenize",
)  # fmt: skip


def build_api(service: Service, *, defaults: Sampling, api_key: str | None = None) -> FastAPI:
    """The application without a page. `defaults` is how an answer is sampled where a request does not say."""
    app = FastAPI(title="nanochat", docs_url=None, redoc_url=None)  # those pages load scripts from elsewhere
    metrics = Metrics(service)
    _errors(app, metrics)
    if api_key is not None:
        app.add_middleware(KeyRequired, api_key=api_key)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        workers = _workers(service)
        free = sum(worker.load < worker.engine.max_rows for worker in workers)
        ready = all(worker.alive for worker in workers)
        return {
            "status": "ok" if ready else "failed",
            "ready": ready,
            "num_gpus": len(workers),
            "available_workers": free,
        }

    @app.get("/stats")
    async def stats() -> dict[str, Any]:
        return metrics.stats()

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> PlainTextResponse:
        return PlainTextResponse(metrics.prometheus(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(model) for model in service.models.values()]}

    @app.get("/v1/models/{name:path}", responses=ERRORS)
    async def model(name: str) -> dict[str, Any]:
        return _model(service.model(name))

    @app.post("/v1/chat/completions", responses=ERRORS | STREAM)
    async def chat(asked: ChatRequest, request: Request) -> Response:
        model = service.model(asked.model)
        most = asked.max_completion_tokens or asked.max_tokens
        sampling = _sampling(asked, defaults, model, most, logprobs=asked.top_logprobs or 0)
        sampling = replace(sampling, tools=asked.tool_choice != "none")
        messages = [message.as_project() for message in asked.messages]
        reply, _ = service.chat(model.name, messages, sampling, num_samples=asked.samples)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model.name}
        if asked.stream:
            return _event_stream(_chat_events(asked, model, reply, head, metrics))
        if not await _gather([reply], request, metrics):
            return Response(status_code=499)
        choices: list[dict[str, Any]] = []
        for index, answer in enumerate(reply.request.completions):
            choices.append(
                {
                    "index": index,
                    "message": _message(answer),
                    "logprobs": _chat_logprobs(answer, model.tokenizer) if asked.logprobs else None,
                    "finish_reason": answer.finish_reason,
                }
            )
        return JSONResponse(head | {"object": "chat.completion", "choices": choices, "usage": _usage([reply])})

    @app.post("/v1/completions", responses=ERRORS | STREAM)
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        model = service.model(asked.model)
        prompts = asked.prompts()
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model.name}
        sampling = _sampling(asked, defaults, model, asked.max_tokens or None, logprobs=asked.logprobs or 0)
        sampling = replace(sampling, tools=False, python=False)
        service.make_room(model, len(prompts) * asked.samples)
        replies: list[Reply] = []
        if asked.max_tokens != 0:
            try:
                for number, prompt in enumerate(prompts):  # equal prompts get answers of their own
                    own = replace(sampling, seed=sampling.seed + number * 2**64)
                    replies.append(service.complete(model.name, prompt, own, num_samples=asked.samples))
            except Exception:
                for reply in replies:
                    reply.cancel()
                raise
        if asked.stream:
            return _event_stream(_completion_events(asked, model, replies, head, metrics))
        echoed: list[Text] = []

        async def echo() -> None:
            for prompt in prompts if asked.echo else []:
                echoed.append(await _echoed(asked.logprobs, model, prompt, service.ids(model, prompt)))

        if not await _gather(replies, request, metrics, echo()):
            return Response(status_code=499)

        def body() -> bytes:
            choices: list[dict[str, Any]] = []
            for number in range(len(prompts)):
                before = echoed[number] if echoed else Text("", [], [], [])
                answers = replies[number].request.completions if replies else [None]
                for answer in answers:
                    text = before + _continuation(answer, model.tokenizer) if answer else before
                    choices.append(
                        {
                            "text": text.text,
                            "index": len(choices),
                            "logprobs": text.logprobs() if asked.logprobs is not None else None,
                            "finish_reason": answer.finish_reason if answer else "length",
                        }
                    )
            usage = _usage(replies) if replies else _usage_of(sum(len(text.ids) for text in echoed), 0)
            return json.dumps(head | {"object": "text_completion", "choices": choices, "usage": usage}).encode()

        return Response(await asyncio.to_thread(body), media_type="application/json")

    # the three that lm_eval asks for with tokenizer_backend=remote, as vLLM has them
    @app.get("/tokenizer_info", responses=ERRORS)
    async def tokenizer_info(model: str | None = None) -> dict[str, Any]:
        return {"bos_token": "<|bos|>", "eos_token": "<|bos|>", "vocab_size": service.model(model).tokenizer.vocab_size}

    @app.post("/tokenize", responses=ERRORS)
    async def tokenize(asked: TokenizeRequest) -> dict[str, Any]:
        model = service.model(asked.model)
        ids = [model.tokenizer.bos_id] * asked.add_special_tokens + with_specials(model.tokenizer, asked.prompt)
        return {"tokens": ids, "count": len(ids), "max_model_len": model.context}

    @app.post("/detokenize", responses=ERRORS)
    async def detokenize(asked: DetokenizeRequest) -> dict[str, Any]:
        return {"prompt": service.model(asked.model).tokenizer.decode(asked.tokens)}

    @app.post("/chat/completions", responses=ERRORS | STREAM)
    async def original(asked: OriginalRequest) -> Response:
        given = {key: value for key, value in asked.model_dump(exclude={"messages"}).items() if value is not None}
        if given.get("top_k") == 0:
            given["top_k"] = None
        sampling = replace(WEB_CHAT, seed=_random_seed(), python=defaults.python, **given)
        messages = [message.model_dump() for message in asked.messages]
        reply, _ = service.chat(None, messages, sampling)
        return _event_stream(_original_events(service, reply, metrics))

    # before a page that is mounted at / takes it
    for route in [route for route in app.routes if isinstance(route, APIRoute)]:
        app.router.routes.append(Route(route.path, WrongMethod(route.methods or set()), include_in_schema=False))

    @app.api_route("/v1/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def nothing(rest: str, request: Request) -> Response:
        return error_response(404, f"there is no {request.method} /v1/{rest} here")

    return app


class WrongMethod:
    """Answers whatever its path is asked by another method than those allowed."""

    def __init__(self, allowed: set[str]) -> None:
        self.allowed = ", ".join(sorted(allowed))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"{scope['path']} does not take {scope['method']}; use {self.allowed}"
        raise HTTPException(405, message, {"Allow": self.allowed})


# --- requests --------------------------------------------------------------------------------------------------


def _sampling(asked: Asked, defaults: Sampling, model: Model, max_tokens: int | None, *, logprobs: int) -> Sampling:
    if max_tokens is not None and max_tokens > model.context:
        raise ValueError(f"max_tokens={max_tokens:,} is more than the model's context of {model.context:,}")
    given: dict[str, Any] = {
        key: value
        for key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        if (value := getattr(asked, key)) is not None
    }
    if given.get("top_k") == 0:
        given["top_k"] = None
    if given.get("temperature", 1) < 1e-6:
        given["temperature"] = 0.0
    given.setdefault("seed", _random_seed())
    if max_tokens is not None:
        given["max_tokens"] = max_tokens
    return replace(defaults, **given, stop=tuple(asked.stop or ()), top_logprobs=logprobs)


def _random_seed() -> int:
    return random.SystemRandom().getrandbits(31)


def with_specials(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text in which the names of special tokens stand for those tokens, unlike everywhere else."""
    pieces = re.split(f"({'|'.join(map(re.escape, tokenizer.specials))})", text)
    return [i for p in pieces for i in ([tokenizer.specials[p]] if p in tokenizer.specials else tokenizer.encode(p))]


async def _gather(
    replies: list[Reply], request: Request, metrics: Metrics, also: Coroutine[Any, Any, None] | None = None
) -> bool:
    """Wait until all are there, and `also` is done; False, and they are cancelled, if the client leaves before."""

    async def all_of_them() -> None:
        if also is not None:
            await also
        for reply in replies:
            async for _ in reply:
                pass
            metrics.finished(reply)

    async def client_left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, left = asyncio.ensure_future(all_of_them()), asyncio.ensure_future(client_left())
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
            return True
        return False
    finally:
        for task in (work, left):
            task.cancel()
        for reply in replies:
            if not reply.request.done:
                reply.cancel()
                metrics.cancelled(reply)


# --- answers ---------------------------------------------------------------------------------------------------


def _message(answer: Completion) -> dict[str, Any]:
    content = "".join(part["text"] for part in answer.parts if part["type"] == "text")
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if any(part["type"] != "text" for part in answer.parts):
        message["parts"] = answer.parts
    return message


def _token(tokenizer: Tokenizer, token: int) -> dict[str, Any]:
    piece = tokenizer.piece(token)
    return {"token": piece.decode("utf-8", errors="replace"), "bytes": list(piece)}


def _chat_logprob(tokenizer: Tokenizer, token: int, logprob: float, top: list[tuple[int, float]]) -> dict[str, Any]:
    likeliest = [_token(tokenizer, other) | {"logprob": value} for other, value in top]
    return _token(tokenizer, token) | {"logprob": logprob, "top_logprobs": likeliest}


def _chat_logprobs(completion: Completion, tokenizer: Tokenizer) -> dict[str, Any]:
    rows = zip(completion.ids, completion.logprobs, completion.top_logprobs, strict=True)
    return {"content": [_chat_logprob(tokenizer, *row) for row in rows if row[1] is not None]}  # type: ignore[arg-type]


@dataclass
class Text:
    """A text with its tokens, as the API of completions tells them."""

    text: str
    tokens: list[str]
    values: list[float | None]
    top: list[dict[str, float] | None]
    ids: Sequence[int] = ()  # of a prompt

    def __add__(self, other: "Text") -> "Text":
        return Text(
            self.text + other.text, self.tokens + other.tokens, self.values + other.values, self.top + other.top
        )

    def logprobs(self) -> dict[str, Any]:
        offsets, at = [], 0
        for token in self.tokens:
            offsets.append(at)
            at += len(token)
        return {"tokens": self.tokens, "token_logprobs": self.values, "top_logprobs": self.top, "text_offset": offsets}


def _named(tokenizer: Tokenizer, top: list[tuple[int, float]], own: tuple[int, float] | None) -> dict[str, float]:
    """The likeliest tokens by name, and the one that is there."""
    named: dict[str, float] = {}
    for token, value in [*top, own] if own else top:  # pieces of characters may have one name: the likeliest keeps it
        named.setdefault(_token(tokenizer, token)["token"], value)
    return named


def _continuation(completion: Completion, tokenizer: Tokenizer) -> Text:
    """What was written, with the token that ended it where the model did: it has no text, but a log-probability."""
    rows = list(zip(completion.ids, completion.logprobs, completion.top_logprobs, strict=True))
    if completion.end_id is not None:
        rows.append((completion.end_id, completion.end_logprob, completion.end_top))
    names = [_token(tokenizer, token)["token"] for token, _, _ in rows]
    tops: list[dict[str, float] | None] = [
        _named(tokenizer, top, None if value is None else (token, value)) for token, value, top in rows
    ]
    return Text(completion.text, names, [value for _, value, _ in rows], tops)


async def _echoed(logprobs: int | None, model: Model, prompt: str | list[int], ids: list[int]) -> Text:
    tokens = [_token(model.tokenizer, token)["token"] for token in ids]
    text = prompt if isinstance(prompt, str) else model.tokenizer.decode(ids)
    values: list[float | None] = [None] * len(ids)
    tops: list[dict[str, float] | None] = [None] * len(ids)
    if logprobs is not None:
        worker = model.idlest()
        found = await worker.call(lambda: token_logprobs(worker.engine.gpt, ids, logprobs))
        values[1:] = [value for value, _ in found]
        tops[1:] = [
            _named(model.tokenizer, likeliest, (token, value))
            for token, (value, likeliest) in zip(ids[1:], found, strict=True)
        ]
    first = 1 if isinstance(prompt, str) else 0  # the bos that was put before a text
    return Text(text, tokens[first:], values[first:], tops[first:], ids)


def _usage(replies: list[Reply]) -> dict[str, Any]:
    written = sum(len(text.ids) + (text.end is not None) for reply in replies for text in reply.request.texts)
    return _usage_of(sum(len(reply.request.prompt) for reply in replies), written)


def _usage_of(prompt: int, written: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


# --- streams ---------------------------------------------------------------------------------------------------


def _event_stream(events: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


async def _watched(reply: Reply, metrics: Metrics) -> AsyncIterator[tuple[int, list[Piece]]]:
    """(sample, its pieces that have come) of a reply, counted in the metrics however it ends."""
    try:
        async for batch in reply.batches():
            for sample in dict.fromkeys(piece.sample for piece in batch):
                yield sample, [piece for piece in batch if piece.sample == sample]
    finally:
        if reply.request.done and not reply.request.cancelled:
            metrics.finished(reply)
        else:
            reply.cancel()
            metrics.cancelled(reply)


async def _chat_events(
    asked: ChatRequest, model: Model, reply: Reply, head: dict[str, Any], metrics: Metrics
) -> AsyncIterator[str]:
    head = head | {"object": "chat.completion.chunk"}

    def chunk(index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return _event(head | {"choices": [choice]})

    try:
        for index in range(asked.samples):
            yield chunk(index, {"role": "assistant", "content": ""})
        async for sample, pieces in _watched(reply, metrics):
            delta: dict[str, Any] = {}
            for kind, text in (fragment for piece in pieces for fragment in piece.fragments):
                if kind == "text":
                    delta["content"] = delta.get("content", "") + text
                elif kind != "mark":
                    delta.setdefault("parts", []).append({"type": kind, "text": text})
            drawn = [piece.drawn for piece in pieces if piece.drawn is not None] if asked.logprobs else []
            rows = [_chat_logprob(model.tokenizer, token.id, token.logprob, token.top) for token in drawn]
            if delta or rows:
                yield chunk(sample, delta, {"content": rows} if rows else None)
            if pieces[-1].finish_reason:
                yield chunk(sample, {}, None, pieces[-1].finish_reason)
        if asked.stream_options and asked.stream_options.include_usage:
            yield _event(head | {"choices": [], "usage": _usage([reply])})
    except EngineFailed as error:
        yield _event(_error_body(str(error), "server_error"))
    yield "data: [DONE]\n\n"


async def _completion_events(
    asked: CompletionRequest, model: Model, replies: list[Reply], head: dict[str, Any], metrics: Metrics
) -> AsyncIterator[str]:
    head = head | {"object": "text_completion"}
    try:
        for number, reply in enumerate(replies):
            offsets = [0] * asked.samples
            async for sample, pieces in _watched(reply, metrics):
                text = "".join(fragment.text for piece in pieces for fragment in piece.fragments)
                logprobs = None
                drawn = (
                    [piece.drawn for piece in pieces if piece.drawn is not None] if asked.logprobs is not None else []
                )
                if drawn:
                    names = [_token(model.tokenizer, token.id)["token"] for token in drawn]
                    tops: list[dict[str, float] | None] = [
                        _named(model.tokenizer, token.top, (token.id, token.logprob)) for token in drawn
                    ]
                    logprobs = Text(text, names, [token.logprob for token in drawn], tops).logprobs()
                    logprobs["text_offset"] = [offsets[sample] + at for at in logprobs["text_offset"]]
                    offsets[sample] += sum(map(len, names))
                reason = pieces[-1].finish_reason
                if text or logprobs or reason:
                    choice = {
                        "index": number * asked.samples + sample,
                        "text": text,
                        "logprobs": logprobs,
                        "finish_reason": reason,
                    }
                    yield _event(head | {"choices": [choice]})
        if asked.stream_options and asked.stream_options.include_usage:
            yield _event(head | {"choices": [], "usage": _usage(replies)})
    except EngineFailed as error:
        yield _event(_error_body(str(error), "server_error"))
    finally:
        for reply in replies:
            if not reply.request.done:
                reply.cancel()
    yield "data: [DONE]\n\n"


async def _original_events(service: Service, reply: Reply, metrics: Metrics) -> AsyncIterator[str]:
    number = service.default.workers.index(reply.worker)
    try:
        async for _, pieces in _watched(reply, metrics):
            if text := "".join(fragment.text for piece in pieces for fragment in piece.fragments):
                yield _event({"token": text, "gpu": number})
        yield _event({"done": True})
    except EngineFailed as error:
        yield _event(_error_body(str(error), "server_error"))


# --- around them -----------------------------------------------------------------------------------------------


def _workers(service: Service) -> list[Any]:
    return [worker for model in service.models.values() for worker in model.workers]


def _model(model: Model) -> dict[str, Any]:
    return {
        "id": model.name, "object": "model", "created": model.created, "owned_by": "nanochat", "phase": model.phase,
        "context": model.context,
    }  # fmt: skip


STREAM: dict[int | str, dict[str, Any]] = {200: {"description": "the answer", "content": {"text/event-stream": {}}}}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "it asks for what cannot be done"},
    401: {"description": "the key is missing or wrong"},
    404: {"description": "no such model"},
    413: {"description": "the request is too large"},
    422: {"description": "never: what is wrong with a request is told with 400"},
    429: {"description": "the queue is full, or too many requests; Retry-After says when to try again"},
    500: {"description": "the engine failed"},
}


def _error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(
    status: int, message: str, kind: str = "invalid_request_error", *, param: str | None = None, code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:  # fmt: skip
    """An error in OpenAI's form."""
    return JSONResponse(_error_body(message, kind, param, code), status_code=status, headers=headers)


def _errors(app: FastAPI, metrics: Metrics) -> None:
    """Whatever is raised becomes one line in OpenAI's form."""

    def on(kind: type[Exception]) -> Callable[[Callable[[Request, Any], Awaitable[Response]]], Any]:
        def register(handle: Callable[[Request, Any], Awaitable[Response]]) -> Any:
            async def counted(request: Request, error: Exception) -> Response:
                response = await handle(request, error)
                metrics.refused[response.status_code] += 1
                return response

            app.add_exception_handler(kind, counted)

        return register

    @on(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # where a field may be one of several things, what came closest to one of them
        first = max(error.errors(), key=lambda one: (one["loc"][:2] == error.errors()[0]["loc"][:2], len(one["loc"])))
        where = ".".join(
            str(word) for word in first["loc"] if word not in NOT_FIELDS and not NOT_A_FIELD.search(str(word))
        )
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "not a field of this request"
        elif first["type"] == "json_invalid":
            where, message = "", f"the body is not JSON: {first.get('ctx', {}).get('error', message)}"
        return error_response(400, f"{where}: {message}" if where else message, param=where or None)

    @on(UnknownModel)
    async def unknown(request: Request, error: UnknownModel) -> Response:
        return error_response(404, str(error), param="model", code="model_not_found")

    @on(ValueError)
    async def refused(request: Request, error: ValueError) -> Response:
        code = "context_length_exceeded" if isinstance(error, TooLong) else None
        return error_response(400, str(error), code=code)

    @on(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        headers = {"Retry-After": str(error.retry_after)}
        return error_response(429, str(error), "rate_limit_error", code="queue_full", headers=headers)

    @on(EngineFailed)
    async def failed(request: Request, error: EngineFailed) -> Response:
        return error_response(500, str(error), "server_error")

    @on(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return error_response(500, f"{type(error).__name__}; the server's log says more", "server_error")

    @on(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers) if error.headers else None
        return error_response(error.status_code, str(error.detail), headers=headers)


class KeyRequired:
    """Refuses requests of the API without `Authorization: Bearer KEY`; the page has a login of its own."""

    def __init__(self, app: Any, api_key: str) -> None:
        self.app, self.expected = app, f"Bearer {api_key}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and guarded(scope["path"]):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected):
                message = "the key is missing or wrong; send the header Authorization: Bearer KEY"
                refusal = error_response(401, message, "authentication_error", code="invalid_api_key")
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


def guarded(path: str) -> bool:
    """Whether a path, however it is spelled, is the API's and needs the key."""
    path = canonical(path)
    return path == "/v1" or path.startswith("/v1/") or path in GUARDED
