"""Supervised fine-tuning: imitate the assistant. Which tokens are the assistant's is the data's to say: a target of another is -1."""

from typing import Any

from torch import Tensor

from nanochat.modules.phase import PhaseModule


class SFTModule(PhaseModule):
    """Next-token loss on the targets of conversations."""

    def micro_loss(self, batch: dict[str, Any]) -> Tensor:
        return self.gpt.loss_sum(batch["idx"], batch["targets"])
