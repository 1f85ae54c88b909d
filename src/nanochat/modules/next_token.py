"""Predict the next token: pretraining, midtraining and SFT differ only in their data, where a
target of -1 does not count."""

from typing import Any

from torch import Tensor

from nanochat.evals.bpb import BitsPerByteMetric, count
from nanochat.modules.phase import PhaseModule


class NextTokenModule(PhaseModule):
    """Next-token loss: of text every target counts, of conversations those that `data.supervise`
    names.

    `trainer.validate(module, datamodule)` gives val/bpb, as the evaluations of a run do;
    `trainer.test` names it test/bpb.
    """

    bits_per_byte: BitsPerByteMetric  # of the validation so far

    def micro_loss(self, batch: dict[str, Any]) -> Tensor:
        return self.gpt.loss_sum(batch["idx"], batch["targets"])  # (B, T), (B, T) -> ()

    def on_validation_epoch_start(self) -> None:
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        self.bits_per_byte = BitsPerByteMetric(tokenizer.token_bytes).to(self.gpt.device)

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        count(self.bits_per_byte, self.gpt, batch)

    test_step = validation_step

    def on_validation_epoch_end(self, name: str = "val") -> None:
        found = {f"{name}/{key}": value for key, value in self.bits_per_byte.compute().items()}
        self.log_dict(found, rank_zero_only=True)

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end("test")
