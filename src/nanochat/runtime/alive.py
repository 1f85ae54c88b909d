"""How many bytes of tensors are alive while code runs, and a cap on them that raises what a full
card raises."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):
    """Bytes of the storages that are alive, `now` and at the `peak`, of tensors that operations
    inside gave back. Above `cap` bytes one raises OutOfMemoryError."""

    def __init__(self, cap: int | None = None) -> None:
        super().__init__()
        self.now, self.peak, self.cap = 0, 0, cap
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self.add(value)
        return out

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor that was there before."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()

        def gone(_: weakref.ref) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
        if self.cap is not None and self.now > self.cap:
            raise torch.OutOfMemoryError(f"{self.now:,} bytes of tensors, {self.cap:,} allowed")

    @contextmanager
    def span(self) -> Iterator[Callable[[], int]]:
        """Inside, what the peak is above what was alive at its beginning."""
        start = self.peak = self.now
        yield lambda: self.peak - start
