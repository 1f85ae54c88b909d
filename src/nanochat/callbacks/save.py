"""Save the run every N steps, at its end, and when a signal or another callback stops it."""

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import lightning as L

from nanochat.callbacks.every import StepCallback, check_every, is_due
from nanochat.checkpoint.runs import RunCheckpoints
from nanochat.distributed import AnyRank
from nanochat.modules.phase import PhaseModule
from nanochat.runtime.lightning_private import leave_signals_alone
from nanochat.runtime.signals import CtrlC, handle_stops, raise_stop_at_once, restore_stops


class Save(StepCallback):
    """Writes `checkpoints/step_…`. A signal (SIGTERM, SIGHUP, Ctrl-C once) saves and stops after
    the step that is running; of several ranks after the next, the same on every rank."""

    def __init__(
        self,
        checkpoints: RunCheckpoints,
        every: int | None,
        before: Callable[[L.Trainer, PhaseModule], None],
    ) -> None:
        """`before` is called ahead of every save: it checks the losses and writes what is known of
        the steps up to here."""
        check_every("save_every", every)
        self.checkpoints = checkpoints
        self.every = every
        self.before = before
        self.told_to_stop = False
        self.saved = -1  # the last step that was saved
        self._old_handlers: dict[int, Any] = {}
        self._ctrl_c = CtrlC()
        self._speaks = True

    def listen(self, trainer: L.Trainer) -> None:
        """Take the signals from here on instead of Lightning, also before the first step."""
        leave_signals_alone(trainer)
        if not self._old_handlers:
            self._old_handlers = handle_stops(self._on_signal)

    def on_train_start(self, trainer: L.Trainer, module: PhaseModule) -> None:
        super().on_train_start(trainer, module)
        self._speaks = trainer.is_global_zero
        self._stop = AnyRank()
        self.listen(trainer)

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        restore_stops(self._old_handlers, stopped=self.told_to_stop)
        self._old_handlers = {}

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        self.teardown(trainer, module, "fit")
        if isinstance(exception, Exception):  # what has failed is said already
            with contextlib.suppress(Exception):
                self.checkpoints.finish()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.checkpoints.writer is not None:
            self.tidy(trainer)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._ctrl_c.again():
            raise_stop_at_once()
        if number == signal.SIGINT and not self.told_to_stop and self._speaks:
            # not by print, which may be at work where the signal came
            with contextlib.suppress(OSError):
                os.write(2, b"stopping after this step, then saving; Ctrl-C again stops at once\n")
        self.told_to_stop = True

    def at_step(self, trainer: L.Trainer, module: PhaseModule, step: int) -> None:
        stop = self._stop.ask(self.told_to_stop or self.checkpoints.failed)
        if stop or is_due(step, self.every, module.total_steps):
            self.save(trainer, module, step)
        if stop:
            self.told_to_stop = True
            trainer.should_stop = True

    def save(self, trainer: L.Trainer, module: PhaseModule, step: int) -> None:
        self.before(trainer, module)
        if trainer.fast_dev_run:
            return
        with module.clock.paused():
            if self.checkpoints.writer is not None:
                self.tidy(trainer)
            trainer.save_checkpoint(self.checkpoints.path(step))
            if self.checkpoints.writer is None:
                self.tidy(trainer)
        self.saved = step

    def tidy(self, trainer: L.Trainer) -> None:
        """Wait until the last checkpoint is written, and delete those that are not kept."""
        self.checkpoints.finish()
        if trainer.is_global_zero:
            self.checkpoints.prune()


class SaveWhenStopped(StepCallback):
    """The last of all callbacks: saves the step after which another one ends the run
    (EarlyStopping, Timer)."""

    def __init__(self, save: Save) -> None:
        self.save = save

    def at_step(self, trainer: L.Trainer, module: PhaseModule, step: int) -> None:
        if trainer.should_stop and self.save.saved != step:
            self.save.save(trainer, module, step)
