"""Batches of conversations: tasks that are mixed, shuffled, and packed into rows.

As for text (`text.py`), global batch k is a pure function of the tasks, the tokenizer, the seed and
k: rows k*R .. (k+1)*R - 1 of an endless stream of epochs. Each epoch is a shuffled order of all
conversations of the mixture, packed into rows (`chat_rows.py`, `layout.py`). Only targets that the
assistant writes count in the loss. A batch carries their number over the whole global batch, so
that no division into micro-batches or processes changes the loss. Every token is counted by
`ledger` in exactly one of four places:

    tokens_read = tokens_trained + tokens_masked + tokens_trimmed + tokens_dropped

trained: a target. masked: seen, but not a target. trimmed: beyond the end of a row. dropped: part
of a conversation without any target.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from nanochat.datamodules.by_step import Batch, ByStep
from nanochat.datamodules.chat_rows import PLAN, ChatBatches, ChatRows, Mixture, cut_padding
from nanochat.datamodules.journal import digest
from nanochat.datamodules.layout import LAYOUTS
from nanochat.datamodules.rendered import BAD, EMPTY, UNTRAINED, Rendered, render_task
from nanochat.runtime.paths import base_dir
from nanochat.runtime.settings import Count, Portion, Seed, Workers, passes_on
from nanochat.tasks.jsonl import JSONL
from nanochat.tasks.task import Task
from nanochat.tokenizer.tokenizer import Tokenizer

SUPERVISE = ("assistant", "all")
ON_BAD = ("error", "skip")
OVER_LONG = ("trim", "drop")
# guess: any fixed value works; a mixture is shuffled for validation too (facts sheet 4.5)
VAL_SEED = 0


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
                "give max_steps"
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
                    "data.supervise=all trains every token; choose data.supervise=assistant"
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

    def micro_batches(self) -> ChatBatches:
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
