"""Answers sent to a client: streamed as server-sent events, or as a whole."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from fastapi import Request as HTTPRequest
from fastapi.responses import Response, StreamingResponse

from nanochat.inference.request import Piece
from nanochat.serve.api.metrics import Metrics
from nanochat.serve.openai_error import error_body
from nanochat.serve.worker import Reply

DONE = "data: [DONE]\n\n"
# declared in /openapi.json by routes that stream
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "the answer", "content": {"text/event-stream": {}}}
}


def event_stream(events: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(
        events, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


def event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


def failure_event(error: Exception) -> str:
    return event(error_body(str(error), "server_error"))


def client_left() -> Response:
    """The response to a client that has disconnected."""
    return Response(status_code=499)


async def watched(reply: Reply, metrics: Metrics) -> AsyncIterator[tuple[int, list[Piece]]]:
    """(sample, its pieces that have arrived) of a reply, which is counted in the metrics however it
    ends."""
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


async def gather(
    replies: list[Reply],
    request: HTTPRequest,
    metrics: Metrics,
    also: Coroutine[Any, Any, None] | None = None,
) -> bool:
    """Wait for all replies and for `also`. If the client disconnects first, the replies are
    cancelled and this is False."""

    async def all_of_them() -> None:
        if also is not None:
            await also
        for reply in replies:
            async for _ in reply:
                pass
            metrics.finished(reply)

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work = asyncio.ensure_future(all_of_them())
    left = asyncio.ensure_future(disconnected())
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


def usage(replies: list[Reply]) -> dict[str, Any]:
    texts = [text for reply in replies for text in reply.request.texts]
    written = sum(len(text.ids) + (text.end is not None) for text in texts)
    return token_counts(sum(len(reply.request.prompt) for reply in replies), written)


def token_counts(prompt: int, written: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
