"""Base of the periodic callbacks: `at_step` runs once per optimizer step, whatever the number of
micro-batches."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch

from nanochat.modules.phase import PhaseModule


class StepCallback(L.Callback):
    """Calls `at_step(trainer, module, step)` after every optimizer step; `step` counts finished
    steps, so the last is `max_steps`."""

    _seen = -1

    def on_train_start(self, trainer: L.Trainer, module: PhaseModule) -> None:
        self._seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: PhaseModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._seen:
            self._seen = trainer.global_step
            self.at_step(trainer, module, trainer.global_step)

    def at_step(self, trainer: L.Trainer, module: PhaseModule, step: int) -> None:
        raise NotImplementedError


# in a progress bar of Lightning's; ours has them in its own words
SHOWN = ("train/loss", "val/bpb")


@contextmanager
def evaluating(trainer: L.Trainer, module: PhaseModule) -> Iterator[None]:
    """As in Lightning's validation: the network is in eval mode, and a callback may put other
    weights in its place (EMAWeightAveraging puts the averages that it also saves). The clock of
    training stands still."""
    with module.clock.paused():
        module.eval()
        for callback in trainer.callbacks:
            callback.on_validation_epoch_start(trainer, module)
        try:
            with module.whole_gpt():
                yield
        finally:
            for callback in trainer.callbacks:
                callback.on_validation_epoch_end(trainer, module)
            module.train()


def publish(trainer: L.Trainer, metrics: Mapping[str, float]) -> None:
    """Give metrics to the other callbacks, which find them by name (`monitor=val/bpb`)."""
    trainer.callback_metrics.update(
        {name: torch.tensor(float(value)) for name, value in metrics.items()}
    )
    trainer.progress_bar_metrics.update(
        {name: float(metrics[name]) for name in SHOWN if name in metrics}
    )


def is_due(step: int, every: float | None, last: int) -> bool:
    """True at every multiple of `every` and at the last step; `every=None` only at the last. Below
    1 it is a share of the run.

    >>> [step for step in range(1, 11) if is_due(step, 0.25, last=10)]
    [2, 5, 8, 10]
    """
    if step == last or every is None:
        return step == last
    if every < 1:
        number = round(step / (every * last))
        return number > 0 and round(number * every * last) == step
    return step % every == 0


def check_every(name: str, every: float | None) -> None:
    if every is not None and not (0 < every < 1 or (every >= 1 and every == int(every))):
        raise ValueError(f"{name}={every} must be at least 1, or null to run it only at the end")
