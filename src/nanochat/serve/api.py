"""OpenAI's API over a service (chat completions, completions, responses, models), and the original's stream of an answer.

What a small model cannot do is refused by name. Beyond OpenAI's fields a request may set top_k, min_p, repetition_penalty, min_tokens and
strict, and the message of an answer that called the calculator has `parts`, which may be sent back. A last message of the assistant is
continued; what comes back does not repeat it. More max_tokens than there is room for are as many as there is room for, unless
strict=true. Settings of sampling that a request leaves out are the server's.
"""

import asyncio
import hmac
import json
import random
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from nanochat.inference.request import Piece, TooLong
from nanochat.inference.sampling import Sampling
from nanochat.inference.text import Completion
from nanochat.serve import logprobs, responses, tools
from nanochat.serve.address import canonical
from nanochat.serve.logprobs import NOTHING, Offsets, Text
from nanochat.serve.metrics import Metrics
from nanochat.serve.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Message,
    OriginalRequest,
    ResponsesRequest,
    TokenizeRequest,
)  # fmt: skip
from nanochat.serve.requests import Request as Asked
from nanochat.serve.service import WEB_CHAT, Busy, Model, Service, UnknownModel
from nanochat.serve.worker import EngineFailed, Reply
from nanochat.tokenizer.conversations import render_prompt
from nanochat.tokenizer.tokenizer import Tokenizer

# in the place of an error as pydantic has it, beside "list[int]", "function-after[…]" …
NOT_FIELDS = ("body", "str", "int")
NOT_A_FIELD = re.compile(r"[^\w]")
CALL_SHARE = 4  # guess: a call that has to come takes a quarter of the context where max_tokens is not given; its result has to fit too
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
    app.add_middleware(PlainPaths)  # what is added last comes first

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

    async def begin_chat(asked: ChatRequest) -> tuple[Model, Reply]:
        """The answer to a conversation on its way, decoded as it was asked for."""
        model = service.model(asked.model)
        most = asked.max_completion_tokens or asked.max_tokens
        sampling = _sampling(asked, defaults, most, logprobs=asked.top_logprobs or 0)
        if asked.forced and most is None:
            sampling = replace(
                sampling, max_tokens=max(1, min(sampling.max_tokens or model.context, model.context // CALL_SHARE))
            )
        wanted = await asyncio.to_thread(tools.grammars, asked, model.tokenizer)
        sampling = replace(sampling, tools=asked.choice != "none", **wanted)
        offered = asked.tools if asked.choice != "none" else None
        messages = tools.conversation(asked.messages, offered)
        reply, _ = service.chat(
            model.name, messages, sampling, num_samples=asked.samples, strict=asked.strict, call=asked.forced
        )
        return model, reply

    @app.post("/v1/chat/completions", responses=ERRORS | STREAM)
    async def chat(asked: ChatRequest, request: Request) -> Response:
        model, reply = await begin_chat(asked)
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
                    "message": _message(asked, answer),
                    "logprobs": logprobs.chat_logprobs(answer, model.tokenizer) if asked.logprobs else None,
                    "finish_reason": _finish_reason(asked, answer.finish_reason),
                }
            )
        return JSONResponse(head | {"object": "chat.completion", "choices": choices, "usage": _usage([reply])})

    @app.post("/v1/responses", responses=ERRORS | STREAM)
    async def respond(asked: ResponsesRequest, request: Request) -> Response:
        model, reply = await begin_chat(asked.as_chat())
        answer = responses.Answer(asked, model.name)
        if asked.stream:
            return _event_stream(_response_events(answer, reply, metrics))
        if not await _gather([reply], request, metrics):
            return Response(status_code=499)
        (completion,) = reply.request.completions
        return JSONResponse(answer.ended(content(completion), completion.finish_reason, _usage([reply])))

    @app.post("/v1/completions", responses=ERRORS | STREAM)
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        model = service.model(asked.model)
        prompts = asked.prompts()
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model.name}
        sampling = _sampling(asked, defaults, asked.max_tokens or None, logprobs=asked.logprobs or 0)
        sampling = replace(sampling, tools=False, python=False)
        service.make_room(model, len(prompts) * asked.samples)
        replies: list[Reply] = []
        if asked.max_tokens != 0:
            try:
                for number, prompt in enumerate(prompts):  # equal prompts get answers of their own
                    own = replace(sampling, seed=sampling.seed + number * 2**64)
                    replies.append(
                        service.complete(model.name, prompt, own, num_samples=asked.samples, strict=asked.strict)
                    )
            except Exception:
                for reply in replies:
                    reply.cancel()
                raise
        if asked.stream:
            return _event_stream(_completion_events(asked, model, replies, head, metrics))
        echoed: list[Text] = []

        async def echo() -> None:
            for prompt in prompts if asked.echo else []:
                echoed.append(await logprobs.echoed(asked.logprobs, model, prompt, service.ids(model, prompt)))

        if not await _gather(replies, request, metrics, echo()):
            return Response(status_code=499)

        def body() -> bytes:
            choices: list[dict[str, Any]] = []
            for number in range(len(prompts)):
                before = echoed[number] if echoed else NOTHING
                answers = replies[number].request.completions if replies else [None]
                for answer in answers:
                    text = before + logprobs.continuation(answer, model.tokenizer) if answer else before
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
        tokenizer = model.tokenizer
        if asked.messages is not None:
            ids = render_prompt(tokenizer, {"messages": tools.conversation(asked.messages)}, go_on=True)
        else:
            ids = [tokenizer.bos_id] * asked.add_special_tokens + with_specials(tokenizer, asked.prompt or "")
        names = [logprobs.name_of(tokenizer.piece(number)) for number in ids] if asked.return_token_strs else None
        return {"tokens": ids, "count": len(ids), "max_model_len": model.context, "token_strs": names}

    @app.post("/detokenize", responses=ERRORS)
    async def detokenize(asked: DetokenizeRequest) -> dict[str, Any]:
        return {"prompt": service.model(asked.model).tokenizer.decode(asked.tokens)}

    @app.post("/chat/completions", responses=ERRORS | STREAM)
    async def original(asked: OriginalRequest) -> Response:
        given = {key: value for key, value in asked.model_dump(exclude={"messages"}).items() if value is not None}
        if given.get("top_k") == 0:
            given["top_k"] = None
        sampling = replace(WEB_CHAT, seed=_random_seed(), python=defaults.python, **given)
        messages = tools.conversation([Message(role=m.role, content=m.content, parts=None) for m in asked.messages])
        reply, _ = service.chat(None, messages, sampling)
        return _event_stream(_original_events(service, reply, metrics))

    # before a page that is mounted at / takes it
    for route in [route for route in app.routes if isinstance(route, APIRoute)]:
        app.router.routes.append(Route(route.path, WrongMethod(route.methods or set()), include_in_schema=False))

    @app.api_route("/v1/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def nothing(rest: str, request: Request) -> Response:
        return error_response(404, f"there is no {request.method} /v1/{rest} here")

    return app


class PlainPaths:
    """A path of the API means the same with slashes at its end."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/"):
            plain = scope["path"].rstrip("/")
            if guarded(plain) or plain == "/health":
                scope = {**scope, "path": plain, "raw_path": plain.encode()}
        await self.app(scope, receive, send)


class WrongMethod:
    """Answers whatever its path is asked by another method than those allowed."""

    def __init__(self, allowed: set[str]) -> None:
        self.allowed = ", ".join(sorted(allowed))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"{scope['path']} does not take {scope['method']}; use {self.allowed}"
        raise HTTPException(405, message, {"Allow": self.allowed})


# --- requests --------------------------------------------------------------------------------------------------


def _sampling(asked: Asked, defaults: Sampling, max_tokens: int | None, *, logprobs: int) -> Sampling:
    if max_tokens is not None and (asked.min_tokens or 0) > max_tokens:
        raise ValueError(f"min_tokens={asked.min_tokens:,} is more than max_tokens={max_tokens:,}")
    given: dict[str, Any] = {
        key: value
        for key in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "seed",
            "frequency_penalty",
            "presence_penalty",
            "min_tokens",
        )
        if (value := getattr(asked, key)) is not None
    }
    given["logit_bias"] = tuple((int(token), value) for token, value in (asked.logit_bias or {}).items() if value)
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


def content(answer: Completion) -> str:
    return "".join(part["text"] for part in answer.parts if part["type"] == "text")


def _message(asked: ChatRequest, answer: Completion) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content(answer), "refusal": None}
    parts, call = answer.parts, None
    if asked.forced:
        call = tools.called(answer.text, whole=answer.finish_reason == "stop")
        parts, message["content"] = [], ""
    elif asked.tools and parts and parts[-1]["type"] == "python":
        call = tools.called(parts[-1]["text"], whole=answer.finish_reason == "tool_calls")
        parts = parts[:-1] if call else parts
    if call:
        message |= {"content": message["content"] or None, "tool_calls": [call]}
    if any(part["type"] != "text" for part in parts):
        message["parts"] = parts
    return message


def _finish_reason(asked: ChatRequest, reason: str | None) -> str | None:
    return "tool_calls" if asked.forced and reason == "stop" else reason


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

    calls = {index: tools.CallStream() if asked.forced else None for index in range(asked.samples)}
    try:
        for index in range(asked.samples):
            yield chunk(index, {"role": "assistant", "content": None if asked.forced else ""})
        async for sample, pieces in _watched(reply, metrics):
            delta: dict[str, Any] = {}
            for kind, text in (fragment for piece in pieces for fragment in piece.fragments):
                call = calls[sample]
                if not asked.forced and kind == "mark":  # a part has ended, another begins
                    if call and (rest := call.rest()):
                        delta.setdefault("parts", []).append({"type": "python", "text": rest})
                    calls[sample] = tools.CallStream() if asked.tools else None
                elif asked.forced or (call and kind == "python"):
                    deltas, rest = call.feed(text)  # type: ignore[union-attr]
                    if deltas:
                        delta.setdefault("tool_calls", []).extend(deltas)
                    if rest:
                        delta.setdefault("parts", []).append({"type": kind, "text": rest})
                elif kind == "text":
                    delta["content"] = delta.get("content", "") + text
                else:
                    delta.setdefault("parts", []).append({"type": kind, "text": text})
            reason = pieces[-1].finish_reason
            if reason and (call := calls[sample]):
                if not asked.forced and (rest := call.rest()):
                    delta.setdefault("parts", []).append({"type": "python", "text": rest})
                if reason == "length" and (cut := call.cut()):
                    delta.setdefault("tool_calls", []).extend(cut)
            drawn = [piece.drawn for piece in pieces if piece.drawn is not None] if asked.logprobs else []
            rows = [logprobs.chat_logprob(model.tokenizer, token.id, token.logprob, token.top) for token in drawn]
            if delta or rows:
                yield chunk(sample, delta, {"content": rows} if rows else None)
            if reason:
                yield chunk(sample, {}, None, _finish_reason(asked, reason))
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
            offsets = [Offsets() for _ in range(asked.samples)]
            async for sample, pieces in _watched(reply, metrics):
                text = "".join(fragment.text for piece in pieces for fragment in piece.fragments)
                told = None
                if asked.logprobs is not None and (drawn := [p.drawn for p in pieces if p.drawn is not None]):
                    bytes_of = [model.tokenizer.piece(token.id) for token in drawn]
                    told = Text(
                        text,
                        [logprobs.name_of(piece) for piece in bytes_of],
                        [token.logprob for token in drawn],
                        [logprobs.named(model.tokenizer, token.top, (token.id, token.logprob)) for token in drawn],
                        [offsets[sample].next(piece) for piece in bytes_of],
                    ).logprobs()
                reason = pieces[-1].finish_reason
                if text or told or reason:
                    choice = {
                        "index": number * asked.samples + sample,
                        "text": text,
                        "logprobs": told,
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


async def _response_events(answer: responses.Answer, reply: Reply, metrics: Metrics) -> AsyncIterator[str]:
    def events(found: list[dict[str, Any]]) -> str:
        return "".join(f"event: {event['type']}\n{_event(event)}" for event in found)

    yield events(answer.begin())
    reason: str | None = None
    try:
        async for _, pieces in _watched(reply, metrics):
            text = "".join(f.text for piece in pieces for f in piece.fragments if f.kind == "text")
            yield events(answer.delta(text) if text else [])
            reason = pieces[-1].finish_reason
        yield events(answer.end(content(reply.request.completions[0]), reason, _usage([reply])))
    except EngineFailed as error:
        yield events([answer.event("error", code="server_error", message=str(error), param=None)])


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
