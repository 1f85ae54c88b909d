"""/v1/responses, OpenAI's Responses for text: one message out, whole or as events.

Nothing is stored, so an answer cannot be referred to later.
"""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi import Request as HTTPRequest
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from nanochat.serve.api.chat import begin, content
from nanochat.serve.api.context import ApiContext
from nanochat.serve.api.errors import ERRORS
from nanochat.serve.api.messages import MAX_MESSAGES, ChatMessage, FunctionName, Strict
from nanochat.serve.api.metrics import Metrics
from nanochat.serve.api.requests import ChatRequest, Count, Probability, Temperature, neutral
from nanochat.serve.api.streams import (
    STREAM,
    client_left,
    event,
    event_stream,
    gather,
    usage,
    watched,
)
from nanochat.serve.worker import EngineFailed, Reply

# fields that cannot be honoured, and the values of them that ask for nothing
RESPONSES_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("auto", "none"),
    "parallel_tool_calls": (True, False),
    "previous_response_id": (),
    "conversation": (),
    "reasoning": ({},),
    "include": ([],),
    "truncation": ("disabled",),
    "background": (False,),
    "prompt": (),
    "top_logprobs": (0,),
    "max_tool_calls": (),
    "stream_options": ({},),
    "context_management": (),
}


# --- the request ---


class ResponsesPart(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    type: Literal["input_text", "output_text", "text"]
    text: str


class ResponsesMessage(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)  # id and status of an earlier answer
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ResponsesPart], Field(max_length=1000, fail_fast=True)]

    def as_message(self) -> ChatMessage:
        text = (
            self.content
            if isinstance(self.content, str)
            else "".join(part.text for part in self.content)
        )
        return ChatMessage(role=self.role, content=text, parts=None)


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: FunctionName = "answer"
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseText(Strict):
    format: TextFormat | None = None
    verbosity: None = None


class ResponsesRequest(Strict):
    model: str | None = None
    input: (
        str
        | Annotated[
            list[ResponsesMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
        ]
    )
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    text: ResponseText | None = None
    metadata: dict[str, str] | None = None
    stream: bool | None = False

    @model_validator(mode="before")
    @classmethod
    def _neutral(cls, data: Any) -> Any:
        return neutral(data, cls, RESPONSES_NEUTRAL)

    def as_chat(self) -> ChatRequest:
        first = (
            [ChatMessage(role="system", content=self.instructions, parts=None)]
            if self.instructions
            else []
        )
        messages = (
            [ChatMessage(role="user", content=self.input, parts=None)]
            if isinstance(self.input, str)
            else [message.as_message() for message in self.input]
        )
        wanted = (
            self.text.format
            if self.text and self.text.format
            else TextFormat(type="text", schema=None)
        )
        format: dict[str, Any] = {"type": wanted.type}
        if wanted.type == "json_schema":
            format["json_schema"] = {
                "name": wanted.name,
                "schema": wanted.schema_,
                "strict": wanted.strict,
            }
        return ChatRequest.model_validate(
            {
                "model": self.model,
                "messages": [message.model_dump() for message in [*first, *messages]],
                "temperature": self.temperature,
                "top_p": self.top_p,
                "max_tokens": self.max_output_tokens,
                "stream": self.stream,
                "response_format": format,
            }
        )


# --- the answer ---


def routes(context: ApiContext) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/responses", responses=ERRORS | STREAM)
    async def respond(asked: ResponsesRequest, request: HTTPRequest) -> Response:
        model, reply = await begin(context, asked.as_chat())
        answer = ResponseObject(asked, model.name)
        if asked.stream:
            return event_stream(events(answer, reply, context.metrics))
        if not await gather([reply], request, context.metrics):
            return client_left()
        (completion,) = reply.request.completions
        used = usage([reply])
        return JSONResponse(answer.ended(content(completion), completion.finish_reason, used))

    return router


async def events(answer: "ResponseObject", reply: Reply, metrics: Metrics) -> AsyncIterator[str]:
    def named(found: list[dict[str, Any]]) -> str:
        return "".join(f"event: {each['type']}\n{event(each)}" for each in found)

    yield named(answer.begin())
    reason: str | None = None
    try:
        async for _, pieces in watched(reply, metrics):
            fragments = [fragment for piece in pieces for fragment in piece.fragments]
            text = "".join(fragment.text for fragment in fragments if fragment.kind == "text")
            yield named(answer.delta(text) if text else [])
            reason = pieces[-1].finish_reason
        whole = content(reply.request.completions[0])
        yield named(answer.end(whole, reason, usage([reply])))
    except EngineFailed as error:
        failure = answer.event("error", code="server_error", message=str(error), param=None)
        yield named([failure])


class ResponseObject:
    """One response, as an object and as events."""

    def __init__(self, asked: ResponsesRequest, model: str) -> None:
        self.asked, self.model, self.created = asked, model, int(time.time())
        self.id, self.item_id = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"
        self.number = -1

    def ended(self, text: str, reason: str | None, usage: dict[str, Any]) -> dict[str, Any]:
        """The object of a finished answer."""
        whole = reason == "stop"
        used = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
        return self._object(
            "completed" if whole else "incomplete",
            output=[self._item("completed" if whole else "incomplete", [_output_text(text)])],
            usage=used,
            incomplete_details=None if whole else {"reason": "max_output_tokens"},
        )

    def begin(self) -> list[dict[str, Any]]:
        under_way = self._object("in_progress")
        return [
            self.event("response.created", response=under_way),
            self.event("response.in_progress", response=under_way),
            self.event(
                "response.output_item.added", output_index=0, item=self._item("in_progress", [])
            ),
            self.event("response.content_part.added", **self._place(), part=_output_text("")),
        ]

    def delta(self, text: str) -> list[dict[str, Any]]:
        return [self.event("response.output_text.delta", **self._place(), delta=text, logprobs=[])]

    def end(self, text: str, reason: str | None, usage: dict[str, Any]) -> list[dict[str, Any]]:
        found = self.ended(text, reason, usage)
        return [
            self.event("response.output_text.done", **self._place(), text=text, logprobs=[]),
            self.event("response.content_part.done", **self._place(), part=_output_text(text)),
            self.event("response.output_item.done", output_index=0, item=found["output"][0]),
            self.event(f"response.{found['status']}", response=found),
        ]

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self.number += 1
        return {"type": kind, "sequence_number": self.number, **fields}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.item_id, "output_index": 0, "content_index": 0}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _object(self, status: str, **fields: Any) -> dict[str, Any]:
        asked = self.asked
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "model": self.model,
            "status": status,
            "output": [],
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "metadata": asked.metadata or {},
            "max_output_tokens": asked.max_output_tokens,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "previous_response_id": None,
            "usage": None,
            "text": asked.text.model_dump(by_alias=True, exclude_none=True)
            if asked.text
            else {"format": {"type": "text"}},
        } | fields


def _output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
