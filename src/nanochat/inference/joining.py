"""Who joins the batch now that rows are free, first come first served, and how its prompt is
read."""

import math
from collections import deque
from typing import NamedTuple

from nanochat.inference.pool import Found, PrefixPool
from nanochat.inference.request import Request


class Alone(NamedTuple):
    """A request whose prompt is read by itself, the beginning of it that is known already, and how
    many of its texts join after it."""

    request: Request
    known: Found | None
    texts: int


class Joining(NamedTuple):
    together: list[Request]  # prompts to be read in one pass, with the next token of the live rows
    alone: list[Alone]
    complete: list[Request]  # requests all of whose texts have joined with these: they wait no more


def who_joins(
    waiting: deque[Request], pool: PrefixPool, *, room: int, prefill_tokens: int, live: bool
) -> Joining:
    """For `room` free rows; those in `complete` are the first of `waiting`.

    Short prompts are read together. One that is long, or begun already, or has more samples than
    there are rows, is read by itself, a chunk per step. Where texts are `live`, no more than
    `prefill_tokens` are read per step altogether, so that they do not wait long for a token.
    """
    found = Joining([], [], [])
    limit = prefill_tokens if live else math.inf
    spent = 0  # tokens of prompts
    for request in list(waiting):
        if not room:
            break
        left = len(request.texts) - request.seated
        known = pool.find(request.prompt) if request.cache is None else None
        have = known.tokens if known else request.cache.lengths[0] if request.cache else 0
        rest = len(request.prompt) - have
        cost = min(rest, prefill_tokens)
        if spent and rest and spent + cost > limit:
            break
        spent += cost
        count = min(room, left) if rest <= prefill_tokens else 0  # 0: the prompt has more
        if have == 0 and count == left:
            found.together.append(request)
        else:
            found.alone.append(Alone(request, known, count))
        room -= count
        if count < left:
            break
        found.complete.append(request)
    return found
