"""A budget that raises what a full card raises: the run goes on in smaller parts,
with the same batches."""

import logging

import lightning as L
import pytest
import torch

from nanochat import optim
from nanochat.commands.configs import compose_choice
from nanochat.gpt import GPT, from_depth
from nanochat.modules.next_token import NextTokenModule

ROWS = 8


class Budget(NextTokenModule):
    """No more than `rows` rows at a time; what is over runs out in the forward
    or the backward pass."""

    rows, where, seen = ROWS, "forward", ()

    def micro_loss(self, batch):
        rows = len(batch["idx"])
        self.seen = (*self.seen, rows)
        full = torch.OutOfMemoryError("of the test")
        too_many = rows > self.rows and len(self.seen) > 1  # there are gradients already
        if too_many and self.where == "forward":
            raise full
        loss = super().micro_loss(batch)
        if too_many:  # once half of the gradients are there

            def raises(_):
                hook.remove()
                raise full

            hook = self.gpt.transformer.h[0].mlp.c_fc.weight.register_hook(raises)
        return loss

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        self.grads = {name: p.grad.clone() for name, p in self.gpt.named_parameters()}


class Batches:
    def __iter__(self):
        drawn = torch.Generator().manual_seed(0)
        while True:
            idx = torch.randint(0, 100, (ROWS, 17), generator=drawn)
            targets = idx[:, 1:].clone()
            targets[::3, 5:] = -1  # parts with fewer targets
            yield {"idx": idx[:, :-1], "targets": targets, "num_targets": 200, "epoch": 0}


def trained(rows: int, where: str = "forward") -> Budget:
    """A step of two micro-batches; the second does not fit."""
    gpt = GPT.build(from_depth(2, vocab_size=100, sequence_len=16, aspect_ratio=16, head_dim=16))
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in gpt.parameters():
            p.normal_(0, 0.1, generator=drawn)
    choice = compose_choice("optim", "muon")

    def build(gpt: GPT) -> optim.GroupedOptimizer:
        return optim.build(gpt, choice["groups"], weight_decay=0.1)

    module = Budget(gpt, build, optim.build_schedule(choice["schedule"]), 10)
    module.rows, module.where = rows, where
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        max_epochs=-1,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, Batches())
    return module


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_step_in_parts_is_the_step(where: str, caplog: pytest.LogCaptureFixture) -> None:
    whole = trained(ROWS).grads
    with caplog.at_level(logging.WARNING):
        module = trained(2, where)
    assert module.halving.parts == 4 and module.seen[-4:] == (2, 2, 2, 2)
    for name, g in whole.items():  # sums of fp32 in another order
        assert (g - module.grads[name]).abs().max() < 1e-5 * max(g.abs().max(), 0.01), name
    lines = [line for line in caplog.messages if "out of memory" in line]
    assert len(lines) == 2 and "data.rows_per_device=2" in lines[1]


def test_a_single_row_that_does_not_fit_ends_the_run() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        trained(0)
