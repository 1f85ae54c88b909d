"""Continuations of a text, as a base model writes them."""

from dataclasses import replace

from nanochat.gpt import GPT
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling
from nanochat.tokenizer.tokenizer import Tokenizer


def complete(
    gpt: GPT,
    tokenizer: Tokenizer,
    prompts: list[str],
    *,
    num_samples: int = 1,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> list[str]:
    """`num_samples` texts that follow each prompt, in order; a text ends before a bos.

    It may outgrow the model's context: from there on only the last half of a context is seen.
    ValueError for settings that make no sense.
    """
    sampling = Sampling(
        temperature=temperature, top_k=top_k, max_tokens=max_tokens, seed=seed, tools=False
    )
    engine = Engine(gpt, tokenizer, ends=("<|bos|>",), pool_bytes=0)
    context = gpt.config.sequence_len

    def seen(ids: list[int]) -> list[int]:
        return ids if len(ids) < context else ids[-max(1, context // 2) :]

    starts = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    texts = []
    with engine.frozen():
        seeds = [f"{seed}/{i}" for i in range(len(starts))]
        found = engine.sample([seen(ids) for ids in starts], sampling, num_samples, seeds)
        for start, name, completions in zip(starts, seeds, found, strict=True):
            for n, completion in enumerate(completions):
                ids = completion.ids
                while completion.finish_reason == "length" and len(ids) < max_tokens:
                    rest = replace(sampling, max_tokens=max_tokens - len(ids))
                    window, own = seen([*start, *ids]), f"{name}/{n}/{len(ids)}"
                    [[completion]] = engine.sample([window], rest, 1, [own])
                    ids = [*ids, *completion.ids]
                texts.append(tokenizer.decode(ids))
    return texts
