"""A budget that raises what a full card raises: the run goes on in smaller parts,
with the same batches."""

import logging
import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment

from nanochat import optim
from nanochat.commands.configs import compose_choice
from nanochat.distributed.strategies import FolderDDP
from nanochat.gpt import GPT, from_depth
from nanochat.modules.next_token import NextTokenModule
from nanochat.runs.forecast import prediction_of
from nanochat.runs.run_folder import read_record
from tests.distributed.ranks import together
from tests.train.conftest import losses, make_corpus
from tests.train.running import recipe_of
from tests.train.running import trained as trained_run

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
    def __init__(self, rank: int = 0) -> None:
        self.rank = rank

    def __iter__(self):
        drawn = torch.Generator().manual_seed(self.rank)
        while True:
            idx = torch.randint(0, 100, (ROWS, 17), generator=drawn)
            targets = idx[:, 1:].clone()
            targets[::3, 5:] = -1  # parts with fewer targets
            yield {"idx": idx[:, :-1], "targets": targets, "num_targets": 200, "epoch": 0}


def trained(rows: int, where: str = "forward", rank: int = 0, **more: Any) -> Budget:
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
        **more,
    )
    trainer.fit(module, Batches(rank))
    return module


def on_this_rank(where: str) -> dict[str, Any]:
    """As `trained`, on one of two ranks, of which only the second has too little memory; and the
    parts that it computes in at the end."""
    rank = int(os.environ["RANK"])
    os.environ.update(LOCAL_RANK=str(rank), GROUP_RANK="0", LOCAL_WORLD_SIZE="2")
    grads = [
        trained(
            rows,
            where,
            rank,
            strategy=FolderDDP(),
            devices=2,
            plugins=[TorchElasticEnvironment()],
            use_distributed_sampler=False,
        )
        for rows in (ROWS, 2 if rank else ROWS)
    ]
    return {"parts": grads[1].halving.parts, "whole": grads[0].grads, "parted": grads[1].grads}


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


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_one_of_two_ranks_goes_on_in_parts_and_both_do_then(where: str, tmp_path: Path) -> None:
    """The second micro-batch is the one in whose backward pass DDP adds up gradients."""
    for found in together(2, on_this_rank, tmp_path, where):
        assert found["parts"] == 4
        for name, g in found["whole"].items():
            assert (g - found["parted"][name]).abs().max() < 1e-5 * max(g.abs().max(), 0.01), name


def test_a_single_row_that_does_not_fit_ends_the_run() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        trained(0)


def test_a_trial_step_halves_what_does_not_fit_and_the_steps_stay_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    corpus = make_corpus(tmp_path / "corpus")
    words = ["data.rows_per_device=16", "max_steps=2", "save_every=2", "eval_tokens=64"]
    recipe = recipe_of(corpus, *words)
    # more than 4 rows of 16 need, and less than 8 do
    allowed = prediction_of(recipe, recipe.plan, recipe.gpt_config, "none").of(6, 2).peak
    cap = [f"compute.memory_gb={allowed / 1e9:.6f}", "compute.trial=true"]
    tried = trained_run(tmp_path, corpus, *words, *cap, "run_name=tried")
    typed = trained_run(tmp_path, corpus, *words, "data.rows_per_device=4", "run_name=typed")
    assert losses(tried.path) == losses(typed.path)
    assert read_record(tried)["outcome"]["rows_per_device"] == 4
