"""Lightning's strategies with our way of saving and loading: every rank writes its part
of a checkpoint folder."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.parallel import ParallelStrategy
from torch.nn.parallel import DistributedDataParallel

from nanochat.distributed.fsdp import fill
from nanochat.distributed.sharing import Replicated, to_owners


class FolderDDP(DDPStrategy):
    """DDP that calls its `CheckpointIO` on every rank, not on rank 0 alone. Gradients are views of
    the reducer's buckets, which saves four bytes per parameter. They are complete on the rank that
    updates them; on all ranks only where their norm is clipped.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(gradient_as_bucket_view=True, **settings)

    def setup(self, trainer: L.Trainer) -> None:
        super().setup(trainer)
        module = self.lightning_module
        if module is not None and module.automatic_optimization and not trainer.gradient_clip_val:
            sharing = getattr(self.optimizers[0], "sharing", None)
            assert isinstance(sharing, Replicated) and isinstance(
                self.model, DistributedDataParallel
            )
            self.model.register_comm_hook(sharing.parts, to_owners)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)


class FolderFSDP(ModelParallelStrategy):
    """FSDP2 over all ranks. Lightning saves through torch.distributed.checkpoint, directly into
    the final folder, and initialises the optimizer's state by a step with zero gradients;
    neither is used here."""

    def __init__(self, world_size: int) -> None:
        super().__init__(data_parallel_size=world_size, tensor_parallel_size=1)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return ParallelStrategy.optimizer_state(self, optimizer)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        torch.cuda.empty_cache()
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        fill(self.lightning_module, checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        ParallelStrategy.load_optimizer_state_dict(self, checkpoint)
