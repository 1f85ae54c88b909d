"""Keys and values of texts that go on: what a token needs of those before it is kept instead of computed again.

A row of the cache is a text; where a position of it lies does not depend on the other rows, so a text can join or leave between any two
tokens. The rows in use are always the first ones: a row that leaves is filled with the last, so every product is over live rows
only. Keys are kept as attention reads them (turned, normalised, scaled), values with their embedding added. A step is one masked
SDPA per layer, over what the furthest row has; a layer with a window keeps no more than that window. Texts that join are read in the
same forward pass, their tokens beside those of the rows (selective batching; Yu et al. 2022, "Orca", OSDI). On a CPU, rows that go
on from the same long prompt share it (shared_prefix.py).

A cache of one row can also be read into a chunk at a time, and its row be copied into another cache: so a long prompt is read beside
the texts that are being written, and a text goes on from one that is finished.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt.attention import Attend, one_query, sdpa
from nanochat.gpt.fixed_step import CompiledStep
from nanochat.gpt.model import GPT
from nanochat.gpt.shared_prefix import LEAST_BYTES, LEAST_COPIES, SharedPrefixes

FIRST_CAPACITY = 64  # guess: tokens; doubled whenever a text gets longer
FIRST_FIXED, FIXED_GROWTH = 128, 4  # guess: the same where each size is compiled anew
COMPILED_ROWS = 1  # of a CPU; measured: 16 gained nothing, d4 and d12 (experiments/decode_speed)
FIXED_ROWS = (1, 8, 64)  # guess: rows that such a size has room for, then multiples of the last


def kept_dtype(gpt: GPT) -> torch.dtype:
    """The dtype of keys and values, and of attention over them: on a CPU fp32 whatever the rest is in.

    For one query a row, PyTorch's kernels for bf16 took 5 to 9 times as long (measured: 1 to 64 rows, 160 and 1024 tokens, Zen 5). A
    compiled step would read half as much in bf16 (d12, 512 slots: 6.5 ms instead of 7.2).
    """
    narrow = gpt.compute_dtype.itemsize < torch.float32.itemsize
    return torch.float32 if narrow and gpt.device.type == "cpu" else gpt.compute_dtype


def attends_in(dtype: torch.dtype, attend: Attend) -> Attend:
    """`attend` in that dtype; what comes out is in that of the query again."""

    def cast(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        return attend(q.to(dtype), k.to(dtype), v.to(dtype), window).to(q.dtype)

    return cast


def last_hidden(gpt: GPT, texts: list[list[int]]) -> Tensor:
    """Hidden state after the last token of each text, (N, C): texts of any lengths in one forward pass, padded on the right."""
    device, longest = gpt.device, max(map(len, texts))
    idx = torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=device)  # (N, T)
    positions = torch.arange(longest, device=device)[None]
    hidden = gpt.hidden_cached(idx, positions, [sdpa] * gpt.config.n_layer)
    ends = torch.tensor([len(text) - 1 for text in texts], device=device)
    return hidden[torch.arange(len(texts), device=device), ends]


class Ahead:
    """The next step, begun before anybody knows its tokens; they may still be on their way from the device."""

    def __init__(self, logits: Tensor, rows: int) -> None:
        self.logits = logits  # (rows, V)
        self.rows = list(range(rows))  # row of the cache -> row of `logits`
        self.tokens: list[int] = []  # what the rows were given, once it is known here

    def drop(self, row: int) -> None:
        for kept in (self.rows, self.tokens):
            kept[row] = kept[-1]
            kept.pop()

    def of(self, tokens: list[tuple[int, int]]) -> Tensor | None:
        """The logits after these tokens, or None if other ones were looked ahead to."""
        if [token for _, token in tokens] != self.tokens:
            return None
        whole = self.rows == list(range(len(self.logits)))
        return self.logits if whole else self.logits[to_device(self.rows, self.logits.device, torch.long)]


def to_device(values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """As torch.tensor, without waiting for what a GPU has still to do: from pinned memory."""
    pinned = device.type == "cuda"
    return torch.tensor(values, dtype=dtype, pin_memory=pinned).to(device, non_blocking=pinned)


class KVCache:
    """Up to `rows` texts of up to `sequence_len` tokens each; `lengths[r]` tokens of row r are in it. Room is made as needed.

    A layer with a window of W keeps the last W + 1 tokens: token p stands in slot p mod (W + 1), so the order of its slots is not that of
    the text. Keys carry their position, and attention does not ask for more. Tokens of a prompt that a row shares have no slots of its own;
    there p counts from the first token after it.

    With `compile`, steps run compiled (see fixed_step.py): room grows in few sizes, each of them compiled when it is first met, and is kept.
    On a CPU those of one text alone do.
    """

    def __init__(self, gpt: GPT, rows: int, *, compile: bool = False) -> None:
        config = gpt.config
        self.gpt, self.rows, self.capacity = gpt, rows, 0
        self.compiled = CompiledStep(gpt) if compile else None
        self.lengths: list[int] = []
        self.slots = [config.sequence_len if window is None else window + 1 for window in config.windows]  # at most
        self._empty = torch.empty(0, config.n_kv_head, 0, config.head_dim, dtype=kept_dtype(gpt), device=gpt.device)
        # (room, G, min(capacity, slots), D) per layer; zeros where nothing is yet, since a masked NaN is still NaN
        self.keys, self.values = [self._empty] * config.n_layer, [self._empty] * config.n_layer
        self.shared = SharedPrefixes(self._empty, self.slots)
        self._ahead: Ahead | None = None
        self._one_more = False  # a copy from a cache that was a step ahead: the token after the last is written over the first in a window

    def clear(self) -> None:
        """Forget every row and give the memory back, but for that of compiled steps."""
        self.lengths, self._ahead = [], None
        self.shared.clear()
        if self.compiled is not None:
            return
        self.capacity = 0
        self.keys, self.values = [self._empty] * len(self.keys), [self._empty] * len(self.values)

    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in (*self.keys, *self.values)) + self.shared.nbytes()

    def shares(self, tokens: int, copies: int) -> bool:
        """Whether `copies` rows that go on from a prompt of so many tokens are to share it."""
        if self.compiled is not None or self._empty.device.type != "cpu":
            return False
        _, G, _, D = self._empty.shape
        return copies >= LEAST_COPIES and (copies - 1) * tokens * 2 * G * D * self._empty.itemsize >= LEAST_BYTES

    def own(self) -> list[int]:
        """How many tokens of each row are in its slots."""
        return [n - self.shared.base(row) for row, n in enumerate(self.lengths)] if self.shared else self.lengths

    def reserve(self, tokens: int, rows: int) -> None:
        """Make room for `rows` rows of `tokens` tokens of their own."""
        room = self.keys[0].size(0)
        if tokens <= self.capacity and rows <= room:
            return
        fixed = self.compiled is not None
        if tokens > self.capacity:
            capacity = max(self.capacity, FIRST_FIXED if fixed else FIRST_CAPACITY)
            while capacity < tokens:
                capacity *= FIXED_GROWTH if fixed else 2
            self.capacity = max(tokens, min(capacity, self.gpt.config.sequence_len))
        if rows > room:
            room = min(fixed_rows(rows), self.rows) if fixed else max(rows, min(2 * room, self.rows))
        B = len(self.lengths)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                slots = min(self.capacity, self.slots[layer])
                if old.size(0) == room and old.size(2) == slots:
                    continue
                new = old.new_zeros(room, old.size(1), slots, old.size(3))
                new[:B, :, : old.size(2)] = old[:B]  # a layer that grows has not begun to write over its first slots
                tensors[layer] = new
        if self.compiled is not None:
            self.compiled.forget()

    def read(self, tokens: list[int], before: int | None = None) -> Tensor:
        """Go on with the only row by `tokens`, `before` being the last one in it; the hidden state after the last, (1, C)."""
        assert self.rows == 1 and not self.shared, "a prompt is read in chunks into a cache of its own"
        n = self.lengths[0] if self.lengths else 0
        S, known = n + len(tokens), 1 if n else 0
        self.reserve(S, 1)
        device = self.gpt.device

        def keep(layer: int) -> Attend:
            slots = self.slots[layer]
            start = max(0, n - slots + 1)  # the first that the first query sees
            earlier = torch.arange(start, n, device=device) % slots
            newest = torch.arange(max(n, S - slots), S, device=device)

            def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
                seen = []
                for kept, new in ((self.keys[layer], k), (self.values[layer], v)):
                    seen.append(torch.cat((kept[:, :, earlier].transpose(1, 2), new), dim=1))  # (1, S - start, G, D)
                    kept[:, :, newest % slots] = new[:, newest - n].transpose(1, 2)
                return sdpa(q, seen[0], seen[1], window)

            return attend

        assert not known or before is not None
        idx = torch.tensor([[before, *tokens] if known else tokens], device=device)  # (1, known + T)
        positions = torch.arange(n, S, device=device)[None]
        hidden = self._hidden(idx, positions, [keep(layer) for layer in range(len(self.keys))], known)
        if not self.lengths:
            self.shared.join([None])
        self.lengths = [S]
        return hidden[:, -1]

    def adopt(self, other: "KVCache", copies: int, of: int = 1) -> None:
        """Add `copies` rows that hold what the only row of `other` holds; there are or will be `of` such rows at once, if there is room."""
        assert not other.shared, "it holds its text itself"
        self._ahead = None  # it does not know the new rows
        n, first = other.lengths[0], len(self.lengths)
        assert first + copies <= self.rows, "more texts than rows"
        if self.shares(n, min(of, self.rows)):
            self.reserve(0, first + copies)
            prefix = self.shared.find(other, n)
            if prefix is None:
                for layer, (k, v) in enumerate(other.in_order(0, n)):
                    self.shared.put(layer, [k], [v])
                (prefix,) = self.shared.add([n], other)
            self.shared.join([prefix] * copies)
        else:
            self.reserve(n, first + copies)
            for mine, theirs in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
                slots = min(n, theirs.size(2))
                mine[first : first + copies, :, :slots] = theirs[:, :, :slots]
            self.shared.join([None] * copies)
        self.lengths += [n] * copies

    def can_begin(self, row: int, tokens: int) -> bool:
        """Whether the first `tokens` of `row` are all still here, as far as what follows them sees any."""
        n = self.lengths[row]
        written = n + (self._one_more or self._ahead is not None)
        return tokens == n or (tokens < n and written <= min(self.slots))

    def in_order(self, row: int, tokens: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (G, n, D) per layer of the first `tokens` of `row`: all, or the last ones that a layer with a window has."""
        assert self.can_begin(row, tokens), "they are not there, or not any more"
        base, device = self.shared.base(row), self._empty.device
        found = []
        for layer, slots in enumerate(self.slots):
            # below 0: in the prompt that it shares, counted from its end
            at = torch.arange(max(0, tokens - slots), tokens, device=device) - base
            both = []
            for kept, shared in zip((self.keys, self.values), self.shared.layer(layer), strict=True):
                part = kept[layer][row, :, at[at >= 0] % slots]
                if base:
                    part = torch.cat((shared[self.shared.of[row], :, at[at < 0]], part), 1)
                both.append(part)
            found.append((both[0], both[1]))
        return found

    def copy_of(self, row: int, tokens: int) -> "KVCache":
        """A cache of one row with the first `tokens` of `row`, and no more room than that."""
        other = KVCache(self.gpt, 1)
        other.lengths, other.capacity = [tokens], tokens
        other._one_more = self._one_more or self._ahead is not None
        other.shared.join([None])
        if not self.shared.base(row):  # as it lies
            assert self.can_begin(row, tokens), "they are not there, or not any more"
            other.keys = [kept[row : row + 1, :, :tokens].clone() for kept in self.keys]
            other.values = [kept[row : row + 1, :, :tokens].clone() for kept in self.values]
            return other
        for layer, both in enumerate(self.in_order(row, tokens)):
            n = both[0].size(1)
            slot = torch.arange(tokens - n, tokens, device=self._empty.device) % self.slots[layer]
            for tensors, part in ((other.keys, both[0]), (other.values, both[1])):
                tensors[layer] = torch.empty_like(part)[None]
                tensors[layer][0, :, slot] = part
        return other

    def step(
        self, tokens: list[tuple[int, int]], texts: Sequence[list[int]] = (), copies: Sequence[int] = ()
    ) -> Tensor:
        """Add to every row r the second token of `tokens[r]`, the first being the one before it, and read `texts` into `copies[i]` new rows each.

        Logits (all rows, V) of what follows. It is one forward pass over all these tokens, none of them padding; two where rows run compiled.
        After one that raised it has to be cleared.
        """
        B, S = len(self.lengths), max(self.own(), default=-1) + 1
        assert len(tokens) == B, "a token for every row"
        ahead, self._ahead = self._ahead, None
        known = ahead.of(tokens) if ahead is not None else None
        which = [i for i, n in enumerate(copies) for _ in range(n)]
        assert B + len(which) <= self.rows, "more texts than rows"
        rows = [(*pair, n) for pair, n in zip(tokens, self.lengths, strict=True)]
        sharing = [self.shares(len(text), n) for text, n in zip(texts, copies, strict=True)]
        longest = max((len(text) for text, shares in zip(texts, sharing, strict=True) if not shares), default=0)
        R = B + len(which)
        if known is not None:
            self.lengths = [n + 1 for n in self.lengths]
            if texts:
                self.reserve(longest, R)
                known = torch.cat((known, self._eager_step([], texts, which, sharing)))
            return known
        if self._runs_compiled(B):
            self.reserve(S, B)  # no more: every size is compiled anew
            logits = self._compiled_step(torch.tensor(rows, device=self._empty.device))
            self.lengths = [n + 1 for n in self.lengths]
            if texts:
                self.reserve(longest, R)
                logits = torch.cat((logits, self._eager_step([], texts, which, sharing)))
            return logits
        self.reserve(max(S, longest), R)
        return self._eager_step(rows, texts, which, sharing)

    def look_ahead(self, before: list[int], tokens: Tensor) -> Ahead | None:
        """Begin the step that adds tokens (B,) to the rows, of which nobody here knows yet what they are; `before` come before them.

        A GPU so works while its results are looked at. When their `tokens` are written into what this returns, `step` takes it where it is
        asked for these, and does anything else as if nothing had been begun: what was written stands where the next token of a row
        will. None where there is no room.
        """
        B, device = len(self.lengths), self._empty.device
        assert len(before) == B == len(tokens), "a token for every row"
        if not B or max(self.own()) == self.capacity or max(self.lengths) == self.gpt.config.sequence_len:
            return None
        known = to_device([before, self.lengths], device)  # (2, B)
        numbers = torch.stack((known[0], tokens, known[1]), 1)  # (B, 3)
        if self._runs_compiled(B):
            logits = self._compiled_step(numbers)
        else:
            logits = self.gpt.logits(
                self._hidden(numbers[:, :2], numbers[:, 2:], self._attend_rows(numbers[:, 2:]), 1)[:, 0]
            )
        self._ahead = Ahead(logits, B)
        return self._ahead

    def _runs_compiled(self, B: int) -> bool:
        return B > 0 and self.compiled is not None and (self._empty.is_cuda or B <= COMPILED_ROWS)

    def _compiled_step(self, numbers: Tensor) -> Tensor:
        """Logits (B, V) after a token of every row, numbers (B, 3): the one before it, it, and its position."""
        assert self.compiled is not None
        B = len(numbers)
        rows = 1 if B == 1 and not numbers.is_cuda else self.keys[0].size(0)
        # rows without a text: nobody looks at what they do, and what they write is written over by the text that comes
        numbers = F.pad(numbers, (0, 0, 0, rows - B))
        return self.compiled(numbers, [kept[:rows] for kept in self.keys], [kept[:rows] for kept in self.values])[:B]

    def _eager_step(
        self, tokens: list[tuple[int, int, int]], texts: Sequence[list[int]], which: list[int], sharing: list[bool]
    ) -> Tensor:
        """`step` for tokens (the one before, it, its position), each of its own row, and texts, of which the i-th new row holds the which[i]-th,
        or shares it."""
        B, device = len(tokens), self._empty.device
        read = [(text[p - 1] if p else 0, text[p], p) for text in texts for p in range(len(text))]
        numbers = torch.tensor(tokens + read, device=device)  # (M, 3)
        idx, at = numbers[:, :2], numbers[:, 2:]  # (M, 2), (M, 1)
        old = self._attend_rows(at[:B]) if tokens else []
        new = self._attend_texts([len(text) for text in texts], at[B:, 0], which, sharing) if texts else []

        def look_up(layer: int) -> Attend:
            if not new or not old:
                return (old or new)[layer]

            def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
                parts = (old[layer], slice(B)), (new[layer], slice(B, None))
                return torch.cat([part(q[these], k[these], v[these], window) for part, these in parts])

            return attend

        attends, first = [look_up(layer) for layer in range(len(self.keys))], at[:, 0] == 0 if texts else None
        hidden = self._hidden(idx, at, attends, known=1, first=first)[:, 0]  # (M, C)
        if tokens:
            self.lengths = [n + 1 for n in self.lengths]
        if texts:
            ends = list(itertools.accumulate((len(text) for text in texts), initial=B - 1))[1:]
            hidden = torch.cat((hidden[:B], hidden[torch.tensor([ends[i] for i in which], device=device)]))
            self.lengths += [len(texts[i]) for i in which]
            added = iter(self.shared.add([len(text) for text, shares in zip(texts, sharing, strict=True) if shares]))
            prefixes = [next(added) if shares else None for shares in sharing]
            self.shared.join([prefixes[i] for i in which])
        return self.gpt.logits(hidden)

    def _hidden(
        self, idx: Tensor, positions: Tensor, attends: list[Attend], known: int, first: Tensor | None = None
    ) -> Tensor:
        """`GPT.hidden_cached`, with attention in the dtype of what is kept."""
        if self._empty.dtype != self.gpt.compute_dtype:
            attends = [attends_in(self._empty.dtype, attend) for attend in attends]
        return self.gpt.hidden_cached(idx, positions, attends, known, first)

    def _attend_rows(self, at: Tensor) -> list[Attend]:
        """What attends, per layer, for a token of each row, at (B, 1) being the positions; keys and values are kept."""
        own, shared = self.own(), self.shared
        B, S = len(own), max(own) + 1
        if shared:
            at = torch.tensor(own, device=at.device)[:, None]
        # where the new keys go; with one position for all rows a slice does, which is cheaper
        aligned = min(own) == S - 1
        every = slice(B) if aligned else torch.arange(B, device=at.device)
        visible = {slots: self._visible(slots, at, S) for slots in set(self.slots)}
        in_prefix: dict[int, Tensor] = {}  # by slots

        def look_up(layer: int) -> Attend:
            keys, values, slots = self.keys[layer], self.values[layer], self.slots[layer]
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
                return shared.attend(layer, q[:, 0], own_k, own_v, in_prefix[slots], own_mask)[:, None]

            return attend

        return [look_up(layer) for layer in range(len(self.keys))]

    def _attend_texts(self, sizes: list[int], at: Tensor, which: list[int], sharing: list[bool]) -> list[Attend]:
        """What attends, per layer, for the tokens of texts of these sizes, one after the other, at (P) being the positions; keys and values
        of text which[i] are kept in the i-th new row, or in one place for all. For attention alone the texts are padded: it is little
        of the work."""
        first, N, longest, device = len(self.lengths), len(sizes), max(sizes), at.device
        even = min(sizes) == longest
        copied = [(first + i, text) for i, text in enumerate(which) if not sharing[text]]
        # (row of the cache, text); one slice of rows is cheaper
        to, source = torch.tensor(copied, device=device, dtype=torch.long).view(-1, 2).unbind(1)
        rows = slice(first, first + len(which)) if len(copied) == len(which) else to
        most = max((sizes[text] for _, text in copied), default=0)
        lengths = torch.tensor(sizes, device=device)
        row = torch.arange(N, device=device).repeat_interleave(lengths, output_size=sum(sizes))  # (P)
        # for layers that cannot keep the longest text: what stands in each slot, (N, slots)
        held = {slots: _held(lengths[:, None], slots) for slots in set(self.slots) if slots < longest}

        def padded(x: Tensor) -> Tensor:  # (P, 1, heads, D) -> (N, longest, heads, D)
            if even:
                return x.view(N, longest, *x.shape[2:])
            room = x.new_zeros(N, longest, *x.shape[2:])
            room[row, at] = x[:, 0]
            return room

        def look_up(layer: int) -> Attend:
            slots = self.slots[layer]

            def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
                q, k, v = padded(q), padded(k), padded(v)
                for kept, new in ((self.keys[layer], k), (self.values[layer], v)):
                    if slots in held:
                        new = torch.stack([text[at] for text, at in zip(new, held[slots], strict=True)])
                    new = new[:, :most]
                    kept[rows, :, : new.size(1)] = new.transpose(1, 2)[source]
                if any(sharing):
                    parts = [
                        [x[text, :n].transpose(0, 1) for text, n in enumerate(sizes) if sharing[text]] for x in (k, v)
                    ]
                    self.shared.put(layer, *parts)
                y = sdpa(q, k, v, window)
                return y.flatten(0, 1)[:, None] if even else y[row, at][:, None]

            return attend

        return [look_up(layer) for layer in range(len(self.keys))]

    def _visible(self, slots: int, at: Tensor, S: int) -> Tensor | None:
        """What to add to the scores of a layer's slots, (B, 1, 1, min(S, slots)), if not 0: a row sees those it has written, at (B, 1) of them."""
        used = min(S, slots)
        if min(self.own()) >= used - 1:
            return None  # all of them
        unwritten = torch.arange(used, device=at.device) > at
        mask = torch.zeros(unwritten.shape, dtype=self._empty.dtype, device=at.device)
        return mask.masked_fill_(unwritten, -math.inf)[:, None, None]

    def drop(self, row: int) -> None:
        """Free `row`; the last row moves there."""
        last = len(self.lengths) - 1
        n = self.own()[last]
        if self._ahead is not None:
            self._ahead.drop(row)
            n += 1
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        self.shared.drop(row)
        if row != last:
            for kept in (*self.keys, *self.values):
                kept[row, :, :n] = kept[last, :, :n]


def fixed_rows(rows: int) -> int:
    """Room for `rows` rows, in few sizes."""
    return next((size for size in FIXED_ROWS if rows <= size), -(-rows // FIXED_ROWS[-1]) * FIXED_ROWS[-1])


def _held(lengths: Tensor, slots: int) -> Tensor:
    """Token that stands in each slot of a row of that many tokens, (N, slots), for lengths (N, 1): the last p with p mod slots == s."""
    s = torch.arange(slots, device=lengths.device)
    return (lengths - 1 - (lengths - 1 - s) % slots).clamp(min=0)  # where none is, any: it is not seen
