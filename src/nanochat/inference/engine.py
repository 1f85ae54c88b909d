"""The engine: many prompts of different lengths decoded at once, a token per text and step, with the calculator at hand.

A text takes a row of the cache when one is free and leaves it after its last token, so the batch is always full of live texts and a
long list of prompts is worked off. Each text has its own random numbers and its own tool state, and which tokens it gets does not
depend on which texts are beside it, but for the last bits of its logits: more rows are multiplied in another order. What is sampled is
one uniform number per text, looked up in the distribution of its next token, so a generator per text costs no more than one for all.
"""

import random
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.gpt.cache import KVCache
from nanochat.inference.calculator import calculate
from nanochat.inference.generate import check
from nanochat.tokenizer.tokenizer import Tokenizer

MAX_ROWS = 32  # guess: texts side by side; more of them cost memory, 2 * layers * key width * tokens each


@dataclass
class Completion:
    """What follows a prompt, without the token that ended it."""

    ids: list[int]
    mask: list[int]  # 1: sampled, 0: forced by a tool
    text: str
    finish_reason: str  # "stop": the model ended it | "length": max_tokens or the context did


class Text:
    """One text being written: a prompt, what followed so far, and the state of its tool call."""

    def __init__(self, prompt: list[int], seed: str, tokenizer: Tokenizer, *, max_tokens: int, tools: bool) -> None:
        self.prompt, self.tokenizer, self.max_tokens, self.tools = prompt, tokenizer, max_tokens, tools
        self.random = random.Random(seed)
        self.ids: list[int] = []
        self.mask: list[int] = []
        self.forced: deque[int] = deque()
        self.expression: list[int] | None = None  # what stands between python_start and python_end, while it is open
        self.finish_reason: str | None = None

    def uniform(self) -> float:
        """A number below 1 for the next token, with the 24 bits that fp32 keeps."""
        return 0.0 if self.forced else self.random.getrandbits(24) / 2**24

    def take(self, sampled: int) -> None:
        """Go on by one token: the next one that a tool forces, or else `sampled`."""
        specials = self.tokenizer.specials
        mask = 0 if self.forced else 1
        token = self.forced.popleft() if self.forced else sampled
        if token in (specials["<|assistant_end|>"], self.tokenizer.bos_id):
            self.finish_reason = "stop"
            return
        self.ids.append(token)
        self.mask.append(mask)
        if self.tools:
            self._watch(token, specials)
        if len(self.ids) == self.max_tokens:
            self.finish_reason = "length"

    def _watch(self, token: int, specials: dict[str, int]) -> None:
        if token == specials["<|python_start|>"]:
            self.expression = []
        elif self.expression is not None and token == specials["<|python_end|>"]:
            result = calculate(self.tokenizer.decode(self.expression))
            if result is not None:
                encoded = self.tokenizer.encode(result)
                self.forced.extend([specials["<|output_start|>"], *encoded, specials["<|output_end|>"]])
            self.expression = None
        elif self.expression is not None:
            self.expression.append(token)

    def last_two(self) -> tuple[int, int]:
        return (self.ids[-2] if len(self.ids) > 1 else self.prompt[-1]), self.ids[-1]

    def completion(self) -> Completion:
        assert self.finish_reason is not None
        return Completion(self.ids, self.mask, self.tokenizer.decode(self.ids), self.finish_reason)


def draw(logits: Tensor, temperature: float, top_k: int | None, uniform: list[float]) -> list[int]:
    """A token id per row of logits (B, V): the one at `uniform[r]` of the cumulative distribution; the likeliest at temperature 0."""
    if temperature == 0:
        return logits.argmax(-1).tolist()
    index = None
    if top_k is not None:
        logits, index = logits.topk(min(top_k, logits.size(-1)), dim=-1)
    cumulative = (logits / temperature).softmax(-1).cumsum(-1)
    u = torch.tensor(uniform, dtype=cumulative.dtype, device=logits.device)[:, None]
    chosen = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)  # (B, 1): the first that lies above u
    return (chosen if index is None else index.gather(-1, chosen)).squeeze(-1).tolist()


class Engine:
    """Decodes with `gpt` as it is while `generate` runs; `max_rows` texts at a time."""

    def __init__(self, gpt: GPT, tokenizer: Tokenizer, *, max_rows: int = MAX_ROWS) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows={max_rows} must be at least 1")
        self.gpt, self.tokenizer, self.max_rows = gpt, tokenizer, max_rows

    @torch.inference_mode()
    def generate(
        self, prompts: list[list[int]], *, max_tokens: int, temperature: float = 0.0, top_k: int | None = None, seed: int = 0,
        num_samples: int = 1, tools: bool = True,
    ) -> list[Completion]:  # fmt: skip
        """`num_samples` completions of each prompt, in order; the samples of a prompt stand side by side.

        A text ends at <|assistant_end|> or bos, after `max_tokens`, or when it is as long as the model's `sequence_len`. With `tools`, the
        result of an expression between <|python_start|> and <|python_end|> follows it, unless it has none. What is sampled is
        decided by the seed, the number of the prompt and that of the sample. ValueError for settings or prompts that make no sense.
        """
        check(max_tokens=max_tokens, temperature=temperature, top_k=top_k, num_samples=num_samples)
        context = self.gpt.config.sequence_len
        for number, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {number} has no tokens; start with bos")
            if len(prompt) >= context:
                raise ValueError(
                    f"prompt {number} has {len(prompt):,} tokens and leaves no room for an answer in the model's "
                    f"sequence_len={context:,}; give it at most {context - 1:,}"
                )
        texts = [
            Text(prompt, f"{seed}/{number}/{sample}", self.tokenizer, tools=tools,
                 max_tokens=min(max_tokens, context - len(prompt)))
            for number, prompt in enumerate(prompts) for sample in range(num_samples)
        ]  # fmt: skip
        with self.gpt.frozen():
            self._work_off(texts, temperature, top_k)
        return [text.completion() for text in texts]

    def _work_off(self, texts: list[Text], temperature: float, top_k: int | None) -> None:
        # longest first, so that texts side by side are about equally long; a list to pop from
        waiting = sorted(texts, key=lambda text: len(text.prompt))
        cache = KVCache(self.gpt, min(self.max_rows, len(texts)))
        live: list[Text] = []  # live[r] is row r of the cache
        hidden: list[Tensor] = []  # what the next tokens of the live texts are read from
        while waiting or live:
            free = cache.rows - len(live)
            if waiting and free:
                joining = [waiting.pop() for _ in range(min(free, len(waiting)))]
                hidden.append(self._read(cache, joining))
                live += joining
            logits = self.gpt.logits(torch.cat(hidden) if len(hidden) > 1 else hidden[0])  # (B, V)
            tokens = draw(logits, temperature, top_k, [text.uniform() for text in live] if temperature else [])
            for text, token in zip(live, tokens, strict=True):
                text.take(token)
            for row in reversed(range(len(live))):
                if live[row].finish_reason:
                    cache.drop(row)
                    live[row] = live[-1]
                    live.pop()
            hidden = [cache.step([text.last_two() for text in live])] if live else []

    def _read(self, cache: KVCache, joining: list[Text]) -> Tensor:
        """Read the prompts of `joining` into the cache, one that several texts share only once; hidden states (new rows, C)."""
        prompts: list[list[int]] = []
        copies: list[int] = []
        for text in joining:
            if prompts and prompts[-1] is text.prompt:
                copies[-1] += 1
            else:
                prompts.append(text.prompt)
                copies.append(1)
        return cache.add(prompts, copies)
