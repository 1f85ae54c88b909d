"""Lightning's plug-in for saving and loading checkpoints, so that `trainer.save_checkpoint` writes
a checkpoint folder."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from nanochat import distributed
from nanochat.checkpoint import folder
from nanochat.gpt import GPTConfig

PREFIX = "gpt."  # the GPT is the attribute `gpt` of every phase's module


class FolderCheckpointIO(CheckpointIO):
    """Weights go to model.safetensors, everything else that Lightning needs to restore to trainer/.
    All ranks save."""

    def __init__(self, config: GPTConfig, tokenizer: Any, lineage: dict[str, Any]) -> None:
        self.config, self.tokenizer, self.lineage = config, tokenizer, lineage

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        if not checkpoint.get("optimizer_states") and distributed.rank() > 0:
            return  # weights alone, of which every rank has all
        state = dict(checkpoint)
        weights = {k.removeprefix(PREFIX): v for k, v in state.pop("state_dict").items()}
        facts = {"step": int(checkpoint["global_step"]), **state.pop("facts", {})}
        folder.save(
            Path(path), weights, self.config, self.tokenizer, {**self.lineage, **facts}, state
        )

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        path = Path(path)
        return {
            **folder.read_state(path, by_rows=True),
            "state_dict": {PREFIX + k: v for k, v in folder.read_weights(path).items()},
        }

    def remove_checkpoint(self, path: Any) -> None:
        import shutil

        shutil.rmtree(path, ignore_errors=True)
