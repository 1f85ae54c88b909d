"""What text and conversations share: batches by number, so that a position in the data is one integer, the step.

A datamodule of either kind shares out `batch_tokens` over processes and micro-batches, hands each process its rows from `start_step` on,
and saves nothing but the number of the next step.
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
    """Global batch `step`: idx and targets (R, T) int64, for each row the (document or conversation, start, length) it is made of, and
    the epoch of its first row (0 is the first)."""

    step: int
    epoch: int
    idx: torch.Tensor
    targets: torch.Tensor
    documents: list[list[tuple[str, int, int]]]

    @property
    def num_targets(self) -> int:
        return int((self.targets != -1).sum())


class ByStep(LightningDataModule):
    """`attach` gives it what only a run knows, `micro_batches` what its loader iterates over."""

    sequence_len: int
    rows_per_device: int | None
    num_workers: int

    def __init__(self) -> None:
        super().__init__()
        self.start_step = 0

    def share(self, batch_tokens: int, world_size: int, rank: int) -> None:
        """Rows of the global batch, of a micro-batch, and micro-batches of a step. ValueError if the batch cannot be shared out."""
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
        """The next step to train, by what was used, not by what a loader fetched ahead."""
        return {"step": self.trainer.global_step if self.trainer is not None else self.start_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start_step = state_dict["step"]


class Loader(DataLoader):
    """Its workers start without being able to be stopped by what stops the run, until they know that it is not for them."""

    def __iter__(self) -> Any:
        with held_back():
            return super().__iter__()


def begin_worker(number: int) -> None:
    """The process that trains wants batches of its workers until it has saved, whatever signal reached them too."""
    leave_signals()


def share_out(batch_tokens: int, sequence_len: int, world_size: int, rows_per_device: int | None) -> tuple[int, int]:
    """Rows of the global batch, and rows of a micro-batch (by default the largest divisor of a rank's rows up to 32).

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
