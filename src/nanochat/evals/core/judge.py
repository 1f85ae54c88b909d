"""Items of CORE judged by a network: the choice with the lowest mean loss, or whether greedy
decoding gives the answer."""

import math
from collections.abc import Sequence

from nanochat.evals.core.prompts import Asked
from nanochat.evals.items import Item
from nanochat.gpt import GPT
from nanochat.inference.likelihood import Likelihood, likelihoods
from nanochat.tokenizer.tokenizer import Tokenizer


def judge(
    gpt: GPT,
    tokenizer: Tokenizer,
    task: str,
    asked: Sequence[tuple[int, Asked]],
    *,
    batch_tokens: int | None = None,
) -> list[Item]:
    """Decide items together; each is given as its index in `task` and its question."""
    every = [one for _, item in asked for one in item.continuations]
    given = iter(likelihoods(gpt, [o for o in every if o.continuation], batch_tokens=batch_tokens))
    # an empty continuation has no likelihood
    found = iter([next(given) if one.continuation else Likelihood((), False) for one in every])
    items = []
    for index, item in asked:
        own = [next(found) for _ in item.continuations]
        items.append(decided(task, index, item, own, tokenizer))
    return items


def decided(
    task: str, index: int, asked: Asked, found: Sequence[Likelihood], tokenizer: Tokenizer
) -> Item:
    """Decide an item from the likelihoods of its continuations. The lowest mean loss is chosen, the
    first of equal ones. An empty choice (a prefix of all others) is chosen only if it is the first
    (facts sheet 6.2: its mean is not a number).
    """
    scores = {
        "nats": tuple(math.fsum(one.nats) if one.nats else math.nan for one in found),
        "tokens": tuple(float(max(1, len(one.nats))) for one in found),
        "bytes": tuple(float(len(text.encode())) for text in asked.judged),
    }
    if asked.choices:
        means = [n / t for n, t in zip(scores["nats"], scores["tokens"], strict=True)]
        answer: int | str = means.index(min(means))
        right = answer == asked.gold
    else:
        right = all(one.greedy for one in found)
        answer = tokenizer.decode(list(found[0].likeliest))
    return Item(
        task=task,
        index=index,
        prompt=asked.prompt,
        choices=asked.choices,
        gold=asked.gold,
        answer=answer,
        correct=float(right),
        scores=scores,
        own=asked.own,
    )
