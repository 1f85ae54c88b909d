"""Print what the model writes, every N steps and at the end."""

import logging
from collections.abc import Callable

import lightning as L

from nanochat.callbacks.every import StepCallback, check_every, evaluating, is_due
from nanochat.modules.phase import PhaseModule

log = logging.getLogger(__name__)


class Sample(StepCallback):
    """`complete(gpt, prompts)` gives one text per prompt; a failure is logged and training goes on."""

    def __init__(
        self, complete: Callable[..., list[str]], prompts: list[str], every: int | None
    ) -> None:
        check_every("sample_every", every)
        self.complete, self.prompts, self.every = complete, prompts, every

    def at_step(self, trainer: L.Trainer, module: PhaseModule, step: int) -> None:
        if (
            not self.prompts
            or not is_due(step, self.every, module.total_steps)
            or not trainer.is_global_zero
        ):
            return
        with evaluating(trainer, module):
            try:
                for prompt, text in zip(
                    self.prompts, self.complete(module.gpt, self.prompts), strict=True
                ):
                    log.info("sample at step %d: %s", step, repr(prompt + text))
            except Exception as error:
                log.warning(
                    "sampling failed at step %d and was left out: %s: %s",
                    step,
                    type(error).__name__,
                    error,
                )
