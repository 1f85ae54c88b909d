"""Which rows of each parameter a rank updates, and the exchange of updated rows.

Every rank of a run has the gradients of a step, but one rank alone updates a given row and holds
its optimizer state (Rajbhandari et al. 2020, "ZeRO", stage 1, arXiv:1910.02054). With a rule that
works row by row the rows of a large tensor are divided among the ranks. With a rule that needs
whole matrices (Muon) each matrix goes to one rank, balanced by cost, as in nanochat (facts sheet
2.2). The rules themselves do not depend on it.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future, collect_all

SMALL = 1024  # elements; from: facts sheet 2.2; a smaller tensor is updated by one rank


class RowShare(NamedTuple):
    """Rows [start, stop) of a parameter, updated by the rank `owner`. A 0-d tensor has one row."""

    start: int
    stop: int
    owner: int


class Update(NamedTuple):
    """The part of the parameter `param` that this rank updates: a view of its
    rows, and their gradient."""

    param: Tensor
    rows: Tensor
    grad: Tensor


def rows_of(shape: Sequence[int]) -> int:
    return shape[0] if shape else 1


def cost(shape: Sequence[int], by_rows: bool) -> float:
    """Relative cost of an update: the number of elements, or for a whole matrix m n min(m, n). The
    iterations of Muon are products of (k, l) by (l, k) and of (k, k) by (k, l), with k = min(m, n).
    """
    elements = float(torch.Size(shape).numel())
    return elements if by_rows or len(shape) < 2 else elements * min(shape)


def deal(costs: Sequence[float], world_size: int) -> list[int]:
    """A rank for each piece of work: the most expensive first, each to the least loaded rank.

    At most 4/3 of the best balance (Graham 1969, "Bounds on multiprocessing timing anomalies").

    >>> deal([1, 4, 2, 2], 2)
    [0, 0, 1, 1]
    """
    loads, owners = [0.0] * world_size, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owners[i] = min(range(world_size), key=lambda rank: (loads[rank], rank))
        loads[owners[i]] += costs[i]
    return owners


def parts_of(
    shapes: Sequence[Sequence[int]], by_rows: Sequence[bool], world_size: int
) -> list[list[RowShare]]:
    """The shares of each parameter, which cover its rows in order; equal on every rank. `by_rows`:
    whether the rule of a parameter works row by row.

    >>> parts_of([(5, 400), (8, 8)], [True, False], 2)  # doctest: +NORMALIZE_WHITESPACE
    [[RowShare(start=0, stop=2, owner=0), RowShare(start=2, stop=5, owner=1)],
     [RowShare(start=0, stop=8, owner=0)]]
    """
    shared = [
        rows and torch.Size(shape).numel() >= SMALL
        for shape, rows in zip(shapes, by_rows, strict=True)
    ]
    costs = [
        0.0 if split else cost(shape, rows)
        for shape, rows, split in zip(shapes, by_rows, shared, strict=True)
    ]
    found = []
    for shape, split, owner in zip(shapes, shared, deal(costs, world_size), strict=True):
        n = rows_of(shape)
        edges = [n * rank // world_size for rank in range(world_size + 1)]
        shares = [RowShare(edges[r], edges[r + 1], r) for r in range(world_size)]
        found.append([s for s in shares if s.start < s.stop] if split else [RowShare(0, n, owner)])
    return found


def rows_in(tensor: Tensor, share: RowShare) -> Tensor:
    """The rows of a share, as a view."""
    return tensor.view(1) if tensor.ndim == 0 else tensor[share.start : share.stop]


def to_owners(parts: dict[Tensor, list[RowShare]], bucket: dist.GradBucket) -> Future[Tensor]:
    """A communication hook of DDP: the mean of gradients, each row of it on the rank that updates
    it and no other. It sends half of what a mean on every rank does."""
    buffer = bucket.buffer().div_(dist.get_world_size())
    work = [
        dist.reduce(rows_in(grad, share), share.owner, async_op=True).get_future()
        for p, grad in zip(bucket.parameters(), bucket.gradients(), strict=True)
        for share in parts[p]
    ]
    return collect_all(work).then(lambda done: buffer)


def local(tensor: Tensor) -> Tensor:
    """The local rows of a tensor: all, unless it is a DTensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class Unshared:
    """A single process: it updates every row and exchanges nothing."""

    def __init__(self) -> None:
        self.own: dict[Tensor, RowShare] = {}

    def begin(self, params: Sequence[Tensor], by_rows: Sequence[bool]) -> None:
        """Assign the parameters to ranks. Called once, and again when parameters are added."""
        self.own = {p: RowShare(0, rows_of(p.shape), 0) for p in params}

    def local(self, p: Tensor) -> Tensor | None:
        """The rows of `p` that this rank updates, as a view; None if it updates none."""
        part = self.own.get(p)
        if part is None:
            return None
        return p if part.stop - part.start == rows_of(p.shape) else p[part.start : part.stop]

    def batches(self, params: list[Tensor]) -> list[list[Tensor]]:
        """The parameters of a group, divided into the batches of `updates`."""
        return [params]

    def updates(
        self, batches: Sequence[tuple[Any, list[Tensor]]]
    ) -> Iterator[tuple[Any, list[Update]]]:
        """For each (key, parameters) the key and the shares that this rank updates before
        it asks for the next."""
        for key, params in batches:
            yield key, [Update(p, p, p.grad) for p in params if p.grad is not None]


class Replicated(Unshared):
    """Every rank has all parameters and, after DDP's reduction, all gradients. Updated rows are
    sent to the others while the next batch is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.parts: dict[Tensor, list[RowShare]] = {}

    def begin(self, params: Sequence[Tensor], by_rows: Sequence[bool]) -> None:
        shapes = [tuple(p.shape) for p in params]
        self.parts = dict(zip(params, parts_of(shapes, by_rows, self.world_size), strict=True))
        self.own = {
            p: part for p, parts in self.parts.items() for part in parts if part.owner == self.rank
        }

    def batches(self, params: list[Tensor]) -> list[list[Tensor]]:
        """A batch for each shape; its results are sent while the next one is computed."""
        shapes: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for p in params:
            shapes[tuple(p.shape)].append(p)
        return [shapes[shape] for shape in sorted(shapes)]

    def updates(
        self, batches: Sequence[tuple[Any, list[Tensor]]]
    ) -> Iterator[tuple[Any, list[Update]]]:
        under_way = []
        for key, params in batches:
            yield key, self.mine(params)
            for p in params:
                for part in self.parts[p]:
                    rows = rows_in(p, part)
                    under_way.append(dist.broadcast(rows, src=part.owner, async_op=True))
        for work in under_way:
            work.wait()

    def mine(self, params: Sequence[Tensor]) -> list[Update]:
        """What this rank updates of them."""
        found = []
        for p in params:
            if (rows := self.local(p)) is not None and p.grad is not None:
                part = self.own[p]
                grad = p.grad if rows is p else p.grad[part.start : part.stop]
                found.append(Update(p, rows, grad))
        return found
