"""How the tokens of a forward pass attend over a cache: a token of every row, whole texts, or a
chunk.

Each function returns what attends, per layer, for `FrozenGPT.hidden_cached`. A layer's keys and
values are written into the cache first, and the queries then look at what is there.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from nanochat.gpt.attention import Attend, sdpa
from nanochat.inference.ahead import to_device
from nanochat.inference.one_query import one_query
from nanochat.inference.shared_prefix import SharedPrefixes


class Cache(Protocol):
    """What attention needs from a KVCache, which documents each field."""

    keys: list[Tensor]  # per layer: (rows, G, slots, D)
    values: list[Tensor]
    slots: list[int]
    lengths: list[int]
    shared: SharedPrefixes
    empty: Tensor

    def own(self) -> list[int]: ...


def in_dtype(dtype: torch.dtype, attend: Attend) -> Attend:
    """`attend` computed in `dtype`; the result has the query's dtype."""

    def cast(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        return attend(q.to(dtype), k.to(dtype), v.to(dtype), window).to(q.dtype)

    return cast


def attend_rows(cache: Cache, at: Tensor) -> list[Attend]:
    """For a token of each row, at (B, 1) being the positions: q (B, 1, H, D) -> (B, 1, H, D)."""
    own, shared = cache.own(), cache.shared
    B, S = len(own), max(own) + 1
    if shared:
        at = torch.tensor(own, device=at.device)[:, None]
    # where the new keys go; with one position for all rows a slice does, which is cheaper
    aligned = min(own) == S - 1
    every = slice(B) if aligned else torch.arange(B, device=at.device)
    visible = {slots: _visible(cache, slots, at, S) for slots in set(cache.slots)}
    in_prefix: dict[int, Tensor] = {}  # by slots

    def look_up(layer: int) -> Attend:
        keys, values, slots = cache.keys[layer], cache.values[layer], cache.slots[layer]
        used, mask = min(S, slots), visible[slots]
        slot = (S - 1) % slots if aligned else at[:, 0] % slots

        def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
            keys[every, :, slot], values[every, :, slot] = k[:, 0], v[:, 0]  # (B, G, D)
            own_k, own_v = keys[:B, :, :used], values[:B, :, :used]
            if not shared:
                return one_query(q.transpose(1, 2), own_k, own_v, mask).transpose(1, 2)
            if slots not in in_prefix:
                in_prefix[slots] = shared.visible(layer, at[:, 0], window)
            own_mask = None if mask is None else mask[:, 0]
            y = shared.attend(layer, q[:, 0], own_k, own_v, in_prefix[slots], own_mask)
            return y[:, None]

        return attend

    return [look_up(layer) for layer in range(len(cache.keys))]


def _visible(cache: Cache, slots: int, at: Tensor, S: int) -> Tensor | None:
    """What to add to the scores of a layer's slots, (B, 1, 1, min(S, slots)), if not 0: a row sees
    those it has written, at (B, 1) of them."""
    used = min(S, slots)
    if min(cache.own()) >= used - 1:
        return None  # all of them
    unwritten = torch.arange(used, device=at.device) > at
    mask = torch.zeros(unwritten.shape, dtype=cache.empty.dtype, device=at.device)
    return mask.masked_fill_(unwritten, -math.inf)[:, None, None]


def attend_texts(
    cache: Cache, sizes: list[int], at: Tensor, which: list[int], sharing: list[bool]
) -> list[Attend]:
    """For the tokens of texts of these sizes, one text after the other: q (P, 1, H, D) -> the same.

    at (P) are their positions. Keys and values of text which[i] are kept in the i-th new row, or in
    one place for all rows that share it. For attention alone the texts are padded: it is little of
    the work.
    """
    first, N, longest, device = len(cache.lengths), len(sizes), max(sizes), at.device
    even = min(sizes) == longest
    copied = [(first + i, text) for i, text in enumerate(which) if not sharing[text]]
    # (row of the cache, text); one slice of rows is cheaper
    to, source = to_device(copied, device, torch.long).view(-1, 2).unbind(1)
    rows = slice(first, first + len(which)) if len(copied) == len(which) else to
    most = max((sizes[text] for _, text in copied), default=0)
    lengths = to_device(sizes, device)
    row = torch.arange(N, device=device).repeat_interleave(lengths, output_size=sum(sizes))  # (P)
    # for layers that cannot keep the longest text: what is in each slot, (N, slots)
    held = {slots: _held(lengths[:, None], slots) for slots in set(cache.slots) if slots < longest}

    def padded(x: Tensor) -> Tensor:  # (P, 1, heads, D) -> (N, longest, heads, D)
        if even:
            return x.view(N, longest, *x.shape[2:])
        room = x.new_zeros(N, longest, *x.shape[2:])
        room[row, at] = x[:, 0]
        return room

    def look_up(layer: int) -> Attend:
        slots = cache.slots[layer]

        def keep(kept: Tensor, new: Tensor) -> None:
            """new (N, longest, G, D) into the rows of kept."""
            if slots in held:
                new = torch.stack([x[of] for x, of in zip(new, held[slots], strict=True)])
            new = new[:, :most]
            kept[rows, :, : new.size(1)] = new.transpose(1, 2)[source]

        def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
            q, k, v = padded(q), padded(k), padded(v)
            keep(cache.keys[layer], k)
            keep(cache.values[layer], v)
            if any(sharing):
                ends = [(text, n) for text, n in enumerate(sizes) if sharing[text]]
                parts = [[x[text, :n].transpose(0, 1) for text, n in ends] for x in (k, v)]
                cache.shared.put(layer, *parts)
            y = sdpa(q, k, v, window)
            return y.flatten(0, 1)[:, None] if even else y[row, at][:, None]

        return attend

    return [look_up(layer) for layer in range(len(cache.keys))]


def _held(lengths: Tensor, slots: int) -> Tensor:
    """Token that is in each slot of a row of that many tokens, (N, slots), for lengths (N, 1): the
    last p with p mod slots == s."""
    s = torch.arange(slots, device=lengths.device)
    # where none is, any: it is not seen
    return (lengths - 1 - (lengths - 1 - s) % slots).clamp(min=0)


def attend_chunk(cache: Cache, n: int, S: int) -> list[Attend]:
    """For tokens n to S of the only row, after those that are there: q (1, S - n, H, D) -> the
    same."""
    device = cache.empty.device

    def look_up(layer: int) -> Attend:
        slots = cache.slots[layer]
        start = max(0, n - slots + 1)  # the first that the first query sees
        earlier = torch.arange(start, n, device=device) % slots
        newest = torch.arange(max(n, S - slots), S, device=device)

        def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
            seen = []
            for kept, new in ((cache.keys[layer], k), (cache.values[layer], v)):
                before = kept[:, :, earlier].transpose(1, 2)
                seen.append(torch.cat((before, new), dim=1))  # (1, S - start, G, D)
                kept[:, :, newest % slots] = new[:, newest - n].transpose(1, 2)
            return sdpa(q, seen[0], seen[1], window)

        return attend

    return [look_up(layer) for layer in range(len(cache.keys))]
