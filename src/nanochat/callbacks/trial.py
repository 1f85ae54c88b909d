"""Before the first step of a run: does a micro-batch fit into memory? If not, all ranks take half
of its rows, and twice as many micro-batches a step."""

import gc
import logging
from contextlib import AbstractContextManager, nullcontext

import lightning as L
import torch

from nanochat.datamodules.by_step import ByStep
from nanochat.distributed import everywhere
from nanochat.modules.phase import PhaseModule
from nanochat.runtime.alive import Alive

log = logging.getLogger(__name__)


class TrialStep(L.Callback):
    """A forward and backward pass of a micro-batch and an evaluation of one, while `reserved` bytes
    are taken that the optimizer will need. `cap`: bytes of a CPU's memory that may be used; a GPU
    has a limit of its own."""

    def __init__(self, data: ByStep, *, reserved: int, cap: int | None = None) -> None:
        self.data, self.reserved, self.cap = data, reserved, cap

    def setup(self, trainer: L.Trainer, module: PhaseModule, stage: str) -> None:  # type: ignore[override]
        data, before = self.data, self.data.micro_rows
        # each rank tries the same numbers of rows, and what one of them cannot, none does
        while not all(everywhere(lambda: self.fits(module, data.micro_rows))):
            if data.micro_rows == 1:
                raise ValueError(
                    "not even a micro-batch of one row fits into memory; try "
                    "compute.checkpointing=block, a smaller model or trainer.strategy=fsdp"
                )
            data.take_rows(data.micro_rows // 2)
        if data.micro_rows == before:
            return
        trainer.accumulate_grad_batches = data.accumulate
        log.warning(
            "a micro-batch of %d rows did not fit in a trial step, one of %d does: %d a step "
            "and process instead of %d",
            before,
            data.micro_rows,
            data.accumulate,
            data.accumulate * data.micro_rows // before,
        )

    def fits(self, module: PhaseModule, rows: int) -> bool:
        """Whether this process has the memory for micro-batches of so many rows."""
        gpt, device = module.gpt, module.gpt.device
        gpt.compile_for(rows)
        params, taken = [p for p in gpt.parameters() if p.requires_grad], []
        try:
            with self.capped(gpt):
                taken = [torch.empty(self.reserved, dtype=torch.uint8, device=device)]
                for p in params:
                    p.grad = torch.zeros_like(p)
                idx = torch.zeros(rows, gpt.config.sequence_len, dtype=torch.long, device=device)
                module.micro_loss({"idx": idx, "targets": idx}).backward()
                with torch.no_grad():
                    gpt.losses(idx, idx)
            return True
        except torch.OutOfMemoryError:
            return False
        finally:
            taken.clear()
            for p in params:
                p.grad = None
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()

    def capped(self, gpt: torch.nn.Module) -> AbstractContextManager[object]:
        if self.cap is None:
            return nullcontext()
        alive = Alive(self.cap)
        for p in gpt.parameters():
            alive.add(p)
        return alive
