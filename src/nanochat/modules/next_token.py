"""Predict the next token: pretraining, midtraining and SFT differ only in their data, where a
target of -1 does not count."""

from typing import Any

from torch import Tensor

from nanochat.evals.bpb import local_sums, numbers_of
from nanochat.modules.phase import PhaseModule


class NextTokenModule(PhaseModule):
    """Next-token loss: of text every target counts, of conversations those that `data.supervise`
    names.

    `trainer.validate(module, datamodule)` gives val/bpb, as the evaluations of a run do;
    `trainer.test` names it test/bpb.
    """

    sums: Tensor | None = None  # of the validation so far: nats, bytes, tokens

    def micro_loss(self, batch: dict[str, Any]) -> Tensor:
        return self.gpt.loss_sum(batch["idx"], batch["targets"])  # (B, T), (B, T) -> ()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        token_bytes = self.trainer.datamodule.tokenizer.token_bytes  # type: ignore[attr-defined]
        part = local_sums(self.gpt, [batch], token_bytes)  # (3,)
        self.sums = part if self.sums is None else self.sums + part

    def on_validation_epoch_end(self, name: str = "val") -> None:
        assert self.sums is not None
        sums, self.sums = self.sums, None
        self.log_dict(
            {f"{name}/{key}": value for key, value in numbers_of(sums).items()}, rank_zero_only=True
        )

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end("test")
