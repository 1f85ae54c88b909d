"""Questions for reinforcement learning: the data are a task, and a batch is the number of the step
that asks some of its questions."""

from typing import Any

from hydra.utils import instantiate

from nanochat.datamodules.by_step import ByStep, MicroBatches
from nanochat.datamodules.journal import digest
from nanochat.runtime.settings import Count
from nanochat.tasks.task import Task, whole


class QuestionsDataModule(ByStep):
    """`task` as composed by Hydra. `num_epochs` over its questions are the length of a run.
    `micro_tokens` is the number of padded tokens per forward pass of the update (None: chosen for
    the device).

    Questions are asked in order, starting again with the first after the last.
    """

    def __init__(
        self,
        *,
        task: dict[str, Any],
        num_epochs: Count = 1,
        micro_tokens: Count | None = None,
        sequence_len: int | None = None,
    ) -> None:
        super().__init__()
        self.num_epochs = whole("data.num_epochs", num_epochs, 1)
        self.micro_tokens = (
            None if micro_tokens is None else whole("data.micro_tokens", micro_tokens, 1)
        )
        self.task: Task = instantiate(task)
        self.num_workers, self.rows_per_device = 0, None
        self.accumulate = self.micro_rows = 1

    def attach(
        self, tokenizer: Any, *, batch_tokens: int, world_size: int = 1, rank: int = 0
    ) -> None:
        self.tokenizer, self.world_size, self.rank = tokenizer, world_size, rank

    def manifest(self) -> dict[str, Any]:
        """Everything that determines the questions: JSON for a run's lineage."""
        settings = self.task.settings()
        return {
            "hash": digest(settings),
            "task": settings,
            "tokenizer": self.tokenizer.hash,
            "num_epochs": self.num_epochs,
        }

    def prepare_data(self) -> None:
        """Nothing to do: questions are rendered when they are asked."""

    def micro_batches(self) -> "Steps":
        return Steps(self.start_step)

    def ledger(self, k: int) -> dict[str, int]:
        return {"steps": k}


class Steps(MicroBatches):
    """{"step": k} for k from `start_step` on."""

    def micro_batch(self, step: int, part: int) -> dict[str, int]:
        return {"step": step, "epoch": 0}
