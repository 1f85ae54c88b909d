"""The steps of a run of `nanochat.train` in turn with another program's."""

import time

import lightning as L
from turns import next_turn, say, wait


class Turns(L.Callback):
    """The steps of a run in blocks of `steps`: `+callbacks.turns._target_=callback.Turns`. The
    first block warms up."""

    def __init__(self, steps: int, batch_tokens: int) -> None:
        self.steps, self.amount, self.warm = steps, steps * batch_tokens, False

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        step, last = trainer.global_step, (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not last or step % self.steps:
            return
        wait()
        if self.warm:
            wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
            say({"training, tokens/s": (self.amount, wall, cpu)})
        elif step >= 2:  # the second has made the optimizer's state
            self.warm = True
            say({})
        if self.warm:
            next_turn()
            self.wall, self.cpu = time.perf_counter(), time.process_time()
