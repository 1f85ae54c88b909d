"""Configs of runs that an earlier version made, in today's words."""

from typing import Any

COMPUTE = ("precision", "compile", "attention", "expected_mfu")  # were flags of the trainer
NEXT_TOKEN = (
    "nanochat.modules.pretrain.PretrainModule",
    "nanochat.modules.mid.MidModule",
    "nanochat.modules.sft.SFTModule",
)


def in_todays_words(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with the keys and names of today."""
    found = dict(config)
    trainer, module = dict(found.get("trainer") or {}), dict(found.get("module") or {})
    if "compute" not in found and trainer:
        found["compute"] = {key: trainer.pop(key) for key in COMPUTE if key in trainer}
        found["trainer"] = trainer
    if "compute" in found:
        found["compute"] = {"fp8": False, **found["compute"]}  # which there was not
    if module:
        known = "nanochat.modules.next_token.NextTokenModule"
        target = known if module.get("_target_") in NEXT_TOKEN else module.get("_target_")
        found["module"] = {**module, "_target_": target, "_partial_": True}
    return found
