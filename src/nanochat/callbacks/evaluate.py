"""Evaluate every N steps and at the end. An evaluation that fails is logged and training goes on,
on every process alike."""

import logging
from collections.abc import Callable
from functools import partial

import lightning as L

from nanochat.callbacks.every import StepCallback, check_every, evaluating, is_due, publish
from nanochat.checkpoint.runs import RunCheckpoints
from nanochat.distributed import agreed
from nanochat.evals.evaluation import Result
from nanochat.modules.phase import PhaseModule

log = logging.getLogger(__name__)


# every so many steps or such a share of the run (None: at the end), and an evaluation of the module
Eval = tuple[float | None, Callable[[PhaseModule], Result]]


class Evaluate(StepCallback):
    """`evals` maps a name to how often and an evaluation; its numbers are logged as `val/…`, its
    texts are shown. A collective in one comes after `agreed` (distributed/collectives.py); then a
    process that fails leaves no other waiting.

    Runs after `Save`, so the weights are on disk before an evaluation can fail. The numbers of a
    step are recorded together, so a step has all of them or none. The other callbacks see a
    validation: Lightning's hooks for it are called.
    """

    def __init__(
        self, evals: dict[str, Eval], checkpoints: RunCheckpoints, *, at_start: bool = False
    ) -> None:
        for every, _ in evals.values():
            check_every("eval_every", every)
        self.evals, self.checkpoints, self.at_start = evals, checkpoints, at_start
        self.latest: dict[str, float] = {}
        self.latest_step = -1

    def on_train_start(self, trainer: L.Trainer, module: PhaseModule) -> None:
        super().on_train_start(trainer, module)
        if trainer.global_step == 0 and self.at_start:
            self._run(trainer, module, 0, list(self.evals))
        self.catch_up(trainer, module)

    def catch_up(self, trainer: L.Trainer, module: PhaseModule) -> None:
        """The evaluation that is owed to the checkpoint of this step: the run was stopped after
        saving and before evaluating, or an evaluation has stopped it, and it was saved after
        that."""
        step = trainer.global_step
        if step > 0 and self.checkpoints.path(step).is_dir() and not self.checkpoints.metrics(step):
            if step != self.latest_step:
                self.at_step(trainer, module, step)
            elif trainer.is_global_zero:
                self.checkpoints.record(step, self.latest)

    def at_step(self, trainer: L.Trainer, module: PhaseModule, step: int) -> None:
        due = [
            name
            for name, (every, _) in self.evals.items()
            if is_due(step, every, module.total_steps)
        ]
        if due:
            self._run(trainer, module, step, due)

    def _run(self, trainer: L.Trainer, module: PhaseModule, step: int, due: list[str]) -> None:
        results: Result = {}
        for callback in trainer.callbacks:
            callback.on_validation_start(trainer, module)
        with evaluating(trainer, module):
            for name in due:
                evaluate = self.evals[name][1]
                try:
                    results.update(agreed(partial(evaluate, module), module.device))
                except Exception as error:
                    log.warning(
                        "evaluation %s failed at step %d and was left out: %s: %s",
                        name,
                        step,
                        type(error).__name__,
                        error,
                    )
        self.latest = {
            f"val/{k}": float(v) for k, v in results.items() if isinstance(v, int | float)
        }
        texts = [
            (k, v if isinstance(v, list) else [v])
            for k, v in results.items()
            if isinstance(v, str | list)
        ]
        for name, text in (
            [(k, line) for k, lines in texts for line in lines] if trainer.is_global_zero else []
        ):
            log.info("step %d  %s: %s", step, name, text)
        self.latest_step = step
        publish(trainer, self.latest)
        if self.latest and trainer.is_global_zero:
            self.checkpoints.record(step, self.latest)
            for logger in trainer.loggers:
                logger.log_metrics(self.latest, step)
            log.info(
                "step %d  %s",
                step,
                "  ".join(
                    f"{k} {v:,.0f}" if v > 1 and v.is_integer() else f"{k} {v:.4f}"
                    for k, v in self.latest.items()
                    if "/" not in k.removeprefix("val/")  # parts of a number: for the loggers
                ),
            )
        for callback in trainer.callbacks:
            callback.on_validation_end(trainer, module)
