"""OpenAI's requests for chat completions and completions, as far as a small model can do them.

A field that cannot take effect is refused by name, unless its value asks for nothing.
"""

import random
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from nanochat.inference.sampling import LEAST_TOP_P, PENALTIES, Sampling
from nanochat.serve.api.messages import (
    MAX_FUNCTIONS,
    MAX_MESSAGES,
    ChatMessage,
    FunctionName,
    Strict,
    Tool,
    ToolChoice,
)

MAX_SAMPLES = 16  # guess: answers to one request
MAX_PROMPTS = 64  # guess: prompts of one request
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

# fields that cannot be honoured, and the values of them that ask for nothing
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "best_of": (1,),
    "modalities": (["text"],),
    "prediction": (),
    "audio": (),
    "parallel_tool_calls": (True, False),
    "web_search_options": (),
}
# fields that are ignored: they say nothing about the answer
PASSED_OVER = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


def neutral(data: Any, kind: type[BaseModel], values: dict[str, tuple[Any, ...]]) -> Any:
    """A request without the fields that ask for nothing; ValueError for a field of `values` that
    asks for more."""
    if not isinstance(data, dict):
        return data
    data = {
        key: value
        for key, value in data.items()
        if key not in PASSED_OVER or key in kind.model_fields
    }
    for key, nothing in values.items():
        if key in data and key not in kind.model_fields:
            value = data.pop(key)
            if value is not None and value not in nothing:
                raise ValueError(f"{key} is not supported here; leave it out")
    return data


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


SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "min_tokens",
    "seed",
)


def random_seed() -> int:
    return random.SystemRandom().getrandbits(31)


class SharedFields(Strict):
    """Fields that both kinds of request share. Sampling settings that are left out are the
    server's."""

    model: str | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None, description="0 keeps every token"
    )
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Penalty | None = None
    frequency_penalty: Added | None = None
    presence_penalty: Added | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Bias] | None = Field(
        None, max_length=MAX_BIASES
    )
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None, description="no end token before so many; a stop string still ends the text"
    )
    strict: bool = Field(
        False,
        description="refuse max_tokens that do not fit after the prompt, instead of reducing them",
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

    def sampling(
        self, defaults: Sampling, max_tokens: int | None, *, top_logprobs: int
    ) -> Sampling:
        """How the answer is sampled. ValueError for min_tokens above `max_tokens`."""
        if max_tokens is not None and (self.min_tokens or 0) > max_tokens:
            raise ValueError(
                f"min_tokens={self.min_tokens:,} is more than max_tokens={max_tokens:,}"
            )
        given: dict[str, Any] = {
            name: value for name in SAMPLING if (value := getattr(self, name)) is not None
        }
        biases = (self.logit_bias or {}).items()
        given["logit_bias"] = tuple((int(token), value) for token, value in biases if value)
        if given.get("top_k") == 0:
            given["top_k"] = None
        if given.get("temperature", 1) < 1e-6:
            given["temperature"] = 0.0
        given.setdefault("seed", random_seed())
        if max_tokens is not None:
            given["max_tokens"] = max_tokens
        return replace(defaults, **given, stop=tuple(self.stop or ()), top_logprobs=top_logprobs)


class ChatRequest(SharedFields):
    messages: Annotated[
        list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    ]
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
            raise ValueError(
                f"tool_choice: there is no function {self.choice!r} among tools: {', '.join(names)}"
            )
        if self.wants_json and names and self.choice != "none":
            raise ValueError(
                f"response_format={self.wants_json} is not supported together with tools and "
                f"tool_choice={self.choice}; leave one out, or say tool_choice=none"
            )
        last = self.messages[-1]
        if self.wants_json and last.role == "assistant" and last.as_project()["content"]:
            raise ValueError(
                f"response_format={self.wants_json} cannot continue a message of the assistant; "
                "leave that message out"
            )
        continues = last.role == "assistant"
        if self.continue_final_message not in (
            None,
            continues,
        ) or self.add_generation_prompt not in (None, not continues):
            raise ValueError(
                f"the last message is of {last.role}: one of the assistant is always continued, "
                "any other answered"
            )
        return self

    @property
    def choice(self) -> str:
        """none, auto, required or the name of a function."""
        return (
            self.tool_choice.function.name
            if isinstance(self.tool_choice, ToolChoice)
            else self.tool_choice or "auto"
        )

    @property
    def forced(self) -> bool:
        """Whether the answer must be a function call."""
        return isinstance(self.tool_choice, ToolChoice) or self.tool_choice == "required"

    @property
    def wants_json(self) -> str | None:
        return (
            self.response_format.type
            if self.response_format and self.response_format.type != "text"
            else None
        )


class CompletionRequest(SharedFields):
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
            raise ValueError(
                "max_tokens=0 with n above 1 would echo the same several times; leave out n"
            )
        if self.stream and self.echo:
            raise ValueError("echo does not stream; leave out stream or echo")
        return self

    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]
