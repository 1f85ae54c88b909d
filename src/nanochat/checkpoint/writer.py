"""Writing a checkpoint while training goes on.

Lightning's AsyncCheckpointIO cannot be waited for, and ranks could not agree in its thread: their
collectives would come between those of training.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from nanochat import distributed


class Writer:
    """Does one piece of work at a time, in a thread; the next waits for it. Ranks talk to each
    other in it by a group of their own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._work: Future[None] | None = None
        self._group: Any = None

    def begin(self, work: Callable[[], None]) -> None:
        """Every rank calls it. What has failed in the work before is raised."""
        self.finish()
        if self._group is None:
            self._group = distributed.own_group()
        self._work = self._pool.submit(distributed.by_group, self._group, work)

    @property
    def failed(self) -> bool:
        return self._work is not None and self._work.done() and bool(self._work.exception())

    def finish(self) -> None:
        """Wait until the work is done. What has failed in it is raised, once."""
        work, self._work = self._work, None
        if work is not None:
            work.result()


def copied(state: Any) -> Any:
    """A copy in the memory of the host, which training does not change."""
    return apply_to_collection(state, Tensor, lambda t: t.detach().to("cpu", copy=True))
