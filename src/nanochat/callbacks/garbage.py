"""Python's garbage collector stays out of the steps: it looks at every object of the process, and a
card runs out of work meanwhile."""

import gc
from typing import Any

import lightning as L

from nanochat.callbacks.every import StepCallback
from nanochat.modules.phase import PhaseModule

EVERY = 5000  # from: facts sheet 5.3, steps


class HoldGarbage(StepCallback):
    """What is there after the first step is frozen. From then on the collector runs after
    evaluations, after samples and every 5,000 steps alone (facts sheet 5.3)."""

    held = False

    def at_step(self, trainer: L.Trainer, module: PhaseModule, step: int) -> None:
        if not self.held and gc.isenabled():
            gc.collect()
            gc.freeze()
            gc.disable()
            self.held = True
        elif step % EVERY == 0:
            gc.collect()

    def on_validation_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        if self.held:
            gc.collect()

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        if self.held:
            gc.unfreeze()
            gc.enable()
            self.held = False

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        self.on_train_end(trainer, module)
