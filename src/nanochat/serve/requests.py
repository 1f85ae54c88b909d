"""What programs may ask for: OpenAI's requests as far as a small model can do them, and the original's.

A field that would change nothing is refused by name, unless it has the value that asks for nothing.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nanochat.inference.sampling import LEAST_TOP_P, PENALTIES

MAX_MESSAGES = 500  # from: facts sheet 7.5, as the two below
MAX_CHARACTERS = 32_000  # of all messages of the original's request; of the others the size in bytes is bounded
MAX_CHARACTERS_EACH = 8_000
MAX_SAMPLES = 16  # guess: answers to one request
MAX_PROMPTS = 64  # guess: prompts of one request
MAX_FUNCTIONS = 128  # from: OpenAI's limit of tools
MAX_BIASES = 1024  # guess; OpenAI takes 300
MAX_STOPS = 16  # guess; OpenAI takes 4

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=LEAST_TOP_P, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=PENALTIES[0], le=PENALTIES[1], allow_inf_nan=False)]
Added = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]

# what cannot be done, and the values that do not ask for it
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],), "functions": ([],), "function_call": ("none",), "response_format": ({"type": "text"},),
    "suffix": ("",), "best_of": (1,), "modalities": (["text"],), "prediction": (),
    "audio": (), "parallel_tool_calls": (True, False), "web_search_options": (),
}  # fmt: skip
RESPONSES_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],), "tool_choice": ("auto", "none"), "parallel_tool_calls": (True, False), "previous_response_id": (),
    "conversation": (), "reasoning": ({},), "include": ([],), "truncation": ("disabled",), "background": (False,), "prompt": (),
    "top_logprobs": (0,), "max_tool_calls": (), "stream_options": ({},), "context_management": (),
}  # fmt: skip
# says nothing about the answer
PASSED_OVER = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)  # strict: true is no number, and "5" neither


def neutral(data: Any, kind: type[BaseModel], values: dict[str, tuple[Any, ...]]) -> Any:
    """A request without the fields that ask for nothing. ValueError for one of `values` that asks for what cannot be done."""
    if not isinstance(data, dict):
        return data
    data = {key: value for key, value in data.items() if key not in PASSED_OVER or key in kind.model_fields}
    for key, nothing in values.items():
        if key in data and key not in kind.model_fields:
            value = data.pop(key)
            if value is not None and value not in nothing:
                raise ValueError(f"{key} is not supported here; leave it out")
    return data


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class Part(Strict):
    """A part of a message: text, or in one of the assistant a call of the calculator and its result."""

    type: Literal["text", "python", "python_output"]
    text: str


Parts = Annotated[list[Part], Field(max_length=1000, fail_fast=True)]
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


class Message(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Parts | None = None
    parts: Parts | None = Field(None, description="what the answer of this server had beside its content")
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_FUNCTIONS)] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _nothing_else(self) -> "Message":
        extra = {key: value for key, value in (self.model_extra or {}).items() if value not in (None, [], {}, "")}
        if unknown := [key for key in extra if key != "name"]:
            raise ValueError(f"{unknown[0]} is not supported here; a message has role and content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls are of the assistant, not of {self.role}")
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise ValueError(
                "a message of the role tool, and no other, has the tool_call_id of the call that it answers"
            )
        return self

    def as_project(self) -> dict[str, Any]:
        """As the tokenizer takes it: content is text, or parts for an assistant's that has more than text."""
        role = "system" if self.role == "developer" else self.role
        content: Any = self.parts if self.role == "assistant" and self.parts else self.content
        if isinstance(content, list):
            parts = [part.model_dump() for part in content]
            text_only = all(part["type"] == "text" for part in parts)
            content = "".join(part["text"] for part in parts) if text_only or role != "assistant" else parts
        return {"role": role, "content": content or ""}


class Function(Strict):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="true: refused where the schema has what cannot be kept to")


class Tool(Strict):
    type: Literal["function"]
    function: Function


class ChosenFunction(Strict):
    name: FunctionName


class ToolChoice(Strict):
    type: Literal["function"]
    function: ChosenFunction


class JsonSchema(Strict):
    name: FunctionName = "answer"
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class PlainFormat(Strict):
    type: Literal["text", "json_object"]


class SchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class Request(Strict):
    """What both kinds of request share. Unset settings of sampling are the server's."""

    model: str | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(None, description="0 keeps every token")
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Penalty | None = None
    frequency_penalty: Added | None = None
    presence_penalty: Added | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Bias] | None = Field(None, max_length=MAX_BIASES)
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None, description="no end token before so many; a stop string still ends the text"
    )
    strict: bool = Field(
        False, description="refuse max_tokens that do not fit beside the prompt, instead of as many as do"
    )
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = 1
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _neutral(cls, data: Any) -> Any:
        return neutral(data, cls, NEUTRAL)

    @property
    def samples(self) -> int:
        return self.n or 1

    @field_validator("stop")
    @classmethod
    def _listed(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop


class ChatRequest(Request):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: PlainFormat | SchemaFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_FUNCTIONS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = Field(
        None, description="none: without the calculator too"
    )
    continue_final_message: bool | None = Field(
        None, description="whether the last message is the assistant's, which is continued anyway"
    )
    add_generation_prompt: bool | None = Field(None, description="the opposite")

    @model_validator(mode="after")
    def _together(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) < len(names):
            raise ValueError("tools: two functions have the same name")
        if self.forced and not names:
            raise ValueError(f"tool_choice={self.choice} needs tools")
        if isinstance(self.tool_choice, ToolChoice) and self.choice not in names:
            raise ValueError(f"tool_choice: there is no function {self.choice!r} among tools: {', '.join(names)}")
        if self.wants_json and names and self.choice != "none":
            raise ValueError(
                f"response_format={self.wants_json} is not supported together with tools and tool_choice={self.choice}; "
                "leave one out, or say tool_choice=none"
            )
        last = self.messages[-1]
        if self.wants_json and last.role == "assistant" and last.as_project()["content"]:
            raise ValueError(
                f"response_format={self.wants_json} cannot continue a message of the assistant; leave that message out"
            )
        continues = last.role == "assistant"
        if self.continue_final_message not in (None, continues) or self.add_generation_prompt not in (
            None,
            not continues,
        ):
            raise ValueError(
                f"the last message is of {last.role}: one of the assistant is always continued, any other answered"
            )
        return self

    @property
    def choice(self) -> str:
        """none, auto, required or the name of a function."""
        return (
            self.tool_choice.function.name if isinstance(self.tool_choice, ToolChoice) else self.tool_choice or "auto"
        )

    @property
    def forced(self) -> bool:
        """Whether the answer has to be a call."""
        return isinstance(self.tool_choice, ToolChoice) or self.tool_choice == "required"

    @property
    def wants_json(self) -> str | None:
        return self.response_format.type if self.response_format and self.response_format.type != "text" else None


class CompletionRequest(Request):
    prompt: (
        str
        | Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]],
            Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True),
        ]
    )
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = 16
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens=0 asks for nothing without echo=true")
        if self.max_tokens == 0 and self.samples > 1:
            raise ValueError("max_tokens=0 with n above 1 would echo the same several times; leave out n")
        if self.stream and self.echo:
            raise ValueError("echo does not stream; leave out stream or echo")
        return self

    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else list(self.prompt)  # type: ignore[list-item]


class TokenizeRequest(Strict):
    """vLLM's: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    add_special_tokens: bool = Field(True, description="put bos before a prompt; messages have it anyway")
    return_token_strs: bool | None = False

    @model_validator(mode="after")
    def _one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class ResponsesPart(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    type: Literal["input_text", "output_text", "text"]
    text: str


class ResponsesMessage(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)  # id and status of an earlier answer
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ResponsesPart], Field(max_length=1000, fail_fast=True)]

    def as_message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role=self.role, content=text, parts=None)


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: FunctionName = "answer"
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextSettings(Strict):
    format: TextFormat | None = None
    verbosity: None = None


class ResponsesRequest(Strict):
    """OpenAI's Responses, for text."""

    model: str | None = None
    input: str | Annotated[list[ResponsesMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    text: TextSettings | None = None
    metadata: dict[str, str] | None = None
    stream: bool | None = False

    @model_validator(mode="before")
    @classmethod
    def _neutral(cls, data: Any) -> Any:
        return neutral(data, cls, RESPONSES_NEUTRAL)

    def as_chat(self) -> ChatRequest:
        first = [Message(role="system", content=self.instructions, parts=None)] if self.instructions else []
        told = (
            [Message(role="user", content=self.input, parts=None)]
            if isinstance(self.input, str)
            else [m.as_message() for m in self.input]
        )
        wanted = self.text.format if self.text and self.text.format else TextFormat(type="text", schema=None)
        plain = wanted.type != "json_schema"
        format = {"type": wanted.type}
        if not plain:
            format["json_schema"] = {"name": wanted.name, "schema": wanted.schema_, "strict": wanted.strict}  # type: ignore[assignment]
        return ChatRequest.model_validate(
            {
                "model": self.model, "messages": [m.model_dump() for m in [*first, *told]], "temperature": self.temperature,
                "top_p": self.top_p, "max_tokens": self.max_output_tokens, "stream": self.stream, "response_format": format,
            }
        )  # fmt: skip


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


class PlainMessage(Strict):
    role: Literal["user", "assistant", "system"]
    content: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS_EACH)]


class OriginalRequest(Strict):
    """The original's web chat (facts sheet 7.5)."""

    messages: Annotated[list[PlainMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    temperature: Temperature | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    top_k: Annotated[int, Field(ge=0, le=200)] | None = None

    @model_validator(mode="after")
    def _sizes(self) -> "OriginalRequest":
        total = sum(len(message.content) for message in self.messages)
        if total > MAX_CHARACTERS:
            raise ValueError(f"the messages have {total:,} characters; at most {MAX_CHARACTERS:,} are taken")
        return self
