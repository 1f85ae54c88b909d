"""Messages and functions of a conversation, as OpenAI's requests have them."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_MESSAGES = 500  # from: facts sheet 7.5
MAX_FUNCTIONS = 128  # from: OpenAI's limit of tools


class Strict(BaseModel):
    # strict: neither true nor "5" is a number
    model_config = ConfigDict(extra="forbid", strict=True)


class MessagePart(Strict):
    """A part of a message: text, or, from the assistant, a calculator call and its result."""

    type: Literal["text", "python", "python_output"]
    text: str


Parts = Annotated[list[MessagePart], Field(max_length=1000, fail_fast=True)]
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class CalledFunction(Strict):
    name: FunctionName
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _json(cls, arguments: str) -> str:
        try:
            found = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from error
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
        return json.dumps(found, separators=(",", ":"), ensure_ascii=False)


class ToolCall(Strict):
    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Parts | None = None
    parts: Parts | None = Field(
        None, description="what an answer of this server had besides its content"
    )
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_FUNCTIONS)] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _nothing_else(self) -> "ChatMessage":
        extra = {
            key: value
            for key, value in (self.model_extra or {}).items()
            if value not in (None, [], {}, "")
        }
        if unknown := [key for key in extra if key != "name"]:
            raise ValueError(f"{unknown[0]} is not supported here; a message has role and content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(
                f"only a message of the assistant has tool_calls, not one of {self.role}"
            )
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise ValueError(
                "a message of the role tool, and no other, has the tool_call_id of the call that "
                "it answers"
            )
        return self

    def as_project(self) -> dict[str, Any]:
        """The message for the tokenizer: its content is text, or parts where the assistant's
        message has more than text."""
        role = "system" if self.role == "developer" else self.role
        content: Any = self.parts if self.role == "assistant" and self.parts else self.content
        if isinstance(content, list):
            parts = [part.model_dump() for part in content]
            text_only = all(part["type"] == "text" for part in parts)
            content = (
                "".join(part["text"] for part in parts)
                if text_only or role != "assistant"
                else parts
            )
        return {"role": role, "content": content or ""}


class Function(Strict):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(
        None, description="true: refused where the schema has what cannot be kept to"
    )


class Tool(Strict):
    type: Literal["function"]
    function: Function


class ChosenFunction(Strict):
    name: FunctionName


class ToolChoice(Strict):
    type: Literal["function"]
    function: ChosenFunction
