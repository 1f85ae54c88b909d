"""/tokenize, /detokenize and /tokenizer_info, as vLLM has them; lm_eval uses them with
tokenizer_backend=remote."""

import re
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, model_validator

from nanochat.serve.api import logprobs, tools
from nanochat.serve.api.context import ApiContext
from nanochat.serve.api.errors import ERRORS
from nanochat.serve.api.messages import MAX_MESSAGES, ChatMessage, Strict
from nanochat.serve.api.requests import TokenId
from nanochat.tokenizer.conversations import render_prompt
from nanochat.tokenizer.tokenizer import Tokenizer


class TokenizeRequest(Strict):
    """A prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: (
        Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
        | None
    ) = None
    add_special_tokens: bool = Field(
        True, description="put bos before a prompt; messages have it anyway"
    )
    return_token_strs: bool | None = False

    @model_validator(mode="after")
    def _one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


def routes(context: ApiContext) -> APIRouter:
    router, service = APIRouter(), context.service

    @router.get("/tokenizer_info", responses=ERRORS)
    async def tokenizer_info(model: str | None = None) -> dict[str, Any]:
        size = service.model(model).tokenizer.vocab_size
        return {"bos_token": "<|bos|>", "eos_token": "<|bos|>", "vocab_size": size}

    @router.post("/tokenize", responses=ERRORS)
    async def tokenize(asked: TokenizeRequest) -> dict[str, Any]:
        model = service.model(asked.model)
        tokenizer, names = model.tokenizer, None
        if asked.messages is not None:
            turns = {"messages": tools.as_turns(asked.messages)}
            ids = render_prompt(tokenizer, turns, go_on=True)
        else:
            ids = [tokenizer.bos_id] * asked.add_special_tokens
            ids += with_specials(tokenizer, asked.prompt or "")
        if asked.return_token_strs:
            names = [logprobs.name_of(tokenizer.piece(number)) for number in ids]
        return {
            "tokens": ids,
            "count": len(ids),
            "max_model_len": model.context,
            "token_strs": names,
        }

    @router.post("/detokenize", responses=ERRORS)
    async def detokenize(asked: DetokenizeRequest) -> dict[str, Any]:
        return {"prompt": service.model(asked.model).tokenizer.decode(asked.tokens)}

    return router


def with_specials(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text in which, unlike everywhere else, names of special tokens are parsed as
    those tokens."""
    specials = tokenizer.specials
    pieces = re.split(f"({'|'.join(map(re.escape, specials))})", text)
    return [i for p in pieces for i in ([specials[p]] if p in specials else tokenizer.encode(p))]
