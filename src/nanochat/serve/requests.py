"""What programs may ask for: OpenAI's requests as far as a small model can do them, and the original's.

A field that would change nothing is refused by name, unless it has the value that asks for nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nanochat.inference.sampling import LEAST_TOP_P, PENALTIES

MAX_MESSAGES = 500  # from: facts sheet 7.5, as the two below
MAX_CHARACTERS = 32_000  # of all messages of the original's request; of the others the size in bytes is bounded
MAX_CHARACTERS_EACH = 8_000
MAX_SAMPLES = 16  # guess: answers to one request
MAX_PROMPTS = 64  # guess: prompts of one request
MAX_STOPS = 16  # guess; OpenAI takes 4

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=LEAST_TOP_P, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=PENALTIES[0], le=PENALTIES[1], allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]

# what cannot be done, and the values that do not ask for it
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "tools": ([],), "functions": ([],),
    "response_format": ({"type": "text"},), "suffix": ("",), "best_of": (1,), "modalities": (["text"],), "prediction": (),
    "audio": (), "parallel_tool_calls": (True, False), "web_search_options": (),
}  # fmt: skip
# says nothing about the answer
PASSED_OVER = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)  # strict: true is no number, and "5" neither


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class Part(Strict):
    """A part of a message: text, or in one of the assistant a call of the calculator and its result."""

    type: Literal["text", "python", "python_output"]
    text: str


Parts = Annotated[list[Part], Field(max_length=1000, fail_fast=True)]


class Message(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Parts | None = None
    parts: Parts | None = Field(None, description="what the answer of this server had beside its content")

    @model_validator(mode="after")
    def _nothing_else(self) -> "Message":
        extra = {key: value for key, value in (self.model_extra or {}).items() if value not in (None, [], {}, "")}
        if unknown := [key for key in extra if key != "name"]:
            raise ValueError(f"{unknown[0]} is not supported here; a message has role and content")
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


class Request(Strict):
    """What both kinds of request share. Unset settings of sampling are the server's."""

    model: str | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(None, description="0 keeps every token")
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Penalty | None = None
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = 1
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _neutral(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = {key: value for key, value in data.items() if key not in PASSED_OVER}
        for key, neutral in NEUTRAL.items():
            if key in data and key not in cls.model_fields:
                value = data.pop(key)
                if value is not None and value not in neutral:
                    raise ValueError(f"{key} is not supported here; leave it out")
        return data

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
    tool_choice: Literal["none", "auto"] | None = Field("auto", description="none: without the calculator")

    @model_validator(mode="after")
    def _logprobs(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        return self


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
    model: str | None = None
    prompt: str
    add_special_tokens: bool = Field(True, description="put bos before it")


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
