"""Where metrics go besides the screen. Each function here makes one logger for a run folder; `conf/logger/*.yaml` names them."""

import hashlib
from pathlib import Path

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from nanochat.callbacks.csv_logger import CsvLogger


def csv(folder: Path, resume_step: int) -> Logger:
    return CsvLogger(folder, resume_step)


def wandb(folder: Path, resume_step: int, project: str, offline: bool) -> Logger:
    """Weights & Biases. The run id follows from the run folder, so a resumed run continues the same one, offline too."""
    name = f"{folder.parent.name}/{folder.name}"
    run_id = hashlib.sha256(name.encode()).hexdigest()[:12]
    return WandbLogger(name=name, id=run_id, project=project, offline=offline, save_dir=str(folder), resume="allow")


def tensorboard(folder: Path, resume_step: int) -> Logger:
    """TensorBoard. What an interrupted run wrote after the step it is resumed from is hidden; that step's points stay."""
    purge = resume_step + 1 if resume_step else 0
    try:
        return TensorBoardLogger(save_dir=str(folder), name="tensorboard", version="", purge_step=purge)
    except ModuleNotFoundError as error:
        raise ValueError(
            "logger=tensorboard needs the package tensorboard: pip install 'nanochat[tensorboard]'"
        ) from error
