"""A step begun before its tokens are known: a GPU works while the results of the last are looked
at."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Ahead:
    """The next step, begun; its tokens may still be on their way from the device."""

    def __init__(self, logits: Tensor, rows: int) -> None:
        self.logits = logits  # (rows, V)
        self.rows = list(range(rows))  # row of the cache -> row of `logits`
        self.tokens: list[int] = []  # what the rows were given, once it is known here

    def drop(self, row: int) -> None:
        """Forget `row`; the last row moves there."""
        for kept in (self.rows, self.tokens):
            kept[row] = kept[-1]
            kept.pop()

    def of(self, tokens: list[tuple[int, int]]) -> Tensor | None:
        """The logits (B, V) after these tokens, or None if the step was begun with other ones."""
        if [token for _, token in tokens] != self.tokens:
            return None
        if self.rows == list(range(len(self.logits))):
            return self.logits
        return self.logits[to_device(self.rows, self.logits.device, torch.long)]


def to_device(
    values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """As torch.tensor, without waiting for what a GPU has still to do: from pinned memory."""
    pinned = device.type == "cuda"
    return torch.tensor(values, dtype=dtype, pin_memory=pinned).to(device, non_blocking=pinned)
