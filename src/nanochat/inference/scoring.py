"""How likely a given text is, token by token: no decoding."""

import torch

from nanochat.gpt import GPT
from nanochat.inference.request import TooLong

CHUNK = 128  # guess: positions whose V logits exist at a time


@torch.inference_mode()
def token_logprobs(
    gpt: GPT, ids: list[int], top: int = 0
) -> list[tuple[float, list[tuple[int, float]]]]:
    """Log-probability of each token of `ids` (T) but the first, at temperature 1, and the `top`
    likeliest (id, logprob) in its place.

    TooLong for more tokens than the model's `sequence_len`, ValueError for ids it does not have.
    """
    context, vocab = gpt.config.sequence_len, gpt.config.vocab_size
    if len(ids) > context:
        raise TooLong(
            f"the prompt has {len(ids):,} tokens, more than the model's sequence_len={context:,}"
        )
    if ids and not 0 <= min(ids) <= max(ids) < vocab:
        wrong = next(token for token in ids if not 0 <= token < vocab)
        raise ValueError(f"the prompt has the id {wrong}; ids go from 0 to {vocab - 1}")
    device = gpt.device
    hidden = gpt.hidden(torch.tensor([ids], device=device))[0]  # (T, C)
    found: list[tuple[float, list[tuple[int, float]]]] = []
    for first in range(0, len(ids) - 1, CHUNK):
        following = torch.tensor(ids[first + 1 : first + 1 + CHUNK], device=device)  # (n,)
        logp = gpt.logits(hidden[first : first + len(following)]).log_softmax(-1)  # (n, V)
        own = logp.gather(-1, following[:, None])[:, 0].tolist()
        best: list[list[tuple[int, float]]] = [[] for _ in own]
        if top:
            values, where = logp.topk(min(top, vocab), dim=-1)
            best = [
                list(zip(i, v, strict=True))
                for i, v in zip(where.tolist(), values.tolist(), strict=True)
            ]
        found += zip(own, best, strict=True)
    return found
