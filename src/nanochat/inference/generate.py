"""Sampling from a GPT by running it on the whole text for every token: the plain, slow definition of generation."""

from collections.abc import Iterator

import torch
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.inference.sampling import Sampling


class TooLong(ValueError):
    """What does not fit the context of the model."""


def sample_next(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """One token id per row, (B,). logits (B, V) fp32; temperature 0 is the argmax; `top_k` None keeps all."""
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        values, index = logits.topk(min(top_k, logits.size(-1)), dim=-1)  # (B, k)
        drawn = torch.multinomial((values / temperature).softmax(-1), 1, generator=generator)
        return index.gather(-1, drawn).squeeze(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(-1)


def check(*, max_tokens: int, temperature: float, top_k: int | None, num_samples: int = 1) -> None:
    """Raise ValueError for sampling settings that make no sense."""
    Sampling(max_tokens=max_tokens, temperature=temperature, top_k=top_k)
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples} must be at least 1")


@torch.no_grad()
def generate(
    gpt: GPT, prompt: list[int], *, num_samples: int = 1, max_tokens: int, temperature: float, top_k: int | None, seed: int,
    stop: frozenset[int] = frozenset(),
) -> Iterator[list[int]]:  # fmt: skip
    """Yield one token id per sample and step; a sample that met a `stop` token goes on, its caller cuts it there.

    Only the last `sequence_len` tokens are seen, the length the model was trained with.
    """
    check(max_tokens=max_tokens, temperature=temperature, top_k=top_k, num_samples=num_samples)
    if not prompt:
        raise ValueError("the prompt has no tokens; start with bos")
    device, T = gpt.device, gpt.config.sequence_len
    generator = torch.Generator(device=device).manual_seed(seed)
    ids = torch.tensor(prompt, device=device).expand(num_samples, -1)  # (B, length)
    done = torch.zeros(num_samples, dtype=torch.bool, device=device)
    for _ in range(max_tokens):
        logits = gpt.logits(gpt.hidden(ids[:, -T:])[:, -1])  # (B, V)
        token = sample_next(logits, temperature, top_k, generator)
        ids = torch.cat((ids, token.unsqueeze(1)), 1)
        for s in stop:
            done |= token == s
        yield token.tolist()
        if bool(done.all()):
            return


def complete(gpt: GPT, tokenizer, prompts: list[str], **settings) -> list[str]:
    """The text of `num_samples` completions of each prompt, in order; each stops before a bos."""
    texts = []
    for prompt in prompts:
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        columns = list(generate(gpt, ids, stop=frozenset([tokenizer.bos_id]), **settings))
        for row in zip(*columns, strict=True):
            end = row.index(tokenizer.bos_id) if tokenizer.bos_id in row else len(row)
            texts.append(tokenizer.decode(list(row[:end])))
    return texts
