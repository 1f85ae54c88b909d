"""What all phases share: one loss over the supervised tokens of the global batch, one optimizer, a
schedule over steps."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.modules.halving import Halving
from nanochat.optim import GroupedOptimizer, Schedule
from nanochat.runtime.lightning_private import count_micro_batches


class Clock:
    """Seconds spent training: wall-clock less what runs inside `paused()` (saving, evaluating,
    sampling)."""

    def __init__(self) -> None:
        self.before, self.started, self.pauses = 0.0, time.perf_counter(), 0.0

    def start(self) -> None:
        self.started, self.pauses = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.started - self.pauses

    @contextmanager
    def paused(self):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.pauses += time.perf_counter() - start


class PhaseModule(L.LightningModule):
    """A phase trains `gpt` by `micro_loss`, a sum over supervised tokens; the division by the
    global batch happens here.

    `optim(gpt)` makes the optimizer (after a strategy has placed the weights); `total_steps` is the
    planned length.
    """

    def __init__(
        self,
        gpt: GPT,
        optim: Callable[[GPT], GroupedOptimizer],
        schedule: Schedule,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.gpt, self.optim, self.schedule, self.total_steps = gpt, optim, schedule, total_steps
        self.clock = Clock()
        # mean loss of the last finished step on this process's share, 0-d
        self.loss_of_step: Tensor | None = None
        self.number = 1  # of the step that the current batch belongs to, from 1
        self.numbers: dict[str, float] = {}  # other metrics of the last finished step, to be logged
        self._running: Tensor | None = None
        self.halving = Halving()

    def micro_loss(self, batch: dict[str, Any]) -> Tensor:
        """Summed loss over the supervised tokens of one micro-batch. A phase defines it."""
        raise NotImplementedError

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        # Lightning divides by the micro-batches of a step and DDP by the processes; both are undone
        # here, because the loss is a sum over the global batch divided by its supervised tokens,
        # however it is split
        loss = self._fitting_loss(batch) / batch["num_targets"]
        share = loss.detach()
        self._running = share if self._running is None else self._running + share
        return loss * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def _fitting_loss(self, batch: dict[str, Any]) -> Tensor:
        """`micro_loss`, in parts where memory has run out."""
        if not self.can_halve or "idx" not in batch:
            return self.micro_loss(batch)
        params = [p for p in self.gpt.parameters() if p.requires_grad]
        return self.halving.loss(self.micro_loss, batch, params)

    @property
    def can_halve(self) -> bool:
        """Whether this process can compute a micro-batch in parts alone. Under FSDP2 each part
        would gather weights, and to look for unused parameters DDP needs the graph of the loss;
        there running out of memory ends the run."""
        searches = getattr(self.trainer.model, "find_unused_parameters", False)
        return self.device_mesh is None and not searches

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Gradients are dropped, but under DDP filled with zeros: they stay views of its buckets.
        Else those of all micro-batches but the last would be tensors of their own besides."""
        ddp = self.trainer.world_size > 1 and self.can_halve
        optimizer.zero_grad(set_to_none=not ddp)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        is_step = self._running is None and self.loss_of_step is not None  # a step is done
        if is_step and self.trainer.world_size > 1 and self.can_halve:
            self.halving.agree(self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.number = self.global_step + 1

    def log(self, name: str, value: Any, *args: Any, **more: Any) -> None:
        """Lightning's, for a phase's own metrics. In training the loggers get them under the number
        of the step as everything else counts it, from 1; Lightning alone counts from 0."""
        super().log(name, value, *args, **more)
        if self.trainer.training:
            super().log("step", float(self.number))

    def headline(self) -> str | None:
        """The last finished step in a few words, for a phase with more numbers than loss and
        speed."""
        return None

    def where_the_batch_is(self, step: int) -> str:
        """How to look at what step `step` was trained on."""
        return f"`python -m nanochat.data show=batch step={step - 1} …` prints the batch"

    def configure_model(self) -> None:
        """Share out the weights where the strategy does so, which then has a mesh of devices."""
        if self.device_mesh is None:
            return
        from nanochat.distributed.fsdp import is_sharded, share_by_rows

        gpt = self.gpt
        if not is_sharded(gpt.parameters()):
            tables = [m for m in gpt.modules() if isinstance(m, torch.nn.Embedding)]
            mesh, blocks = self.device_mesh["data_parallel"], gpt.transformer.h
            share_by_rows(
                gpt, mesh, tables=tables, blocks=blocks, dtype=gpt.compute_dtype, enter="hidden"
            )

    @contextmanager
    def whole_gpt(self) -> Iterator[None]:
        """Inside, `gpt` has all weights in every process and is not trained: for evaluating and
        sampling. All processes enter together."""
        sharded, self.gpt = self.gpt, self.gpt.whole()
        try:
            yield
        finally:
            self.gpt = sharded

    def configure_optimizers(self) -> GroupedOptimizer:
        return self.optim(self.gpt)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.optimizer_of_run.schedule_step(self.schedule, self.global_step, self.total_steps)
        self.loss_of_step, self._running = self._running, None

    @property
    def optimizer_of_run(self) -> GroupedOptimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, GroupedOptimizer)
        return optimizer

    def on_fit_start(self) -> None:
        self.clock.start()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rng"] = torch.get_rng_state()
        checkpoint["training_seconds"] = self.clock.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        torch.set_rng_state(checkpoint["rng"])
        self.clock.before = checkpoint["training_seconds"]
        count_micro_batches(checkpoint, self.trainer.accumulate_grad_batches)
