"""Print what the model writes, every N steps and at the end, and keep it in the run folder."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import lightning as L

from nanochat.callbacks.every import StepCallback, check_every, evaluating, is_due
from nanochat.modules.phase import PhaseModule

log = logging.getLogger(__name__)


class Sample(StepCallback):
    """`complete(gpt, prompts)` gives one text per prompt; a failure is logged and training goes on.

    Each is a line of `file`: step, prompt, text.
    """

    def __init__(
        self,
        complete: Callable[..., list[str]],
        prompts: list[str],
        every: int | None,
        file: Path | None = None,
    ) -> None:
        check_every("sample_every", every)
        self.complete, self.prompts, self.every, self.file = complete, prompts, every, file

    def at_step(self, trainer: L.Trainer, module: PhaseModule, step: int) -> None:
        if not self.prompts or not is_due(step, self.every, module.total_steps):
            return
        with evaluating(trainer, module):
            if not trainer.is_global_zero:
                return
            try:
                texts = self.complete(module.gpt, self.prompts)
                for prompt, text in zip(self.prompts, texts, strict=True):
                    log.info("sample at step %d: %s", step, repr(prompt + text))
                    self.keep({"step": step, "prompt": prompt, "text": text})
            except Exception as error:
                log.warning(
                    "sampling failed at step %d and was left out: %s: %s",
                    step,
                    type(error).__name__,
                    error,
                )

    def keep(self, sample: dict[str, object]) -> None:
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(sample, ensure_ascii=False) + "\n")
