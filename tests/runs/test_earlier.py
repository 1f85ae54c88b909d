"""A run that an earlier version made goes on: its config means the same in today's words."""

import yaml

from nanochat.runs.earlier import in_todays_words
from nanochat.runs.run_folder import differences
from tests.configs.test_every_yaml import composed

OLD_TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "ddp",
    "precision": "fp32",
    "compile": "auto",
    "attention": "auto",
    "gradient_clip_val": None,
    "expected_mfu": 0.37,
}


def before(now: dict, target: str, **trainer: object) -> dict:
    """The config that the version before would have written for the same words."""
    old = yaml.safe_load(yaml.safe_dump(now))
    del old["compute"]
    del old["optim"]["groups"]["vector"]  # GPT-2's gains and biases
    return {
        **old,
        "trainer": {**OLD_TRAINER, **trainer},
        "callbacks": {},
        "module": {"_target_": target},
    }


def test_old_configs_of_every_phase_are_the_same_run() -> None:
    for phase, target in (
        ("base", "pretrain.PretrainModule"),
        ("mid", "mid.MidModule"),
        ("sft", "sft.SFTModule"),
        ("rl", "rl.RLModule"),
    ):
        now = composed(f"+phase={phase}", "trainer=cpu", "compute.precision=fp32")
        old = before(now, f"nanochat.modules.{target}")
        assert differences(in_todays_words(old), now) == []
        changed = differences(
            in_todays_words(before(now, f"nanochat.modules.{target}", precision="bf16")), now
        )
        assert changed == ["compute.precision: bf16 -> fp32"]
        assert in_todays_words(now) == now
