"""/v1/chat/completions: answers to a conversation, whole or as chunks."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HTTPRequest
from fastapi.responses import JSONResponse, Response

from nanochat.inference.request import Piece
from nanochat.inference.text import Completion
from nanochat.serve.api import logprobs, tools
from nanochat.serve.api.context import ApiContext
from nanochat.serve.api.errors import ERRORS
from nanochat.serve.api.metrics import Metrics
from nanochat.serve.api.requests import ChatRequest
from nanochat.serve.api.streams import (
    DONE,
    STREAM,
    client_left,
    event,
    event_stream,
    failure_event,
    gather,
    usage,
    watched,
)
from nanochat.serve.service import ServedModel
from nanochat.serve.worker import EngineFailed, Reply

# guess: without max_tokens a required call takes a quarter of the context, since its result has to
# fit too
CALL_SHARE = 4


def routes(context: ApiContext) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", responses=ERRORS | STREAM)
    async def chat_completions(asked: ChatRequest, request: HTTPRequest) -> Response:
        model, reply = await begin(context, asked)
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model.name,
        }
        if asked.stream:
            return event_stream(events(Chunks(asked, model, head), reply, context.metrics))
        if not await gather([reply], request, context.metrics):
            return client_left()
        choices = [
            {
                "index": index,
                "message": message_of(asked, answer),
                "logprobs": logprobs.chat_logprobs(answer, model.tokenizer)
                if asked.logprobs
                else None,
                "finish_reason": finish_reason(asked, answer.finish_reason),
            }
            for index, answer in enumerate(reply.request.completions)
        ]
        return JSONResponse(
            head | {"object": "chat.completion", "choices": choices, "usage": usage([reply])}
        )

    return router


async def begin(context: ApiContext, asked: ChatRequest) -> tuple[ServedModel, Reply]:
    """Start the answer to a conversation, decoded as requested."""
    model = context.service.model(asked.model)
    most = asked.max_completion_tokens or asked.max_tokens
    sampling = asked.sampling(context.defaults, most, top_logprobs=asked.top_logprobs or 0)
    if asked.forced and most is None:
        share = min(sampling.max_tokens or model.context, model.context // CALL_SHARE)
        sampling = replace(sampling, max_tokens=max(1, share))
    wanted = await asyncio.to_thread(tools.grammars, asked, model.tokenizer)
    sampling = replace(sampling, tools=asked.choice != "none", **wanted)
    offered = asked.tools if asked.choice != "none" else None
    reply, _ = context.service.chat(
        model.name,
        tools.as_turns(asked.messages, offered),
        sampling,
        num_samples=asked.samples,
        strict=asked.strict,
        call=asked.forced,
    )
    return model, reply


# --- whole ---


def content(answer: Completion) -> str:
    return "".join(part["text"] for part in answer.parts if part["type"] == "text")


def message_of(asked: ChatRequest, answer: Completion) -> dict[str, Any]:
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


def finish_reason(asked: ChatRequest, reason: str | None) -> str | None:
    return "tool_calls" if asked.forced and reason == "stop" else reason


# --- as chunks ---


class Chunks:
    """The chunks of a streamed answer."""

    def __init__(self, asked: ChatRequest, model: ServedModel, head: dict[str, Any]) -> None:
        self.asked, self.tokenizer = asked, model.tokenizer
        self.head = head | {"object": "chat.completion.chunk"}
        # by sample: the call that may be under way
        self.calls: dict[int, tools.CallStream | None] = {
            sample: tools.CallStream() if asked.forced else None for sample in range(asked.samples)
        }

    def chunk(
        self, sample: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None
    ) -> str:
        choice = {"index": sample, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event(self.head | {"choices": [choice]})

    def begin(self) -> Iterator[str]:
        for sample in range(self.asked.samples):
            first = None if self.asked.forced else ""
            yield self.chunk(sample, {"role": "assistant", "content": first})

    def of(self, sample: int, pieces: list[Piece]) -> Iterator[str]:
        delta, reason = self.delta(sample, pieces), pieces[-1].finish_reason
        drawn = (
            [piece.drawn for piece in pieces if piece.drawn is not None]
            if self.asked.logprobs
            else []
        )
        rows = [
            logprobs.chat_logprob(self.tokenizer, token.id, token.logprob, token.top)
            for token in drawn
        ]
        if delta or rows:
            yield self.chunk(sample, delta, {"content": rows} if rows else None)
        if reason:
            yield self.chunk(sample, {}, None, finish_reason(self.asked, reason))

    def delta(self, sample: int, pieces: list[Piece]) -> dict[str, Any]:
        """The delta that these pieces add to the message."""
        delta: dict[str, Any] = {}
        forced = self.asked.forced

        def add(key: str, *items: dict[str, Any]) -> None:
            if items:
                delta.setdefault(key, []).extend(items)

        def no_call(text: str) -> None:
            if text:
                add("parts", {"type": "python", "text": text})

        for kind, text in (fragment for piece in pieces for fragment in piece.fragments):
            call = self.calls[sample]
            if kind == "mark" and not forced:  # a part has ended, another one begins
                no_call(call.rest() if call else "")
                self.calls[sample] = tools.CallStream() if self.asked.tools else None
            elif call and (forced or kind == "python"):
                deltas, rest = call.feed(text)
                add("tool_calls", *deltas)
                if rest:
                    add("parts", {"type": kind, "text": rest})
            elif kind == "text":
                delta["content"] = delta.get("content", "") + text
            else:
                add("parts", {"type": kind, "text": text})
        reason = pieces[-1].finish_reason
        if reason and (call := self.calls[sample]):
            no_call("" if forced else call.rest())
            add("tool_calls", *(call.cut() if reason == "length" else []))
        return delta


async def events(chunks: Chunks, reply: Reply, metrics: Metrics) -> AsyncIterator[str]:
    try:
        for chunk in chunks.begin():
            yield chunk
        async for sample, pieces in watched(reply, metrics):
            for chunk in chunks.of(sample, pieces):
                yield chunk
        options = chunks.asked.stream_options
        if options and options.include_usage:
            yield event(chunks.head | {"choices": [], "usage": usage([reply])})
    except EngineFailed as error:
        yield failure_event(error)
    yield DONE
