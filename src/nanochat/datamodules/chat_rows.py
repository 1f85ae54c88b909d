"""The rows of a mixture of conversations: which tokens row r of the endless stream holds, and which
of them are targets.

A pure function of the rendered tasks, the packing and the seed. `chat.py` puts batches together
from it and counts what was used.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from nanochat.datamodules.by_step import RowBatches
from nanochat.datamodules.layout import LAYOUTS, Layout
from nanochat.datamodules.packing import mix, permutation
from nanochat.datamodules.rendered import Rendered
from nanochat.datamodules.shards import ShardError

PLAN = 1  # version of an epoch's layout; a change makes another run
CHUNK_ROWS = 1024  # guess: rows laid out at once when only targets are counted
# guess: rows of one conversation each are cut to a multiple of this, so that few shapes occur
COLUMNS = 64


class Mixture:
    """The conversations of several rendered tasks as one list, task after task, each `repeat`
    times.

    `limit` is the length of a row, T + 1 (None: no limit). With `supervise` = all every token is a
    target. Conversations without a target, and too long ones where `over_long` is drop, are left
    out and counted.
    """

    def __init__(
        self,
        tasks: dict[str, Rendered],
        repeats: dict[str, int],
        *,
        limit: int | None,
        supervise: str,
        over_long: str,
    ):
        self.tasks = list(tasks.values())
        self.supervise = supervise
        owner, index, length, whole, targets = [], [], [], [], []
        for number, (name, task) in enumerate(tasks.items()):
            full = task.lengths
            kept = full if limit is None else np.minimum(full, limit)
            trained = (
                task.supervised(limit) if supervise == "assistant" else np.maximum(kept - 1, 0)
            )
            if over_long == "drop":
                trained = np.where(full > kept, 0, trained)
            for _ in range(repeats[name]):
                owner.append(np.full(len(task), number, np.int64))
                index.append(np.arange(len(task), dtype=np.int64))
                length.append(kept)
                whole.append(full)
                targets.append(trained)
        empty = [np.zeros(0, np.int64)]
        self.owner, self.index, kept, whole_all, targets_all = (
            np.concatenate(x or empty) for x in (owner, index, length, whole, targets)
        )
        good = targets_all > 0
        self.dropped, self.dropped_tokens = int((~good).sum()), int(whole_all[~good].sum())
        self.owner, self.index = self.owner[good], self.index[good]
        # (n,) each
        self.lengths, self.whole, self.targets = kept[good], whole_all[good], targets_all[good]

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, item: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and mask of a piece of a conversation, (length,) each."""
        task = self.tasks[self.owner[item]]
        begin = int(task.offsets[self.index[item]]) + start
        ids = task.ids[begin : begin + length]
        return ids, task.mask[begin : begin + length] if self.supervise == "assistant" else np.ones(
            length, np.uint8
        )

    def label(self, item: int) -> str:
        task = self.tasks[self.owner[item]]
        return f"{task.name}#{task.numbers[self.index[item]]}"


class ChatRows:
    """The endless stream of rows of a mixture: epoch after epoch, each in its own
    shuffled order."""

    def __init__(
        self, mixture: Mixture, *, packing: str, sequence_len: int, seed: int, bos_id: int
    ):
        self.mixture, self.packing, self.sequence_len = mixture, packing, sequence_len
        self.seed, self.bos_id = seed, bos_id
        self.last_row: int | None = None  # rows from here on are padding
        self._epochs: dict[int, tuple[np.ndarray, Layout]] = {}
        self._begin = [0]  # first row of each epoch known so far

    def epoch_layout(self, epoch: int) -> tuple[np.ndarray, Layout]:
        """(order of the mixture's items, their layout) of an epoch; item i of the layout is
        order[i]."""
        if epoch not in self._epochs:
            n = len(self.mixture)
            order = permutation(n, mix(self.seed, PLAN, epoch))
            layout = LAYOUTS[self.packing](self.mixture.lengths[order], self.sequence_len + 1)
            # a batch spans at most two epochs, unless they are tiny
            self._epochs = {k: v for k, v in self._epochs.items() if k >= epoch - 1}
            self._epochs[epoch] = (order, layout)
        return self._epochs[epoch]

    def begin(self, epoch: int) -> int:
        """First row of an epoch."""
        while len(self._begin) <= epoch:
            self._begin.append(self._begin[-1] + self.epoch_layout(len(self._begin) - 1)[1].rows)
        return self._begin[epoch]

    def locate(self, row: int) -> tuple[int, int]:
        """(epoch, row within it) of a row."""
        while self._begin[-1] <= row:
            self.begin(len(self._begin))
        epoch = bisect_right(self._begin, row) - 1
        return epoch, row - self._begin[epoch]

    def epoch(self, row: int) -> int:
        """Epoch of a row; for padding after the end, the last epoch."""
        return self.locate(row if self.last_row is None else min(row, self.last_row - 1))[0]

    def pieces(self, row: int) -> list[tuple[int, int, int]]:
        """(item of the mixture, start, length) of each piece of a row; none after the end."""
        if self.last_row is not None and row >= self.last_row:
            return []
        epoch, inside = self.locate(row)
        order, layout = self.epoch_layout(epoch)
        a, b = layout.row_start[inside], layout.row_start[inside + 1]
        return [
            (int(order[i]), int(s), int(n))
            for i, s, n in zip(layout.item[a:b], layout.start[a:b], layout.length[a:b], strict=True)
        ]

    def gather(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of rows, (B, T) int64 each. Padding is bos; targets of padding and
        masked tokens are -1."""
        ids = np.full((len(rows), self.sequence_len + 1), self.bos_id, np.int64)
        mask = np.zeros((len(rows), self.sequence_len + 1), np.uint8)
        for r, row in enumerate(rows):
            at = 0
            for item, start, length in self.pieces(row):
                ids[r, at : at + length], mask[r, at : at + length] = self.mixture.tokens(
                    item, start, length
                )
                at += length
        return ids[:, :-1], np.where(mask[:, 1:], ids[:, 1:], -1)

    def num_targets(self, rows: range) -> int:
        """Number of targets in these rows."""
        if self.packing == "stream":
            parts = (rows[i : i + CHUNK_ROWS] for i in range(0, len(rows), CHUNK_ROWS))
            return sum(int((self.gather(part)[1] != -1).sum()) for part in parts)
        # a row's first token is never a target; without supervise=all, a conversation's first token
        # has mask 0
        extra = 1 if self.mixture.supervise == "all" else 0
        found = [self.pieces(row) for row in rows]
        return sum(
            int(self.mixture.targets[item]) + extra for row in found for item, _, _ in row
        ) - extra * sum(map(bool, found))

    def tally(self, rows: int) -> dict[str, int]:
        """Counts of tokens and conversations in the first `rows` rows."""
        keys = (
            "conversations",
            "tokens_read",
            "tokens_trained",
            "tokens_masked",
            "tokens_trimmed",
            "tokens_dropped",
        )
        sums = dict.fromkeys(keys, 0) | {
            "conversations_trimmed": 0,
            "conversations_dropped": 0,
            "tokens_padding": 0,
        }
        real = rows if self.last_row is None else min(rows, self.last_row)
        epoch = 0
        while self.begin(epoch) < real:
            count = min(real, self.begin(epoch + 1)) - self.begin(epoch)
            self._tally_epoch(epoch, count, sums)
            epoch += 1
        sums["tokens_padding"] += (rows - real) * (self.sequence_len + 1)
        return sums

    def _tally_epoch(self, epoch: int, rows: int, sums: dict[str, int]) -> None:
        order, layout = self.epoch_layout(epoch)
        end = int(layout.row_start[rows])
        items, placed = order[layout.item[:end]], layout.length[:end]
        whole = rows == layout.rows
        if self.packing == "stream":  # the token at the border of two rows is in both
            first = self.begin(epoch)
            trained = self.num_targets(range(first, first + rows))
            seen = int(placed.sum()) - max(rows - 1, 0)
            trimmed, cut, conversations = 0, 0, len(np.unique(items))
        else:
            extra = 1 if self.mixture.supervise == "all" else 0
            trained = int(self.mixture.targets[items].sum()) + extra * (len(items) - rows)
            seen, conversations = int(placed.sum()), len(items)
            over = self.mixture.whole[items] - placed
            trimmed, cut = int(over.sum()), int((over > 0).sum())
        sums["conversations"] += conversations
        sums["tokens_trained"] += trained
        sums["tokens_masked"] += seen - trained
        sums["tokens_trimmed"] += trimmed
        sums["conversations_trimmed"] += cut
        sums["tokens_padding"] += rows * (self.sequence_len + 1) - int(placed.sum())
        sums["tokens_read"] += seen + trimmed
        if whole:
            sums["conversations_dropped"] += self.mixture.dropped
            sums["tokens_dropped"] += self.mixture.dropped_tokens
            sums["tokens_read"] += self.mixture.dropped_tokens


class ChatBatches(RowBatches):
    """Dicts of idx (B, T) and targets (B, T) int64, `num_targets`, the targets of the whole global
    batch (0-d int64), `step` and `epoch`. ShardError for a batch without any target."""

    known = (-1, 0)  # a step, and its targets

    def num_targets(self, step: int) -> int:
        if step != self.known[0]:
            self.known = (
                step,
                self.rows.num_targets(range(step * self.batch_rows, (step + 1) * self.batch_rows)),
            )
        return self.known[1]

    def micro_batch(self, step: int, part: int) -> dict[str, Any]:
        targets_of_step = self.num_targets(step)
        over = self.rows.last_row is not None and step * self.batch_rows >= self.rows.last_row
        if targets_of_step == 0 and not over:  # a loader prefetches beyond the end
            raise ShardError(
                f"batch {step} has no token that the assistant writes; raise batch_tokens, or "
                "choose data.packing=best_fit"
            )
        idx, targets = self.rows.gather(self.numbers(step, part))
        if self.rows.packing == "single":
            idx, targets = cut_padding(idx, targets)
        return {
            "idx": torch.from_numpy(np.ascontiguousarray(idx)),
            "targets": torch.from_numpy(np.ascontiguousarray(targets)),
            "num_targets": torch.tensor(targets_of_step),
            "step": step,
            "epoch": self.rows.epoch(step * self.batch_rows),
        }


def cut_padding(idx: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The columns up to the last target of any row, rounded up to a multiple of COLUMNS: later
    columns cannot change the loss."""
    used = np.flatnonzero((targets != -1).any(axis=0))
    width = min(-(-(int(used[-1]) + 1 if len(used) else 1) // COLUMNS) * COLUMNS, idx.shape[1])
    return idx[:, :width], targets[:, :width]
