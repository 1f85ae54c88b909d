"""Lightning's plug-in for saving and loading checkpoints, so that `trainer.save_checkpoint` writes
a checkpoint folder."""

from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from nanochat import distributed
from nanochat.checkpoint import folder
from nanochat.checkpoint.shared_file import HeldRows, rows_of_rank
from nanochat.checkpoint.writer import Writer, copied
from nanochat.gpt import GPTConfig

PREFIX = "gpt."  # the GPT is the attribute `gpt` of every phase's module


class FolderCheckpointIO(CheckpointIO):
    """Weights go to model.safetensors, everything else that Lightning needs to restore to trainer/.
    All ranks save. With a `writer` saving returns when the state is copied."""

    def __init__(
        self,
        config: GPTConfig,
        tokenizer: Any,
        lineage: dict[str, Any],
        writer: Writer | None = None,
    ) -> None:
        self.config, self.tokenizer, self.lineage = config, tokenizer, lineage
        self.writer = writer

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        state = dict(checkpoint)
        weights = {
            k.removeprefix(PREFIX): rows_of_rank(v) for k, v in state.pop("state_dict").items()
        }
        by_rows = any(isinstance(weight, HeldRows) for weight in weights.values())
        together = by_rows or bool(checkpoint.get("optimizer_states"))
        if not together and distributed.rank() > 0:
            return  # weights alone, of which every rank has all
        facts = {"step": int(checkpoint["global_step"]), **state.pop("facts", {})}
        behind = self.writer if together else None
        if behind is not None:
            weights, state = copied((weights, state))
        write = partial(
            folder.save,
            Path(path),
            weights,
            self.config,
            self.tokenizer,
            {**self.lineage, **facts},
            state,
        )
        write() if behind is None else behind.begin(write)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        path = Path(path)
        self.finish()
        return {
            **folder.read_state(path, by_rows=True),
            "state_dict": {PREFIX + k: v for k, v in folder.read_weights(path).items()},
        }

    def remove_checkpoint(self, path: Any) -> None:
        import shutil

        self.finish()
        shutil.rmtree(path, ignore_errors=True)

    def finish(self) -> None:
        """Wait until what was to be saved is written."""
        if self.writer is not None:
            self.writer.finish()
