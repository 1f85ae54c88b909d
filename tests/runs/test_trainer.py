"""Every flag of Lightning's Trainer is one that can be set, or says what is set instead."""

import inspect
from typing import Any

import lightning as L
import pytest

from nanochat.runs.trainer import INSTEAD, TrainerFlags, build_trainer, flags
from nanochat.runtime.settings import check, parameters

MACHINE = {
    "_target_": "lightning.Trainer",
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "ddp",
    "gradient_clip_val": None,
}


def test_every_flag_of_lightning_is_known() -> None:
    lightning = set(inspect.signature(L.Trainer.__init__).parameters) - {"self"}
    ours = set(parameters(TrainerFlags))
    assert ours <= lightning and lightning - ours <= set(INSTEAD)
    assert set(INSTEAD) - lightning == {"compile", "attention", "expected_mfu"}, (
        "what was a flag of the trainer before"
    )


@pytest.mark.parametrize("key", sorted(INSTEAD))
def test_what_the_run_sets_says_what_to_type(key: str) -> None:
    with pytest.raises(ValueError, match=f"trainer.{key} cannot be set: .*{INSTEAD[key][:20]}"):
        flags({**MACHINE, key: 1}, "trainer")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"gradient_clip_algorithm": "value"},
            r"cannot take effect: add trainer.gradient_clip_val=1.0",
        ),
        ({"limit_train_batches": 2, "overfit_batches": 3}, "say the same; keep one of them"),
    ],
)
def test_flags_that_contradict_each_other(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        flags({**MACHINE, **more}, "trainer")


def test_flags_reach_lightning() -> None:
    given = {
        "detect_anomaly": True,
        "benchmark": True,
        "gradient_clip_val": 1.5,
        "gradient_clip_algorithm": "value",
    }
    settings = check(
        {**MACHINE, **given, "profiler": "simple"}, flags(MACHINE, "trainer"), "trainer."
    )
    trainer = build_trainer(settings, steps=7, accumulate=3, callbacks=[], logger=[])
    assert (
        trainer._detect_anomaly and trainer.max_steps == 7 and trainer.accumulate_grad_batches == 3
    )
    assert (trainer.gradient_clip_val, trainer.gradient_clip_algorithm) == (1.5, "value")
    assert type(trainer.profiler).__name__ == "SimpleProfiler" and trainer.precision == "32-true"
    group = {
        "_target_": "lightning.pytorch.profilers.AdvancedProfiler",
        "line_count_restriction": 0.5,
    }
    trainer = build_trainer(
        {**settings, "profiler": group}, steps=1, accumulate=1, callbacks=[], logger=[]
    )
    assert trainer.profiler.line_count_restriction == 0.5  # type: ignore[attr-defined]
