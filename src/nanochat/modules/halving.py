"""A micro-batch that does not fit into memory is trained in halves, and so are all after it.

The loss is a sum over tokens, so in parts it is the same step: same global batch, same gradient.
With several processes the one that ran out goes on alone, as each gradient still reaches DDP once;
after the step all compute in as many parts.
"""

import gc
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nanochat.distributed import maximum

log = logging.getLogger(__name__)
Loss = Callable[[dict[str, Any]], Tensor]  # of a batch with idx and targets (B, T) -> 0-d


class Halving:
    """Computes losses of micro-batches in `parts`, twice as many after each that did not fit."""

    def __init__(self) -> None:
        self.parts = 1
        self.rows = 0  # of the last micro-batch

    def loss(self, of: Loss, batch: dict[str, Any], params: Sequence[Tensor]) -> Tensor:
        """`of(batch)`, to be differentiated once. OutOfMemoryError if a single row does not fit."""
        self.rows = len(batch["idx"])
        while True:
            try:
                return _Held.apply(torch.ones((), requires_grad=True), self, of, batch, params)
            except torch.OutOfMemoryError as error:
                self.halve(batch, error)

    def halve(self, batch: dict[str, Any], error: Exception) -> None:
        rows = len(batch["idx"])
        if self.parts >= rows:
            raise error
        self.parts *= 2
        self.say("out of memory")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def agree(self, device: torch.device) -> None:
        """Compute in as many parts as the rank with the most. All ranks call it."""
        parts = int(maximum(torch.tensor(self.parts, device=device)))
        if parts > self.parts:
            self.parts = parts
            self.say("out of memory on another process")

    def say(self, what: str) -> None:
        log.warning(
            "%s: a micro-batch of %d rows is computed in %d parts from here on, with the same "
            "batch and gradient; data.rows_per_device=%d does so from the start",
            what,
            self.rows,
            self.parts,
            max(self.rows // self.parts, 1),
        )


class _Held(torch.autograd.Function):
    """A loss whose graph nobody else holds, so that it is freed where its backward pass fails."""

    @staticmethod
    def forward(
        ctx: Any, one: Tensor, halving: Halving, of: Loss, batch: Any, params: Any
    ) -> Tensor:
        ctx.given, ctx.loss = (halving, of, batch, params), None
        if halving.parts == 1:
            with torch.enable_grad():
                ctx.loss = of(batch)
            return ctx.loss.detach().clone()
        # the graph is made in the backward pass, part by part
        with torch.no_grad():
            return torch.stack([of(part) for part in _parts(batch, halving.parts)]).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        halving, of, batch, params = ctx.given
        before = [(p.grad, None if p.grad is None else p.grad._version) for p in params]
        loss, ctx.loss = ctx.loss, None
        while True:
            # those whose gradient of this micro-batch is not complete
            left = [
                p
                for p, (old, version) in zip(params, before, strict=True)
                if p.grad is old and (old is None or old._version == version)
            ]
            try:
                if loss is not None:
                    torch.autograd.backward(loss, grad)
                else:
                    _in_parts(of, batch, halving.parts, grad, left)
                return (None,) * 5
            except torch.OutOfMemoryError as error:
                loss = None
                halving.halve(batch, error)


def _in_parts(of: Loss, batch: Any, parts: int, grad: Tensor, left: Sequence[Tensor]) -> None:
    """Add the gradients of all parts to those of `left`, or of none of them."""
    total: list[Tensor | None] = [None] * len(left)
    for part in _parts(batch, parts):
        with torch.enable_grad():
            loss = of(part)
        found = torch.autograd.grad(loss, left, grad, allow_unused=True)
        total = [
            g if t is None else t if g is None else t.add_(g)
            for t, g in zip(total, found, strict=True)
        ]
    added = [(p, g) for p, g in zip(left, total, strict=True) if g is not None]
    del total
    while added:  # by autograd, so that hooks on gradients run
        torch.autograd.backward(*added.pop())


def _parts(batch: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """The rows of a batch in parts; what is not of its rows stays as it is."""
    rows = len(batch["idx"])
    return [
        {
            key: value[i : i + -(-rows // parts)]
            if isinstance(value, Tensor) and value.dim() and len(value) == rows
            else value
            for key, value in batch.items()
        }
        for i in range(0, rows, -(-rows // parts))
    ]
