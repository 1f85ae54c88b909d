"""A network whose parameters are sharded by rows: FSDP2 (Zhao et al. 2023, "PyTorch FSDP",
arXiv:2304.11277; in PyTorch `fully_shard`).

The weights of a unit are gathered before it is used and freed afterwards. The network itself is the
root unit, with the parameters of no other.
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
    """Shard the parameters of `network` over the ranks of `mesh`. `enter` is the method that begins
    a forward pass. Blocks are gathered in the compute `dtype`, to which they cast their weights
    anyway; gradients are reduced in fp32. Embedding tables and the rest stay in fp32, since
    gradients of looked-up rows are accumulated in the dtype of the table.
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
    """The rows [start, stop) of `rows` that FSDP2 places on a rank: equal chunks, the
    last ones shorter or empty.

    >>> [held(5, rank, 4) for rank in range(4)]
    [(0, 2), (2, 4), (4, 5), (5, 5)]
    """
    size = -(-rows // world_size)
    return min(rank * size, rows), min((rank + 1) * size, rows)


@torch.no_grad()
def fill(network: nn.Module, whole: dict[str, Tensor]) -> None:
    """Copy into each parameter the rows of this rank. `whole` (name -> tensor) may be
    memory-mapped: other rows are not read."""
    for name, p in network.named_parameters():
        tensor, mine = whole[name], local(p)
        start, stop = held(len(tensor), dist.get_rank(), dist.get_world_size())
        mine.copy_(tensor[start:stop] if isinstance(p, DTensor) else tensor)


class ByRows(Replicated):
    """Weights and gradients of every parameter are sharded over the ranks by rows. A rule that
    works row by row updates the local rows. For a rule on whole matrices the rows are sent to the
    owner of each matrix, and the updated rows are sent back while the next batch is computed."""

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
        """The shape of a matrix that this rank owns; its values are here only during a step."""
        if p not in self.own:
            return None
        return torch.empty(p.shape, dtype=p.dtype, device="meta") if p in self.whole else local(p)

    def updates(self, batches: Sequence[tuple[Any, list[Tensor]]]) -> Any:
        coming: list[RowExchange | None] = [None] * (len(batches) + 1)
        back: RowExchange | None = None
        for i, (key, params) in enumerate(batches):
            for n in (
                i,
                i + 1,
            ):  # the rows of the next batch are on their way while this one is computed
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
        """Send rows of weights and gradients, matrix by matrix, to the owner of each."""
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
        """Weights and gradient (m, n) of each matrix that this rank owns, from
        the rows of all ranks."""
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
        """Send updated rows back to the ranks that hold them."""
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
        """Number of elements of `p` on a rank."""
        start, stop = held(len(p), rank, self.world_size)
        return (stop - start) * p.shape[1]


class RowExchange:
    """Start an all-to-all exchange of flat tensors. `sizes` are the elements to
    receive from each rank."""

    def __init__(
        self, out: list[list[Tensor]], sizes: list[int], *, like: Tensor, take: Any = None
    ) -> None:
        self.sizes, self.take = sizes, take
        self.sent = torch.cat([*(t for ts in out for t in ts), like.new_empty(0)])
        self.got = like.new_empty(sum(sizes))
        sent = [sum(t.numel() for t in ts) for ts in out]
        self.work = dist.all_to_all_single(self.got, self.sent, sizes, sent, async_op=True)

    def received(self) -> list[Tensor]:
        """The tensors received from each rank."""
        self.work.wait()
        return list(self.got.split(self.sizes))

    def finish(self) -> None:
        self.take(self.received())
