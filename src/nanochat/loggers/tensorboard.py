"""TensorBoard, in the run folder."""

from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger

from nanochat.loggers.own import check_package


class TensorBoard(TensorBoardLogger):
    """What an interrupted run wrote after the step it is resumed from is hidden; that step's points
    stay."""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        purge = resume_step + 1 if resume_step else 0
        super().__init__(save_dir=str(folder), name="tensorboard", version="", purge_step=purge)

    @staticmethod
    def check() -> None:
        check_package("tensorboard", "'nanochat[tensorboard]'")
