"""A network whose parameters are shared out by rows: FSDP2 (Zhao et al. 2023, "PyTorch FSDP",
arXiv:2304.11277; in PyTorch `fully_shard`).

A unit's weights are gathered before it is used and let go after it. The network itself is the last
unit, of what is in no other.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from nanochat.distributed.sharing import Replicated, RowShare, Update, deal, local, rows_of
from nanochat.distributed.sharing import cost as cost_of


def is_sharded(params: Iterable[Tensor]) -> bool:
    return any(isinstance(p, DTensor) for p in params)


def share_by_rows(
    network: nn.Module,
    mesh: Any,
    *,
    tables: Iterable[nn.Module],
    blocks: Iterable[nn.Module],
    dtype: torch.dtype,
    enter: str,
) -> None:
    """Share out the parameters of `network` over the ranks of `mesh`. `enter` is the method that
    begins a forward pass.

    Blocks, which cast their weights to the compute `dtype` anyhow, are gathered in it; gradients
    are added up in fp32. Tables and what else there is stay in fp32, as the gradients of rows that
    are looked up are added in the dtype of the table.
    """
    low = dtype if dtype != torch.float32 else None
    policy = MixedPrecisionPolicy(
        param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for table in tables:
        fully_shard(table, mesh=mesh)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh)
    register_fsdp_forward_method(network, enter)


def held(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """The rows [start, stop) of `rows` that FSDP2 places on a rank: chunks of one size, the last
    ones shorter or empty.

    >>> [held(5, rank, 4) for rank in range(4)]
    [(0, 2), (2, 4), (4, 5), (5, 5)]
    """
    size = -(-rows // world_size)
    return min(rank * size, rows), min((rank + 1) * size, rows)


@torch.no_grad()
def fill(network: nn.Module, whole: dict[str, Tensor]) -> None:
    """Copy into each parameter the rows that are on this rank. `whole` (name -> tensor) may be
    mapped files: other rows are not read."""
    for name, p in network.named_parameters():
        tensor, mine = whole[name], local(p)
        start, stop = held(len(tensor), dist.get_rank(), dist.get_world_size())
        mine.copy_(tensor[start:stop] if isinstance(p, DTensor) else tensor)


class ByRows(Replicated):
    """Weights and gradients of every parameter are on all ranks by rows. A rule that works row by
    row updates those it has. For one that needs whole matrices the rows go to the owner of each,
    and the updated ones come back, while another batch is computed."""

    def begin(self, params: Sequence[Tensor], by_rows: Sequence[bool]) -> None:
        shapes = [tuple(p.shape) for p in params]
        costs = [0.0 if rows else cost_of(s, rows) for s, rows in zip(shapes, by_rows, strict=True)]
        self.parts = {}
        for p, rows, owner in zip(params, by_rows, deal(costs, self.world_size), strict=True):
            shares = [
                RowShare(*held(len(p), r, self.world_size), r) for r in range(self.world_size)
            ]
            shares = [s for s in shares if s.start < s.stop]
            self.parts[p] = shares if rows else [RowShare(0, rows_of(p.shape), owner)]
        self.whole = {p for p, rows in zip(params, by_rows, strict=True) if not rows}
        self.own = {
            p: s for p, shares in self.parts.items() for s in shares if s.owner == self.rank
        }

    def local(self, p: Tensor) -> Tensor | None:
        """Of a matrix that this rank owns, which it has in a step alone, the shape."""
        if p not in self.own:
            return None
        return torch.empty(p.shape, dtype=p.dtype, device="meta") if p in self.whole else local(p)

    def updates(self, batches: Sequence[tuple[Any, list[Tensor]]]) -> Any:
        coming: list[RowExchange | None] = [None] * (len(batches) + 1)
        back: RowExchange | None = None
        for i, (key, params) in enumerate(batches):
            for n in (i, i + 1):  # the next one's rows travel while this one is computed
                if n < len(batches) and coming[n] is None and self.whole.issuperset(batches[n][1]):
                    coming[n] = self._to_owners(batches[n][1])
            if (exchange := coming[i]) is None:
                mine = [(p, local(p), local(p.grad)) for p in params if p in self.own]  # type: ignore[arg-type]
                yield key, [Update(*one) for one in mine]
                continue
            owned = [p for p in params if p in self.own]
            found = [
                Update(p, *both)
                for p, both in zip(owned, self._joined(exchange, owned), strict=True)
            ]
            coming[i] = None
            yield key, found
            if back is not None:
                back.finish()
            back = self._from_owners(params, found)
        if back is not None:
            back.finish()

    def _to_owners(self, params: list[Tensor]) -> "RowExchange":
        """Rows of weights and gradients, matrix by matrix, to the rank that updates it."""
        both = {p: torch.cat((local(p).flatten(), local(p.grad).flatten())) for p in params}  # type: ignore[arg-type]
        out = [
            [both[p] for p in params if self.parts[p][0].owner == r] for r in range(self.world_size)
        ]
        sizes = [
            sum(2 * self._held(p, r) for p in params if p in self.own)
            for r in range(self.world_size)
        ]
        return RowExchange(out, sizes, like=both[params[0]])

    def _joined(
        self, exchange: "RowExchange", owned: list[Tensor]
    ) -> Iterable[tuple[Tensor, Tensor]]:
        """Weights and gradient (m, n) of each matrix of this rank, from the rows of all."""
        streams = exchange.received()
        for p in owned:
            rows = []
            for r, stream in enumerate(streams):
                size = 2 * self._held(p, r)
                rows.append(stream[:size].view(2, -1, p.shape[1]))
                streams[r] = stream[size:]
            weights, grad = torch.cat(rows, dim=1)  # (2, m, n)
            yield weights, grad

    def _from_owners(self, params: list[Tensor], found: list[Update]) -> "RowExchange":
        """Updated rows to the ranks that hold them."""
        out = []
        for r in range(self.world_size):
            ends = [held(len(u.rows), r, self.world_size) for u in found]
            out.append([u.rows[a:b].flatten() for u, (a, b) in zip(found, ends, strict=True)])
        owners = [
            [p for p in params if self.parts[p][0].owner == r] for r in range(self.world_size)
        ]
        sizes = [sum(local(p).numel() for p in ps) for ps in owners]

        def take(streams: list[Tensor]) -> None:
            for stream, ps in zip(streams, owners, strict=True):
                for p, rows in zip(ps, stream.split([local(p).numel() for p in ps]), strict=True):
                    local(p).copy_(rows.view_as(local(p)))

        return RowExchange(out, sizes, like=local(params[0]), take=take)

    def _held(self, p: Tensor, rank: int) -> int:
        """Elements of `p` on a rank."""
        start, stop = held(len(p), rank, self.world_size)
        return (stop - start) * p.shape[1]


class RowExchange:
    """Flat tensors from each rank to each other under way. `sizes` are the elements that come from
    each rank."""

    def __init__(
        self, out: list[list[Tensor]], sizes: list[int], *, like: Tensor, take: Any = None
    ) -> None:
        self.sizes, self.take = sizes, take
        self.sent = torch.cat([*(t for ts in out for t in ts), like.new_empty(0)])
        self.got = like.new_empty(sum(sizes))
        sent = [sum(t.numel() for t in ts) for ts in out]
        self.work = dist.all_to_all_single(self.got, self.sent, sizes, sent, async_op=True)

    def received(self) -> list[Tensor]:
        """What came from each rank."""
        self.work.wait()
        return list(self.got.split(self.sizes))

    def finish(self) -> None:
        self.take(self.received())
