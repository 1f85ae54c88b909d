"""What text and conversation data share: batches by number, so that a position in the data is one
integer, the step.

A datamodule of either kind divides `batch_tokens` over processes and micro-batches, gives each
process its rows from `start_step` on, and saves only the number of the next step.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

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


class MicroBatches(IterableDataset):
    """Micro-batches of one rank in order, without end. Of n loader workers each makes every n-th.

    `repeat_steps`: the batches of the first so many steps again and again, to see whether a model
    can learn them by heart.
    """

    def __init__(
        self, start_step: int, accumulate: int = 1, repeat_steps: int | None = None
    ) -> None:
        self.start_step, self.accumulate, self.repeat_steps = start_step, accumulate, repeat_steps

    def micro_batch(self, step: int, part: int) -> dict[str, Any]:
        """Micro-batch `part` of this rank's share of batch `step`."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in count(self.start_step * self.accumulate + first, every):
            step, part = divmod(number, self.accumulate)
            yield self.micro_batch(step % self.repeat_steps if self.repeat_steps else step, part)


class RowBatches(MicroBatches):
    """Micro-batches made of rows: batch `step` is rows step * `batch_rows` and on, of which each
    rank takes its share in order."""

    def __init__(
        self,
        rows: Any,
        batch_rows: int,
        micro_rows: int,
        world_size: int,
        rank: int,
        start_step: int,
        repeat_steps: int | None = None,
    ) -> None:
        super().__init__(start_step, batch_rows // world_size // micro_rows, repeat_steps)
        self.rows, self.batch_rows, self.micro_rows = rows, batch_rows, micro_rows
        self.first_row = rank * (batch_rows // world_size)  # of this rank, in each batch

    def numbers(self, step: int, part: int) -> range:
        """Rows of a micro-batch."""
        begin = step * self.batch_rows + self.first_row + part * self.micro_rows
        return range(begin, begin + self.micro_rows)


class ByStep(LightningDataModule):
    """`attach` passes what only a run knows; `micro_batches` is the data set that the loader
    iterates over."""

    sequence_len: int
    rows_per_device: int | str | None  # auto: not chosen yet
    num_workers: int

    def __init__(self) -> None:
        super().__init__()
        self.start_step = 0
        self.repeat_steps: int | None = None

    def share(self, batch_tokens: int, world_size: int, rank: int) -> None:
        """Set rows of the global batch, rows of a micro-batch, and micro-batches per step.
        ValueError if the batch cannot be divided."""
        self.world_size, self.rank = world_size, rank
        self.batch_rows, self.micro_rows = share_out(
            batch_tokens, self.sequence_len, world_size, self.rows_per_device
        )
        self.accumulate = self.batch_rows // world_size // self.micro_rows

    def take_rows(self, rows: int) -> None:
        """Micro-batches of at most so many rows, of the same batches."""
        while self.batch_rows // self.world_size % rows:
            rows -= 1
        self.micro_rows = self.rows_per_device = rows
        self.accumulate = self.batch_rows // self.world_size // rows

    def micro_batches(self) -> MicroBatches:
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

    def split_batches(self, split: str, tokens: int | None = None) -> Iterator[dict[str, Any]]:
        """This rank's rows of an epoch of "val" or "train", in order, at most `rows_per_device` at
        a time: idx (B, T) and targets (B, T).

        The rows of all ranks together are the first `tokens` // T of the split (None: all; at least
        one), whatever the number of ranks. Every rank gets the same number; a rank's last row may
        be empty (all targets -1).
        """
        raise NotImplementedError

    def val_batches(self, tokens: int | None = None) -> Iterator[dict[str, Any]]:
        return self.split_batches("val", tokens)

    def train_texts(self, tokenizer: Any) -> Iterator[str]:
        """Every text of the train split; conversations as `tokenizer` reads them."""
        raise NotImplementedError

    def val_dataloader(self) -> "Again":
        """For `trainer.validate` and `trainer.test`; a run evaluates by callbacks/evaluate.py."""
        return Again(self.val_batches)

    test_dataloader = val_dataloader

    def state_dict(self) -> dict[str, int]:
        """The next step to train, counted by batches used, not by batches that a loader has
        prefetched."""
        return {"step": self.trainer.global_step if self.trainer is not None else self.start_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start_step = state_dict["step"]


class Again:
    """What `make()` iterates over, from the start each time."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return self.make()


class Loader(DataLoader):
    """Starts workers with the signals that stop a run blocked, until they ignore them."""

    def __iter__(self) -> Any:
        with held_back():
            return super().__iter__()


def begin_worker(number: int) -> None:
    """Ignore stop signals in a worker: the training process still needs its batches until it has
    saved."""
    leave_signals()


def share_out(
    batch_tokens: int, sequence_len: int, world_size: int, rows_per_device: int | str | None
) -> tuple[int, int]:
    """Rows of the global batch, and rows of a micro-batch (default: the largest divisor of a rank's
    rows up to 32).

    >>> share_out(524_288, 2048, 8, None)
    (256, 32)
    """
    # auto: the run has not chosen yet (runs/forecast.py)
    asked = rows_per_device if isinstance(rows_per_device, int) else None
    unit = sequence_len * world_size
    if batch_tokens < unit or batch_tokens % unit:
        near = max(round(batch_tokens / unit), 1) * unit
        ranks = f" x {world_size} ranks" if world_size > 1 else ""
        raise ValueError(
            f"batch_tokens={batch_tokens:,} is not a multiple of {unit:,} ({sequence_len} "
            f"tokens{ranks}); try batch_tokens={near}"
        )
    rows = batch_tokens // sequence_len
    rank_rows = rows // world_size
    fits = max(d for d in range(1, min(rank_rows, asked or DEFAULT_ROWS) + 1) if rank_rows % d == 0)
    if asked is not None and asked != fits:
        raise ValueError(
            f"batch_tokens={batch_tokens:,} is not a multiple of {asked * unit:,} ({asked} rows x "
            f"{sequence_len} tokens x {world_size} ranks); try data.rows_per_device={fits}"
        )
    return rows, fits
