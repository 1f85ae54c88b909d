"""OpenAI's Responses for text: one message out, whole or as events. Nothing is kept, so no answer can be referred to later."""

import time
import uuid
from typing import Any

from nanochat.serve.requests import ResponsesRequest


class Answer:
    """One response: what its object and its events say."""

    def __init__(self, asked: ResponsesRequest, model: str) -> None:
        self.asked, self.model, self.created = asked, model, int(time.time())
        self.id, self.item_id = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"
        self.number = -1

    def ended(self, text: str, reason: str | None, usage: dict[str, Any]) -> dict[str, Any]:
        """The object of a finished answer."""
        whole = reason == "stop"
        used = {
            "input_tokens": usage["prompt_tokens"], "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }  # fmt: skip
        return self._object(
            "completed" if whole else "incomplete",
            output=[self._item("completed" if whole else "incomplete", [_part(text)])],
            usage=used,
            incomplete_details=None if whole else {"reason": "max_output_tokens"},
        )

    def begin(self) -> list[dict[str, Any]]:
        under_way = self._object("in_progress")
        return [
            self.event("response.created", response=under_way),
            self.event("response.in_progress", response=under_way),
            self.event("response.output_item.added", output_index=0, item=self._item("in_progress", [])),
            self.event("response.content_part.added", **self._place(), part=_part("")),
        ]

    def delta(self, text: str) -> list[dict[str, Any]]:
        return [self.event("response.output_text.delta", **self._place(), delta=text, logprobs=[])]

    def end(self, text: str, reason: str | None, usage: dict[str, Any]) -> list[dict[str, Any]]:
        found = self.ended(text, reason, usage)
        return [
            self.event("response.output_text.done", **self._place(), text=text, logprobs=[]),
            self.event("response.content_part.done", **self._place(), part=_part(text)),
            self.event("response.output_item.done", output_index=0, item=found["output"][0]),
            self.event(f"response.{found['status']}", response=found),
        ]

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self.number += 1
        return {"type": kind, "sequence_number": self.number, **fields}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.item_id, "output_index": 0, "content_index": 0}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _object(self, status: str, **fields: Any) -> dict[str, Any]:
        asked = self.asked
        return {
            "id": self.id, "object": "response", "created_at": self.created, "model": self.model, "status": status, "output": [],
            "error": None, "incomplete_details": None, "instructions": asked.instructions, "metadata": asked.metadata or {},
            "max_output_tokens": asked.max_output_tokens, "temperature": asked.temperature, "top_p": asked.top_p,
            "parallel_tool_calls": False, "tool_choice": "none", "tools": [], "previous_response_id": None, "usage": None,
            "text": asked.text.model_dump(by_alias=True, exclude_none=True) if asked.text else {"format": {"type": "text"}},
        } | fields  # fmt: skip


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
