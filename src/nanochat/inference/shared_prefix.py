"""Prompts that several rows of a cache go on from: kept once, and read once per step for all of
these rows.

Samples of one prompt ask the same keys. With a copy per row, attention is a product of a matrix and
a vector for each, as slow as memory; with one for all it is a product of matrices (Juravsky et al.
2024, "Hydragen", arXiv:2402.05099). A row's softmax goes over the scores of both parts, prompt and
own.

Prompts are aligned on the right, so that a layer with a window drops the same columns of all.
"""

import math
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_COPIES = 4  # guess; 2 is measured to be too few: they save less than the other rows then pay
# measured: what a layer must save per step, best for 16 samples of 16 prompts (experiments/rl)
LEAST_BYTES = 2**20
# guess: times as many rows in one product than there are; beyond, a product for each prompt
MOST_PADDED = 2


class Groups(NamedTuple):
    """Which rows share a prompt; rebuilt when a row comes or goes."""

    members: list[Tensor]  # rows of each prompt
    # the same (N, M), filled up with any, and where in it each row is, (B,)
    padded: tuple[Tensor, Tensor] | None
    without: Tensor | None  # rows without a prompt

    @classmethod
    def of(cls, prefixes: Sequence[int | None], N: int, device: torch.device) -> "Groups":
        rows: list[list[int]] = [[] for _ in range(N)]
        for row, prefix in enumerate(prefixes):
            if prefix is not None:
                rows[prefix].append(row)
        M = max(map(len, rows))
        without = [row for row, prefix in enumerate(prefixes) if prefix is None]
        padded = None
        if MOST_PADDED * sum(map(len, rows)) >= N * M:
            place = [0] * len(prefixes)  # 0: anywhere
            for prefix, members in enumerate(rows):
                for i, row in enumerate(members):
                    place[row] = prefix * M + i
            filled = [members + [0] * (M - len(members)) for members in rows]
            padded = torch.tensor(filled, device=device), torch.tensor(place, device=device)
        return cls(
            [torch.tensor(members, device=device) for members in rows],
            padded,
            torch.tensor(without, device=device) if without else None,
        )

    def times(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Each row of x (B, G, R, X) times the matrix of its prompt, matrices (N, G, X, Y); (B, G,
        R, Y), 0 for a row without one."""
        B, G, R, X = x.shape
        if self.padded is None:  # a few large groups and many small ones
            y = x.new_zeros(B, G, R, matrices.size(-1))
            for members, matrix in zip(self.members, matrices, strict=True):
                part = x[members].transpose(0, 1).flatten(1, 2) @ matrix  # (G, rows * R, Y)
                y[members] = part.view(G, len(members), R, -1).transpose(0, 1)
            return y
        members, place = self.padded
        N, M = members.shape
        # (N, G, M * R, X)
        together = x[members.flatten()].view(N, M, G, R, X).transpose(1, 2).flatten(2, 3)
        y = (together @ matrices).view(N, G, M, R, -1).transpose(1, 2).flatten(0, 1)[place]
        if self.without is not None:
            y[self.without] = 0
        return y


class SharedPrefixes:
    """The prompts that rows share, of `lengths[i]` tokens each; `of[r]` is the prompt of row r, or
    None."""

    def __init__(self, empty: Tensor, slots: Sequence[int]) -> None:
        """`empty` (0, G, 0, D) says of what kind the tensors are; a layer keeps no more than
        `slots[layer]` tokens of a prompt."""
        self._empty, self.slots = empty, slots
        self.clear()

    def clear(self) -> None:
        self.lengths: list[int] = []
        self.of: list[int | None] = []
        # (room, G, P, D) per layer: room for more prompts than there are, and for longer ones
        self._keys, self._values = [self._empty] * len(self.slots), [self._empty] * len(self.slots)
        self._sources: list[weakref.ref | None] = []
        self._groups: Groups | None = None

    def __bool__(self) -> bool:
        return bool(self.lengths)

    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in (*self._keys, *self._values))

    def base(self, row: int) -> int:
        """How many tokens of `row` belong to its shared prompt."""
        prefix = self.of[row]
        return 0 if prefix is None else self.lengths[prefix]

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values, (N, G, P, D): the last P tokens of each prompt, where it has so many."""
        N = len(self.lengths)
        return self._keys[layer][:N], self._values[layer][:N]

    # --- what is in it
    # -----------------------------------------------------------------------------------------

    def find(self, source: object, tokens: int) -> int | None:
        """The prompt of this many tokens that was added from `source`."""
        known = zip(self._sources, self.lengths, strict=True)
        return next(
            (
                i
                for i, (ref, n) in enumerate(known)
                if ref is not None and ref() is source and n == tokens
            ),
            None,
        )

    def put(self, layer: int, k: Sequence[Tensor], v: Sequence[Tensor]) -> None:
        """Keys and values of one layer, (G, tokens, D) for each of some new prompts; `add` follows
        when all layers have them."""
        N = len(self.lengths)
        for tensors, new in ((self._keys, k), (self._values, v)):
            new = [one[:, -self.slots[layer] :] for one in new]
            room, P = tensors[layer].size(0), tensors[layer].size(2)
            if room < N + len(new):
                room = max(N + len(new), 2 * room)
            P = max(P, *(one.size(1) for one in new))
            tensors[layer] = self._resized(tensors[layer], room, P)
            for i, one in enumerate(new, N):
                tensors[layer][i, :, P - one.size(1) :] = one

    def add(self, lengths: Sequence[int], source: object | None = None) -> list[int]:
        """Numbers of the new prompts."""
        first = len(self.lengths)
        self.lengths += lengths
        self._sources += [None if source is None else weakref.ref(source)] * len(lengths)
        return list(range(first, len(self.lengths)))

    def join(self, prefixes: Sequence[int | None]) -> None:
        """Add a row for each of these prompts."""
        self.of += prefixes
        self._groups = None

    def drop(self, row: int) -> None:
        """Forget `row`; the last row moves there. A prompt without rows is forgotten, and the last
        prompt moves there."""
        gone, self.of[row] = self.of[row], self.of[-1]
        self.of.pop()
        self._groups = None
        if gone is None or gone in self.of:
            return
        N = len(self.lengths) - 1
        self.lengths[gone], self._sources[gone] = self.lengths[N], self._sources[N]
        self.lengths.pop()
        self._sources.pop()
        self.of = [gone if prefix == N else prefix for prefix in self.of]
        longest = max(self.lengths, default=0)
        for tensors in (self._keys, self._values):
            for layer, kept in enumerate(tensors):
                kept[gone] = kept[N]
                # room that is far too large is given back, so that every prompt is copied for it a
                # few times at most
                room, P = kept.size(0), min(longest, self.slots[layer])
                tensors[layer] = self._resized(
                    kept,
                    room if room < 4 * N else 2 * N,
                    kept.size(2) if kept.size(2) < 2 * P else P,
                )

    def _resized(self, kept: Tensor, room: int, P: int) -> Tensor:
        """As many columns as fit, aligned on the right."""
        if kept.size(0) == room and kept.size(2) == P:
            return kept
        new = kept.new_zeros(room, kept.size(1), P, kept.size(3))  # a masked NaN is still NaN
        n, p = min(room, kept.size(0)), min(P, kept.size(2))
        new[:n, :, P - p :] = kept[:n, :, kept.size(2) - p :]
        return new

    # --- attention
    # ---------------------------------------------------------------------------------------------

    def visible(self, layer: int, own: Tensor, window: int | None) -> Tensor:
        """What to add to the scores of a layer's columns, (B, 1, P): a row sees those of its
        prompt, in the window of its `own[r]`-th token."""
        P = self._keys[layer].size(2)
        sizes = torch.tensor(
            [0 if prefix is None else self.lengths[prefix] for prefix in self.of], device=own.device
        )
        # of each column from the row's first own token
        distance = torch.arange(P, 0, -1, device=own.device)
        hidden = distance > sizes[:, None]  # (B, P)
        if window is not None:
            hidden |= distance + own[:, None] > window
        mask = torch.zeros(hidden.shape, dtype=self._empty.dtype, device=own.device)
        return mask.masked_fill_(hidden, -math.inf)[:, None]

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, own_mask: Tensor | None
    ) -> Tensor:
        """Attention of a query per row, q (B, H, D), over its prompt and its own k and v (B, G, S,
        D); (B, H, D).

        `mask` is that of `visible`, `own_mask` (B, 1, S) is added to the scores of the own ones.
        """
        groups = self._groups = self._groups or Groups.of(self.of, len(self.lengths), q.device)
        B, H, D = q.shape
        keys, values = self.layer(layer)
        G, P = k.size(1), keys.size(2)
        q = (q / math.sqrt(D)).view(B, G, H // G, D)
        scores = groups.times(q, keys.mT) + mask[:, :, None]  # (B, G, H / G, P)
        own = q @ k.mT  # (B, G, H / G, S)
        if own_mask is not None:
            own += own_mask[:, :, None]
        p = torch.cat((scores, own), -1).softmax(-1)
        return (groups.times(p[..., :P], values) + p[..., P:] @ v).view(B, H, D)
