"""TensorBoard, in the run folder."""

import importlib.util
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger


class TensorBoard(TensorBoardLogger):
    """What an interrupted run wrote after the step it is resumed from is hidden; that step's points
    stay."""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        purge = resume_step + 1 if resume_step else 0
        super().__init__(save_dir=str(folder), name="tensorboard", version="", purge_step=purge)

    @staticmethod
    def check() -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ValueError(
                "logger=tensorboard needs the package tensorboard: pip install "
                "'nanochat[tensorboard]', or choose logger=csv"
            )
