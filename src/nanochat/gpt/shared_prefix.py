"""Prompts that several rows of a cache go on from: kept once, and read once per step for all of these rows.

Samples of one prompt ask the same keys. With a copy per row, attention is a product of a matrix and a vector for each, as slow as
memory; with one for all it is a product of matrices (Juravsky et al. 2024, "Hydragen", arXiv:2402.05099). A row's softmax goes over the
scores of both parts, prompt and own.

Prompts are aligned on the right, so that a layer with a window drops the same columns of all.
"""

import math
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_BYTES = 2**20  # measured: what a layer must save per step, best for 16 samples of 16 prompts (experiments/rl)


class Groups(NamedTuple):
    """Which rows go together; made anew when one comes or goes."""

    members: Tensor  # (N, M): rows of each prompt, filled up with any
    place: Tensor  # (B,): where in `members`, flattened, each row stands; anywhere for a row without a prompt
    without: Tensor | None  # rows without a prompt


class SharedPrefixes:
    """The prompts that rows share: `lengths[i]` tokens each, in `keys[layer]` and `values[layer]` (N, G, P, D).

    `of[r]` is the prompt of row r, or None.
    """

    def __init__(self, empty: Tensor, slots: Sequence[int]) -> None:
        """`empty` (0, G, 0, D) says of what kind the tensors are; a layer keeps no more than `slots[layer]` tokens."""
        self._empty, self.slots = empty, slots
        self.clear()

    def clear(self) -> None:
        self.lengths: list[int] = []
        self.of: list[int | None] = []
        self.keys, self.values = [self._empty] * len(self.slots), [self._empty] * len(self.slots)
        self._sources: list[weakref.ref | None] = []
        self._groups: Groups | None = None

    def __bool__(self) -> bool:
        return bool(self.lengths)

    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in (*self.keys, *self.values))

    def base(self, row: int) -> int:
        """How many tokens of `row` are not its own."""
        prefix = self.of[row]
        return 0 if prefix is None else self.lengths[prefix]

    # --- what is in it -----------------------------------------------------------------------------------------

    def find(self, source: object) -> int | None:
        """The prompt that was added from `source`."""
        return next((i for i, ref in enumerate(self._sources) if ref is not None and ref() is source), None)

    def put(self, layer: int, k: Sequence[Tensor], v: Sequence[Tensor]) -> None:
        """Keys and values of one layer, (G, tokens, D) for each of some new prompts; `add` follows when all layers have them."""
        for tensors, new in ((self.keys, k), (self.values, v)):
            old, new = tensors[layer], [one[:, -self.slots[layer] :] for one in new]
            P = max(old.size(2), *(one.size(1) for one in new))
            grown = [F.pad(one, (0, 0, P - one.size(-2), 0)) for one in (old, *(one[None] for one in new))]
            tensors[layer] = torch.cat(grown)

    def add(self, lengths: Sequence[int], source: object | None = None) -> list[int]:
        """Numbers of the new prompts."""
        first = len(self.lengths)
        self.lengths += lengths
        self._sources += [None if source is None else weakref.ref(source)] * len(lengths)
        return list(range(first, len(self.lengths)))

    def join(self, prefixes: Sequence[int | None]) -> None:
        """Another row for each of these."""
        self.of += prefixes
        self._groups = None

    def drop(self, row: int) -> None:
        """Forget `row`; the last row moves there. A prompt without rows is forgotten, and the last prompt moves there."""
        gone, self.of[row] = self.of[row], self.of[-1]
        self.of.pop()
        self._groups = None
        if gone is None or gone in self.of:
            return
        last = len(self.lengths) - 1
        for kept in (*self.keys, *self.values):
            kept[gone] = kept[last]
        self.keys, self.values = [kept[:last] for kept in self.keys], [kept[:last] for kept in self.values]
        self.lengths[gone], self._sources[gone] = self.lengths[last], self._sources[last]
        self.lengths.pop()
        self._sources.pop()
        self.of = [gone if prefix == last else prefix for prefix in self.of]
        if not self.lengths:
            self.keys, self.values = [self._empty] * len(self.slots), [self._empty] * len(self.slots)

    # --- attention ---------------------------------------------------------------------------------------------

    def visible(self, layer: int, own: Tensor, window: int | None) -> Tensor:
        """What to add to the scores of a layer's columns, (B, 1, P): a row sees those of its prompt, in the window of its `own[r]`-th token."""
        P = self.keys[layer].size(2)
        sizes = torch.tensor([0 if prefix is None else self.lengths[prefix] for prefix in self.of], device=own.device)
        distance = torch.arange(P, 0, -1, device=own.device)  # of each column from the row's first own token
        hidden = distance > sizes[:, None]  # (B, P)
        if window is not None:
            hidden |= distance + own[:, None] > window
        mask = torch.zeros(hidden.shape, dtype=self._empty.dtype, device=own.device)
        return mask.masked_fill_(hidden, -math.inf)[:, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, own_mask: Tensor | None) -> Tensor:
        """Attention of a query per row, q (B, H, D), over its prompt and its own k and v (B, G, S, D); (B, H, D).

        `mask` is that of `visible`, `own_mask` (B, 1, S) is added to the scores of the own ones.
        """
        members, place, without = self._groups or self._group(q.device)
        N, M = members.shape
        B, H, D = q.shape
        G, P = k.size(1), self.keys[layer].size(2)
        q = (q / math.sqrt(D)).view(B, G, H // G, D)
        together = q[members.flatten()].view(N, M, G, -1, D).transpose(1, 2).flatten(2, 3)  # (N, G, M * H / G, D)
        scores = _to_rows(together @ self.keys[layer].mT, M)[place] + mask[:, :, None]  # (B, G, H / G, P)
        own = q @ k.mT  # (B, G, H / G, S)
        if own_mask is not None:
            own += own_mask[:, :, None]
        p = torch.cat((scores, own), -1).softmax(-1)
        shares = p[..., :P][members.flatten()].view(N, M, G, -1, P).transpose(1, 2).flatten(2, 3)
        y = _to_rows(shares @ self.values[layer], M)[place]  # (B, G, H / G, D)
        if without is not None:
            y[without] = 0
        return (y + p[..., P:] @ v).view(B, H, D)

    def _group(self, device: torch.device) -> "Groups":
        rows: list[list[int]] = [[] for _ in self.lengths]
        for row, prefix in enumerate(self.of):
            if prefix is not None:
                rows[prefix].append(row)
        M = max(map(len, rows))
        place, without = [0] * len(self.of), [row for row, prefix in enumerate(self.of) if prefix is None]
        for prefix, members in enumerate(rows):
            for i, row in enumerate(members):
                place[row] = prefix * M + i
        filled = [members + [0] * (M - len(members)) for members in rows]
        self._groups = Groups(
            torch.tensor(filled, device=device),
            torch.tensor(place, device=device),
            torch.tensor(without, device=device) if without else None,
        )
        return self._groups


def _to_rows(x: Tensor, M: int) -> Tensor:
    """(N, G, M * R, X) -> (N * M, G, R, X)."""
    N, G, _, X = x.shape
    return x.view(N, G, M, -1, X).transpose(1, 2).flatten(0, 1)
