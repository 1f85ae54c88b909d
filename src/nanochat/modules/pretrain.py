"""Pretraining: predict the next token of text, every target counts."""

from typing import Any

from torch import Tensor

from nanochat.modules.phase import PhaseModule


class PretrainModule(PhaseModule):
    """Next-token loss on packed text."""

    def micro_loss(self, batch: dict[str, Any]) -> Tensor:
        return self.gpt.loss_sum(batch["idx"], batch["targets"])
