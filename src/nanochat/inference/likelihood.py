"""How likely given continuations of given texts are: what every evaluation with known answers asks.

A text of no tokens cannot be continued: there is nothing to predict the first token from.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from nanochat.gpt import GPT
from nanochat.inference.scoring import hidden_of


class Continuation(NamedTuple):
    """Token ids: `context` is what the model has read, `continuation` what is judged."""

    context: list[int]
    continuation: list[int]


class Likelihood(NamedTuple):
    nats: tuple[float, ...]  # negative log-likelihood of each token of the continuation
    greedy: bool  # every one of them is the likeliest in its place


@torch.no_grad()  # not inference_mode: the RoPE tables may grow here, and training goes on with them
def likelihoods(gpt: GPT, asked: Sequence[Continuation], *, batch_tokens: int) -> list[Likelihood]:
    """The likelihood of each of `asked`, in order; a forward pass reads at most about `batch_tokens`.

    Texts may be longer than `sequence_len`: nothing is cropped (facts sheet 6.2). What is asked twice
    is computed once, so equal texts get equal numbers. ValueError for an empty context or
    continuation.
    """
    if any(not one.context or not one.continuation for one in asked):
        raise ValueError("a continuation and the text before it have at least one token each")
    texts = [(*one.context, *one.continuation) for one in asked]
    keys = [(text, len(one.continuation)) for text, one in zip(texts, asked, strict=True)]
    found: dict[tuple[tuple[int, ...], int], Likelihood] = {}
    for batch in batches_of(sorted(set(keys), key=lambda key: len(key[0])), batch_tokens):
        hidden = hidden_of(gpt, [list(text) for text, _ in batch])  # (B, T, C)
        for key, states in zip(batch, hidden, strict=True):
            text, n = key
            targets = torch.tensor(text[-n:], device=states.device)  # (n,)
            logits = gpt.logits(states[len(text) - 1 - n : len(text) - 1]).float()  # (n, V)
            nats = F.cross_entropy(logits, targets, reduction="none")
            found[key] = Likelihood(
                tuple(nats.tolist()), bool((logits.argmax(-1) == targets).all())
            )
    return [found[key] for key in keys]


def batches_of(
    keys: list[tuple[tuple[int, ...], int]], batch_tokens: int
) -> Iterator[list[tuple[tuple[int, ...], int]]]:
    """Runs of texts, which come in order of length, of at most `batch_tokens` with their padding; at
    least one text each."""
    batch: list[tuple[tuple[int, ...], int]] = []
    for key in keys:
        if batch and (len(batch) + 1) * len(key[0]) > batch_tokens:
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch
