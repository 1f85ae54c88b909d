"""Loss, speed and time left: a progress bar on a terminal, plain lines elsewhere, and every step's
numbers to the loggers.

Losses stay on the device between reports, so that logging costs no synchronisation per step. A loss
that is not finite stops the run, after what is needed to look into it has been saved.
"""

import logging
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from nanochat.callbacks.every import SHOWN, StepCallback, publish
from nanochat.checkpoint.atomic import write_json
from nanochat.distributed import summed
from nanochat.distributed.sharing import local
from nanochat.modules.phase import PhaseModule

log = logging.getLogger(__name__)
SMOOTHING = 0.9  # from: facts sheet 5.3, moving average of the shown loss
SPEED_SMOOTHING = 0.9  # guess: about ten steps


def short_time(seconds: float) -> str:
    """A time to be read at a glance.

    >>> short_time(3725)
    '1h02m'
    """
    s = round(seconds)
    return (
        f"{s // 3600}h{s % 3600 // 60:02d}m"
        if s >= 3600
        else f"{s // 60}m{s % 60:02d}s"
        if s >= 60
        else f"{s}s"
    )


def check_progress(show: str) -> None:
    if show not in ("auto", "bar", "lines", "none"):
        raise ValueError(f"progress={show!r} is not known; choose from auto, bar, lines, none")


class Report(StepCallback):
    """Shows and logs training. `flops_per_token` and `peak_flops` (per device, or None) give the
    MFU; without `batch_tokens`, where steps are not alike, there is no speed in tokens."""

    def __init__(
        self,
        *,
        batch_tokens: int | None,
        flops_per_token: int,
        peak_flops: float | None,
        log_every: int,
        run_folder: Path,
        show: str = "auto",
    ) -> None:
        check_progress(show)
        self.batch_tokens = batch_tokens
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.log_every, self.run_folder = log_every, run_folder
        self.show = ("bar" if sys.stdout.isatty() else "lines") if show == "auto" else show
        self.waiting: list[tuple[int, torch.Tensor, dict[str, float]]] = []
        self.smooth, self.weight = 0.0, 0.0
        self.speed: float | None = None  # steps per second
        self.last_seconds, self.epoch = 0.0, 0
        self.progress: Progress | None = None
        self.last_line = 0.0

    def on_train_start(self, trainer: L.Trainer, module: PhaseModule) -> None:
        super().on_train_start(trainer, module)
        self.last_seconds = module.clock.seconds
        if self.show == "bar" and trainer.is_global_zero:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[numbers]}"),
                console=Console(),
            )
            self.task = self.progress.add_task(
                "step",
                total=module.total_steps,
                completed=trainer.global_step,
                numbers="first step (compiling)…",
            )
            self.progress.start()

    def on_train_batch_start(
        self, trainer: L.Trainer, module: PhaseModule, batch: Any, batch_idx: int
    ) -> None:
        self.epoch = int(batch.get("epoch", 0))

    def at_step(self, trainer: L.Trainer, module: PhaseModule, step: int) -> None:
        now = module.clock.seconds
        seconds, self.last_seconds = now - self.last_seconds, now
        assert module.loss_of_step is not None
        lr = module.schedule.lr(step - 1, module.total_steps)
        self.waiting.append(
            (
                step,
                module.loss_of_step,
                {
                    "perf/step_seconds": seconds,
                    "train/lr_multiplier": lr,
                    "train/epoch": self.epoch,
                    **module.numbers,
                },
            )
        )
        if step % self.log_every == 0 or step == module.total_steps:
            self.flush(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: PhaseModule) -> None:
        self.flush(trainer, module)
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def flush(self, trainer: L.Trainer, module: PhaseModule) -> None:
        """Bring the waiting losses to the host, check, log and show them."""
        if not self.waiting:
            return
        # each rank holds the sum over its rows divided by the count of the global batch
        losses = summed(torch.stack([loss for _, loss, _ in self.waiting]))
        on_gpu = module.device.type == "cuda"
        for (step, _, numbers), loss in zip(self.waiting, losses.tolist(), strict=True):
            if loss != loss or loss in (float("inf"), float("-inf")):
                self.not_finite(trainer, module, step, loss)
            seconds = numbers["perf/step_seconds"]
            rate = 1 / seconds if seconds > 0 else 0.0
            # the first step compiles and warms up: it starts no average
            self.speed = (
                rate
                if self.weight < 1 - SMOOTHING**2 or self.speed is None
                else SPEED_SMOOTHING * self.speed + (1 - SPEED_SMOOTHING) * rate
            )
            self.smooth = SMOOTHING * self.smooth + (1 - SMOOTHING) * loss
            self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)
            row = {"train/loss": loss, **numbers}
            if self.batch_tokens is not None:
                tokens = rate * self.batch_tokens
                row |= {"perf/tokens_per_second": tokens, "train/tokens": step * self.batch_tokens}
                if self.peak_flops:
                    row["perf/mfu"] = (
                        tokens * self.flops_per_token / (self.peak_flops * trainer.world_size)
                    )
            if on_gpu:
                row["perf/peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            if trainer.is_global_zero:
                for logger in trainer.loggers:
                    logger.log_metrics(row, step)
        publish(trainer, row)
        self.waiting.clear()
        if trainer.is_global_zero:
            self.display(trainer, step, row, module)

    def display(
        self, trainer: L.Trainer, step: int, row: dict[str, float], module: PhaseModule
    ) -> None:
        left = short_time((module.total_steps - step) / self.speed if self.speed else 0.0)
        mfu = f"  mfu {100 * row['perf/mfu']:.1f}%" if "perf/mfu" in row else ""
        speed = (
            f"{row['perf/tokens_per_second']:,.0f} tok/s{mfu}  "
            if self.batch_tokens is not None
            else ""
        )
        numbers = (
            f"loss {self.smooth / self.weight:.4f}  lr x{row['train/lr_multiplier']:.3f}  "
            f"{1000 * row['perf/step_seconds']:,.0f} ms  "
            f"{speed}epoch {int(row['train/epoch'])}  {left} left"
        )
        if headline := module.headline():
            numbers = f"{headline}  {left} left"
        for name, value in trainer.progress_bar_metrics.items():  # logged with prog_bar=True
            if name not in SHOWN:
                numbers += f"  {name} {value:.4g}"
        if self.progress is not None:
            self.progress.update(
                self.task,
                completed=step,
                description=f"step {step:,}/{module.total_steps:,}",
                numbers=numbers,
            )
        elif self.show == "lines" and (
            step == module.total_steps
            or step <= self.log_every
            or time.monotonic() - self.last_line >= 5
        ):
            # a line at most every 5 seconds, so that a log file stays readable
            self.last_line = time.monotonic()
            print(f"step {step:>6,}/{module.total_steps:,}  {numbers}", flush=True)

    def not_finite(self, trainer: L.Trainer, module: PhaseModule, step: int, loss: float) -> None:
        """Write batch number, norms and recent losses into the run folder, then stop with one
        line."""
        place = self.run_folder / f"not_finite_step_{step:06d}"
        if trainer.is_global_zero:
            place.mkdir(parents=True, exist_ok=True)
            bad = {
                name: {
                    "finite": bool(local(p).isfinite().all()),
                    "norm": float(local(p).detach().float().norm()),
                    "grad_norm": None if p.grad is None else float(local(p.grad).float().norm()),
                }
                for name, p in module.gpt.named_parameters()
            }
            recent = [(s, float(value)) for s, value, _ in self.waiting]
            write_json(
                place / "report.json",
                {
                    "step": step,
                    "loss": loss,
                    "batch": step - 1,
                    "recent_losses": recent,
                    "parameters": bad,
                },
            )
        raise ValueError(
            f"loss is {loss} at step {step}; {place}/report.json holds the norms of every "
            f"parameter and the recent losses, {module.where_the_batch_is(step)}; the checkpoints "
            "before it are sound: start a new run from one with init_from=RUN@latest and a lower "
            "rate (optim.groups.matrix.lr=…), or this one again with another seed"
        )
