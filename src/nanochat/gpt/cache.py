"""Keys and values of texts that go on: what a token needs of those before it is kept instead of computed again.

A row of the cache is a text; position p of it lies at index p, whatever the other rows do, so a text can join or leave between any two
tokens. The rows in use are always the first ones: a row that leaves is filled with the last, so every product is over live rows
only. Keys are kept as attention reads them (turned, normalised, scaled), values with their embedding added. A step is one masked
SDPA per layer, over what the furthest row has; a window shorter than that cuts off what no row can see.

A cache of one row can also be read into a chunk at a time, and its row be copied into another cache: so a long prompt is read beside
the texts that are being written, and a text goes on from one that is finished.
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
    """Up to `rows` texts of up to `sequence_len` tokens each; `lengths[r]` tokens of row r are in it. Room is made as needed."""

    def __init__(self, gpt: GPT, rows: int) -> None:
        config = gpt.config
        self.gpt, self.rows, self.capacity = gpt, rows, 0
        self.lengths: list[int] = []
        self._empty = torch.empty(
            0, config.n_kv_head, 0, config.head_dim, dtype=gpt.compute_dtype, device=gpt.lm_head.weight.device
        )
        # (room, G, capacity, D) per layer; zeros where nothing is yet, since a masked NaN is still NaN
        self.keys, self.values = [self._empty] * config.n_layer, [self._empty] * config.n_layer

    def clear(self) -> None:
        """Forget every row and give the memory back."""
        self.lengths, self.capacity = [], 0
        self.keys, self.values = [self._empty] * len(self.keys), [self._empty] * len(self.values)

    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in (*self.keys, *self.values))

    def reserve(self, tokens: int, rows: int) -> None:
        """Make room for `rows` rows of `tokens` tokens."""
        room = self.keys[0].size(0)
        if tokens <= self.capacity and rows <= room:
            return
        if tokens > self.capacity:
            capacity = max(self.capacity, FIRST_CAPACITY)
            while capacity < tokens:
                capacity *= 2
            self.capacity = max(tokens, min(capacity, self.gpt.config.sequence_len))
        if rows > room:
            room = max(rows, min(2 * room, self.rows))
        B = len(self.lengths)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                new = old.new_zeros(room, old.size(1), self.capacity, old.size(3))
                new[:B, :, : old.size(2)] = old[:B]
                tensors[layer] = new

    def add(self, texts: list[list[int]], copies: list[int]) -> Tensor:
        """Read `texts` into `copies[i]` new rows each; the hidden state after the last token of each new row, (new rows, C)."""
        first, longest = len(self.lengths), max(map(len, texts))
        which = [i for i, n in enumerate(copies) for _ in range(n)]
        assert first + len(which) <= self.rows, "more texts than rows"
        self.reserve(longest, first + len(which))
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

    def read(self, tokens: list[int], before: int | None = None) -> Tensor:
        """Go on with the only row by `tokens`, `before` being the last one in it; the hidden state after the last, (1, C)."""
        assert self.rows == 1, "a prompt is read in chunks into a cache of its own"
        n = self.lengths[0] if self.lengths else 0
        S, known = n + len(tokens), 1 if n else 0
        self.reserve(S, 1)

        def keep(layer: int) -> Attend:
            keys, values = self.keys[layer], self.values[layer]

            def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
                keys[:, :, n:S], values[:, :, n:S] = k.transpose(1, 2), v.transpose(1, 2)
                start = 0 if window is None else max(0, n - window)  # the first that the first query sees
                return sdpa(q, keys[:, :, start:S].transpose(1, 2), values[:, :, start:S].transpose(1, 2), window)

            return attend

        device = self.gpt.lm_head.weight.device
        assert not known or before is not None
        idx = torch.tensor([[before, *tokens] if known else tokens], device=device)  # (1, known + T)
        positions = torch.arange(n, S, device=device)[None]
        hidden = self.gpt.hidden_cached(idx, positions, [keep(layer) for layer in range(len(self.keys))], known)
        self.lengths = [S]
        return hidden[:, -1]

    def adopt(self, other: "KVCache", copies: int) -> None:
        """Add `copies` rows that hold what the only row of `other` holds."""
        n, first = other.lengths[0], len(self.lengths)
        assert first + copies <= self.rows, "more texts than rows"
        self.reserve(n, first + copies)
        for mine, theirs in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            mine[first : first + copies, :, :n] = theirs[:, :, :n]
        self.lengths += [n] * copies

    def copy_of(self, row: int, tokens: int) -> "KVCache":
        """A cache of one row with the first `tokens` of `row`, and no more room than that."""
        assert tokens <= self.lengths[row], "more tokens than there are"
        other = KVCache(self.gpt, 1)
        other.lengths, other.capacity = [tokens], tokens
        other.keys = [kept[row : row + 1, :, :tokens].clone() for kept in self.keys]
        other.values = [kept[row : row + 1, :, :tokens].clone() for kept in self.values]
        return other

    def step(self, tokens: list[tuple[int, int]]) -> Tensor:
        """Add to every row r the second token of `tokens[r]`, the first being the one before it; hidden states (B, C)."""
        B, S = len(self.lengths), max(self.lengths) + 1
        self.reserve(S, B)
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
