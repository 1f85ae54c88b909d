"""Evaluations over several processes: one that fails, fails on all of them, so that none waits in a collective for ever."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def gathered(value: T) -> list[T]:
    """`value` of every process, in their order. A collective: every process calls it as often as the others."""
    if not distributed():
        return [value]
    everywhere: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, value)
    return everywhere  # type: ignore[return-value]


def agreed(call: Callable[[], T], device: torch.device) -> T:
    """What `call()` returns here; if it raised on any process, this raises on every one.

    Every process calls this as often as the others. A collective inside `call` must itself stand behind an `agreed`.
    """
    failure: Exception | None = None
    try:
        result = call()
    except Exception as error:
        failure = error
    failed = torch.tensor(float(failure is not None), device=device)
    if distributed():
        dist.all_reduce(failed)
    if failure is not None:
        raise failure
    if failed:
        raise RuntimeError(f"it failed on {int(failed)} of {dist.get_world_size()} processes, not on this one")
    return result
