"""/v1/completions: what follows a text or token ids, whole or as chunks."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HTTPRequest
from fastapi.responses import Response

from nanochat.inference.request import Piece
from nanochat.serve.api import logprobs
from nanochat.serve.api.context import ApiContext
from nanochat.serve.api.errors import ERRORS
from nanochat.serve.api.logprobs import EMPTY, Offsets, ScoredText
from nanochat.serve.api.metrics import Metrics
from nanochat.serve.api.requests import CompletionRequest
from nanochat.serve.api.streams import (
    DONE,
    STREAM,
    client_left,
    event,
    event_stream,
    failure_event,
    gather,
    token_counts,
    usage,
    watched,
)
from nanochat.serve.service import ServedModel
from nanochat.serve.worker import EngineFailed, Reply
from nanochat.tokenizer.tokenizer import Tokenizer


def routes(context: ApiContext) -> APIRouter:
    router, service = APIRouter(), context.service

    @router.post("/v1/completions", responses=ERRORS | STREAM)
    async def completions(asked: CompletionRequest, request: HTTPRequest) -> Response:
        model = service.model(asked.model)
        prompts = asked.prompts()
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model.name}
        replies = begin(context, asked, model, prompts)
        if asked.stream:
            return event_stream(events(asked, model.tokenizer, replies, head, context.metrics))
        echoed: list[ScoredText] = []

        async def echo() -> None:
            for prompt in prompts if asked.echo else []:
                ids = service.ids(model, prompt)
                echoed.append(await logprobs.echoed(asked.logprobs, model, prompt, ids))

        if not await gather(replies, request, context.metrics, echo()):
            return client_left()

        def body() -> bytes:
            before = echoed or [EMPTY] * len(prompts)
            whole = {
                "object": "text_completion",
                "choices": choices(asked, model.tokenizer, before, replies),
                "usage": usage(replies)
                if replies
                else token_counts(sum(len(t.ids) for t in echoed), 0),
            }
            return json.dumps(head | whole).encode()

        return Response(await asyncio.to_thread(body), media_type="application/json")

    return router


def begin(
    context: ApiContext,
    asked: CompletionRequest,
    model: ServedModel,
    prompts: list[str | list[int]],
) -> list[Reply]:
    """A reply for each prompt; none for max_tokens=0, which only echoes. Either all are started or
    none."""
    service = context.service
    sampling = asked.sampling(
        context.defaults, asked.max_tokens or None, top_logprobs=asked.logprobs or 0
    )
    sampling = replace(sampling, tools=False, python=False)
    service.make_room(model, len(prompts) * asked.samples)
    replies: list[Reply] = []
    try:
        for number, prompt in enumerate(prompts if asked.max_tokens != 0 else []):
            own = replace(sampling, seed=sampling.seed + number * 2**64)  # equal prompts differ
            replies.append(
                service.complete(
                    model.name, prompt, own, num_samples=asked.samples, strict=asked.strict
                )
            )
    except Exception:
        for reply in replies:
            reply.cancel()
        raise
    return replies


def choices(
    asked: CompletionRequest, tokenizer: Tokenizer, before: list[ScoredText], replies: list[Reply]
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number, prompt in enumerate(before):
        for answer in replies[number].request.completions if replies else [None]:
            text = prompt + logprobs.written(answer, tokenizer) if answer else prompt
            found.append(
                {
                    "text": text.text,
                    "index": len(found),
                    "logprobs": text.logprobs() if asked.logprobs is not None else None,
                    "finish_reason": answer.finish_reason if answer else "length",
                }
            )
    return found


async def events(
    asked: CompletionRequest,
    tokenizer: Tokenizer,
    replies: list[Reply],
    head: dict[str, Any],
    metrics: Metrics,
) -> AsyncIterator[str]:
    head = head | {"object": "text_completion"}
    try:
        for number, reply in enumerate(replies):
            offsets = [Offsets() for _ in range(asked.samples)]
            async for sample, pieces in watched(reply, metrics):
                choice = completion_chunk(asked, tokenizer, offsets[sample], pieces)
                if choice["text"] or choice["logprobs"] or choice["finish_reason"]:
                    index = number * asked.samples + sample
                    yield event(head | {"choices": [{"index": index} | choice]})
        if asked.stream_options and asked.stream_options.include_usage:
            yield event(head | {"choices": [], "usage": usage(replies)})
    except EngineFailed as error:
        yield failure_event(error)
    finally:
        for reply in replies:
            if not reply.request.done:
                reply.cancel()
    yield DONE


def completion_chunk(
    asked: CompletionRequest, tokenizer: Tokenizer, offsets: Offsets, pieces: list[Piece]
) -> dict[str, Any]:
    """A choice with the text that these pieces add."""
    text = "".join(fragment.text for piece in pieces for fragment in piece.fragments)
    scored = None
    drawn = [piece.drawn for piece in pieces if piece.drawn is not None]
    if asked.logprobs is not None and drawn:
        written = [tokenizer.piece(token.id) for token in drawn]
        scored = ScoredText(
            text,
            [logprobs.name_of(piece) for piece in written],
            [token.logprob for token in drawn],
            [logprobs.named(tokenizer, token.top, (token.id, token.logprob)) for token in drawn],
            [offsets.next(piece) for piece in written],
        ).logprobs()
    return {"text": text, "logprobs": scored, "finish_reason": pieces[-1].finish_reason}
