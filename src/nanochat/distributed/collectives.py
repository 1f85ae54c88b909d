"""Collectives over the ranks of a run. In a run of one process each returns its argument.

Every rank must make the same calls, or the others wait for ever. Work that may fail on one rank
alone is done inside `agreed`, and then fails on all of them.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
_group: ContextVar[Any] = ContextVar("group", default=None)  # None: that of all collectives


def active() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process in its group, 0 where there is none."""
    return dist.get_rank() if active() else 0


def summed(tensor: Tensor) -> Tensor:
    """`tensor`, changed in place to its sum over all ranks."""
    if active():
        dist.all_reduce(tensor)
    return tensor


def maximum(tensor: Tensor) -> Tensor:
    """`tensor`, changed in place to its maximum over all ranks, element by element."""
    if active():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def gathered(value: T) -> list[T]:
    """`value` of every rank, in the order of the ranks; it is pickled for the transfer."""
    if not active():
        return [value]
    everywhere: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, value, group=_group.get())
    return everywhere  # type: ignore[return-value]


def own_group() -> Any:
    """A further group of all ranks, for values on the CPU, whose collectives keep no order with
    those of others. Every rank calls it."""
    return dist.new_group(backend="gloo") if active() else None


def by_group(group: Any, call: Callable[[], T]) -> T:
    """`call()`, in which `gathered` and `everywhere` go by this group."""
    token = _group.set(group)
    try:
        return call()
    finally:
        _group.reset(token)


class AnyRank:
    """Whether something is true on any rank, asked at every step without waiting for an answer:
    that to the question before comes back. Alone the answer comes at once."""

    def __init__(self) -> None:
        self._group = own_group()
        self._asked = torch.zeros(1)
        self._under_way: Any = None

    def ask(self, mine: bool) -> bool:
        if not active():
            return mine
        if self._under_way is not None:
            self._under_way.wait()
        answer = bool(self._asked)
        self._asked = torch.tensor([float(mine)])
        self._under_way = dist.all_reduce(
            self._asked, op=dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return answer


def agreed(call: Callable[[], T], device: torch.device) -> T:
    """The result of `call()` on this rank; if it raised on any rank, this raises on
    every rank. A collective inside `call` must itself follow an `agreed`, so that no
    rank waits for one that failed.
    """
    failure: Exception | None = None
    try:
        result = call()
    except Exception as error:
        failure = error
    failed = summed(torch.tensor(float(failure is not None), device=device))
    if failure is not None:
        raise failure
    if failed:
        raise RuntimeError(
            f"it failed on {int(failed)} of {dist.get_world_size()} processes, not on this one"
        )
    return result


class FailedElsewhere(RuntimeError):
    """Raised on the ranks that did not fail themselves."""


def everywhere(call: Callable[[], T]) -> list[T]:
    """The results of `call()` on every rank, in the order of the ranks; if it raised on any, this
    raises on every rank."""
    failure: BaseException | None = None
    result = None
    try:
        result = call()
    except Exception as error:
        failure = error
    found = gathered((result, failure and f"{type(failure).__name__}: {failure}"))
    if failure is not None:
        raise failure
    if wrong := [(rank, why) for rank, (_, why) in enumerate(found) if why]:
        raise FailedElsewhere("rank {}: {}".format(*wrong[0]))
    return [result for result, _ in found]  # type: ignore[misc]


def close() -> None:
    """End the process group. Lightning ends NCCL's alone; gloo's threads may abort a process at
    exit."""
    if active():
        dist.destroy_process_group()
