"""What is predicted on the meta device is what a run then takes, counted tensor by tensor."""

from typing import Any

import lightning as L
import pytest
import torch

from nanochat import optim
from nanochat.commands.configs import compose_choice
from nanochat.gpt import GPT, GPTConfig, build_arch, from_depth
from nanochat.modules.next_token import NextTokenModule
from nanochat.runs.memory import Prediction, largest_rows
from nanochat.runtime.alive import Alive

ROWS, T = 8, 128


class Batches:
    def __iter__(self) -> Any:
        while True:
            idx = torch.zeros(ROWS, T, dtype=torch.long)
            yield {"idx": idx, "targets": idx, "num_targets": ROWS * T, "epoch": 0}


def sizes(name: str, vocab_size: int) -> GPTConfig:
    arch = build_arch(compose_choice("arch", name))
    return from_depth(3, vocab_size=vocab_size, sequence_len=T, arch=arch, head_dim=32)


def build(gpt: GPT) -> optim.GroupedOptimizer:
    return optim.build(gpt, compose_choice("optim", "muon")["groups"], weight_decay=0.1)


def taken(config: GPTConfig, checkpointing: str, accumulated: int) -> int:
    """Bytes at the peak of two steps of a real run."""
    with Alive() as alive:
        gpt = GPT.build(config)
        gpt.prepare(compute_dtype=torch.float32, checkpointing=checkpointing)
        schedule = optim.build_schedule(compose_choice("optim", "muon")["schedule"])
        module = NextTokenModule(gpt, build, schedule, 2)
        alive.peak = alive.now
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=2,
            max_epochs=-1,
            accumulate_grad_batches=accumulated,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(module, Batches())
    return alive.peak


@pytest.mark.parametrize(
    ("arch", "vocab_size", "checkpointing", "accumulated"),
    [
        ("modern", 500, "none", 2),
        ("modern", 8000, "none", 1),  # gradients of large tables
        ("modern", 8000, "block", 2),
        ("classic", 500, "attention", 1),
        ("classic", 500, "block", 2),
    ],
)
def test_the_prediction_is_what_a_run_takes(arch, vocab_size, checkpointing, accumulated) -> None:
    config = sizes(arch, vocab_size)
    predicted = Prediction(config, build, dtype=torch.float32, checkpointing=checkpointing)
    memory = predicted.of(ROWS, accumulated)
    measured = taken(config, checkpointing, accumulated)
    # batches, and numbers of a few bytes that a run keeps
    assert abs(memory.peak / measured - 1) < 0.02, (memory, memory.peak, measured)


def test_the_largest_rows_fit_and_twice_as_many_do_not() -> None:
    of = Prediction(sizes("modern", 500), build, dtype=torch.float32).of
    limit = of(8).peak
    assert largest_rows(of, limit, rank_rows=96, most=32) == 8
    assert largest_rows(of, limit - 1, rank_rows=96, most=32) == 6
    assert largest_rows(of, of(1).peak - 1, rank_rows=96, most=32) == 0
