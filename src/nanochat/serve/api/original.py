"""/chat/completions: the original's web chat (facts sheet 7.5), a stream of tokens."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field, model_validator

from nanochat.serve.api import tools
from nanochat.serve.api.context import ApiContext
from nanochat.serve.api.errors import ERRORS
from nanochat.serve.api.messages import MAX_MESSAGES, ChatMessage, Strict
from nanochat.serve.api.requests import Temperature, random_seed
from nanochat.serve.api.streams import STREAM, event, event_stream, failure_event, watched
from nanochat.serve.service import WEB_CHAT
from nanochat.serve.worker import EngineFailed, Reply

# from: facts sheet 7.5, of all messages; other requests are bounded in bytes
MAX_CHARACTERS = 32_000
MAX_CHARACTERS_EACH = 8_000  # from: the same


class OriginalMessage(Strict):
    role: Literal["user", "assistant", "system"]
    content: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS_EACH)]


class OriginalRequest(Strict):
    messages: Annotated[list[OriginalMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    temperature: Temperature | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    top_k: Annotated[int, Field(ge=0, le=200)] | None = None

    @model_validator(mode="after")
    def _sizes(self) -> "OriginalRequest":
        total = sum(len(message.content) for message in self.messages)
        if total > MAX_CHARACTERS:
            raise ValueError(
                f"the messages have {total:,} characters; at most {MAX_CHARACTERS:,} are taken"
            )
        return self


def routes(context: ApiContext) -> APIRouter:
    router = APIRouter()

    @router.post("/chat/completions", responses=ERRORS | STREAM)
    async def web_chat(asked: OriginalRequest) -> Response:
        given = asked.model_dump(exclude={"messages"}, exclude_none=True)
        if given.get("top_k") == 0:
            given["top_k"] = None
        sampling = replace(WEB_CHAT, seed=random_seed(), python=context.defaults.python, **given)
        messages = [ChatMessage(role=m.role, content=m.content, parts=None) for m in asked.messages]
        reply, _ = context.service.chat(None, tools.as_turns(messages), sampling)
        return event_stream(events(context, reply))

    return router


async def events(context: ApiContext, reply: Reply) -> AsyncIterator[str]:
    number = context.service.default.workers.index(reply.worker)
    try:
        async for _, pieces in watched(reply, context.metrics):
            fragments = [fragment for piece in pieces for fragment in piece.fragments]
            if text := "".join(fragment.text for fragment in fragments):
                yield event({"token": text, "gpu": number})
        yield event({"done": True})
    except EngineFailed as error:
        yield failure_event(error)
