"""A checkpoint under evaluation. It is opened only when a result is not stored yet."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nanochat.checkpoint import folder
from nanochat.checkpoint.opened import Opened, open_checkpoint
from nanochat.checkpoint.runs import resolve
from nanochat.distributed import agreed, gathered
from nanochat.evals.evaluation import Context, Evaluation
from nanochat.evals.items import Item
from nanochat.evals.results import Keeper, Stored, checkpoint_hash
from nanochat.runtime import hardware
from nanochat.runtime.paths import base_dir
from nanochat.tokenizer.tokenizer import Tokenizer


@dataclass
class Subject:
    """`ckpt` as a user gives it; `validation(path, tokenizer, sequence_len)` makes the datamodule
    of the validation text. This process is `rank` of `world_size`."""

    ckpt: str
    validation: Callable[[Path, Tokenizer, int], Any]
    device: str = "auto"
    precision: str = "auto"
    rank: int = 0
    world_size: int = 1
    force: bool = False  # also accept an export whose certificate is red

    @cached_property
    def opened(self) -> Opened:
        said_once = nullcontext() if self.rank == 0 else redirect_stderr(StringIO())
        with said_once:
            return open_checkpoint(
                self.ckpt, device=self.device, precision=self.precision, force=self.force
            )

    @cached_property
    def is_folder(self) -> bool:
        return not self.ckpt.startswith("hf:")

    @cached_property
    def path(self) -> Path:
        if self.is_folder:
            return resolve(self.ckpt, base_dir() / "runs", force=self.force)
        return self.opened.path

    @cached_property
    def data(self) -> Any:
        """The datamodule of the validation text; `prepare_data` was not called."""
        if self.is_folder:
            tokenizer: Tokenizer = folder.load_tokenizer(self.path)
            return self.validation(self.path, tokenizer, folder.read_config(self.path).sequence_len)
        opened = self.opened
        return self.validation(opened.path, opened.tokenizer, opened.gpt.config.sequence_len)

    def prepared(self, evaluation: Evaluation) -> Any:
        """`data`, made by the first process."""
        assert evaluation.reads_text, "it reads the text: its class says reads_text = True"
        data = self.data
        agreed(data.prepare_data if self.rank == 0 else lambda: None, self.opened.device)
        return data

    def train_texts(self, data: dict[str, Any]) -> Iterator[str]:
        """The texts of the train split of these settings, as this checkpoint would read them."""
        tokenizer, length = self.opened.tokenizer, self.opened.gpt.config.sequence_len
        return instantiate({**data, "sequence_len": length}).train_texts(tokenizer)

    def computes(self) -> dict[str, str]:
        """The dtype and the device of the computation."""
        device = hardware.pick_device(self.device)
        dtype, _ = hardware.compute_dtype(self.precision, device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {"dtype": str(dtype).removeprefix("torch."), "back-end": name}

    def dtype_and_why(self) -> str:
        _, why = hardware.compute_dtype(self.precision, hardware.pick_device(self.device))
        return f"{self.computes()['dtype']} ({why})"

    def passport(self, evaluation: Evaluation, settings: dict[str, Any]) -> dict[str, Any]:
        """Everything that the numbers of an evaluation with these settings depend on."""
        kept = {k: v for k, v in settings.items() if k not in ("every", *evaluation.no_matter)}
        found: dict[str, Any] = {"checkpoint": checkpoint_hash(self.path), "settings": kept}
        found |= {**evaluation.identity(), **self.computes(), "version": evaluation.version}
        if evaluation.reads_text:
            manifest = self.data.manifest()
            found["text"] = {k: manifest[k] for k in ("hash", "packing", "sequence_len")}
        return found

    def evaluated(self, name: str, evaluation: Evaluation, settings: dict[str, Any]) -> Stored:
        """The stored result of this evaluation, computed first if there is none."""
        keeper = Keeper(self.path, name, self.passport(evaluation, settings))
        if stored := keeper.stored():
            return stored
        started = time.monotonic()
        with keeper.recording(self.rank) as keep, bar(name) as progress:
            task = progress.add_task(name, total=None, visible=self.rank == 0)

            def record(item: Item) -> None:
                keep(item)
                progress.advance(task)

            def expect(questions: int) -> None:
                known = len(recorded) // self.world_size
                progress.update(task, total=questions, completed=min(known, questions))

            recorded = keeper.recorded()
            opened = self.opened
            context = Context(
                opened.gpt,
                opened.tokenizer,
                functools.partial(self.prepared, evaluation),
                self.rank,
                self.world_size,
                record,
                recorded,
                expect,
            )
            results = evaluation(context)
        seconds = time.monotonic() - started
        gathered(None)  # the items of all processes are in their files
        if self.rank == 0 and (why_not := keeper.keep(results, seconds)):
            print(why_not)
        gathered(None)  # the same checkpoint may be asked for again
        return Stored(name, keeper.passport, results, seconds, "now", keeper.path)


def bar(name: str) -> Progress:
    """Progress in questions and time left; shown on a terminal only."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console = Console(stderr=True)
    return Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
