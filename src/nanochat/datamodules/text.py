"""Batches of text for pretraining: a source, its token shards, and their rows by number.

Global batch k is rows k*R .. (k+1)*R - 1 of the endless stream of `rows.Rows`, where R * T =
batch_tokens. A rank takes its share of those rows, and a loader worker every n-th micro-batch of
that. Nothing else determines a batch, so the position in the data is one integer, the step.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from nanochat.datamodules.by_step import Batch, ByStep, RowBatches
from nanochat.datamodules.download import (
    CHARACTERS_PER_TOKEN,
    LEAST_SHARDS,
    HubDataset,
    HubFiles,
    Shards,
    shard_names,
    split_files,
)
from nanochat.datamodules.packing import pack
from nanochat.datamodules.pydocs import PyDocs
from nanochat.datamodules.rows import PLAN, Rows
from nanochat.datamodules.shards import Builders, Encoder, ShardFolder
from nanochat.datamodules.sources import SPLITS, FileSource, LocalFiles, TextSource
from nanochat.runtime.paths import base_dir
from nanochat.runtime.settings import Count, Seed, Workers, passes_on

Packing = Literal["best_fit", "stream"]
PIECE_CHARS = 1.5  # measured: experiments/outside_use/sec3_data.md; characters per token of a row
PIECE_ROWS = 0.4  # measured: there too; the same as a share of a row, for a known tokenizer
CROP_LIMIT = 0.1  # guess: a larger cropped share is reported
CROP_CHARS = 2_000_000  # guess: characters of text for estimating the share, a second or less
# guess: files named in a manifest, which every checkpoint contains; its hash covers all files
MANIFEST_FILES = 500


class TextDataModule(ByStep):
    """Rows of `sequence_len` tokens from a text source.

    `attach` passes what only a run knows. Then `prepare_data` starts tokenizing and returns when
    the first rows are ready; the loader waits if it overtakes the builders. `train_dataloader`
    begins at `start_step`.
    """

    def __init__(
        self,
        source: TextSource,
        *,
        sequence_len: Count,
        rows_per_device: Count | Literal["auto"] | None = None,
        packing: Packing = "best_fit",
        seed: Seed = 42,
        num_workers: Workers = 2,
        prepare_workers: Workers | None = None,
        shards_dir: str | Path | None = None,
    ):
        super().__init__()
        for name, value, low in (
            ("model.sequence_len", sequence_len, 1),
            ("data.rows_per_device", rows_per_device, 1),
            ("data.num_workers", num_workers, 0),
            ("data.prepare_workers", prepare_workers, 0),
        ):
            if isinstance(value, int) and value < low:
                raise ValueError(f"{name}={value} is below {low}; give {low} or more")
        self.source = source
        self.sequence_len = sequence_len
        self.rows_per_device = rows_per_device
        self.packing = packing
        self.seed = seed
        self.num_workers = num_workers
        self.prepare_workers = prepare_workers
        self.shards_dir = (
            Path(shards_dir).expanduser().absolute() if shards_dir else base_dir() / "token_shards"
        )
        self._folder: ShardFolder | None = None
        self._rows: dict[str, Rows] = {}
        self._builders: Builders | None = None

    # ---- what a run adds

    def attach(
        self, tokenizer: Encoder, *, batch_tokens: int, world_size: int = 1, rank: int = 0
    ) -> None:
        """Set tokenizer, tokens per optimizer step over all ranks, and the rank. ValueError if the
        batch cannot be divided."""
        self.tokenizer = tokenizer
        self.share(batch_tokens, world_size, rank)
        self._folder = None
        self._rows = {}

    @property
    def folder(self) -> ShardFolder:
        """The token shards; needs `attach` first."""
        if self._folder is None:
            self._folder = ShardFolder(self.source, self.tokenizer, self.shards_dir)
        return self._folder

    def rows(self, split: str) -> Rows:
        """The rows of "train" (endless, shuffled) or "val" (once, in order)."""
        if split not in self._rows:
            self._rows[split] = Rows(
                self.folder,
                split,
                sequence_len=self.sequence_len,
                packing=self.packing,
                seed=self.seed,
                shuffle=split == "train",
            )
        return self._rows[split]

    def manifest(self) -> dict[str, Any]:
        """Everything that, with the step, determines the batches, in a readable form: JSON for a
        run's lineage.

        `hash` covers everything that determines the documents (settings, and the content of every
        file). `settings` and `files` (name, bytes, checksum) list it; `val` has no files of its own
        where its documents are in those of `train`. `validation.documents` is None until they are
        counted.
        """
        files = {
            split: [(f.name, f.size, f.sha256) for f in self.source.files(split)]
            for split in SPLITS
        }
        if sorted(files["val"]) == sorted(files["train"]):
            files["val"] = []
        counts = [self.folder.meta(spec) for spec in self.folder.specs["val"]]
        return {
            "hash": self.source.manifest_hash,
            "source": self.source.name,
            "origin": self.source.origin(),
            "settings": self.source.settings(),
            "files": {
                split: {
                    "count": len(found),
                    "bytes": sum(size for _, size, _ in found),
                    "first": [list(file) for file in found[:MANIFEST_FILES]],
                }
                for split, found in files.items()
            },
            "validation": {
                "chosen": self.source.validation(),
                "documents": sum(meta["documents"] for meta in counts if meta)
                if all(counts)
                else None,
            },
            "tokenizer": self.tokenizer.hash,
            "seed": self.seed,
            "packing": self.packing,
            "sequence_len": self.sequence_len,
            "batch_rows": self.batch_rows,
            "plan": PLAN,
        }

    def notes(self, tokenizer: Encoder | None = None) -> list[str]:
        """Automatic decisions, and the share that packing will crop if it is large; one
        line each."""
        return [*self.source.notes(), *self._crops(tokenizer)]

    def _crops(self, tokenizer: Encoder | None) -> list[str]:
        """The share that packing crops, estimated from the beginning of the text if that is already
        present."""
        part = next(iter(self.source.parts("train")), None)
        if self.packing != "best_fit" or part is None or not self.source.at_hand(part):
            return []
        texts, characters = [], 0
        for text in self.source.read(part, "train"):
            texts.append(text)
            characters += len(text)
            if characters >= CROP_CHARS:
                break
        if tokenizer is None:
            lengths = np.array([len(text) / CHARACTERS_PER_TOKEN + 1 for text in texts]).astype(
                np.int64
            )
        else:
            lengths = np.array([len(tokenizer.encode_array(text)) + 1 for text in texts], np.int64)
        packed = pack(self.packing, lengths, self.sequence_len)
        tally = packed.tally(packed.rows)
        pieces = int(PIECE_ROWS * self.sequence_len * characters / max(int(lengths.sum()), 1))
        return crop_note(tally.tokens_cropped / max(tally.tokens_read, 1), pieces)

    # ---- Lightning

    def prepare_data(self) -> None:
        """Start building the token shards and wait for those that the first rows need. ValueError
        or OSError for bad text."""
        if self._builders is None and self.folder.missing():
            self.source.check()
            self._builders = self.folder.start_builders(self.prepare_workers)
        if self._builders is not None:
            self._builders.wait(
                [*self.rows("train").first_shards(), *self.rows("val").first_shards()]
            )

    def prepare_all(self) -> None:
        """As `prepare_data`, but wait for every shard."""
        self.prepare_data()
        if self._builders is not None:
            self._builders.wait(self.folder.order)

    def setup(self, stage: str | None = None) -> None:
        """Open the first shards. ValueError if there is no row to train on or to validate with."""
        for split in ("train", "val"):
            self.rows(split).total(at_most=1)

    def micro_batches(self) -> "TextBatches":
        share = self.batch_rows, self.micro_rows, self.world_size, self.rank
        return TextBatches(self.rows("train"), *share, self.start_step, self.repeat_steps)

    # ---- rows for evaluation and for inspection

    def split_batches(self, split: str, tokens: int | None = None) -> Iterator[dict[str, Any]]:
        """As `ByStep.split_batches`."""
        rows = self.rows(split)
        total = rows.total(None if tokens is None else max(tokens // self.sequence_len, 1))
        share = -(-total // self.world_size)
        mine = range(self.rank, share * self.world_size, self.world_size)
        for begin in range(0, share, self.micro_rows):
            idx, targets = shifted(
                rows,
                [row if row < total else None for row in mine[begin : begin + self.micro_rows]],
            )
            yield {"idx": idx, "targets": targets}

    def train_texts(self, tokenizer: Any) -> Iterator[str]:
        return self.source.documents("train")

    def batch(self, k: int) -> Batch:
        """Global batch k, independent of earlier calls. IndexError below 0."""
        if k < 0:
            raise IndexError(f"step={k} is below 0")
        rows = self.rows("train")
        numbers = range(k * self.batch_rows, (k + 1) * self.batch_rows)
        idx, targets = shifted(rows, numbers)
        return Batch(
            k, rows.epoch(numbers[0]), idx, targets, [rows.documents(row) for row in numbers]
        )

    def ledger(self, k: int) -> dict[str, int]:
        """What k steps used of the text. In tokens: read = trained + context + cropped + dropped
        (see `packing`); `repeated` are trained tokens of epochs after the first."""
        tally, repeated, epochs = self.rows("train").tally(k * self.batch_rows)
        return {
            "steps": k,
            "rows": k * self.batch_rows,
            "epochs": epochs,
            **tally.as_dict(),
            "tokens_repeated": repeated,
        }


def crop_note(share: float, pieces: int) -> list[str]:
    """A line if best_fit crops more than CROP_LIMIT of the tokens, else none. `pieces`: the number
    of characters to which documents could be cut."""
    if share <= CROP_LIMIT:
        return []
    return [
        f"data.packing=best_fit will crop about {share:.0%} of the tokens, the ends of long "
        f"documents; data.packing=stream crops none, data.document_chars={pieces} few"
    ]


class TextBatches(RowBatches):
    """Dicts of idx (B, T) and targets (B, T) int64, `num_targets`, the targets of the whole global
    batch (0-d int64), `step` and `epoch`."""

    def micro_batch(self, step: int, part: int) -> dict[str, Any]:
        idx, targets = shifted(self.rows, self.numbers(step, part))
        return {
            "idx": idx,
            "targets": targets,
            # every target counts
            "num_targets": torch.tensor(self.batch_rows * self.rows.sequence_len),
            "step": step,
            "epoch": self.rows.epoch(step * self.batch_rows),
        }


def shifted(rows: Rows, numbers: Sequence[int | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of rows: (B, T) and (B, T) int64. A row None is filler: its targets are
    -1."""
    real = [n for n in numbers if n is not None]
    blank = len(numbers) - len(real)
    T = rows.sequence_len
    if isinstance(numbers, range):
        found = rows.gather(numbers.start, numbers.stop)  # (B, T + 1)
    else:
        found = np.concatenate(
            [rows.gather(n, n + 1) for n in real] or [np.empty((0, T + 1), np.int64)]
        )
    tokens = torch.from_numpy(found.astype(np.int64))  # (B, T + 1)
    idx, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()  # (B, T), (B, T)
    if blank:
        idx = torch.cat([idx, torch.zeros(blank, T, dtype=torch.int64)])
        targets = torch.cat([targets, torch.full((blank, T), -1, dtype=torch.int64)])
    return idx, targets


# ---- targets of conf/data/*.yaml: a source and what all text data share


@passes_on(LocalFiles, TextDataModule)
def local(path: str, val_path: str | None = None, **options: Any) -> TextDataModule:
    """Text files of yours: a folder, a glob or a file of parquet, jsonl, json, txt or md."""
    source, module = _divide(options)
    if source.get("document_chars") == "auto" and module.get("packing", "best_fit") == "best_fit":
        source["auto_chars"] = max(int(PIECE_CHARS * module["sequence_len"]), 1)
    return TextDataModule(LocalFiles(path, val_path, **source), **module)


@passes_on(FileSource, TextDataModule)
def shards(
    dataset: str,
    num_shards: Count | Literal["auto"] | None,
    val_shard: Count,
    revision: str | None = None,
    mirror_only: bool = False,
    **options: Any,
) -> TextDataModule:
    """A hub data set in nanochat's shard layout.

    Train shards are 0..num_shards-1 of the `val_shard` available ones (None: all). Validation is
    always the last shard, number `val_shard`, whatever the number of train shards. "auto" is
    replaced by a run, which knows its tokens, with `download.shards_needed`; without a run it means
    the first LEAST_SHARDS, on which a tokenizer is trained.
    """
    if num_shards == "auto":
        num_shards = min(LEAST_SHARDS, val_shard)
    elif num_shards is None:
        num_shards = val_shard
    if not isinstance(num_shards, int):
        raise ValueError(
            f"num_shards={num_shards} is not a whole number; give one, auto, or null for all"
        )
    if not 1 <= num_shards <= val_shard:
        raise ValueError(
            f"num_shards={num_shards} is not from 1 to the {val_shard:,} of {dataset}; "
            f"try data.num_shards={min(LEAST_SHARDS, val_shard)}"
        )
    names = shard_names(val_shard + 1)
    source, module = _divide(options)
    hub_dataset = HubDataset(dataset, revision, mirror_only)
    files = Shards(
        dataset.split("/")[-1], hub_dataset, names[:num_shards], names[val_shard:], **source
    )
    return TextDataModule(files, **module)


@passes_on(FileSource, TextDataModule)
def hub(
    dataset: str,
    config: str | Sequence[str] | None = None,
    split: str = "train",
    val_split: str | None = None,
    num_shards: Count | None = None,
    revision: str | None = None,
    **options: Any,
) -> TextDataModule:
    """Any text data set of the hub: `split` of one or several configs, the first `num_shards` of
    its files. Validation is `val_split` if named, else a share of the documents by content hash."""
    source, module = _divide(options)
    where = HubDataset(dataset, revision)
    configs = [config] if config is None or isinstance(config, str) else list(config)
    names = [name for c in configs for name in split_files(where, c, split)]
    if num_shards is not None and not (
        isinstance(num_shards, int) and 1 <= num_shards <= len(names)
    ):
        raise ValueError(
            f"num_shards={num_shards} is not a number from 1 to the {len(names):,} files of "
            f"{dataset}; set data.num_shards"
        )
    val = [name for c in configs for name in split_files(where, c, val_split)] if val_split else []
    name = "-".join([dataset.split("/")[-1], *[c for c in configs if c]])
    return TextDataModule(HubFiles(name, where, names[:num_shards], val, **source), **module)


@passes_on(PyDocs, TextDataModule)
def pydocs(packages: Sequence[str] | str | None = None, **options: Any) -> TextDataModule:
    """The documentation and source of the running Python."""
    source, module = _divide(options)
    names = packages if packages is None or isinstance(packages, str) else list(packages)
    return TextDataModule(PyDocs(names, **source), **module)


SOURCE_OPTIONS = ("text_field", "documents", "document_chars", "val_by", "val_fraction", "bad_utf8")


def _divide(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide options into those of the source and those of the module; the module raises for
    unknown ones."""
    return (
        {key: value for key, value in options.items() if key in SOURCE_OPTIONS},
        {key: value for key, value in options.items() if key not in SOURCE_OPTIONS},
    )
