"""Batches of conversations: tasks that are mixed, shuffled, and packed into rows.

As for text (`text.py`), global batch k is a pure function of the tasks, the tokenizer, the seed and
k: rows k*R .. (k+1)*R - 1 of an endless stream of epochs. Each epoch is a shuffled order of all
conversations of the mixture, packed by `layout.py`. Only targets that the assistant writes count in
the loss. A batch carries their number over the whole global batch, so that no division into
micro-batches or processes changes the loss. Every token is counted by `ledger` in exactly one of
four places:

    tokens_read = tokens_trained + tokens_masked + tokens_trimmed + tokens_dropped

trained: a target. masked: seen, but not a target. trimmed: beyond the end of a row. dropped: part
of a conversation without any target.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from nanochat.datamodules.by_step import Batch, ByStep, RowBatches
from nanochat.datamodules.journal import digest
from nanochat.datamodules.layout import LAYOUTS, Layout
from nanochat.datamodules.packing import mix, permutation
from nanochat.datamodules.rendered import BAD, EMPTY, UNTRAINED, Rendered, render_task
from nanochat.datamodules.shards import ShardError
from nanochat.runtime.paths import base_dir
from nanochat.runtime.settings import Count, Portion, Seed, Workers, passes_on
from nanochat.tasks.jsonl import JSONL
from nanochat.tasks.task import Task
from nanochat.tokenizer.tokenizer import Tokenizer

PLAN = 1  # version of an epoch's layout; a change makes another run
SUPERVISE = ("assistant", "all")
ON_BAD = ("error", "skip")
OVER_LONG = ("trim", "drop")
# guess: any fixed value works; a mixture is shuffled for validation too (facts sheet 4.5)
VAL_SEED = 0
CHUNK_ROWS = 1024  # guess: rows laid out at once when only targets are counted
# guess: rows of one conversation each are cut to a multiple of this, so that few shapes occur
COLUMNS = 64


class Share(NamedTuple):
    """A task's part of a mixture.

    Number of conversations, of trained tokens, of tokens lost to trimming or dropping, of
    conversations that break the rules, and how often an epoch repeats each conversation.
    """

    task: str
    conversations: int
    trained: int
    lost: int
    bad: int
    repeat: int


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


class ChatDataModule(ByStep):
    """Rows of `sequence_len` tokens of conversations. Used like `TextDataModule`: `attach`,
    `prepare_data`, loaders.

    `packing`: best_fit packs whole conversations and pads, single gives each its own row, stream
    joins them end to end. `supervise`: assistant trains the assistant's text, all trains every
    token. `over_long`: a conversation longer than a row loses its end (trim) or is left out (drop).
    `num_epochs` is the planned length of a run.
    """

    def __init__(
        self,
        train_tasks: dict[str, Task],
        val_tasks: dict[str, Task],
        *,
        sequence_len: Count,
        rows_per_device: Count | Literal["auto"] | None = None,
        packing: Literal["best_fit", "single", "stream"] = "best_fit",
        supervise: Literal["assistant", "all"] = "assistant",
        over_long: Literal["trim", "drop"] = "trim",
        on_bad: Literal["error", "skip"] = "error",
        num_epochs: Count = 1,
        seed: Seed = 42,
        num_workers: Workers = 2,
        prepare_workers: Workers | None = None,
        rendered_dir: str | Path | None = None,
    ):
        super().__init__()
        self.train_tasks = {k: v for k, v in train_tasks.items() if v is not None}
        self.val_tasks = {k: v for k, v in val_tasks.items() if v is not None}
        for name, tasks in (("train_tasks", self.train_tasks), ("val_tasks", self.val_tasks)):
            if not tasks:
                raise ValueError(
                    f"data.{name} is empty; name a task, for example +task@data.{name}.gsm8k=gsm8k"
                )
        self.sequence_len, self.rows_per_device = sequence_len, rows_per_device
        self.packing, self.supervise = packing, supervise
        self.over_long, self.on_bad, self.num_epochs, self.seed = (
            over_long,
            on_bad,
            num_epochs,
            seed,
        )
        self.num_workers, self.prepare_workers = num_workers, prepare_workers
        self.rendered_dir = (
            Path(rendered_dir).expanduser().absolute()
            if rendered_dir
            else base_dir() / "conversations"
        )
        self._check()
        # a run longer or shorter than the planned epochs continues into the next epoch, or stops
        # earlier
        self.endless = False
        self._rows: dict[str, ChatRows] = {}
        self._rendered: dict[str, dict[str, Rendered]] = {}

    def _check(self) -> None:
        """ValueError for a setting that cannot work."""
        for name, value, choices in (
            ("packing", self.packing, LAYOUTS),
            ("supervise", self.supervise, SUPERVISE),
            ("over_long", self.over_long, OVER_LONG),
            ("on_bad", self.on_bad, ON_BAD),
        ):
            if value not in choices:
                raise ValueError(
                    f"data.{name}={value} is not known; choose from {', '.join(choices)}"
                )
        if not isinstance(self.num_epochs, int):
            raise ValueError(
                f"data.num_epochs={self.num_epochs} must be a whole number; for a part of an epoch "
                "give "
                "max_steps"
            )
        for name, number, low in (
            ("model.sequence_len", self.sequence_len, 2),
            ("data.rows_per_device", self.rows_per_device, 1),
            ("data.num_workers", self.num_workers, 0),
            ("data.num_epochs", self.num_epochs, 1),
        ):
            if isinstance(number, int) and number < low:
                raise ValueError(f"{name}={number} is below {low}; give {low} or more")
        if self.packing == "stream" and self.over_long == "drop":
            raise ValueError(
                "data.over_long=drop cannot take effect: data.packing=stream cuts nothing"
            )

    # ---- what a run adds

    def use(self, tokenizer: Tokenizer) -> None:
        """Set the tokenizer, which is all that rows need."""
        self.tokenizer = tokenizer
        self._rows, self._rendered = {}, {}

    def attach(
        self, tokenizer: Tokenizer, *, batch_tokens: int, world_size: int = 1, rank: int = 0
    ) -> None:
        """Set tokenizer, tokens per optimizer step over all ranks (padding included), and the rank.
        ValueError if the batch cannot be divided."""
        if getattr(self, "tokenizer", None) is not tokenizer:
            self.use(tokenizer)
        self.share(batch_tokens, world_size, rank)

    def epochs_rows(self) -> int:
        """Rows of all planned epochs."""
        return self.rows("train").begin(self.num_epochs)

    def _tasks(self, split: str) -> dict[str, Task]:
        return self.train_tasks if split == "train" else self.val_tasks

    def rendered(self, split: str) -> dict[str, Rendered]:
        """The rendered conversations of each task; equal tasks are rendered once."""
        if split not in self._rendered:
            self._rendered[split] = {
                name: render_task(
                    task,
                    self.tokenizer,
                    self.rendered_dir,
                    on_bad=self.on_bad,
                    processes=self.prepare_workers,
                )
                for name, task in self._tasks(split).items()
            }
        return self._rendered[split]

    def mixture(self, split: str) -> Mixture:
        repeats = {name: task.repeat for name, task in self._tasks(split).items()}
        limit = None if self.packing == "stream" else self.sequence_len + 1
        tasks = self.rendered(split)
        for name, task in tasks.items():
            if self.supervise == "all" and (count := task.counts.get(UNTRAINED, 0)):
                raise ValueError(
                    f"{count:,} conversations of {name} have messages of weight 0, and "
                    "data.supervise=all trains every token; "
                    "choose data.supervise=assistant"
                )
        found = Mixture(
            tasks, repeats, limit=limit, supervise=self.supervise, over_long=self.over_long
        )
        for name, task in tasks.items():
            if len(found) == 0 and task.bad:
                raise ValueError(
                    f"{task.bad_count:,} of {task.bad_count + len(task):,} conversations of {name} "
                    f"break the rules, e.g. {task.bad[0][1]}"
                )
        if len(found) == 0:
            raise ValueError(
                f"data.{split}_tasks have no conversation with a target ({found.dropped:,} "
                f"dropped: no trained token within {limit} tokens); "
                "choose other tasks, or a checkpoint with a longer context"
            )
        return found

    def rows(self, split: str) -> ChatRows:
        """The rows of "train" (endless, shuffled by the run's seed) or "val" (one epoch in a fixed
        order)."""
        if split not in self._rows:
            self._rows[split] = ChatRows(
                self.mixture(split),
                packing=self.packing,
                sequence_len=self.sequence_len,
                seed=self.seed if split == "train" else VAL_SEED,
                bos_id=self.tokenizer.bos_id,
            )
            if split == "train" and not self.endless:
                self._rows[split].last_row = self._rows[split].begin(self.num_epochs)
        return self._rows[split]

    def manifest(self) -> dict[str, Any]:
        """Everything that, with the step, determines the batches: JSON for a run's lineage."""
        tasks = {
            s: {name: {**t.settings(), "repeat": t.repeat} for name, t in self._tasks(s).items()}
            for s in ("train", "val")
        }
        return {
            "hash": digest(tasks),
            "tasks": tasks,
            "bad": {
                name: {"count": r.bad_count, "first": r.bad}
                for name, r in self.rendered("train").items()
                if r.bad_count
            },
            "tokenizer": self.tokenizer.hash,
            "seed": self.seed,
            "packing": self.packing,
            "supervise": self.supervise,
            "over_long": self.over_long,
            "num_epochs": self.num_epochs,
            "sequence_len": self.sequence_len,
            "batch_rows": self.batch_rows,
            "plan": PLAN,
        }

    def shares(self, split: str = "train") -> list[Share]:
        """Each task's part of the mixture, repeats included."""
        mixture, found = self.rows(split).mixture, []
        for number, (name, task) in enumerate(self._tasks(split).items()):
            mine, known = mixture.owner == number, self.rendered(split)[name]
            trained = int(mixture.targets[mine].sum())
            whole = (
                int(known.supervised().sum())
                if self.supervise == "assistant"
                else len(known.ids) - len(known)
            )
            found.append(
                Share(
                    name,
                    int(mine.sum()),
                    trained,
                    whole * task.repeat - trained,
                    known.bad_count,
                    task.repeat,
                )
            )
        return found

    def notes(self) -> list[str]:
        """Automatic decisions and omissions in both splits, one line each."""
        lines: dict[str, None] = {}
        for split in ("train", "val"):
            for name, task in self._tasks(split).items():
                found = self.rendered(split)[name]
                lines |= dict.fromkeys(task.notes())
                of = f"of {name} ({split})"
                if count := found.counts.get(EMPTY, 0):
                    lines[
                        (
                            f"{count:,} conversations {of} have an empty message, which is trained "
                            "as it is"
                        )
                    ] = None
                if count := found.counts.get(UNTRAINED, 0):
                    lines[
                        (
                            f"{count:,} conversations {of} have messages of weight 0, which are "
                            "not trained"
                        )
                    ] = None
                reasons = [
                    f"{n:,}: {why.removeprefix(BAD)}"
                    for why, n in found.counts.items()
                    if why.startswith(BAD)
                ]
                if reasons:
                    lines[f"left out {of}: {'; '.join(reasons)}"] = None
        return list(lines)

    def utilisation(self) -> float:
        """Share of the tokens in the first epoch's rows that are not padding."""
        rows = self.rows("train")
        _, layout = rows.epoch_layout(0)
        return float(layout.length.sum()) / (layout.rows * (self.sequence_len + 1))

    # ---- Lightning

    def prepare_data(self) -> None:
        """Render tasks that are not rendered yet. ValueError or OSError for bad conversations."""
        for split in ("train", "val"):
            self.rendered(split)

    def prepare_all(self) -> None:
        self.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        for split in ("train", "val"):
            self.rows(split)

    def micro_batches(self) -> "ChatBatches":
        share = self.batch_rows, self.micro_rows, self.world_size, self.rank
        return ChatBatches(self.rows("train"), *share, self.start_step, self.repeat_steps)

    # ---- rows for evaluation and for inspection

    def split_batches(self, split: str, tokens: int | None = None) -> Iterator[dict[str, Any]]:
        """As `ByStep.split_batches`."""
        rows = copy(self.rows(split))  # with an end of its own
        total = rows.begin(1)
        if tokens is not None:
            total = min(total, max(tokens // self.sequence_len, 1))
        share = -(-total // self.world_size)
        mine = range(self.rank, share * self.world_size, self.world_size)
        rows.last_row = total
        for begin in range(0, share, self.micro_rows):
            idx, targets = rows.gather(mine[begin : begin + self.micro_rows])
            if self.packing == "single":
                idx, targets = cut_padding(idx, targets)
            yield {"idx": torch.from_numpy(idx), "targets": torch.from_numpy(targets)}

    def train_texts(self, tokenizer: Any) -> Iterator[str]:
        self.use(tokenizer)
        for task in self.rendered("train").values():
            for start, end in pairwise(task.offsets.tolist()):
                yield tokenizer.decode(task.ids[start:end])

    def batch(self, k: int) -> Batch:
        """Global batch k, independent of earlier calls. IndexError below 0."""
        if k < 0:
            raise IndexError(f"step={k} is below 0")
        rows, numbers = self.rows("train"), range(k * self.batch_rows, (k + 1) * self.batch_rows)
        idx, targets = rows.gather(numbers)
        label = rows.mixture.label
        documents = [
            [(label(item), start, length) for item, start, length in rows.pieces(row)]
            for row in numbers
        ]
        return Batch(
            k, rows.epoch(numbers[0]), torch.from_numpy(idx), torch.from_numpy(targets), documents
        )

    def ledger(self, k: int) -> dict[str, int]:
        """What k steps used of the conversations. In tokens: read = trained + masked + trimmed +
        dropped."""
        rows = k * self.batch_rows
        epochs = self.rows("train").epoch(rows - 1) + 1 if rows else 0
        return {"steps": k, "rows": rows, "epochs": epochs, **self.rows("train").tally(rows)}


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


@passes_on(ChatDataModule)
def jsonl(
    path: str,
    val_path: str | None = None,
    val_fraction: Portion = 0.05,
    repeat: Count = 1,
    ignore: Sequence[str] = (),
    train_tasks: dict[str, Task] | None = None,
    val_tasks: dict[str, Task] | None = None,
    **options: Any,
) -> ChatDataModule:
    """Target of conf/data/jsonl.yaml: conversations in a file of yours, mixed with any
    other tasks."""
    if "own" in {**(train_tasks or {}), **(val_tasks or {})}:
        raise ValueError(
            "own is the task of the file data.path in the mixture; give the other task another name"
        )
    if val_path is None:
        train = JSONL(path=path, split="train", held_out=val_fraction, repeat=repeat, ignore=ignore)
        val = JSONL(path=path, split="test", held_out=val_fraction, ignore=ignore)
    else:
        train, val = (
            JSONL(path=path, repeat=repeat, ignore=ignore),
            JSONL(path=val_path, ignore=ignore),
        )
    return ChatDataModule(
        {"own": train, **(train_tasks or {})}, {"own": val, **(val_tasks or {})}, **options
    )
