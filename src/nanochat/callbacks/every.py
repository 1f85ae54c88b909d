"""Base of the periodic callbacks: `at_step` runs once per optimizer step, whatever the number of micro-batches."""

from typing import Any

import lightning as L

from nanochat.modules.phase import PhaseModule


class StepCallback(L.Callback):
    """Calls `at_step(trainer, module, step)` after every optimizer step; `step` counts finished steps, so the last is `max_steps`."""

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


def is_due(step: int, every: int | None, last: int) -> bool:
    """True at every multiple of `every` and at the last step; `every=None` only at the last."""
    return step == last or (every is not None and step % every == 0)


def check_every(name: str, every: int | None) -> None:
    if every is not None and every < 1:
        raise ValueError(f"{name}={every} must be at least 1, or null to run it only at the end")
