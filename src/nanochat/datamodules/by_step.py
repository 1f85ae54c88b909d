"""What text and conversation data share: batches by number, so that a position in the data is one
integer, the step.

A datamodule of either kind divides `batch_tokens` over processes and micro-batches, gives each
process its rows from `start_step` on, and saves only the number of the next step.
"""

from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from nanochat.runtime.signals import held_back, leave_signals

DEFAULT_ROWS = 32  # from: facts sheet 5.2, device batch size


@dataclass(frozen=True)
class Batch:
    """Global batch `step`.

    idx and targets are (R, T) int64. `pieces` names, for each row, the (document or conversation,
    start, length) it consists of. `epoch` is the epoch of its first row, counted from 0.
    """

    step: int
    epoch: int
    idx: torch.Tensor
    targets: torch.Tensor
    documents: list[list[tuple[str, int, int]]]

    @property
    def num_targets(self) -> int:
        return int((self.targets != -1).sum())


class ByStep(LightningDataModule):
    """`attach` passes what only a run knows; `micro_batches` is the data set that the loader
    iterates over."""

    sequence_len: int
    rows_per_device: int | None
    num_workers: int

    def __init__(self) -> None:
        super().__init__()
        self.start_step = 0

    def share(self, batch_tokens: int, world_size: int, rank: int) -> None:
        """Set rows of the global batch, rows of a micro-batch, and micro-batches per step.
        ValueError if the batch cannot be divided."""
        self.world_size, self.rank = world_size, rank
        self.batch_rows, self.micro_rows = share_out(batch_tokens, self.sequence_len, world_size, self.rows_per_device)
        self.accumulate = self.batch_rows // world_size // self.micro_rows

    def micro_batches(self) -> IterableDataset:
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader:
        """This rank's micro-batches from step `start_step` on, without end."""
        pin = torch.cuda.is_available()
        return Loader(
            self.micro_batches(),
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=pin,
            worker_init_fn=begin_worker,
        )

    def state_dict(self) -> dict[str, int]:
        """The next step to train, counted by batches used, not by batches that a loader has
        prefetched."""
        return {"step": self.trainer.global_step if self.trainer is not None else self.start_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start_step = state_dict["step"]


class Loader(DataLoader):
    """Starts workers with the signals that stop a run blocked, until they ignore them."""

    def __iter__(self) -> Any:
        with held_back():
            return super().__iter__()


def begin_worker(number: int) -> None:
    """Ignore stop signals in a worker: the training process still needs its batches until it has
    saved."""
    leave_signals()


def share_out(batch_tokens: int, sequence_len: int, world_size: int, rows_per_device: int | None) -> tuple[int, int]:
    """Rows of the global batch, and rows of a micro-batch (default: the largest divisor of a rank's
    rows up to 32).

    >>> share_out(524_288, 2048, 8, None)
    (256, 32)
    """
    unit = sequence_len * world_size
    if batch_tokens < unit or batch_tokens % unit:
        near = max(round(batch_tokens / unit), 1) * unit
        ranks = f" x {world_size} ranks" if world_size > 1 else ""
        raise ValueError(
            f"batch_tokens={batch_tokens:,} is not a multiple of {unit:,} ({sequence_len} tokens{ranks}); "
            f"try batch_tokens={near}"
        )
    rows = batch_tokens // sequence_len
    rank_rows = rows // world_size
    fits = max(d for d in range(1, min(rank_rows, rows_per_device or DEFAULT_ROWS) + 1) if rank_rows % d == 0)
    if rows_per_device is not None and rows_per_device != fits:
        raise ValueError(
            f"batch_tokens={batch_tokens:,} is not a multiple of {rows_per_device * unit:,} ({rows_per_device} rows x "
            f"{sequence_len} tokens x {world_size} ranks); try data.rows_per_device={fits}"
        )
    return rows, fits
