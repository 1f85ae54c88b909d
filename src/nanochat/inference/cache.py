"""Keys and values of texts that go on: what a token needs of those before it is kept instead of
computed again.

A row of the cache is a text; where a position of it is kept does not depend on the other rows, so a
text can join or leave between any two tokens. The rows in use are always the first ones: a row that
leaves is filled with the last, so every product is over live rows only. Keys are kept as attention
reads them (turned, normalised, scaled), values with their embedding added. A step is one masked
SDPA per layer, over what the furthest row has; a layer with a window keeps no more than that
window. Texts that join are read in the same forward pass as the next token of the others (selective
batching; Yu et al. 2022, "Orca", OSDI). On a CPU, rows that go on from the same long prompt share
it (shared_prefix.py).

A cache of one row can also be read into a chunk at a time, and its row be copied into another
cache: so a long prompt is read while other texts are being written, and a text goes on from a
finished one.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.gpt.attention import Attend
from nanochat.inference.ahead import Ahead, to_device
from nanochat.inference.attending import attend_chunk, attend_rows, attend_texts, in_dtype
from nanochat.inference.fixed_step import CompiledStep
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.inference.shared_prefix import LEAST_BYTES, LEAST_COPIES, SharedPrefixes

FIRST_CAPACITY = 64  # guess: tokens; doubled whenever a text gets longer
FIRST_FIXED, FIXED_GROWTH = 128, 4  # guess: the same where each size is compiled anew
COMPILED_ROWS = 1  # of a CPU; measured: 16 gained nothing, d4 and d12 (experiments/decode_speed)
FIXED_ROWS = (1, 8, 64)  # guess: rows that such a size has room for, then multiples of the last


def kept_dtype(gpt: GPT) -> torch.dtype:
    """The dtype of keys and values, and of attention over them: on a CPU always fp32.

    For one query a row, PyTorch's kernels for bf16 took 5 to 9 times as long (measured: 1 to 64
    rows, 160 and 1024 tokens, Zen 5). A compiled step would read half as much in bf16 (d12, 512
    slots: 6.5 ms instead of 7.2).
    """
    narrow = gpt.compute_dtype.itemsize < torch.float32.itemsize
    return torch.float32 if narrow and gpt.device.type == "cpu" else gpt.compute_dtype


class KVCache:
    """Up to `rows` texts of up to `sequence_len` tokens each; `lengths[r]` tokens of row r are in
    it. Room is made as needed.

    A layer with a window of W keeps the last W + 1 tokens: token p is in slot p mod (W + 1), so the
    order of its slots is not that of the text. Keys carry their position, and attention asks for no
    more. Tokens of a prompt that a row shares have no slots in it; there p counts from the first
    token after the prompt.

    With `compile`, steps run compiled (fixed_step.py): room grows in few sizes, each compiled when
    it is first met, and is kept. On a CPU only steps of one text alone do.
    """

    def __init__(self, gpt: FrozenGPT, rows: int, *, compile: bool = False) -> None:
        config = gpt.config
        self.gpt, self.rows, self.capacity = gpt, rows, 0
        self.compiled = CompiledStep(gpt) if compile else None
        self.lengths: list[int] = []
        context = config.sequence_len
        self.slots = [context if w is None else w + 1 for w in config.windows]  # at most
        self.empty = torch.empty(
            0, config.n_kv_head, 0, config.head_dim, dtype=kept_dtype(gpt), device=gpt.device
        )
        # (room, G, min(capacity, slots), D) per layer; zeros where nothing is yet, since
        # a masked NaN is still NaN
        self.keys, self.values = [self.empty] * config.n_layer, [self.empty] * config.n_layer
        self.shared = SharedPrefixes(self.empty, self.slots)
        self._ahead: Ahead | None = None
        # a copy from a cache that was a step ahead: in a window, the token after the last has
        # already been written over the first
        self._one_more = False

    def clear(self) -> None:
        """Forget every row and free the memory, except that of compiled steps."""
        self.lengths, self._ahead = [], None
        self.shared.clear()
        if self.compiled is not None:
            return
        self.capacity = 0
        self.keys, self.values = [self.empty] * len(self.keys), [self.empty] * len(self.values)

    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in (*self.keys, *self.values)) + self.shared.nbytes()

    def shares(self, tokens: int, copies: int) -> bool:
        """Whether `copies` rows that go on from a prompt of so many tokens are to share it."""
        if self.compiled is not None or self.empty.device.type != "cpu":
            return False
        _, G, _, D = self.empty.shape
        saved = (copies - 1) * tokens * 2 * G * D * self.empty.itemsize
        return copies >= LEAST_COPIES and saved >= LEAST_BYTES

    def own(self) -> list[int]:
        """How many tokens of each row are in its slots."""
        if not self.shared:
            return self.lengths
        return [n - self.shared.base(row) for row, n in enumerate(self.lengths)]

    def reserve(self, tokens: int, rows: int) -> None:
        """Make room for `rows` rows of `tokens` tokens each, shared prompts not counted."""
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
            room = (
                min(fixed_rows(rows), self.rows) if fixed else max(rows, min(2 * room, self.rows))
            )
        B = len(self.lengths)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                slots = min(self.capacity, self.slots[layer])
                if old.size(0) == room and old.size(2) == slots:
                    continue
                new = old.new_zeros(room, old.size(1), slots, old.size(3))
                # a layer that grows has not begun to write over its first slots
                new[:B, :, : old.size(2)] = old[:B]
                tensors[layer] = new
        if self.compiled is not None:
            self.compiled.forget()

    def read(self, tokens: list[int], before: int | None = None) -> Tensor:
        """Go on with the only row by `tokens`, `before` being the last one in it; the hidden state
        after the last, (1, C)."""
        assert self.rows == 1 and not self.shared, (
            "a prompt is read in chunks into a cache of its own"
        )
        n = self.lengths[0] if self.lengths else 0
        S, known = n + len(tokens), 1 if n else 0
        self.reserve(S, 1)
        assert not known or before is not None
        device = self.empty.device
        idx = to_device([[before, *tokens] if known else tokens], device)  # (1, known + T)
        positions = torch.arange(n, S, device=device)[None]
        hidden = self._hidden(idx, positions, attend_chunk(self, n, S), known)
        if not self.lengths:
            self.shared.join([None])
        self.lengths = [S]
        return hidden[:, -1]

    def adopt(self, other: "KVCache", copies: int, of: int = 1) -> None:
        """Add `copies` rows that hold what the only row of `other` holds; there are or will be `of`
        such rows at once, if there is room."""
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
            for mine, theirs in zip(
                (*self.keys, *self.values), (*other.keys, *other.values), strict=True
            ):
                slots = min(n, theirs.size(2))
                mine[first : first + copies, :, :slots] = theirs[:, :, :slots]
            self.shared.join([None] * copies)
        self.lengths += [n] * copies

    def can_begin(self, row: int, tokens: int) -> bool:
        """Whether the first `tokens` of `row` are still here, as far as what follows them sees
        them."""
        n = self.lengths[row]
        written = n + (self._one_more or self._ahead is not None)
        return tokens == n or (tokens < n and written <= min(self.slots))

    def in_order(self, row: int, tokens: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (G, n, D) per layer of the first `tokens` of `row`: all, or the last ones
        that a layer with a window has."""
        assert self.can_begin(row, tokens), "they are not there, or not any more"
        base, device = self.shared.base(row), self.empty.device
        found = []
        for layer, slots in enumerate(self.slots):
            # below 0: in the prompt that it shares, counted from its end
            at = torch.arange(max(0, tokens - slots), tokens, device=device) - base
            both = []
            for kept, shared in zip(
                (self.keys, self.values), self.shared.layer(layer), strict=True
            ):
                part = kept[layer][row, :, at[at >= 0] % slots]
                if base:
                    part = torch.cat((shared[self.shared.of[row], :, at[at < 0]], part), 1)
                both.append(part)
            found.append((both[0], both[1]))
        return found

    def copy_of(self, row: int, tokens: int) -> "KVCache":
        """A cache of one row with the first `tokens` of `row` and no spare room."""
        other = KVCache(self.gpt, 1)
        other.lengths, other.capacity = [tokens], tokens
        other._one_more = self._one_more or self._ahead is not None
        other.shared.join([None])
        if not self.shared.base(row):  # slot by slot
            assert self.can_begin(row, tokens), "they are not there, or not any more"
            other.keys = [kept[row : row + 1, :, :tokens].clone() for kept in self.keys]
            other.values = [kept[row : row + 1, :, :tokens].clone() for kept in self.values]
            return other
        for layer, both in enumerate(self.in_order(row, tokens)):
            n = both[0].size(1)
            slot = torch.arange(tokens - n, tokens, device=self.empty.device) % self.slots[layer]
            for tensors, part in ((other.keys, both[0]), (other.values, both[1])):
                tensors[layer] = torch.empty_like(part)[None]
                tensors[layer][0, :, slot] = part
        return other

    def step(
        self,
        tokens: list[tuple[int, int]],
        texts: Sequence[list[int]] = (),
        copies: Sequence[int] = (),
    ) -> Tensor:
        """Logits (all rows, V) of what follows, after every row r goes on by the second token of
        `tokens[r]` (the first is the one before it) and `texts[i]` is read into `copies[i]` new
        rows.

        It is one forward pass over all these tokens, none of them padding; two where rows run
        compiled. After a step that raised, the cache has to be cleared.
        """
        B, S = len(self.lengths), max(self.own(), default=-1) + 1
        assert len(tokens) == B, "a token for every row"
        ahead, self._ahead = self._ahead, None
        known = ahead.of(tokens) if ahead is not None else None
        which = [i for i, n in enumerate(copies) for _ in range(n)]
        R = B + len(which)
        assert self.rows >= R, "more texts than rows"
        rows = [(*pair, n) for pair, n in zip(tokens, self.lengths, strict=True)]
        sharing = [self.shares(len(text), n) for text, n in zip(texts, copies, strict=True)]
        own = [len(text) for text, shares in zip(texts, sharing, strict=True) if not shares]
        longest = max(own, default=0)
        if known is None and not self._runs_compiled(B):
            self.reserve(max(S, longest), R)
            return self._eager_step(rows, texts, which, sharing)
        if known is None:
            self.reserve(S, B)  # no more: every size is compiled anew
            known = self._compiled_step(to_device(rows, self.empty.device))
        self.lengths = [n + 1 for n in self.lengths]
        if texts:
            self.reserve(longest, R)
            known = torch.cat((known, self._eager_step([], texts, which, sharing)))
        return known

    def look_ahead(self, before: list[int], tokens: Tensor) -> Ahead | None:
        """Begin the step that adds tokens (B,) to the rows, whose values are not known here yet;
        `before` are the tokens before them.

        A GPU then works while its results are looked at. When their `tokens` are written into what
        this returns, `step` uses it if it is asked for these tokens, and otherwise goes on as if
        nothing had been begun: what was written is where the next token of a row will be. None
        where there is no room.
        """
        B, device = len(self.lengths), self.empty.device
        assert len(before) == B == len(tokens), "a token for every row"
        full = B and (
            max(self.own()) == self.capacity or max(self.lengths) == self.gpt.config.sequence_len
        )
        if not B or full:
            return None
        known = to_device([before, self.lengths], device)  # (2, B)
        numbers = torch.stack((known[0], tokens, known[1]), 1)  # (B, 3)
        if self._runs_compiled(B):
            logits = self._compiled_step(numbers)
        else:
            idx, at = numbers[:, :2], numbers[:, 2:]  # (B, 2), (B, 1)
            logits = self.gpt.logits(self._hidden(idx, at, attend_rows(self, at), 1)[:, 0])
        self._ahead = Ahead(logits, B)
        return self._ahead

    def _runs_compiled(self, B: int) -> bool:
        return B > 0 and self.compiled is not None and (self.empty.is_cuda or B <= COMPILED_ROWS)

    def _compiled_step(self, numbers: Tensor) -> Tensor:
        """Logits (B, V) after a token of every row, numbers (B, 3): the one before it, it, and its
        position."""
        assert self.compiled is not None
        B = len(numbers)
        rows = 1 if B == 1 and not numbers.is_cuda else self.keys[0].size(0)
        # rows without a text: their results are not used, and the text that comes overwrites them
        numbers = F.pad(numbers, (0, 0, 0, rows - B))
        keys, values = ([kept[:rows] for kept in tensors] for tensors in (self.keys, self.values))
        return self.compiled(numbers, keys, values)[:B]

    def _eager_step(
        self,
        tokens: list[tuple[int, int, int]],
        texts: Sequence[list[int]],
        which: list[int],
        sharing: list[bool],
    ) -> Tensor:
        """`step` for tokens (the one before, it, its position), each of its own row, and texts, of
        which the i-th new row holds the which[i]-th, or shares it."""
        B, device, sizes = len(tokens), self.empty.device, [len(text) for text in texts]
        read = [(text[p - 1] if p else 0, text[p], p) for text in texts for p in range(len(text))]
        numbers = to_device(tokens + read, device)  # (M, 3)
        idx, at = numbers[:, :2], numbers[:, 2:]  # (M, 2), (M, 1)
        # of each text, and the end of the last
        starts = list(itertools.accumulate(sizes, initial=B))
        old = attend_rows(self, at[:B]) if tokens else []
        new = attend_texts(self, sizes, at[B:, 0], which, sharing) if texts else []

        def look_up(layer: int) -> Attend:
            if not new or not old:
                return (old or new)[layer]

            def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
                parts = (old[layer], slice(B)), (new[layer], slice(B, None))
                return torch.cat([part(q[of], k[of], v[of], window) for part, of in parts])

            return attend

        attends = [look_up(layer) for layer in range(len(self.keys))]
        first = to_device(starts[:-1], device) if texts else None
        hidden = self._hidden(idx, at, attends, known=1, first=first)[:, 0]  # (M, C)
        if tokens:
            self.lengths = [n + 1 for n in self.lengths]
        if texts:
            ends = to_device([starts[i + 1] - 1 for i in which], device)
            hidden = torch.cat((hidden[:B], hidden[ends]))
            self.lengths += [sizes[i] for i in which]
            shared = [size for size, shares in zip(sizes, sharing, strict=True) if shares]
            added = iter(self.shared.add(shared))
            prefixes = [next(added) if shares else None for shares in sharing]
            self.shared.join([prefixes[i] for i in which])
        return self.gpt.logits(hidden)

    def _hidden(
        self,
        idx: Tensor,
        positions: Tensor,
        attends: list[Attend],
        known: int,
        first: Tensor | None = None,
    ) -> Tensor:
        """`FrozenGPT.hidden_cached`, with attention in the dtype of what is kept."""
        if self.empty.dtype != self.gpt.compute_dtype:
            attends = [in_dtype(self.empty.dtype, attend) for attend in attends]
        return self.gpt.hidden_cached(idx, positions, attends, known, first)

    def drop(self, row: int) -> None:
        """Free `row`; the last row takes its place."""
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
    return next(
        (size for size in FIXED_ROWS if rows <= size), -(-rows // FIXED_ROWS[-1]) * FIXED_ROWS[-1]
    )
