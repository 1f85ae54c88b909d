"""Keys and values of texts that go on: what a token needs of those before it is kept instead of computed again.

A row of the cache is a text; position p of it lies at index p, whatever the other rows do, so a text can join or leave between any two
tokens. The rows in use are always the first ones: a row that leaves is filled with the last, so every product is over live rows
only. Keys are kept as attention reads them (turned, normalised, scaled), values with their embedding added. A step is one masked
SDPA per layer, over what the furthest row has; a window shorter than that cuts off what no row can see.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt.attention import Attend, sdpa
from nanochat.gpt.model import GPT

FIRST_CAPACITY = 64  # guess: tokens; doubled whenever a text gets longer


def last_hidden(gpt: GPT, texts: list[list[int]], attends: list[Attend] | None = None) -> Tensor:
    """Hidden state after the last token of each text, (N, C): texts of any lengths in one forward pass, padded on the right."""
    device, longest = gpt.lm_head.weight.device, max(map(len, texts))
    idx = torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=device)  # (N, T)
    positions = torch.arange(longest, device=device)[None]
    hidden = gpt.hidden_cached(idx, positions, attends or [sdpa] * gpt.config.n_layer)
    ends = torch.tensor([len(text) - 1 for text in texts], device=device)
    return hidden[torch.arange(len(texts), device=device), ends]


class KVCache:
    """Room for `rows` texts of up to `sequence_len` tokens each; `lengths[r]` tokens of row r are in it."""

    def __init__(self, gpt: GPT, rows: int) -> None:
        config = gpt.config
        self.gpt, self.rows, self.capacity = gpt, rows, 0
        self.lengths: list[int] = []
        empty = torch.empty(
            rows, config.n_kv_head, 0, config.head_dim, dtype=gpt.compute_dtype, device=gpt.lm_head.weight.device
        )
        # (rows, G, capacity, D) per layer; zeros where nothing is yet, since a masked NaN is still NaN
        self.keys, self.values = [empty] * config.n_layer, [empty] * config.n_layer

    def reserve(self, tokens: int) -> None:
        """Make every row at least `tokens` long."""
        if tokens <= self.capacity:
            return
        capacity = max(self.capacity, FIRST_CAPACITY)
        while capacity < tokens:
            capacity *= 2
        self.capacity = max(tokens, min(capacity, self.gpt.config.sequence_len))
        B = len(self.lengths)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                new = old.new_zeros(self.rows, old.size(1), self.capacity, old.size(3))
                new[:B, :, : old.size(2)] = old[:B]
                tensors[layer] = new

    def add(self, texts: list[list[int]], copies: list[int]) -> Tensor:
        """Read `texts` into `copies[i]` new rows each; the hidden state after the last token of each new row, (new rows, C)."""
        first, longest = len(self.lengths), max(map(len, texts))
        self.reserve(longest)
        which = [i for i, n in enumerate(copies) for _ in range(n)]
        assert first + len(which) <= self.rows, "more texts than rows"
        source = torch.tensor(which, device=self.gpt.lm_head.weight.device)

        def keep(layer: int) -> Attend:
            def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
                for kept, new in ((self.keys[layer], k), (self.values[layer], v)):
                    kept[first : first + len(which), :, :longest] = new.transpose(1, 2)[source]
                return sdpa(q, k, v, window)

            return attend

        hidden = last_hidden(self.gpt, texts, [keep(layer) for layer in range(len(self.keys))])
        self.lengths += [len(texts[i]) for i in which]
        return hidden[source]

    def step(self, tokens: list[tuple[int, int]]) -> Tensor:
        """Add to every row r the second token of `tokens[r]`, the first being the one before it; hidden states (B, C)."""
        B, S = len(self.lengths), max(self.lengths) + 1
        self.reserve(S)
        device = self.gpt.lm_head.weight.device
        numbers = torch.tensor([(*pair, n) for pair, n in zip(tokens, self.lengths, strict=True)], device=device)
        idx, at = numbers[:, :2], numbers[:, 2:]  # (B, 2), (B, 1)
        # where the new keys go; with one position for all rows a slice does, which is cheaper
        aligned = min(self.lengths) == S - 1
        rows, last = (slice(B), S - 1) if aligned else (torch.arange(B, device=device), at[:, 0])
        seen = {window: self._visible(window, at, S) for window in set(self.gpt.config.windows)}
        gqa = self.gpt.config.n_head != self.gpt.config.n_kv_head

        def look_up(layer: int) -> Attend:
            keys, values = self.keys[layer], self.values[layer]

            def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
                keys[rows, :, last], values[rows, :, last] = k[:, 0], v[:, 0]  # (B, G, D)
                start, mask = seen[window]
                y = F.scaled_dot_product_attention(
                    q.transpose(1, 2), keys[:B, :, start:S], values[:B, :, start:S], attn_mask=mask, enable_gqa=gqa
                )
                return y.transpose(1, 2)

            return attend

        hidden = self.gpt.hidden_cached(idx, at, [look_up(layer) for layer in range(len(self.keys))], known=1)
        self.lengths = [n + 1 for n in self.lengths]
        return hidden[:, 0]

    def _visible(self, window: int | None, at: Tensor, S: int) -> tuple[int, Tensor | None]:
        """First index that any row sees, and what to add to the scores from there on, (B, 1, 1, S - first), if not 0."""
        shortest = min(self.lengths)
        start = 0 if window is None else max(0, shortest - window)
        if shortest == S - 1:
            return start, None  # all rows are equally long
        j = torch.arange(start, S, device=at.device)
        hidden = j > at if window is None else (j > at) | (j < at - window)
        mask = torch.zeros(hidden.shape, dtype=self.gpt.compute_dtype, device=at.device)
        return start, mask.masked_fill_(hidden, -math.inf)[:, None, None]

    def drop(self, row: int) -> None:
        """Free `row`; the last row moves there."""
        last = len(self.lengths) - 1
        n = self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if row != last:
            for kept in (*self.keys, *self.values):
                kept[row, :, :n] = kept[last, :, :n]
